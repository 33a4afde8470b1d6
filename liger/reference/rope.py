"""Rotary position embedding, also of normalised heads."""

from __future__ import annotations

from typing import Any

from liger.reference.common import compute_dtype, namespace
from liger.reference.rms_norm import rms_norm


def rope(
    q: Any,
    k: Any,
    cos: Any,
    sin: Any,
    *,
    interleaved: bool,
    half_tables: bool = False,
    deinterleave: bool = False,
) -> tuple[Any, Any]:
    """Rotate q and k of shape (batch, seq, heads, head_dim) by the tables (batch or 1, seq, rotary_dim).

    The first rotary_dim entries of a head are rotated, the others pass. With pairs (x1, x2):

        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2

    where pairs are the two halves of the rotated part, or, `interleaved`, neighbours (Su et al., arXiv:2104.09864;
    the half-split order is GPT-NeoX's and Hugging Face's). `half_tables` have one column per pair, for both members.
    To `deinterleave` is to write neighbours as halves, as which the tables are then laid out too (DeepSeek-V3's code).
    """
    options = (cos, sin, interleaved, half_tables, deinterleave)
    return _rotate(q, *options), _rotate(k, *options)


def rope_at_positions(
    q: Any,
    k: Any,
    cos: Any,
    sin: Any,
    position_ids: Any,
    *,
    interleaved: bool,
    half_tables: bool,
    deinterleave: bool = False,
) -> tuple[Any, Any]:
    """`rope` by the rows of the tables (positions, rotary_dim) that position_ids (batch or 1, seq) name.

    A position outside of the tables gives NaN.
    """
    tables = (_rows(table, position_ids) for table in (cos, sin))
    return rope(q, k, *tables, interleaved=interleaved, half_tables=half_tables, deinterleave=deinterleave)


def mrope(q: Any, k: Any, cos: Any, sin: Any, *, sections: tuple[int, ...]) -> tuple[Any, Any]:
    """`rope` of halves by tables (batch or 1, seq, 3, rotary_dim) for time, height and width.

    Of the rotary_dim / 2 pairs the first sections[0] are rotated by the first table, the next sections[1] by the
    second, and the last sections[2] by the third (Qwen2-VL, arXiv:2409.12191).
    """
    xp = namespace(q)
    ends = [sum(sections[: i + 1]) for i in range(3)]
    parts = [
        (axis, slice(base + end - size, base + end))
        for base in (0, ends[-1])
        for axis, (size, end) in enumerate(zip(sections, ends, strict=True))
    ]
    cos, sin = (xp.concat([table[:, :, axis, part] for axis, part in parts], axis=-1) for table in (cos, sin))
    return rope(q, k, cos, sin, interleaved=False)


def qk_norm_rope(
    q: Any,
    k: Any,
    q_weight: Any,
    k_weight: Any,
    cos: Any,
    sin: Any,
    *,
    eps: float,
    offset: float,
    casting: str,
    interleaved: bool,
) -> tuple[Any, Any]:
    """`rope` of every head of q and of k normalised by `rms_norm`, whose result is rounded as it would be alone."""
    q = rms_norm(q, q_weight, eps=eps, offset=offset, casting=casting)
    k = rms_norm(k, k_weight, eps=eps, offset=offset, casting=casting)
    return rope(q, k, cos, sin, interleaved=interleaved)


def _rotate(x: Any, cos: Any, sin: Any, interleaved: bool, half_tables: bool, deinterleave: bool) -> Any:
    xp = namespace(x)
    compute = compute_dtype(x)
    n = cos.shape[-1] * (2 if half_tables else 1)
    half = n // 2
    neighbours, halves = (slice(0, n, 2), slice(1, n, 2)), (slice(0, half), slice(half, n))
    first, second = neighbours if interleaved and not deinterleave else halves
    c, s = (xp.astype(table, compute)[:, :, None, :] for table in (cos, sin))
    c1, c2, s1, s2 = (
        (c, c, s, s) if half_tables else (c[..., first], c[..., second], s[..., first], s[..., second])
    )
    wide = xp.astype(x, compute)
    x1, x2 = (wide[..., part] for part in (neighbours if interleaved else halves))
    y1 = x1 * c1 - x2 * s1
    y2 = x2 * c2 + x1 * s2
    if interleaved and not deinterleave:
        rotated = xp.reshape(xp.stack([y1, y2], axis=-1), (*x.shape[:-1], n))
    else:
        rotated = xp.concat([y1, y2], axis=-1)
    rotated = xp.astype(rotated, x.dtype)
    return rotated if n == x.shape[-1] else xp.concat([rotated, x[..., n:]], axis=-1)


def _rows(table: Any, index: Any) -> Any:
    """The rows of a table that an index of any shape names; NaN where there is no such row."""
    xp = namespace(table)
    n_rows, width = table.shape
    known = (index >= 0) & (index < n_rows)
    index = xp.where(known, index, xp.zeros_like(index))
    rows = xp.reshape(xp.take(table, xp.reshape(index, (-1,)), axis=0), (*index.shape, width))
    return xp.where(known[..., None], rows, xp.full_like(rows, xp.nan))
