"""Embedding layer for Flax Linen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from liger_jax import functional
from liger_jax.embed_ids import table_rows


class Embed(nn.Embed):
    """`flax.linen.Embed` on this package's kernel: the same attributes, parameters and numbers.

    The table's gradient is summed in float32 and in a fixed order, see `liger_jax.embedding`. Tables of integers and
    tables of one row are left to Flax; so is `attend`.

    >>> import jax, jax.numpy as jnp
    >>> from liger_jax.linen import Embed
    >>> layer = Embed(num_embeddings=5, features=3)
    >>> ids = jnp.array([[0, 1], [4, -1]])
    >>> layer.apply(layer.init(jax.random.key(0), ids), ids).shape
    (2, 2, 3)
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Look up rows of the table.

        Args:
            inputs: (...), integers in [-num_embeddings, num_embeddings); negative ones count from the end.

        Returns:
            (..., features), in `dtype`; NaN for other integers.
        """
        (table,) = self.promote_dtype(self.embedding, dtype=self.dtype, inexact=False)
        assert table is not None
        if (
            self.num_embeddings == 1
            or not jnp.issubdtype(inputs.dtype, jnp.integer)
            or not jnp.issubdtype(table.dtype, jnp.floating)
        ):
            return super().__call__(inputs)
        return functional.embedding(table, table_rows(inputs, self.num_embeddings))
