"""Gated and other activations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import liger_jax
from benchmarks.jax_side.entry import Entry, normal
from benchmarks.sizes import Sizes
from liger_triton import glu, relu_squared, softmax

GPT_OSS: dict[str, Any] = {"alpha": 1.702, "limit": 7.0, "up_offset": 1.0, "interleaved": True}


def _gated(activation: Callable[[jax.Array], jax.Array], gate: jax.Array, up: jax.Array) -> jax.Array:
    return (activation(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


def _packed(x: jax.Array, _: None) -> jax.Array:
    return _gated(jax.nn.silu, *jnp.split(x, 2, axis=-1))


def _gpt_oss(x: jax.Array, _: None) -> jax.Array:
    gate, up = (x[..., i::2].astype(jnp.float32) for i in (0, 1))
    gate, up = jnp.minimum(gate, GPT_OSS["limit"]), jnp.clip(up, -GPT_OSS["limit"], GPT_OSS["limit"])
    return ((up + 1.0) * gate * jax.nn.sigmoid(GPT_OSS["alpha"] * gate)).astype(x.dtype)


def _relu_squared(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))


def _softmax(x: jax.Array) -> jax.Array:
    return jax.nn.softmax(x.astype(jnp.float32), axis=-1).astype(x.dtype)


def _sparsemax(x: jax.Array) -> jax.Array:
    """Martins & Astudillo, arXiv:1602.02068, algorithm 1."""
    z = x.astype(jnp.float32)
    ordered = -jnp.sort(-z, axis=-1)
    counts = jnp.arange(1, z.shape[-1] + 1, dtype=jnp.float32)
    sums = jnp.cumsum(ordered, axis=-1)
    support = jnp.sum(1 + counts * ordered > sums, axis=-1, keepdims=True)
    threshold = (jnp.take_along_axis(sums, support - 1, axis=-1) - 1) / support
    # Not jnp.maximum, which gives half a gradient to what is at the threshold.
    return jnp.where(z > threshold, z - threshold, 0).astype(x.dtype)


def entries(sizes: Sizes) -> Iterator[Entry]:
    """SwiGLU and GeGLU, ReLU squared, softmax and sparsemax."""
    n, width = sizes.gate
    pair = (normal(n, width), normal(n, width))
    gelu_tanh, gelu = (functools.partial(jax.nn.gelu, approximate=a) for a in (True, False))
    swiglu, exact = liger_jax.swiglu, functools.partial(liger_jax.geglu, approximate=False)
    yield Entry(
        f"swiglu {n}x{width}",
        glu.SWIGLU,
        glu.Options("silu"),
        pair,
        (0, 1),
        swiglu,
        functools.partial(_gated, jax.nn.silu),
    )
    yield Entry(
        f"swiglu packed {n}x{width}",
        glu.SWIGLU,
        glu.Options("silu"),
        (normal(n, 2 * width), None),
        (0,),
        swiglu,
        _packed,
    )
    yield Entry(
        f"geglu tanh {n}x{width}",
        glu.GEGLU,
        glu.Options("gelu_tanh"),
        pair,
        (0, 1),
        liger_jax.geglu,
        functools.partial(_gated, gelu_tanh),
    )
    yield Entry(
        f"geglu exact {n}x{width}",
        glu.GEGLU,
        glu.Options("gelu"),
        pair,
        (0, 1),
        exact,
        functools.partial(_gated, gelu),
    )
    n, width = sizes.interleaved_gate
    yield Entry(
        f"swiglu gpt-oss {n}x{width}",
        glu.SWIGLU,
        glu.Options("silu", **GPT_OSS),
        (normal(n, 2 * width), None),
        (0,),
        functools.partial(swiglu, **GPT_OSS),
        _gpt_oss,
    )
    n, width = sizes.relu_squared
    yield Entry(
        f"relu_squared {n}x{width}",
        relu_squared.RELU_SQUARED,
        relu_squared.Options(),
        (normal(n, width),),
        (0,),
        liger_jax.relu_squared,
        _relu_squared,
    )
    for n, width in sizes.softmax:
        yield Entry(
            f"softmax {n}x{width}",
            softmax.SOFTMAX,
            softmax.Options(),
            (normal(n, width),),
            (0,),
            liger_jax.softmax,
            _softmax,
        )
        yield Entry(
            f"sparsemax {n}x{width}",
            softmax.SPARSEMAX,
            softmax.Options(),
            (normal(n, width),),
            (0,),
            liger_jax.sparsemax,
            _sparsemax,
        )
