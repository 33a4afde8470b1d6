"""Gated activations."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from liger_jax import vjp
from liger_triton import swiglu as swiglu_op


def swiglu(gate: ArrayLike, up: ArrayLike | None = None, *, implementation: str | None = None) -> jax.Array:
    """silu(gate) * up, where silu(a) = a * sigmoid(a), in float32 and rounded once.

    By default XLA's implementation: it moves the least bytes possible and can be fused with its neighbours. Either
    one keeps gate and up alone for the backward pass.

    Args:
        gate: (..., features), floating; without `up`, (..., 2 * features) holding [gate | up].
        up: of gate's shape and dtype.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (..., features), in gate's dtype.

    Raises:
        TypeError: dtypes that are not taken or do not match.
        ValueError: shapes that do not fit, or an odd last axis without `up`.

    Shazeer, arXiv:2002.05202.

    >>> import jax.numpy as jnp
    >>> from liger_jax import swiglu
    >>> swiglu(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0])).round(3)
    Array([0.   , 1.462], dtype=float32)
    """
    (y,) = vjp.apply(swiglu_op.SWIGLU, swiglu_op.Options(), gate, up, implementation=implementation)
    return y
