"""Layers for Flax NNX: constructors and parameters as in `flax.nnx`, so that a checkpoint still loads."""

from liger_jax.nnx.layers import RMSNorm, SwiGLU, apply_liger_kernel

__all__ = ["RMSNorm", "SwiGLU", "apply_liger_kernel"]
