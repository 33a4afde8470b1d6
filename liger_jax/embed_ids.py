"""Ids as the embedding layers of Flax take them."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def table_rows(ids: jax.Array, n_rows: int) -> jax.Array:
    """Ids of any integer dtype as `liger_jax.embedding` takes them; negative ones count from the end."""
    if ids.dtype not in (jnp.int32, jnp.int64):
        if ids.dtype.itemsize >= 4:  # unsigned: what int32 does not hold is beyond any table
            ids = jnp.minimum(ids, jnp.iinfo(jnp.int32).max)
        ids = ids.astype(jnp.int32)
    return jnp.where(ids < 0, ids + n_rows, ids)
