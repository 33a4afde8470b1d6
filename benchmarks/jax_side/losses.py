"""Cross entropy and log-probabilities, of logits and fused with the linear layer."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import liger_jax
from benchmarks.jax_side.entry import Draw, Entry, below, key_of, normal
from benchmarks.providers import Function, peer
from benchmarks.sizes import Sizes
from liger_triton import cross_entropy, linear_cross_entropy, linear_logprobs, logprobs

IGNORED = -100

Three = tuple[jax.Array, jax.Array, jax.Array]


def _mean(losses: jax.Array, labels: jax.Array) -> jax.Array:
    valid = labels != IGNORED
    return jnp.sum(jnp.where(valid, losses, 0)) / jnp.maximum(jnp.sum(valid), 1)


def plain_cross_entropy(logits: jax.Array, labels: jax.Array, _: None = None) -> jax.Array:
    """The label's logit looked up."""
    z = logits.astype(jnp.float32)
    index = jnp.maximum(labels, 0)[..., None]
    own = jnp.take_along_axis(z, index, axis=-1)[..., 0]
    return _mean(jax.nn.logsumexp(z, axis=-1) - own, labels)


def one_hot_cross_entropy(logits: jax.Array, labels: jax.Array, _: None = None) -> jax.Array:
    """The label's log-probability picked by a product with one-hot labels, which XLA fuses."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return _mean(-jnp.sum(one_hot * log_p, axis=-1), labels)


def optax_cross_entropy(
    function: Function, logits: jax.Array, labels: jax.Array, _: None = None
) -> jax.Array:
    """optax computes in the logits' dtype, and in bfloat16 is no loss to train with."""
    return _mean(function(logits.astype(jnp.float32), jnp.maximum(labels, 0)), labels)


def _of_optax() -> dict[str, Function]:
    function = peer("optax", "optax.softmax_cross_entropy_with_integer_labels")
    return {"optax": functools.partial(optax_cross_entropy, function)}


def _of_logits() -> dict[str, Function]:
    return {"XLA: one-hot": one_hot_cross_entropy, **_of_optax()}


def _linear(loss: Function) -> Function:
    return lambda x, kernel, labels, *_: loss(x @ kernel, labels)


def _linear_in_chunks(chunks: int, x: jax.Array, kernel: jax.Array, labels: jax.Array, *_: None) -> jax.Array:
    """What a user writes to save memory: a scan over chunks of tokens that computes each chunk's logits again."""

    @jax.checkpoint
    def losses(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits, own = (part[0] @ kernel).astype(jnp.float32), jnp.maximum(part[1], 0)[:, None]
        picked = jnp.take_along_axis(logits, own, axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - picked

    parts = (x.reshape(chunks, -1, x.shape[-1]), labels.reshape(chunks, -1))
    return _mean(jax.lax.map(losses, parts).reshape(-1), labels)


def _tokamax(half: bool) -> dict[str, Function]:
    if half:  # it does not know of ignored labels
        return {}
    function = peer("tokamax", "tokamax.linear_softmax_cross_entropy_loss")

    def call(implementation: str | None, x: Any, kernel: Any, labels: Any, *_: None) -> Any:
        return function(x, labels, kernel, reduction="mean", implementation=implementation)

    return {
        "tokamax": functools.partial(call, None),
        "tokamax: chunked_xla": functools.partial(call, "chunked_xla"),
    }


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


def _half(draw: Draw) -> Draw:
    return lambda key: draw(key).at[::2].set(IGNORED)


def products(n: int, v: int, half: bool = False, frozen: bool = False) -> Function:
    """(x, kernel) -> the linear layer's product and its gradients', for gradients of the logits that are drawn here."""
    # Not zeros: a product of zeros runs faster than one of numbers.
    d = normal(n // 2 if half else n, v)

    def prepare(x: jax.Array, kernel: jax.Array, *_: Any) -> tuple[Function, tuple[jax.Array, ...]]:
        x = x[::2] if half else x

        def call(x: jax.Array, kernel: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
            found = (x @ kernel, d @ kernel.T)
            return found if frozen else (*found, x.T @ d)

        return call, (x, kernel, d(key_of(7)))

    return prepare


def entries(sizes: Sizes) -> Iterator[Entry]:
    """The heads of Llama 2 and 3 and of Gemma 2; the kernel is (hidden, vocabulary), as Flax has it."""
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
    for n, h, v in sizes.linear_losses:
        yield _fused(n, h, v, half=False)
        yield _fused(n, h, v, half=True)
    n, h, v = sizes.policy
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
    for frozen in (False, True):
        yield _policy(n, h, v, frozen, alone=False)
        yield _policy(n, h, v, frozen, alone=True)


def _fused(n: int, h: int, v: int, half: bool) -> Entry:
    """With `half` every other label is ignored, and the matrix products are those of the others."""
    labels = below(v, n)
    nothing = (None,) * 4
    return Entry(
        f"linear_cross_entropy {n} tokens, hidden {h}, vocabulary {v}"
        + (", half the labels ignored" if half else ""),
        linear_cross_entropy.LINEAR_CROSS_ENTROPY,
        linear_cross_entropy.Options(weight_layout="hv"),
        (normal(n, h), normal(h, v, scale=0.02), _half(labels) if half else labels, *nothing),
        (0, 1),
        lambda x, kernel, y, *_, **more: liger_jax.linear_softmax_cross_entropy(
            x, kernel, y, reduction="mean", **more
        ),
        _linear(plain_cross_entropy),
        {
            "XLA: one-hot": _linear(one_hot_cross_entropy),
            "XLA: scan of 8 chunks": functools.partial(_linear_in_chunks, 8),
            **{name: _linear(function) for name, function in _of_optax().items()},
            **_tokamax(half),
        },
        products(n, v, half),
        step=True,
    )


def _policy(n: int, h: int, v: int, frozen: bool, alone: bool) -> Entry:
    """All three results with a gradient each, or logp `alone`."""
    names = ("logp",) if alone else ("logp", "lse", "entropy")

    def ours(x: jax.Array, kernel: jax.Array, ids: jax.Array, *_: None, **more: Any) -> Any:
        found = liger_jax.linear_logprobs(x, kernel, ids, differentiable=names, **more)
        return found.logp if alone else found

    def plain(function: Function, x: jax.Array, kernel: jax.Array, ids: jax.Array, *_: None) -> Any:
        return function(x @ kernel, ids)[: len(names)]

    variant = f"{'frozen head' if frozen else 'head'}{', logp alone' if alone else ''}"
    return Entry(
        f"linear_logprobs {n} tokens, hidden {h}, vocabulary {v}, {variant}",
        linear_logprobs.LINEAR_LOGPROBS,
        linear_logprobs.Options(weight_layout="hv"),
        (normal(n, h), normal(h, v, scale=0.02), below(v, n), None, None),
        (0,) if frozen else (0, 1),
        ours,
        functools.partial(plain, plain_logprobs),
        {
            "XLA: one-hot": functools.partial(plain, one_hot_logprobs),
            "ours: all logits kept": functools.partial(ours, keep_logits=True),
        },
        products(n, v, frozen=frozen),
        step=True,
        outputs=names,
    )
