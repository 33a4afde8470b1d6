"""Cross entropy and log-probabilities fused with the linear layer, whose kernel is (hidden, vocabulary) as in Flax."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import liger_jax
from benchmarks.jax_side.entry import Draw, Entry, below, key_of, normal
from benchmarks.jax_side.losses import (
    IGNORED,
    mean,
    of_optax,
    one_hot_cross_entropy,
    one_hot_logprobs,
    plain_cross_entropy,
    plain_logprobs,
)
from benchmarks.providers import Function, peer
from benchmarks.sizes import Sizes
from liger_triton import linear_cross_entropy, linear_logprobs


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
    return mean(jax.lax.map(losses, parts).reshape(-1), labels)


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
    """The heads of Llama 3 and Gemma 2 2B."""
    for n, h, v in sizes.linear_losses:
        yield _fused(n, h, v, half=False)
        yield _fused(n, h, v, half=True)
    for frozen in (False, True):
        yield _policy(*sizes.policy, frozen, alone=False)
        yield _policy(*sizes.policy, frozen, alone=True)


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
            **{name: _linear(function) for name, function in of_optax().items()},
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
