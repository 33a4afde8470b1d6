"""Softmax and sparsemax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from liger.op import Op
from liger_jax import vjp
from liger_triton import softmax as softmax_op


def softmax(x: ArrayLike, axis: int = -1, *, implementation: str | None = None) -> jax.Array:
    r"""Softmax along one axis, shifted by the maximum, in float32 and rounded once.

    .. math:: y_i = \exp(x_i) / \sum_j \exp(x_j)

    By default the kernel: of rows as wide as a vocabulary XLA moves twice the least bytes and takes twice as long. Of
    narrow rows both move the least, and XLA's can be fused with its neighbours.

    Args:
        x: floating, with at least one axis.
        axis: the axis to normalise.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        Of x's shape and dtype; a row of nothing but -inf gives NaN, as in `jax.nn.softmax`.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: a scalar, an axis that x has not, or one of length zero.

    >>> import jax.numpy as jnp
    >>> from liger_jax import softmax
    >>> softmax(jnp.array([0.0, jnp.log(3.0)])).round(4)
    Array([0.25, 0.75], dtype=float32)
    """
    return _along(softmax_op.SOFTMAX, x, axis, implementation)


def sparsemax(x: ArrayLike, axis: int = -1, *, implementation: str | None = None) -> jax.Array:
    r"""The probabilities nearest to x, most of them 0.

    .. math:: y_i = \max(x_i - \tau, 0), \quad \tau \text{ such that } \sum_i y_i = 1

    By default the kernel: it finds tau without sorting, to float32's rounding of y. XLA's implementation sorts. The
    gradient is that over the support, the entries with y > 0.

    Args:
        x: floating, with at least one axis.
        axis: the axis to normalise.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        Of x's shape and dtype; a row of nothing but -inf gives NaN, as softmax does.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: a scalar, an axis that x has not, or one of length zero.

    Martins & Astudillo, arXiv:1602.02068.

    >>> import jax.numpy as jnp
    >>> from liger_jax import sparsemax
    >>> sparsemax(jnp.array([0.0, 1.0, 1.5]))
    Array([0.  , 0.25, 0.75], dtype=float32)
    """
    return _along(softmax_op.SPARSEMAX, x, axis, implementation)


def _along(op: Op, x: ArrayLike, axis: int, implementation: str | None) -> jax.Array:
    x = jnp.asarray(x)
    last = axis == -1 or x.ndim == 0
    (y,) = vjp.apply(
        op, softmax_op.Options(), x if last else jnp.moveaxis(x, axis, -1), implementation=implementation
    )
    return y if last else jnp.moveaxis(y, -1, axis)
