"""Products of quantised matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from liger.reference import int2_matmul as reference
from liger_jax import vjp
from liger_triton import int2_matmul as int2_matmul_op


def int2_matmul(a: ArrayLike, packed: ArrayLike, *, implementation: str | None = None) -> jax.Array:
    """a @ unpack_weights(packed): int8 activations times two-bit weights, in int32 and exact. For inference.

    As for BitNet b1.58 (arXiv:2402.17764), whose weights are -1, 0 and 1.

    Args:
        a: (..., k) int8; k below 2**23, so that no sum leaves int32.
        packed: (k / 4, n) uint8, made by `pack_weights`.
        implementation: None, "triton" or "xla" (which unpacks the weights in memory); see the module.

    Returns:
        (..., n) int32.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes that do not fit, or too large a k.

    >>> import jax.numpy as jnp
    >>> from liger_jax.experimental import int2_matmul, pack_weights
    >>> weights = jnp.array([[1, 0], [-1, 1], [0, 0], [1, -1]])
    >>> int2_matmul(jnp.array([[10, 20, 30, 40]], jnp.int8), pack_weights(weights))
    Array([[ 30, -20]], dtype=int32)
    """
    (c,) = vjp.apply(
        int2_matmul_op.INT2_MATMUL, int2_matmul_op.Options(), a, packed, implementation=implementation
    )
    return c


def pack_weights(weights: ArrayLike) -> jax.Array:
    """Weights in two bits each.

    Byte i of a column holds w[i], w[i + k/4], w[i + 2k/4] and w[i + 3k/4], lowest bits first, each as w + 1.

    Args:
        weights: (k, ...), integers -1, 0 and 1 (or 2, which two bits hold too); k a multiple of 4. Other numbers are
            refused, but not looked for under a transformation, where their values are not known.

    Returns:
        (k / 4, ...) uint8.

    Raises:
        TypeError: weights that are no signed integers.
        ValueError: a k that is no multiple of 4, or other numbers.

    >>> import jax.numpy as jnp
    >>> from liger_jax.experimental import pack_weights, unpack_weights
    >>> packed = pack_weights(jnp.array([[1, 0], [-1, 1], [0, 0], [1, -1]]))
    >>> packed
    Array([[146,  25]], dtype=uint8)
    >>> unpack_weights(packed)[:, 0]
    Array([ 1, -1,  0,  1], dtype=int32)
    """
    weights = jnp.asarray(weights)
    if not jnp.issubdtype(weights.dtype, jnp.signedinteger):
        raise TypeError(
            f"pack_weights: weights has dtype {weights.dtype}; round the weights to -1, 0 and 1 and cast them to int8."
        )
    if weights.ndim == 0 or weights.shape[0] % reference.PER_BYTE:
        raise ValueError(
            f"pack_weights: weights has shape {weights.shape}; its first axis must be a multiple of 4, fill it up with "
            "rows of zeros (and the last axis of a likewise)."
        )
    if weights.size and not isinstance(weights, jax.core.Tracer):
        values = np.asarray(weights)
        wrong = values[(values < -1) | (values > 2)]
        if wrong.size:
            raise ValueError(f"pack_weights: weights holds {wrong[0]}; two bits hold -1, 0, 1 and 2.")
    packed: jax.Array = reference.pack(weights)
    return packed


def unpack_weights(packed: ArrayLike) -> jax.Array:
    """The weights that `pack_weights` has packed.

    Args:
        packed: (k / 4, ...) uint8.

    Returns:
        (k, ...) int32.

    Raises:
        TypeError: another dtype.
        ValueError: no axis.
    """
    packed = jnp.asarray(packed)
    if packed.dtype != jnp.uint8:
        raise TypeError(f"unpack_weights: packed has dtype {packed.dtype}; expected uint8.")
    if packed.ndim == 0:
        raise ValueError("unpack_weights: packed has no axis; expected (k / 4, ...).")
    weights: jax.Array = reference.unpack(packed)
    return weights
