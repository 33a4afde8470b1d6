"""Normalisation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

import liger_jax
from jax_cases.case import Case, normal, triton


def plain_rms_norm(
    x: jax.Array, scale: jax.Array | None, offset: float = 0.0, llama: bool = True
) -> jax.Array:
    compute = jnp.promote_types(x.dtype, jnp.float32)
    wide = x.astype(compute)
    y = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
    if scale is None:
        return y.astype(x.dtype)
    if llama:
        return y.astype(x.dtype) * (scale + offset)
    return (y * (scale.astype(compute) + offset)).astype(x.dtype)


def plain_add_rms_norm(x: jax.Array, residual: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    return plain_rms_norm(x + residual, scale), x + residual


def plain_layer_norm(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, -1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + 1e-6)
    if scale is not None:
        y = y * scale.astype(y.dtype)
    if bias is not None:
        y = y + bias.astype(y.dtype)
    return y.astype(x.dtype)


def plain_add_layer_norm(
    x: jax.Array, residual: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return plain_layer_norm(x + residual, scale, bias), x + residual


def plain_group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int) -> jax.Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    axes = (*range(1, x.ndim - 1), x.ndim)
    centred = wide - jnp.mean(wide, axes, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axes, keepdims=True) + 1e-6)
    y = y.reshape(x.shape) * scale.astype(y.dtype) + bias.astype(y.dtype)
    return y.astype(x.dtype)


CASES: tuple[Case, ...] = (
    Case(
        "rms_norm",
        triton(liger_jax.rms_norm),
        plain_rms_norm,
        lambda rng, dtype: (normal(rng, (3, 4, 33), dtype), normal(rng, (33,), dtype)),
        (True, False),
        (0, 1),
        (1, 3),
    ),
    Case(
        "rms_norm-gemma",
        triton(liger_jax.rms_norm, scale_offset=1.0, casting="gemma"),
        functools.partial(plain_rms_norm, offset=1.0, llama=False),
        lambda rng, dtype: (normal(rng, (7, 256), dtype), normal(rng, (256,), dtype)),
        (True, False),
        (0, 1),
        (1, 3),
    ),
    Case(
        "rms_norm-no-scale",
        triton(liger_jax.rms_norm),
        lambda x: plain_rms_norm(x, None),
        lambda rng, dtype: (normal(rng, (5, 96), dtype),),
        (True,),
        (0,),
        (1, 2),
    ),
    Case(
        "add_rms_norm",
        lambda *a, implementation="triton": tuple(liger_jax.add_rms_norm(*a, implementation=implementation)),
        plain_add_rms_norm,
        lambda rng, dtype: (
            normal(rng, (2, 3, 65), dtype),
            normal(rng, (2, 3, 65), dtype),
            normal(rng, (65,), dtype),
        ),
        (True, True, False),
        (0, 1, 2),
        (1, 3),
    ),
    Case(
        "layer_norm",
        triton(liger_jax.layer_norm),
        plain_layer_norm,
        lambda rng, dtype: (
            normal(rng, (3, 4, 33), dtype),
            normal(rng, (33,), dtype),
            normal(rng, (33,), dtype),
        ),
        (True, False, False),
        (0, 1, 2),
        (1, 3),
    ),
    Case(
        "add_layer_norm",
        lambda *a, implementation="triton": tuple(
            liger_jax.add_layer_norm(*a, implementation=implementation)
        ),
        plain_add_layer_norm,
        lambda rng, dtype: (
            normal(rng, (2, 3, 65), dtype),
            normal(rng, (2, 3, 65), dtype),
            normal(rng, (65,), dtype),
            normal(rng, (65,), dtype),
        ),
        (True, True, False, False),
        (0, 1, 2, 3),
        (1, 3),
    ),
    *(
        Case(
            f"group_norm-{name}",
            triton(liger_jax.group_norm, num_groups=groups),
            functools.partial(plain_group_norm, groups=groups),
            lambda rng, dtype, shape=shape: (
                normal(rng, shape, dtype),
                normal(rng, shape[-1:], dtype),
                normal(rng, shape[-1:], dtype),
            ),
            (True, False, False),
            (0, 1, 2),
            launches,
        )
        # Statistics, their join and y; the sums per channel, their join and dx; dw and db.
        for name, shape, groups, launches in (
            ("held", (3, 4, 5, 32), 2, (1, 3)),
            ("split", (2, 7, 30), 5, (3, 7)),
        )
    ),
)
