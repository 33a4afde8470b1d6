"""Layers for Flax Linen: constructors and parameters as in `flax.linen`, so that a checkpoint still loads."""

from liger_jax.linen.embed import Embed
from liger_jax.linen.mlp import GeGLU, SwiGLU
from liger_jax.linen.norms import GroupNorm, LayerNorm, RMSNorm

__all__ = [
    "Embed",
    "GeGLU",
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
    "SwiGLU",
]
