"""Embedding tables, and products of quantised matrices."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.jax_side.entry import Entry, constant, normal
from benchmarks.sizes import Sizes
from liger.reference import int2_matmul as reference
from liger_jax import experimental
from liger_triton import embedding, int2_matmul


@functools.cache
def _ids(n: int, vocab: int, same: bool) -> np.ndarray:
    """Ids as uneven as words are: the k-th most frequent one in proportion to 1 / k (Zipf); or all the same."""
    if same:
        return np.zeros(n, np.int32)
    rng = np.random.default_rng(0)
    shares = 1.0 / np.arange(1, vocab + 1)
    ranks = rng.choice(vocab, n, p=shares / shares.sum())
    return rng.permutation(vocab)[ranks].astype(np.int32)


def _embedding(ids: jax.Array, table: jax.Array, _: None, **more: Any) -> jax.Array:
    return experimental.embedding(table, ids, **more)


def _plain_embedding(ids: jax.Array, table: jax.Array, _: None) -> jax.Array:
    return jnp.take(table, ids, axis=0)


def _plain_product(a: jax.Array, packed: jax.Array) -> jax.Array:
    weights = reference.unpack(packed).astype(jnp.int8)
    return jax.lax.dot_general(a, weights, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)


def _bfloat16_product(a: jax.Array, packed: jax.Array) -> jax.Array:
    """As exact: both factors are numbers of bfloat16, and their sums, below 2^24, of float32."""
    factors = a.astype(jnp.bfloat16), reference.unpack(packed).astype(jnp.bfloat16)
    c = jax.lax.dot_general(*factors, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return c.astype(jnp.int32)


def _int8(m: int, k: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, (m, k), np.int8)


def _packed(k: int, n: int) -> np.ndarray:
    """Two bits each, of 0, 1 and 2."""
    weights = np.random.default_rng(2).integers(0, 3, (4, k // 4, n), np.uint8)
    return weights[0] | weights[1] << 2 | weights[2] << 4 | weights[3] << 6


def entries(sizes: Sizes) -> Iterator[Entry]:
    """The tables of Llama 3 and 2, and a batch of one token alone; projections of Llama-3-8B."""
    for n, vocab, width, same in sizes.embedding:
        ids, table = _ids(n, vocab, same), 2 * vocab * width
        # Forward, each row that occurs is read once; each token's is written.
        read, written = 2 * np.unique(ids).size * width, 2 * n * width
        forward, backward = ids.nbytes + read + written, ids.nbytes + written + table
        yield Entry(
            f"embedding {n} tokens{' of one id' if same else ''}, table {vocab}x{width}",
            embedding.EMBEDDING,
            embedding.Options(),
            (constant(functools.partial(_ids, n, vocab, same)), normal(vocab, width), None),
            (1,),
            _embedding,
            _plain_embedding,
            moved=(forward, backward),
        )
    for m, k, n in sizes.int2_matmul:
        yield Entry(
            f"int2_matmul {m}x{k}x{n}",
            int2_matmul.INT2_MATMUL,
            int2_matmul.Options(),
            (constant(functools.partial(_int8, m, k)), constant(functools.partial(_packed, k, n))),
            (),
            experimental.int2_matmul,
            _plain_product,
            peers={"XLA: bfloat16": _bfloat16_product},
        )
