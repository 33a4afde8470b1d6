"""Rotary position embedding."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import liger_jax
from jax_cases.case import Case, normal, triton


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
)
