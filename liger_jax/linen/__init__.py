"""Layers for Flax Linen: constructors and parameters as in `flax.linen`, so that a checkpoint still loads."""

from liger_jax.linen.embed import Embed
from liger_jax.linen.mlp import GeGLU, SwiGLU
from liger_jax.linen.norms import LayerNorm, RMSNorm

__all__ = [
    "Embed",
    "GeGLU",
    "LayerNorm",
    "RMSNorm",
    "SwiGLU",
]
