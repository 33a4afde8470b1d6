"""The models that are trained, as configurations of transformers; their weights are random."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

LLAMA3_SCALING: Mapping[str, Any] = MappingProxyType(
    {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Attributes:
        family: transformers' `model_type`.
        hidden: width of the residual stream.
        intermediate: width of the gated MLP.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head.
        vocab: rows of the embedding.
        tied: whether the head is the embedding.
        rope: what the configuration calls `rope_parameters`.
        window: tokens that every other layer attends to; None where all layers attend to all.
    """

    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    rope: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 1e4}
    )
    window: int | None = None

    def config(self) -> dict[str, Any]:
        """The arguments of transformers' configuration; the rest is the family's default."""
        found = {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "tie_word_embeddings": self.tied,
            "rope_parameters": dict(self.rope),
            "max_position_embeddings": 131072,
            "use_cache": False,
            "pad_token_id": None,
        }
        return found if self.window is None else found | {"sliding_window": self.window}


def _theta(theta: float) -> Mapping[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


MODELS: dict[str, Shape] = {
    "llama-3.2-1b": Shape("llama", 2048, 8192, 16, 32, 8, 64, 128256, True, LLAMA3_SCALING),
    "llama-3-8b": Shape("llama", 4096, 14336, 32, 32, 8, 128, 128256, False, _theta(5e5)),
    "qwen3-4b": Shape("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, True, _theta(1e6)),
    "gemma-2-2b": Shape("gemma2", 2304, 9216, 26, 8, 4, 256, 256000, True, _theta(1e4), 4096),
}
"""The shapes of published models."""

CURVES: dict[str, Shape] = {
    "llama-110m": Shape("llama", 1024, 2816, 4, 16, 4, 64, 32000, False, _theta(1e4)),
}
"""Small enough to be trained for a hundred steps."""

TINY: dict[str, Shape] = {
    "llama-tiny": Shape("llama", 64, 96, 2, 4, 2, 16, 211, False),
    "gemma-tiny": Shape("gemma2", 64, 96, 2, 4, 2, 16, 211, True, window=8),
}
"""For a look at the machinery on a CPU."""

SHAPES = MODELS | CURVES | TINY
