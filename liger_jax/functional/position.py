"""Rotary position embedding."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from liger_jax import vjp
from liger_triton import rope


def apply_rope(
    q: ArrayLike,
    k: ArrayLike,
    cos: ArrayLike,
    sin: ArrayLike,
    *,
    interleaved: bool = False,
    heads_axis: int = -2,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Rotary position embedding of q and k.

    The first rotary_dim entries of every head are rotated, the others pass unchanged. With pairs (x1, x2):

        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2

    By default XLA's implementation: it moves the least bytes possible and can be fused with its neighbours.

    Args:
        q: (..., seq, q_heads, head_dim), floating.
        k: (..., seq, k_heads, head_dim), of q's dtype.
        cos: (..., seq, rotary_dim), floating, rotary_dim even and at most head_dim; its leading axes may be absent
            or 1 where all sequences share one table. Not differentiable.
        sin: like cos.
        interleaved: pair neighbours (GPT-J) instead of the two halves (GPT-NeoX, Llama).
        heads_axis: -2, or -3 for q and k of shape (..., heads, seq, head_dim).
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        q and k rotated, in their shapes and dtype.

    Raises:
        TypeError: dtypes that are not taken or do not match.
        ValueError: shapes that do not fit, an unknown heads_axis, or cos or sin that is differentiated.

    Su et al., arXiv:2104.09864.

    >>> import jax.numpy as jnp
    >>> from liger_jax import apply_rope
    >>> q = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    >>> quarter_turn = jnp.zeros((1, 4)), jnp.ones((1, 4))
    >>> apply_rope(q, q, *quarter_turn)[0].ravel()
    Array([-3., -4.,  1.,  2.], dtype=float32)
    """
    q, k, cos, sin = jnp.asarray(q), jnp.asarray(k), jnp.asarray(cos), jnp.asarray(sin)
    if heads_axis not in (-2, -3):
        raise ValueError(f"rope: heads_axis is {heads_axis}; choose -2 (seq, heads) or -3 (heads, seq).")
    for name, array in (("q", q), ("k", k)):
        if array.ndim < 3:
            raise ValueError(f"rope: {name} has shape {array.shape}; expected (..., seq, heads, head_dim).")
    for name, table in (("cos", cos), ("sin", sin)):
        if not 2 <= table.ndim <= q.ndim - 1:
            raise ValueError(
                f"rope: {name} has shape {table.shape}; expected (..., seq, rotary_dim) for q of shape {q.shape}."
            )
    if heads_axis == -3:
        q, k = q.swapaxes(-2, -3), k.swapaxes(-2, -3)
    lead = q.shape[:-3]
    rotated = vjp.apply(
        rope.ROPE,
        rope.Options(interleaved=interleaved),
        *(_one_batch_axis(array, 3) for array in (q, k)),
        *(_table("rope", name, table, lead) for name, table in (("cos", cos), ("sin", sin))),
        implementation=implementation,
    )
    new_q, new_k = (new.reshape(array.shape) for new, array in zip(rotated, (q, k), strict=True))
    return (new_q.swapaxes(-2, -3), new_k.swapaxes(-2, -3)) if heads_axis == -3 else (new_q, new_k)


def _one_batch_axis(array: jax.Array, rest: int) -> jax.Array:
    """The array with exactly one axis before its last `rest` ones."""
    if array.ndim == rest + 1:
        return array
    lead = math.prod(array.shape[: array.ndim - rest])
    return array.reshape(lead, *array.shape[array.ndim - rest :])


def _table(op: str, name: str, table: jax.Array, lead: tuple[int, ...]) -> jax.Array:
    """A table as (batch or 1, seq, rotary_dim)."""
    own = table.shape[:-2]
    if math.prod(own) == 1:
        return table.reshape(1, *table.shape[-2:])
    try:
        table = jnp.broadcast_to(table, (*lead, *table.shape[-2:]))
    except ValueError:
        raise ValueError(
            f"{op}: {name} has leading axes {own}; they do not broadcast to q's, {lead}."
        ) from None
    return _one_batch_axis(table, 2)
