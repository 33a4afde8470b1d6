"""Products of quantised matrices."""

from __future__ import annotations

import jax.numpy as jnp

from jax_cases.case import Case, triton
from liger_jax import experimental

CASES: tuple[Case, ...] = (
    Case(
        "int2_matmul",
        triton(experimental.int2_matmul),
        lambda a, packed: a.astype(jnp.int32) @ experimental.unpack_weights(packed),
        lambda rng, dtype: (
            jnp.asarray(rng.integers(-128, 128, (3, 2, 72)), jnp.int8),
            jnp.asarray(rng.integers(0, 256, (18, 40)), jnp.uint8),
        ),
        (True, False),
        (),
        (1, 1),
    ),
)
