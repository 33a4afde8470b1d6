"""Normalisation."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import liger_jax
from benchmarks.jax_side.entry import Entry, normal
from benchmarks.providers import Function, peer
from benchmarks.sizes import Sizes
from liger_triton import group_norm, layer_norm, rms_norm

EPS = 1e-6


def plain_rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """As in Llama: rounded before the scale."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + EPS)
    return wide.astype(x.dtype) * scale


def plain_layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """In float32, rounded once."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    rstd = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + EPS)
    return (centred * rstd * scale + bias).astype(x.dtype)


def _added(norm: Function) -> Function:
    def call(x: jax.Array, residual: jax.Array, *rest: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = x + residual
        return norm(total, *rest), total

    return call


def plain_group_norm(groups: int, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Of (batch, positions, channels)."""
    n, positions, channels = x.shape
    wide = x.astype(jnp.float32).reshape(n, positions, groups, channels // groups)
    centred = wide - jnp.mean(wide, axis=(1, 3), keepdims=True)
    rstd = jax.lax.rsqrt(jnp.mean(centred * centred, axis=(1, 3), keepdims=True) + EPS)
    return ((centred * rstd).reshape(x.shape) * scale + bias).astype(x.dtype)


def _tokamax(subtract_mean: bool) -> dict[str, Function]:
    function = peer("tokamax", "tokamax.layer_norm")

    def call(x: jax.Array, scale: jax.Array, bias: jax.Array | None = None) -> Any:
        return function(x, scale, bias, epsilon=EPS, subtract_mean=subtract_mean)

    return {"tokamax": call}


def entries(sizes: Sizes) -> Iterator[Entry]:
    """RMSNorm and LayerNorm, with and without a residual; GroupNorm with channels last, as Flax has it.

    Both summands have the same gradient, so that of one is asked for: results of one program cannot share memory, and
    XLA would copy it, which within a model it does not have to.
    """
    for n, h in sizes.norms:
        x, vector = normal(n, h), normal(h)
        yield Entry(
            f"rms_norm {n}x{h}",
            rms_norm.RMS_NORM,
            rms_norm.Options(),
            (x, vector),
            (0, 1),
            liger_jax.rms_norm,
            plain_rms_norm,
            _tokamax(subtract_mean=False),
        )
        yield Entry(
            f"add_rms_norm {n}x{h}",
            rms_norm.ADD_RMS_NORM,
            rms_norm.Options(),
            (x, x, vector),
            (0, 2),
            liger_jax.add_rms_norm,
            _added(plain_rms_norm),
        )
        yield Entry(
            f"layer_norm {n}x{h}",
            layer_norm.LAYER_NORM,
            layer_norm.Options(),
            (x, vector, vector),
            (0, 1, 2),
            liger_jax.layer_norm,
            plain_layer_norm,
            _tokamax(subtract_mean=True),
        )
        yield Entry(
            f"add_layer_norm {n}x{h}",
            layer_norm.ADD_LAYER_NORM,
            layer_norm.Options(),
            (x, x, vector, vector),
            (0, 2, 3),
            liger_jax.add_layer_norm,
            _added(plain_layer_norm),
        )
    for n, c, side in sizes.images:
        yield Entry(
            f"group_norm {n}x{side}x{side}x{c}, {sizes.groups} groups",
            group_norm.GROUP_NORM,
            group_norm.Options(num_groups=sizes.groups, channels_last=True),
            (normal(n, side * side, c), normal(c), normal(c)),
            (0, 1, 2),
            functools.partial(liger_jax.group_norm, num_groups=sizes.groups),
            functools.partial(plain_group_norm, sizes.groups),
        )
