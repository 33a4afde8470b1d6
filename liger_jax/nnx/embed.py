"""Embedding layer for Flax NNX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from liger_jax import functional
from liger_jax.embed_ids import table_rows


class Embed(nnx.Embed):
    """`flax.nnx.Embed` on this package's kernel: the same constructor, parameters and numbers.

    The table's gradient is summed in float32 and in a fixed order, see `liger_jax.embedding`. Tables of integers,
    tables of one row and `out_sharding`, which the kernel does not have, are left to Flax; so is `attend`.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from liger_jax.nnx import Embed
    >>> Embed(5, 3, rngs=nnx.Rngs(0))(jnp.array([[0, 1], [4, -1]])).shape
    (2, 2, 3)
    """

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Look up rows of the table.

        Args:
            inputs: (...), integers in [-num_embeddings, num_embeddings); negative ones count from the end.
            out_sharding: as in Flax.

        Returns:
            (..., features), in `dtype`; NaN for other integers.
        """
        (table,) = self.promote_dtype((self.embedding[...],), dtype=self.dtype, inexact=False)
        if (
            out_sharding is not None
            or self.num_embeddings == 1
            or not jnp.issubdtype(inputs.dtype, jnp.integer)
            or not jnp.issubdtype(table.dtype, jnp.floating)
        ):
            return super().__call__(inputs, out_sharding)
        return functional.embedding(table, table_rows(inputs, self.num_embeddings))
