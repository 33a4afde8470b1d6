"""Rotary position embedding."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import liger_jax
from benchmarks.jax_side.entry import Entry, constant, normal
from benchmarks.jax_side.norms import plain_rms_norm
from benchmarks.sizes import Sizes
from liger_triton import qk_norm_rope, rope

Pair = tuple[jax.Array, jax.Array]


def plain_rope(q: jax.Array, k: jax.Array, cos: jax.Array, sin: jax.Array) -> Pair:
    """In float32, of q and k (batch, seq, heads, head_dim) and tables (1, seq, head_dim)."""
    cos, sin = (table.astype(jnp.float32)[..., None, :] for table in (cos, sin))

    def rotated(x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        low, high = jnp.split(wide, 2, axis=-1)
        return (wide * cos + jnp.concatenate((-high, low), axis=-1) * sin).astype(x.dtype)

    return rotated(q), rotated(k)


def _plain_at_positions(
    q: jax.Array, k: jax.Array, cos: jax.Array, sin: jax.Array, positions: jax.Array
) -> Pair:
    return plain_rope(q, k, cos[positions], sin[positions])


def _plain_mrope(
    sections: tuple[int, ...], q: jax.Array, k: jax.Array, cos: jax.Array, sin: jax.Array
) -> Pair:
    """Tables (batch, seq, 3, head_dim), as the op has them."""
    plane = np.repeat(np.arange(3), sections)
    index = jnp.asarray(np.concatenate((plane, plane)))[None, None, None]
    return plain_rope(q, k, *(jnp.take_along_axis(t, index, axis=2)[:, :, 0] for t in (cos, sin)))


def _mrope(
    sections: tuple[int, ...], q: jax.Array, k: jax.Array, cos: jax.Array, sin: jax.Array, **more: Any
) -> Pair:
    cos, sin = (jnp.moveaxis(table, 2, 0) for table in (cos, sin))
    return liger_jax.apply_rope(q, k, cos, sin, mrope_section=sections, **more)


def _at_positions(
    q: jax.Array, k: jax.Array, cos: jax.Array, sin: jax.Array, positions: jax.Array, **more: Any
) -> Pair:
    return liger_jax.apply_rope(q, k, cos, sin, position_ids=positions, **more)


def _plain_normed(
    q: jax.Array, k: jax.Array, q_scale: jax.Array, k_scale: jax.Array, cos: jax.Array, sin: jax.Array
) -> Pair:
    return plain_rope(plain_rms_norm(q, q_scale), plain_rms_norm(k, k_scale), cos, sin)


def entries(sizes: Sizes) -> Iterator[Entry]:
    """q and k of (batch, seq, heads, head_dim)."""
    tokens, q_heads, k_heads, dim = sizes.rope
    heads = (normal(1, tokens, q_heads, dim), normal(1, tokens, k_heads, dim))
    table = normal(1, tokens, dim)
    size = f"{tokens} tokens, {q_heads}+{k_heads} heads of {dim}"
    yield Entry(
        f"rope {size}",
        rope.ROPE,
        rope.Options(),
        (*heads, table, table),
        (0, 1),
        liger_jax.apply_rope,
        plain_rope,
    )
    looked_up = normal(sizes.table, dim, dtype=jnp.float32)
    packed = constant(lambda: np.arange(tokens, dtype=np.int32)[None] % sizes.table)
    yield Entry(
        f"rope_at_positions {size}",
        rope.ROPE_AT_POSITIONS,
        rope.Options(),
        (*heads, looked_up, looked_up, packed),
        (0, 1),
        _at_positions,
        _plain_at_positions,
    )
    yield Entry(
        f"qk_norm_rope {size}",
        qk_norm_rope.QK_NORM_ROPE,
        qk_norm_rope.Options(),
        (*heads, normal(dim), normal(dim), table, table),
        (0, 1, 2, 3),
        liger_jax.qk_norm_rope,
        _plain_normed,
    )
    tokens, q_heads, k_heads, dim = sizes.mrope
    planes = normal(1, tokens, 3, dim)
    heads_bytes = 2 * tokens * dim * (q_heads + k_heads)
    moved = 2 * heads_bytes + 4 * tokens * dim  # a column of one of the three tables, of both
    yield Entry(
        f"mrope {tokens} tokens, {q_heads}+{k_heads} heads of {dim}",
        rope.MROPE,
        rope.MultimodalOptions(sizes.sections),
        (normal(1, tokens, q_heads, dim), normal(1, tokens, k_heads, dim), planes, planes),
        (0, 1),
        functools.partial(_mrope, sizes.sections),
        functools.partial(_plain_mrope, sizes.sections),
        moved=(moved, moved),
    )
