"""Whether an implementation computes what it should, before it is timed: `benchmarks.gate` for JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import checks
from benchmarks.jax_side.entry import Entry, Operands, cotangents_for, outputs_of, step_of


def cotangents(entry: Entry, operands: Operands) -> tuple[jax.Array, ...]:
    """For the outputs of these operands, the same for every implementation."""
    return cotangents_for(outputs_of(jax.eval_shape(entry.plain, *operands)))


def exact(entry: Entry, few: Operands, incoming: tuple[jax.Array, ...]) -> list[jax.Array]:
    """Outputs and gradients in float64; called within `jax.enable_x64(True)`."""
    wide = tuple(
        a.astype(jnp.float64) if a is not None and jnp.issubdtype(a.dtype, jnp.floating) else a for a in few
    )
    step = jax.jit(step_of(checks.reference_of(entry.op, entry.options, entry.outputs), entry.wanted))
    return jax.tree.leaves(step(wide, tuple(c.astype(jnp.float64) for c in incoming)))


@jax.jit
def _distance(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Relative, in the Euclidean norm; of what should be 0, absolute."""
    wide = wanted.astype(jnp.float64)
    size = jnp.sqrt(jnp.sum(wide * wide))
    difference = found.astype(jnp.float64) - wide
    distance = jnp.sqrt(jnp.sum(difference * difference))
    return distance / jnp.where(size > 0, size, 1.0)


def error(found: Any, wanted: list[jax.Array]) -> float:
    """The largest relative error of outputs and gradients."""
    leaves = jax.tree.leaves(found)
    with jax.enable_x64(True):
        distances = [float(_distance(a, b)) for a, b in zip(leaves, wanted, strict=True)]
    return max((d if d == d else float("inf")) for d in distances)  # NaN is no small error


def limit(plain_error: float | None, dtype: Any) -> float:
    """The largest error of an implementation that is timed."""
    eps = float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0
    return checks.limit(plain_error, eps)
