"""Labels of tokens: those that do not count, and those of one token alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from liger import check
from liger_jax.primitives import spec_of


def masked(
    op: str, argument: str, labels: ArrayLike, where: ArrayLike | None, ignore_index: int
) -> jax.Array:
    """The labels, `ignore_index` where the mask is False."""
    labels = jnp.asarray(labels)
    if where is None:
        return labels
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != labels.shape:
        raise ValueError(
            f"{op}: where is {where.dtype}{list(where.shape)}; expected bool{list(labels.shape)}, "
            f"the shape of {argument}."
        )
    return jnp.where(where, labels, jnp.asarray(ignore_index, labels.dtype))


def one_row(
    op: str, name: str, array: jax.Array, argument: str, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token's array and label, with the token axis that the ops need."""
    check.shape(op, argument, spec_of(labels), (), f"one label per row of {name}")
    return array[None], labels[None]
