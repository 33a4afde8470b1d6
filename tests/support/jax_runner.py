"""Run a case on JAX through the op."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import Case

from liger_jax.vjp import apply


def arrays(case: Case, dtype: str) -> list[jax.Array | None]:
    """The case's operands."""
    made: list[jax.Array | None] = []
    for operand, value in zip(case.op.operands, case.operands(), strict=True):
        if value is None:
            made.append(None)
        elif np.issubdtype(value.dtype, np.floating) and operand.name not in case.keep_dtype:
            made.append(jnp.asarray(value, jnp.dtype(dtype)))
        else:
            made.append(jnp.asarray(value))
    return made


def run(case: Case, dtype: str, incoming: list[np.ndarray | None]) -> tuple[list[Any], list[Any]]:
    """(outputs, gradients) of the jitted op for these cotangents, as arrays of JAX."""
    operands, needs = arrays(case, dtype), case.needs()
    wanted = [a for a, need in zip(operands, needs, strict=True) if need]

    def call(*differentiated: jax.Array) -> Any:
        given = iter(differentiated)
        full = [next(given) if need else a for a, need in zip(operands, needs, strict=True)]
        return apply(case.op, case.options, *full, implementation="triton")

    @jax.jit
    def both(*differentiated: jax.Array) -> Any:
        outputs, pull = jax.vjp(call, *differentiated)
        cotangents = tuple(
            None
            if o is None
            else jnp.asarray(c, o.dtype)
            if c is not None
            else np.zeros(o.shape, jax.dtypes.float0)
            if jnp.issubdtype(o.dtype, jnp.integer)
            else jnp.zeros_like(o)
            for o, c in zip(outputs, incoming, strict=True)
        )
        return outputs, pull(cotangents)

    outputs, gradients = both(*wanted)
    found = iter(gradients)
    return list(outputs), [next(found) if need else None for need in needs]
