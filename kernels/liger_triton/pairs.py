"""What the kernels that rotate pairs share: reading and writing pairs and tables, tiles, and checks.

A pair is the two entries of a head that are rotated together: one of each half of its first rotary_dim entries, or two
neighbours. Tiles have the axes (tokens, heads, pairs).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

from liger import check
from liger.backend import Array, Backend
from liger.launch import Spec, next_power_of_2, previous_power_of_2

THREADS = 128
"""Threads of a program, as a rule."""

TILE = 2048
"""The most pairs of a tile: tokens times heads times pairs of a head."""


# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _members(half: tl.constexpr, n_pairs: tl.constexpr, PAIRS: tl.constexpr):
    """Where in a head the two members of every pair are that are not neighbours.

    The first `half` pairs are of the two halves of 2 * half entries; the others of the two halves of the rest.
    """
    pair = tl.arange(0, PAIRS)[None, None, :]
    if half == n_pairs:
        first = pair
        second = pair + half
    else:
        first = tl.where(pair < half, pair, pair + half)
        second = first + tl.where(pair < half, half, n_pairs - half)
    return first, second


@triton.jit
def _load_pairs(
    ptr,  # (tokens, heads, 1): first element of each head
    mask,
    other: tl.constexpr,
    half: tl.constexpr,
    n_pairs: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """The two members of every pair, (tokens, heads, PAIRS) in fp32; `other` for what is masked."""
    if INTERLEAVED:  # neighbours are read together and parted in registers: wide loads
        col = tl.arange(0, 2 * PAIRS)[None, None, :]
        both = tl.load(ptr + col, mask=mask & (col < 2 * n_pairs), other=other).to(tl.float32)
        first, second = tl.split(tl.reshape(both, (ptr.shape[0], ptr.shape[1], PAIRS, 2)))
    else:
        col1, col2 = _members(half, n_pairs, PAIRS)
        mask = mask & (tl.arange(0, PAIRS)[None, None, :] < n_pairs)
        first = tl.load(ptr + col1, mask=mask, other=other).to(tl.float32)
        second = tl.load(ptr + col2, mask=mask, other=other).to(tl.float32)
    return first, second


@triton.jit
def _store_pairs(
    ptr,
    first,
    second,
    mask,
    half: tl.constexpr,
    n_pairs: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    dtype: tl.constexpr = ptr.dtype.element_ty
    if INTERLEAVED:
        col = tl.arange(0, 2 * PAIRS)[None, None, :]
        tl.store(ptr + col, tl.interleave(first, second).to(dtype), mask=mask & (col < 2 * n_pairs))
    else:
        col1, col2 = _members(half, n_pairs, PAIRS)
        mask = mask & (tl.arange(0, PAIRS)[None, None, :] < n_pairs)
        tl.store(ptr + col1, first.to(dtype), mask=mask)
        tl.store(ptr + col2, second.to(dtype), mask=mask)


@triton.jit
def _turn(x1, x2, cos1, sin1, cos2, sin2, BACKWARD: tl.constexpr):
    """The pairs rotated, or their cotangents rotated back."""
    if BACKWARD:
        y1 = x1 * cos1 + x2 * sin2
        y2 = x2 * cos2 - x1 * sin1
    else:
        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2
    return y1, y2


# --------------------------------------------------------------------------------------------------- launches


class Heads(NamedTuple):
    """q or k as a launch sees it.

    Attributes:
        n_heads: number of heads; 0 where there is nothing to do with it.
        head_dim: entries of a head.
        strides: of the batch, sequence and head axis, in units.
        unit: elements that divide all strides. The compiler then sees what the addresses share.
    """

    n_heads: int
    head_dim: int
    strides: tuple[int, int, int]
    unit: int

    def spec(self, batch: int, seq_len: int, dtype: str) -> Spec:
        """The array of this many tokens."""
        return Spec((batch, seq_len, self.n_heads, self.head_dim), dtype, unread=self.n_heads == 0)


def heads(backend: Backend, x: Array) -> tuple[Array, Heads]:
    """q or k (batch, seq, heads, head_dim), to be read as it lies.

    Strided heads are no obstacle; only entries of one head that are not neighbours are copied.
    """
    if backend.strides(x)[-1] != 1:
        x = backend.dense(x)
    n_heads, head_dim = x.shape[2:]
    strides, unit = in_units(backend, x, 3, head_dim)
    batch, seq, head = strides
    return x, Heads(n_heads, head_dim, (batch, seq, head), unit)


def in_units(backend: Backend, x: Array, n_axes: int, width: int) -> tuple[tuple[int, ...], int]:
    """The strides of the first axes in the largest unit that divides them and the width, and that unit.

    The stride of an axis of one entry means nothing and is 0.
    """
    strides = tuple(
        0 if n == 1 else s for n, s in zip(x.shape[:n_axes], backend.strides(x)[:n_axes], strict=True)
    )
    unit = math.gcd(width, *strides) or 1  # the strides of an empty array may be 0
    return tuple(s // unit for s in strides), unit


def tiles(q: Heads, k: Heads, width: int, most: int = TILE) -> tuple[int, int, int]:
    """Tokens of a program, and heads of q and of k that it works on at once; a head has `width` pairs.

    Of the larger of the two all heads, if a tile of `most` pairs holds them and few of its threads have nothing to do.
    Else tiles of half of `TILE`, so that one is read while another is written, that leave little over at the end.
    Measured: 40 heads of 128 are rotated at .81 of a copy by 32 and 8, by 8 at .93. The other one has as many, or all.
    """
    larger = max(q.n_heads, k.n_heads, 1)
    heads = next_power_of_2(larger)
    if heads * width > most or 6 * (heads - larger) > larger:
        heads = min(previous_power_of_2(max(TILE // 2 // width, 1)), heads)
        while 6 * (-larger % heads) > larger:
            heads //= 2
    tokens = min(max(TILE // 2 // (heads * width), 1), 32)
    q_heads, k_heads = (min(next_power_of_2(max(x.n_heads, 1)), heads) for x in (q, k))
    return tokens, q_heads, k_heads


# ------------------------------------------------------------------------------------------------------ checks


def check_heads(op: str, q: Spec, k: Spec) -> None:
    """Raise unless q and k are (batch, seq, heads, head_dim) of one dtype, alike but for their heads."""
    check.dtype(op, "q", q, check.REFERENCE_FLOATS)
    check.same_dtype(op, "k", k, "q", q)
    for name, x in (("q", q), ("k", k)):
        if len(x.shape) != 4:
            raise ValueError(
                f"{op}: {name} has shape {tuple(x.shape)}; expected (batch, seq, heads, head_dim)."
            )
    check.shape(op, "k", k, (*q.shape[:2], k.shape[2], q.shape[3]), "batch, seq and head_dim of q")


def check_tables(op: str, q: Spec, cos: Spec, sin: Spec, half_tables: bool = False) -> None:
    """Raise unless cos and sin are alike, floating and of a width that q's heads have."""
    check.dtype(op, "cos", cos, check.REFERENCE_FLOATS)
    check.same_dtype(op, "sin", sin, "cos", cos)
    check.shape(op, "sin", sin, tuple(cos.shape), "the shape of cos")
    check.rank_at_least(op, "cos", cos, 1, "the last one is rotary_dim")
    rotary_dim = cos.shape[-1] * (2 if half_tables else 1)
    if rotary_dim % 2 or not 0 < rotary_dim <= q.shape[3]:
        raise ValueError(
            f"{op}: cos has rotary_dim {rotary_dim}; it must be even and at most head_dim ({q.shape[3]})."
        )


def check_table_by_token(op: str, q: Spec, cos: Spec, *axes: int) -> None:
    """Raise unless cos is (batch or 1, seq, *axes, rotary_dim)."""
    expected = ", ".join(map(str, ("(batch or 1", "seq", *axes, "rotary_dim)")))
    if (
        len(cos.shape) != 3 + len(axes)
        or cos.shape[0] not in (1, q.shape[0])
        or tuple(cos.shape[1:-1]) != (q.shape[1], *axes)
    ):
        raise ValueError(
            f"{op}: cos has shape {tuple(cos.shape)}; expected {expected} for q of shape {tuple(q.shape)}."
        )
