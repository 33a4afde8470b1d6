"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.entry import Entry, Operands, draw
from liger_torch import functional as f
from liger_triton import qk_norm_rope, rope

SECTION = [16, 24, 24]


def _heads(tokens: int, q_heads: int, k_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Laid out by token, as a model's projections leave them."""
    return draw(1, tokens, q_heads, 128), draw(1, tokens, k_heads, 128)


def entries() -> Iterator[Entry]:
    """RoPE of q and k as a Hugging Face model hands them over: transposed."""

    def by_head(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(q: torch.Tensor, k: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            q, k = function(q.transpose(1, 2), k.transpose(1, 2), *rest)
            return q.transpose(1, 2), k.transpose(1, 2)

        return call

    def by_token() -> Operands:
        cos = torch.randn(1, 8192, 128, device="cuda", dtype=torch.bfloat16)
        return *_heads(8192, 32, 8), cos, cos

    def by_position() -> Operands:
        cos = torch.randn(1024, 128, device="cuda")
        positions = torch.arange(8192, device="cuda")[None] % 1024  # eight documents, packed
        return *_heads(8192, 32, 8), cos, cos, positions

    def by_plane() -> Operands:
        cos = torch.randn(3, 1, 8192, 128, device="cuda", dtype=torch.bfloat16).movedim(0, 2)
        return *_heads(8192, 28, 4), cos, cos

    yield Entry(
        "rope 8192 tokens, 32+8 heads of 128", rope.ROPE, rope.Options(), by_token, by_head(f.liger_rope)
    )
    yield Entry(
        "rope_at_positions 8192 tokens, 32+8 heads of 128",
        rope.ROPE_AT_POSITIONS,
        rope.Options(),
        by_position,
        by_head(f.liger_rope),
        {"gathered before": by_head(lambda q, k, cos, sin, ids: f.liger_rope(q, k, cos[ids], sin[ids]))},
    )
    moved = 2 * 8192 * 128 * (2 * (28 + 4) + 2)  # a column of one of the three tables
    yield Entry(
        "mrope 8192 tokens, 28+4 heads of 128",
        rope.MROPE,
        rope.MultimodalOptions(tuple(SECTION)),
        by_plane,
        by_head(
            lambda q, k, cos, sin: f.liger_qwen2vl_mrope(q, k, cos.movedim(2, 0), sin.movedim(2, 0), SECTION)
        ),
        moved=(moved, moved, 2 * moved),
    )

    def normalised() -> Operands:
        cos = torch.randn(1, 8192, 128, device="cuda", dtype=torch.bfloat16)
        q, k = (draw(1, 8192, n, 128) for n in (32, 8))
        return q, k, draw(128), draw(128), cos, cos

    def in_one(*operands: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, q_weight, k_weight, cos, sin = operands
        return f.liger_qk_norm_rope(q, k, q_weight, k_weight, cos, sin, unsqueeze_dim=2)

    def one_by_one(*operands: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, q_weight, k_weight, cos, sin = operands
        q, k = f.liger_rms_norm(q, q_weight), f.liger_rms_norm(k, k_weight)
        return f.liger_rope(q, k, cos, sin, unsqueeze_dim=2)

    yield Entry(
        "qk_norm_rope 8192 tokens, 32+8 heads of 128",
        qk_norm_rope.QK_NORM_ROPE,
        qk_norm_rope.Options(),
        normalised,
        in_one,
        {"rms_norm, rms_norm, rope": one_by_one},
    )
