"""Rotary position embedding."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import liger_jax
from jax_cases.case import Case, normal, triton
from jax_cases.norms import plain_rms_norm


def plain_rope(
    q: jax.Array, k: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool = False
) -> tuple[jax.Array, jax.Array]:
    n = cos.shape[-1]

    def rotate(x: jax.Array) -> jax.Array:
        c, s = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
        head, rest = x[..., :n], x[..., n:]
        if interleaved:
            turned = jnp.stack([-head[..., 1::2], head[..., ::2]], -1).reshape(head.shape)
        else:
            turned = jnp.concatenate([-head[..., n // 2 :], head[..., : n // 2]], -1)
        return jnp.concatenate([head * c + turned * s, rest], -1)

    return rotate(q), rotate(k)


def tables(seq: int, rotary: int, interleaved: bool, dtype: Any) -> tuple[jax.Array, jax.Array]:
    angles = np.arange(seq)[:, None] / 100 ** (np.arange(rotary // 2) / (rotary // 2))
    angles = np.repeat(angles, 2, -1) if interleaved else np.concatenate([angles, angles], -1)
    return jnp.asarray(np.cos(angles), dtype)[None], jnp.asarray(np.sin(angles), dtype)[None]


def _rope_inputs(
    rng: np.random.Generator, dtype: Any, interleaved: bool, rotary: int, k_heads: int
) -> tuple[Any, ...]:
    q, k = normal(rng, (2, 5, 4, 20), dtype), normal(rng, (2, 5, k_heads, 20), dtype)
    return q, k, *tables(5, rotary, interleaved, jnp.promote_types(dtype, jnp.float32))


def plain_rope_at_positions(q: Any, k: Any, cos: Any, sin: Any, position_ids: Any) -> tuple[Any, Any]:
    return plain_rope(q, k, cos[position_ids], sin[position_ids])


def plain_mrope(q: Any, k: Any, *tables: Any) -> tuple[Any, Any]:
    """As Qwen2-VL's attention did it: sections of pairs, twice, each from one of three tables."""
    ends = np.cumsum(SECTIONS * 2)[:-1]
    merged = (
        jnp.concatenate([part[i % 3] for i, part in enumerate(jnp.split(t, ends, axis=-1))], axis=-1)
        for t in tables
    )
    return plain_rope(q, k, *merged)


SECTIONS = (2, 5, 3)


def _position_inputs(rng: np.random.Generator, dtype: Any) -> tuple[Any, ...]:
    q, k, *tables = _rope_inputs(rng, dtype, False, 20, 1)
    cos, sin = (jnp.concatenate([t[0], 0.5 * t[0]]) for t in tables)
    return q, k, cos, sin, jnp.asarray(rng.integers(0, 10, (2, 5)), jnp.int32)


def _mrope_inputs(rng: np.random.Generator, dtype: Any) -> tuple[Any, ...]:
    q, k, *_ = _rope_inputs(rng, dtype, False, 20, 2)
    wide = jnp.promote_types(dtype, jnp.float32)
    return q, k, normal(rng, (2, 3, 5, 20), wide), normal(rng, (2, 3, 5, 20), wide)


def plain_qk_norm_rope(
    q: Any, k: Any, q_scale: Any, k_scale: Any, cos: Any, sin: Any, offset: float = 0.0, llama: bool = True
) -> tuple[Any, Any]:
    normed = (plain_rms_norm(x, scale, offset, llama) for x, scale in ((q, q_scale), (k, k_scale)))
    return plain_rope(*normed, cos, sin)


def _qk_inputs(rng: np.random.Generator, dtype: Any, rotary: int) -> tuple[Any, ...]:
    q, k, *tables = _rope_inputs(rng, dtype, False, rotary, 2)
    return q, k, normal(rng, (20,), dtype), normal(rng, (20,), dtype), *tables


def _by_planes(function: Any) -> Any:
    """With the tables' batch axis in front, as a case has it."""
    return lambda q, k, cos, sin, **options: function(q, k, cos.swapaxes(0, 1), sin.swapaxes(0, 1), **options)


CASES: tuple[Case, ...] = (
    Case(
        "rope",
        triton(liger_jax.apply_rope),
        plain_rope,
        lambda rng, dtype: _rope_inputs(rng, dtype, False, 20, 2),
        (True, True, False, False),
        (0, 1),
        (1, 2),
    ),
    Case(
        "rope-interleaved-partial",
        triton(liger_jax.apply_rope, interleaved=True),
        functools.partial(plain_rope, interleaved=True),
        lambda rng, dtype: _rope_inputs(rng, dtype, True, 12, 3),
        (True, True, False, False),
        (0, 1),
        (1, 2),
    ),
    Case(
        "rope_at_positions",
        lambda q, k, cos, sin, position_ids, implementation="triton": liger_jax.apply_rope(
            q, k, cos, sin, position_ids=position_ids, implementation=implementation
        ),
        plain_rope_at_positions,
        _position_inputs,
        (True, True, False, False, True),
        (0, 1),
        (1, 2),
    ),
    Case(
        "mrope",
        triton(_by_planes(liger_jax.apply_rope), mrope_section=SECTIONS),
        _by_planes(plain_mrope),
        _mrope_inputs,
        (True, True, True, True),
        (0, 1),
        (1, 2),
    ),
    Case(
        "qk_norm_rope",
        triton(liger_jax.qk_norm_rope),
        plain_qk_norm_rope,
        lambda rng, dtype: _qk_inputs(rng, dtype, 20),
        (True, True, False, False, False, False),
        (0, 1, 2, 3),
        (1, 3),
    ),
    Case(
        "qk_norm_rope-gemma-partial",
        triton(liger_jax.qk_norm_rope, scale_offset=1.0, casting="gemma"),
        functools.partial(plain_qk_norm_rope, offset=1.0, llama=False),
        lambda rng, dtype: _qk_inputs(rng, dtype, 12),
        (True, True, False, False, False, False),
        (0, 1, 2, 3),
        (1, 3),
    ),
)
