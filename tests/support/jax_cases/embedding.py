"""Embedding tables."""

from __future__ import annotations

import jax.numpy as jnp

import liger_jax
from jax_cases.case import Case, normal, triton

CASES: tuple[Case, ...] = (
    Case(
        "embedding",
        triton(liger_jax.embedding),
        lambda table, ids: jnp.take(table, ids, axis=0),
        lambda rng, dtype: (
            normal(rng, (11, 40), dtype),
            jnp.asarray(rng.integers(0, 11, (5, 16)), jnp.int32),
        ),
        (False, True),
        (0,),
        (1, 5),
    ),
)
