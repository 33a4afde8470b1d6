"""Cross entropy, on logits and fused with the linear layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import liger_jax
from jax_cases.case import IGNORED, Case, labels, normal, triton

ce = triton(liger_jax.softmax_cross_entropy_with_integer_labels)
linear = triton(liger_jax.linear_softmax_cross_entropy)


def plain_cross_entropy(logits: jax.Array, targets: jax.Array, reduction: str = "none") -> jax.Array:
    valid = targets != IGNORED
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, targets, 0), where=None)
    loss = jnp.where(valid, loss, 0)
    return loss if reduction == "none" else loss.sum() / jnp.maximum(valid.sum(), 1)


def plain_linear(x: jax.Array, kernel: jax.Array, targets: jax.Array, reduction: str = "mean") -> jax.Array:
    return plain_cross_entropy(x @ kernel, targets, reduction)


def plain_z_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    capped = 5.0 * jnp.tanh(logits / 5.0)
    valid = targets != IGNORED
    smooth = optax.smooth_labels(
        jax.nn.one_hot(jnp.where(valid, targets, 0), logits.shape[-1], dtype=logits.dtype), 0.1
    )
    loss = optax.softmax_cross_entropy(capped, smooth) + 1e-2 * jax.nn.logsumexp(capped, axis=-1) ** 2
    return jnp.where(valid, loss, 0)


def plain_loss(
    logits: jax.Array,
    targets: jax.Array,
    *,
    where: jax.Array | None = None,
    class_weights: jax.Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    reduction: str = "none",
) -> liger_jax.CrossEntropy:
    """The formula that both losses document, with every option and every result."""
    z = logit_scale * logits
    z = z if softcap is None else softcap * jnp.tanh(z / softcap)
    valid = (targets != IGNORED) & (True if where is None else where)
    targets = jnp.where(valid, targets, 0)
    weights = jnp.ones(z.shape[-1], z.dtype) if class_weights is None else class_weights
    losses = -jax.nn.log_softmax(z, axis=-1)
    own = weights[targets] * jnp.take_along_axis(losses, targets[..., None], -1)[..., 0]
    ce = (1 - label_smoothing) * own + label_smoothing * jnp.mean(weights * losses, -1)
    ce = jnp.where(valid, ce, 0)
    square = jnp.where(valid, z_loss * jax.nn.logsumexp(z, axis=-1) ** 2, 0)
    predicted = jnp.where(valid, jnp.argmax(z, -1), -1).astype(jnp.int32)
    accuracy = (valid & (predicted == targets)).astype(z.dtype)
    if reduction != "none":
        ce, square, accuracy = ce.sum(), square.sum(), accuracy.sum() / valid.sum()
    if reduction == "mean":
        ce, square = ce / jnp.where(valid, weights[targets], 0).sum(), square / valid.sum()
    return liger_jax.CrossEntropy(ce + square, square, accuracy, predicted)


LOSS_OPTIONS: dict[str, dict[str, Any]] = {
    "where": {"where": True},
    "where-mean": {"where": True, "reduction": "mean"},
    "class_weights": {"class_weights": True},
    "class_weights-mean": {"class_weights": True, "reduction": "mean"},
    "label_smoothing": {"label_smoothing": 0.2},
    "z_loss-sum": {"z_loss": 0.05, "reduction": "sum"},
    "z_loss-mean": {"z_loss": 0.05, "reduction": "mean"},
    "softcap": {"softcap": 3.0},
    "logit_scale": {"logit_scale": 0.7},
    "all": {
        "where": True,
        "class_weights": True,
        "label_smoothing": 0.2,
        "z_loss": 0.05,
        "softcap": 3.0,
        "logit_scale": 0.7,
    },
    "all-mean": {
        "where": True,
        "class_weights": True,
        "label_smoothing": 0.2,
        "z_loss": 0.05,
        "softcap": 3.0,
        "logit_scale": 0.7,
        "reduction": "mean",
    },
}
"""Options of the losses; True stands for an array that `loss_options` draws."""


def loss_options(name: str, rng: np.random.Generator, shape: tuple[int, ...], vocab: int) -> dict[str, Any]:
    """Options by name, for labels of this shape."""
    drawn = {
        "where": jnp.asarray(rng.random(shape) < 0.7),
        "class_weights": jnp.asarray(rng.uniform(0.5, 2.0, vocab), jnp.float32),
    }
    return {key: drawn.get(key, value) for key, value in LOSS_OPTIONS[name].items()}


def check_one_token(compare: Callable[..., None]) -> None:
    """Both losses on one token without a token axis, by itself and under vmap, against the same with the axis.

    Args:
        compare: (ours, expected, tolerance) -> None.
    """
    rng = np.random.default_rng(12)
    logits, targets = normal(rng, (5, 30), jnp.float32), labels(rng, (5,), 30)
    x, kernel = normal(rng, (5, 8), jnp.float32), normal(rng, (8, 30), jnp.float32)
    where = jnp.asarray([True, True, False, True, True])
    every: dict[str, Any] = {
        "z_loss": 0.1,
        "return_z_loss": True,
        "return_accuracy": True,
        "return_predicted": True,
    }

    def of_logits(array: jax.Array, t: jax.Array, w: jax.Array, **options: Any) -> Any:
        return ce(array, t, where=w, **every, **options)

    def of_hidden(array: jax.Array, t: jax.Array, w: jax.Array, **options: Any) -> Any:
        return linear(array, kernel, t, where=w, **every, **options)

    for function, array in ((of_logits, logits), (of_hidden, x)):
        expected = function(array, targets, where)
        compare(jax.vmap(function)(array, targets, where), expected, 1e-6)
        compare(function(array[0], targets[0], where[0]), jax.tree.map(lambda y: y[0], expected), 1e-6)
        gradient = jax.grad(lambda a, t, w: function(a, t, w).loss)  # noqa: B023
        whole = jax.grad(lambda a: function(a, targets, where).loss.sum())(array)  # noqa: B023
        compare(jax.vmap(gradient)(array, targets, where), whole, 1e-6)
        mean = functools.partial(function, reduction="mean")
        one = mean(array[:1], targets[:1], where[:1])
        compare(mean(array[0], targets[0], where[0]), one._replace(predicted=one.predicted[0]), 1e-6)
    compare(ce(logits[0], 3), ce(logits[:1], jnp.array([3]))[0], 0.0)


CASES: tuple[Case, ...] = (
    Case(
        "cross_entropy",
        ce,
        plain_cross_entropy,
        lambda rng, dtype: (normal(rng, (3, 4, 131), dtype, 3.0), labels(rng, (3, 4), 131)),
        (True, True),
        (0,),
        (2, 3),
    ),
    Case(
        "cross_entropy-mean",
        functools.partial(ce, reduction="mean"),
        functools.partial(plain_cross_entropy, reduction="mean"),
        lambda rng, dtype: (normal(rng, (9, 64), dtype, 3.0), labels(rng, (9,), 64)),
        (True, True),
        (0,),
        (3, 4),
    ),
    Case(
        "cross_entropy-options",
        functools.partial(ce, label_smoothing=0.1, z_loss=1e-2, softcap=5.0),
        plain_z_loss,
        lambda rng, dtype: (normal(rng, (6, 50), dtype, 3.0), labels(rng, (6,), 50)),
        (True, True),
        (0,),
        (2, 3),
    ),
    Case(
        "linear_cross_entropy",
        functools.partial(linear, reduction="mean"),
        plain_linear,
        lambda rng, dtype: (
            normal(rng, (11, 24), dtype),
            normal(rng, (24, 70), dtype, 0.3),
            labels(rng, (11,), 70),
        ),
        (True, False, True),
        (0, 1),
        (3, 5),
    ),
    Case(
        "linear_cross_entropy-none",
        linear,
        functools.partial(plain_linear, reduction="none"),
        lambda rng, dtype: (
            normal(rng, (2, 5, 24), dtype),
            normal(rng, (24, 70), dtype, 0.3),
            labels(rng, (2, 5), 70),
        ),
        (True, False, True),
        (0, 1),
        (2, 3),
    ),
)
