"""Layers for Flax NNX: constructors and parameters as in `flax.nnx`, so that a checkpoint still loads.

`Decoder` is a Llama, Qwen2 or Mistral on them, which loads what Hugging Face saved.
"""

from liger_jax.nnx.decoder import Decoder
from liger_jax.nnx.decoder_config import DecoderConfig
from liger_jax.nnx.embed import Embed
from liger_jax.nnx.mlp import GeGLU, SwiGLU
from liger_jax.nnx.norms import GroupNorm, LayerNorm, RMSNorm
from liger_jax.nnx.swap import apply_liger_kernel

__all__ = [
    "Decoder",
    "DecoderConfig",
    "Embed",
    "GeGLU",
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
    "SwiGLU",
    "apply_liger_kernel",
]
