"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

from liger.reference.common import compute_dtype, namespace


def rope(q: Any, k: Any, cos: Any, sin: Any, *, interleaved: bool) -> tuple[Any, Any]:
    """Rotate q and k of shape (batch, seq, heads, head_dim) by the tables (batch or 1, seq, rotary_dim).

    The first rotary_dim entries of a head are rotated, the others pass. With pairs (x1, x2):

        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2

    where pairs are the two halves of the rotated part, or, `interleaved`, neighbours (Su et al., arXiv:2104.09864;
    the half-split order is GPT-NeoX's and Hugging Face's).
    """
    return _rotate(q, cos, sin, interleaved), _rotate(k, cos, sin, interleaved)


def _rotate(x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    xp = namespace(x)
    compute = compute_dtype(x)
    n = cos.shape[-1]
    half = n // 2
    first, second = (slice(0, n, 2), slice(1, n, 2)) if interleaved else (slice(0, half), slice(half, n))
    c, s = (xp.astype(table, compute)[:, :, None, :] for table in (cos, sin))
    wide = xp.astype(x, compute)
    x1, x2 = wide[..., first], wide[..., second]
    y1 = x1 * c[..., first] - x2 * s[..., first]
    y2 = x2 * c[..., second] + x1 * s[..., second]
    if interleaved:
        rotated = xp.reshape(xp.stack([y1, y2], axis=-1), (*x.shape[:-1], n))
    else:
        rotated = xp.concat([y1, y2], axis=-1)
    rotated = xp.astype(rotated, x.dtype)
    return rotated if n == x.shape[-1] else xp.concat([rotated, x[..., n:]], axis=-1)
