"""Rotary position embedding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.entries.norms import EPS, plain_rms_norm
from benchmarks.entry import BACKWARD, FORWARD, Entry, Operands, draw
from benchmarks.providers import EAGER, LIGER, liger, peer
from liger_torch import functional as f
from liger_triton import qk_norm_rope, rope

SECTION = [16, 24, 24]
WIDTH = 128
DOCUMENT = 1024
"""Tokens of each of the documents that are packed."""

NINE_TENTHS = {FORWARD: 0.90, BACKWARD: 0.90}

Two = tuple[torch.Tensor, torch.Tensor]


def _heads(tokens: int, q_heads: int, k_heads: int) -> Two:
    """Laid out by token, as a model's projections leave them."""
    return draw(1, tokens, q_heads, WIDTH), draw(1, tokens, k_heads, WIDTH)


def _by_head(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of (batch, heads, tokens, width), called as a model calls it: on transposed views."""

    def call(q: torch.Tensor, k: torch.Tensor, *rest: torch.Tensor) -> Two:
        q, k = function(q.transpose(1, 2), k.transpose(1, 2), *rest)
        return q.transpose(1, 2), k.transpose(1, 2)

    return call


def _half(table: torch.Tensor) -> torch.Tensor:
    """Of cos or sin, which both halves of a head have alike, the one that quack takes."""
    return table[:, : WIDTH // 2]


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


def _plain(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Two:
    """As Hugging Face's models have it, on (batch, tokens, heads, width)."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _plain_at(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, ids: torch.Tensor
) -> Two:
    return _plain(q, k, cos[ids].to(q.dtype), sin[ids].to(q.dtype))


def _choose(planes: torch.Tensor) -> torch.Tensor:
    """The columns of three tables (batch, tokens, 3, width), as sections say."""
    parts = planes.split(SECTION * 2, -1)
    return torch.cat([part[..., i % 3, :] for i, part in enumerate(parts)], -1)


def _plain_planes(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Two:
    return _plain(q, k, _choose(cos), _choose(sin))


def _plain_normalised(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> Two:
    return _plain(plain_rms_norm(q, q_weight), plain_rms_norm(k, k_weight), cos, sin)


def _angles(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Two:
    """cos and sin of both halves of a head."""
    angles = torch.randn(*shape, WIDTH // 2).repeat(*(1 for _ in shape), 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _by_token(tokens: int) -> Operands:
    return *_heads(tokens, 32, 8), *_angles(1, tokens)


@functools.cache
def _starts(tokens: int, device: torch.device) -> torch.Tensor:
    """Where documents of DOCUMENT tokens each begin, and where the last one ends."""
    return torch.tensor([*range(0, tokens, DOCUMENT), tokens], dtype=torch.int32, device=device)


def entries() -> Iterator[Entry]:
    """RoPE of q and k as a Hugging Face model hands them over: transposed."""
    liger_rope, liger_mrope = liger("liger_rope"), liger("liger_qwen2vl_mrope")
    rotary, rms_norm = peer("quack", "quack.rotary.apply_rotary_emb"), peer("quack", "quack.rmsnorm.rmsnorm")

    def quack(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Two:
        cos, sin = _half(cos[0]), _half(sin[0])
        return rotary(q, cos, sin), rotary(k, cos, sin)

    for tokens in (8192, 1024):
        yield Entry(
            f"rope {tokens} tokens, 32+8 heads of 128",
            rope.ROPE,
            rope.Options(),
            functools.partial(_by_token, tokens),
            _by_head(f.liger_rope),
            {EAGER: _plain, LIGER: _by_head(liger_rope), "quack": quack},
            target=NINE_TENTHS if tokens > 1024 else {},
        )

    def by_position() -> Operands:
        positions = torch.arange(8192)[None] % DOCUMENT  # eight documents, packed
        return *_heads(8192, 32, 8), *_angles(DOCUMENT, dtype=torch.float32), positions

    def quack_packed(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, _: torch.Tensor
    ) -> Two:
        """It takes the documents' starts, which a model has for its attention, in place of positions."""
        cos, sin, starts = _half(cos), _half(sin), _starts(q.shape[1], q.device)

        def rotate(x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = rotary(x.flatten(0, 1), cos, sin, cu_seqlens=starts, max_seqlen=DOCUMENT)
            return found.unsqueeze(0)

        return rotate(q), rotate(k)

    yield Entry(
        "rope_at_positions 8192 tokens, 32+8 heads of 128",
        rope.ROPE_AT_POSITIONS,
        rope.Options(),
        by_position,
        _by_head(f.liger_rope),
        {
            EAGER: _plain_at,
            "quack": quack_packed,
            "ours: gathered before": _by_head(
                lambda q, k, cos, sin, ids: f.liger_rope(q, k, cos[ids], sin[ids])
            ),
        },
        target=NINE_TENTHS,
    )

    def by_plane() -> Operands:
        cos, sin = _angles(3, 1, 8192)
        return *_heads(8192, 28, 4), cos.movedim(0, 2), sin.movedim(0, 2)

    def in_planes(function: Callable[..., Any]) -> Callable[..., Any]:
        return _by_head(lambda q, k, cos, sin: function(q, k, cos.movedim(2, 0), sin.movedim(2, 0), SECTION))

    moved = 2 * 8192 * WIDTH * (2 * (28 + 4) + 2)  # a column of one of the three tables
    yield Entry(
        "mrope 8192 tokens, 28+4 heads of 128",
        rope.MROPE,
        rope.MultimodalOptions(tuple(SECTION)),
        by_plane,
        in_planes(f.liger_qwen2vl_mrope),
        {EAGER: _plain_planes, LIGER: in_planes(liger_mrope)},
        moved=lambda _: (moved, moved, 2 * moved),
        target=NINE_TENTHS,
    )

    def in_one(*operands: torch.Tensor) -> Two:
        q, k, q_weight, k_weight, cos, sin = operands
        return f.liger_qk_norm_rope(q, k, q_weight, k_weight, cos, sin, unsqueeze_dim=2)

    def one_by_one(*operands: torch.Tensor) -> Two:
        q, k, q_weight, k_weight, cos, sin = operands
        q, k = f.liger_rms_norm(q, q_weight), f.liger_rms_norm(k, k_weight)
        return f.liger_rope(q, k, cos, sin, unsqueeze_dim=2)

    def quack_one_by_one(*operands: torch.Tensor) -> Two:
        q, k, q_weight, k_weight, cos, sin = operands
        return quack(rms_norm(q, q_weight, eps=EPS), rms_norm(k, k_weight, eps=EPS), cos, sin)

    yield Entry(
        "qk_norm_rope 8192 tokens, 32+8 heads of 128",
        qk_norm_rope.QK_NORM_ROPE,
        qk_norm_rope.Options(),
        lambda: (*_heads(8192, 32, 8), draw(WIDTH), draw(WIDTH), *_angles(1, 8192)),
        in_one,
        {
            EAGER: _plain_normalised,
            "quack: rmsnorm, rmsnorm, rotary": quack_one_by_one,
            "ours: rms_norm, rms_norm, rope": one_by_one,
        },
    )
