"""Rows of an embedding table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from liger_jax import vjp
from liger_triton import embedding as embedding_op


def embedding(
    table: ArrayLike, ids: ArrayLike, *, padding_idx: int | None = None, implementation: str | None = None
) -> jax.Array:
    """table[ids], with a gradient that is summed in float32 and in a fixed order.

    The gradients of the tokens of a row are added in float32 and rounded once: exact to the last place however often a
    token occurs, and the same bits for the same inputs. XLA's own gradient of `jnp.take` adds one token after the
    other in the dtype of the table.

    Args:
        table: (vocab, features), floating.
        ids: (...), int32 or int64: indices in [0, vocab). A value outside, also a negative one, is not looked for,
            since that would stall the device: its row is NaN, and it has no gradient.
        padding_idx: the row that gets no gradient; a negative one counts from the end.
        implementation: None, "triton" or "xla"; see the module.

    Returns:
        (..., features), in the table's dtype.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: a table that is no matrix or has no entries, or a padding_idx outside of it.

    >>> import jax, jax.numpy as jnp
    >>> from liger_jax import embedding
    >>> table, ids = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 1, 0])
    >>> embedding(table, ids)
    Array([[3., 4.],
           [3., 4.],
           [1., 2.]], dtype=float32)
    >>> jax.grad(lambda table: embedding(table, ids).sum())(table)
    Array([[1., 1.],
           [2., 2.]], dtype=float32)
    """
    table = jnp.asarray(table)
    if padding_idx is not None and table.ndim == 2 and -table.shape[0] <= padding_idx < 0:
        padding_idx += table.shape[0]
    options = embedding_op.Options(padding_idx)
    operands = (ids, table, None)
    (y,) = vjp.apply(
        embedding_op.EMBEDDING, options, *operands, implementation=implementation, names={"weight": "table"}
    )
    return y
