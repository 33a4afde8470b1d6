"""What a Llama-shaped decoder is made of, and how to read it from a Hugging Face configuration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

FAMILIES = ("llama", "mistral", "qwen2")
"""Values of `model_type` whose every setting is understood here."""


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretch of the slow rotary frequencies; see `RopeConfig.frequencies`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al., arXiv:2104.09864), over the whole of a head, half-split."""

    theta: float = 10000.0
    scaling: Llama3Scaling | None = None

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Angle per position of each pair of a head, float32, shape (head_dim / 2,).

        f_i = theta^(-2i / head_dim). With Llama 3's scaling, and n_i = original_max_position_embeddings * f_i / 2 pi
        turns within the original context: f_i / factor below low_freq_factor turns, f_i above high_freq_factor turns,
        and in between a blend of the two that is linear in n_i (Llama 3.1's reference code, `apply_scaling`).
        """
        powers = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = np.float32(1.0) / np.float32(self.theta) ** powers
        if self.scaling is None:
            return frequencies
        scaling = self.scaling
        turns = scaling.original_max_position_embeddings * frequencies / (2.0 * math.pi)
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        return ((1.0 - kept) * frequencies / scaling.factor + kept * frequencies).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shapes and choices of a `Decoder`.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated MLP.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads; divides `num_heads` (Ainslie et al., arXiv:2305.13245).
        head_dim: width of a head.
        windows: per layer, how many tokens (itself included) a token attends to; None for all before it.
        rms_norm_eps: added to the mean square.
        rope: the rotary embedding.
        tie_word_embeddings: whether the head is the embedding.
        pad_token_id: the token whose embedding gets no gradient (as torch's padding_idx), or None.
        qkv_bias: whether the query, key and value projections have a bias.
        o_bias: whether the output projection of the attention has one.
        mlp_bias: whether the three projections of the MLP have one.
        initializer_range: standard deviation of the initial weights.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads; received {self.num_kv_heads} and {self.num_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, for the rotary embedding; received {self.head_dim}.")
        if len(self.windows) != self.num_layers:
            raise ValueError(
                f"windows must have one entry for each of the {self.num_layers} layers; received {len(self.windows)}."
            )

    @classmethod
    def from_hf(cls, config: Any) -> DecoderConfig:
        """Read a configuration of Hugging Face transformers, of a Llama, Mistral or Qwen2 model.

        Args:
            config: a transformers configuration, or what its config.json holds (of transformers 4 or 5).

        Raises:
            ValueError: for a model family, an activation, a rotary embedding or a dropout that the decoder does not
                compute, and for a setting that is absent and has no common default.
        """
        raw: dict[str, Any] = dict(config) if isinstance(config, Mapping) else config.to_dict()
        family = raw.get("model_type")
        if family not in FAMILIES:
            raise ValueError(
                f"model_type is {family!r}; the decoder has the shapes of {', '.join(FAMILIES)}."
            )
        _require(
            raw, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
        )
        if family != "llama":
            _require(raw, "num_key_value_heads")
        _accept(raw, "hidden_act", "silu")
        _accept(raw, "attention_dropout", 0.0)
        heads = raw["num_attention_heads"]
        llama_bias = family == "llama" and bool(raw.get("attention_bias"))
        return cls(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            windows=_windows(raw),
            rms_norm_eps=raw.get("rms_norm_eps", cls.rms_norm_eps),
            rope=_rope(raw),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            pad_token_id=raw.get("pad_token_id"),
            qkv_bias=llama_bias or family == "qwen2",
            o_bias=llama_bias,
            mlp_bias=family == "llama" and bool(raw.get("mlp_bias")),
            initializer_range=raw.get("initializer_range", cls.initializer_range),
        )


def _require(raw: Mapping[str, Any], *names: str) -> None:
    absent = [name for name in names if name not in raw]
    if absent:
        raise ValueError(f"The configuration lacks {', '.join(absent)}; add what the model was built with.")


def _accept(raw: Mapping[str, Any], name: str, only: Any) -> None:
    value = raw.get(name)
    if value is not None and value != only:
        raise ValueError(f"{name} is {value!r}; the decoder computes {only!r} only.")


def _windows(raw: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Mistral slides in every layer; Qwen2, where `use_sliding_window` says so, in the layers listed; Llama never."""
    layers: int = raw["num_hidden_layers"]
    family = raw["model_type"]
    if family == "mistral":
        _require(raw, "sliding_window")
        return (raw["sliding_window"],) * layers
    if family == "qwen2" and raw.get("use_sliding_window"):
        _require(raw, "sliding_window")
        kinds = raw.get("layer_types")
        if kinds is None:
            _require(raw, "max_window_layers")
            first = raw["max_window_layers"]
            kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
        unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
        if unknown:
            raise ValueError(
                f"layer_types holds {', '.join(unknown)}; the decoder has full and sliding attention."
            )
        return tuple(raw["sliding_window"] if kind == "sliding_attention" else None for kind in kinds)
    return (None,) * layers


def _rope(raw: Mapping[str, Any]) -> RopeConfig:
    """transformers 5 keeps everything in `rope_parameters`; 4 had `rope_theta` beside `rope_scaling`."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = parameters.get("rope_theta") or raw.get("rope_theta") or RopeConfig.theta
    _accept({**raw, **parameters}, "partial_rotary_factor", 1.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind != "llama3":
        raise ValueError(f"rope_type is {kind!r}; the decoder computes 'default' and 'llama3'.")
    _require(parameters, "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return RopeConfig(
        theta,
        Llama3Scaling(
            factor=parameters["factor"],
            low_freq_factor=parameters["low_freq_factor"],
            high_freq_factor=parameters["high_freq_factor"],
            original_max_position_embeddings=parameters["original_max_position_embeddings"],
        ),
    )
