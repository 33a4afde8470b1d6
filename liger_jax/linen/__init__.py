"""Layers for Flax Linen: constructors and parameters as in `flax.linen`, so that a checkpoint still loads."""

from liger_jax.linen.mlp import GeGLU, SwiGLU

__all__ = ["GeGLU", "SwiGLU"]
