"""Cross entropy and log-probabilities of logits."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

import liger_jax
from benchmarks.jax_side.entry import Entry, below, normal
from benchmarks.providers import Function, peer
from benchmarks.sizes import Sizes
from liger_triton import cross_entropy, logprobs

IGNORED = -100

Three = tuple[jax.Array, jax.Array, jax.Array]


def mean(losses: jax.Array, labels: jax.Array) -> jax.Array:
    """Over the labels that count."""
    valid = labels != IGNORED
    return jnp.sum(jnp.where(valid, losses, 0)) / jnp.maximum(jnp.sum(valid), 1)


def plain_cross_entropy(logits: jax.Array, labels: jax.Array, _: None = None) -> jax.Array:
    """The label's logit looked up."""
    z = logits.astype(jnp.float32)
    index = jnp.maximum(labels, 0)[..., None]
    own = jnp.take_along_axis(z, index, axis=-1)[..., 0]
    return mean(jax.nn.logsumexp(z, axis=-1) - own, labels)


def one_hot_cross_entropy(logits: jax.Array, labels: jax.Array, _: None = None) -> jax.Array:
    """The label's log-probability picked by a product with one-hot labels, which XLA fuses."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return mean(-jnp.sum(one_hot * log_p, axis=-1), labels)


def optax_cross_entropy(
    function: Function, logits: jax.Array, labels: jax.Array, _: None = None
) -> jax.Array:
    """optax computes in the logits' dtype, and in bfloat16 is no loss to train with."""
    return mean(function(logits.astype(jnp.float32), jnp.maximum(labels, 0)), labels)


def of_optax() -> dict[str, Function]:
    """optax, as a peer."""
    function = peer("optax", "optax.softmax_cross_entropy_with_integer_labels")
    return {"optax": functools.partial(optax_cross_entropy, function)}


def _of_logits() -> dict[str, Function]:
    return {"XLA: one-hot": one_hot_cross_entropy, **of_optax()}


def plain_logprobs(logits: jax.Array, ids: jax.Array) -> Three:
    """(log-probability, log-sum-exp, entropy) of every token."""
    z = logits.astype(jnp.float32)
    log_p = jax.nn.log_softmax(z, axis=-1)
    own = jnp.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0]
    return own, jax.nn.logsumexp(z, axis=-1), -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def one_hot_logprobs(logits: jax.Array, ids: jax.Array) -> Three:
    """The same, the token's log-probability picked by a product with one-hot ids."""
    z = logits.astype(jnp.float32)
    log_p = jax.nn.log_softmax(z, axis=-1)
    own = jnp.sum(jax.nn.one_hot(ids, z.shape[-1], dtype=jnp.float32) * log_p, axis=-1)
    return own, jax.nn.logsumexp(z, axis=-1), -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def entries(sizes: Sizes) -> Iterator[Entry]:
    """The vocabularies of Llama 2 and 3 and of Gemma 2."""
    for n, v in sizes.losses:
        yield Entry(
            f"cross_entropy {n}x{v}",
            cross_entropy.CROSS_ENTROPY,
            cross_entropy.Options(),
            (normal(n, v), below(v, n), None),
            (0,),
            lambda z, y, _, **more: liger_jax.softmax_cross_entropy_with_integer_labels(
                z, y, reduction="mean", **more
            ),
            plain_cross_entropy,
            _of_logits(),
            step=True,
        )
    n, _, v = sizes.policy
    yield Entry(
        f"logprobs {n}x{v}",
        logprobs.LOGPROBS,
        logprobs.Options(),
        (normal(n, v), below(v, n)),
        (0,),
        liger_jax.token_logprobs,
        plain_logprobs,
        {"XLA: one-hot": one_hot_logprobs},
        step=True,
    )
