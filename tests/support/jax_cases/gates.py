"""Gated activations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import liger_jax
from jax_cases.case import Case, normal, triton

GPT_OSS: dict[str, Any] = {
    "gate_multiplier": 0.7,
    "alpha": 1.702,
    "limit": 2.0,
    "up_offset": 1.0,
    "interleaved": True,
}


def plain_gpt_oss(packed: jax.Array) -> jax.Array:
    gate = jnp.minimum(packed[..., ::2] * 0.7, 2.0)
    return gate * jax.nn.sigmoid(1.702 * gate) * (jnp.clip(packed[..., 1::2], -2.0, 2.0) + 1)


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
    Case(
        "swiglu-gpt-oss",
        triton(liger_jax.swiglu, **GPT_OSS),
        plain_gpt_oss,
        lambda rng, dtype: (normal(rng, (5, 80), dtype, 3.0),),
        (True,),
        (0,),
        (1, 2),
    ),
    *(
        Case(
            f"geglu-{'tanh' if approximate else 'erf'}",
            triton(liger_jax.geglu, approximate=approximate),
            lambda gate, up, a=approximate: jax.nn.gelu(gate, approximate=a) * up,
            lambda rng, dtype: (normal(rng, (3, 2, 77), dtype), normal(rng, (3, 2, 77), dtype)),
            (True, True),
            (0, 1),
            (1, 2),
        )
        for approximate in (True, False)
    ),
    Case(
        "relu_squared",
        triton(liger_jax.relu_squared),
        lambda x: jnp.square(jax.nn.relu(x)),
        lambda rng, dtype: (normal(rng, (3, 2, 77), dtype),),
        (True,),
        (0,),
        (1, 2),
    ),
)
