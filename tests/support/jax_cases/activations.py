"""Softmax and sparsemax."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import liger_jax
from jax_cases.case import Case, normal, triton


def plain_sparsemax(x: jax.Array, axis: int = -1) -> jax.Array:
    ordered = jnp.sort(x, axis=axis, descending=True)
    k = jnp.cumsum(jnp.ones_like(ordered), axis=axis)
    tau = jnp.max((jnp.cumsum(ordered, axis=axis) - 1) / k, axis=axis, keepdims=True)
    return jnp.maximum(x - tau, 0)


CASES: tuple[Case, ...] = (
    Case(
        "softmax",
        triton(liger_jax.softmax),
        jax.nn.softmax,
        lambda rng, dtype: (normal(rng, (3, 2, 77), dtype),),
        (True,),
        (0,),
        (1, 2),
    ),
    Case(
        "softmax-axis",
        triton(liger_jax.softmax, axis=-2),
        lambda x: jax.nn.softmax(x, axis=-2),
        lambda rng, dtype: (normal(rng, (3, 40, 7), dtype),),
        (True,),
        (0,),
        (1, 2),
    ),
    Case(
        "sparsemax",
        triton(liger_jax.sparsemax),
        plain_sparsemax,
        lambda rng, dtype: (normal(rng, (3, 2, 77), dtype),),
        (True,),
        (0,),
        (1, 2),
    ),
)
