"""Gated activations."""

from __future__ import annotations

import jax

import liger_jax
from jax_cases.case import Case, normal, triton

CASES: tuple[Case, ...] = (
    Case(
        "swiglu",
        triton(liger_jax.swiglu),
        lambda gate, up: jax.nn.silu(gate) * up,
        lambda rng, dtype: (normal(rng, (3, 2, 77), dtype), normal(rng, (3, 2, 77), dtype)),
        (True, True),
        (0, 1),
        (1, 2),
    ),
    Case(
        "swiglu-packed",
        triton(liger_jax.swiglu),
        lambda packed: jax.nn.silu(packed[..., :40]) * packed[..., 40:],
        lambda rng, dtype: (normal(rng, (5, 80), dtype),),
        (True,),
        (0,),
        (1, 2),
    ),
)
