"""Divergences, of probabilities and of logits, and fused with two linear layers."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import liger_jax
from jax_cases.case import Case, labels, normal, triton
from jax_cases.losses import plain_cross_entropy


def plain_jsd(log_q: jax.Array, log_p: jax.Array, beta: float = 0.5) -> jax.Array:
    if beta == 0.0:
        return optax.losses.kl_divergence_with_log_targets(log_q, log_p)
    if beta == 1.0:
        return optax.losses.kl_divergence_with_log_targets(log_p, log_q)
    log_m = jnp.logaddexp(log_p + np.log(beta), log_q + np.log(1 - beta))
    one, other = (optax.losses.kl_divergence_with_log_targets(log_m, a) for a in (log_p, log_q))
    return beta * one + (1 - beta) * other


def _mean(rows: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(where, rows, 0)) / jnp.maximum(jnp.sum(where), 1)


def plain_of_logits(student: jax.Array, teacher: jax.Array, where: jax.Array) -> jax.Array:
    return _mean(plain_jsd(*(jax.nn.log_softmax(z / 2.0) for z in (student, teacher))), where)


def plain_distillation(
    x: jax.Array, kernel: jax.Array, teacher_x: jax.Array, teacher_kernel: jax.Array, targets: jax.Array
) -> jax.Array:
    logits = x @ kernel
    soft = plain_jsd(*(jax.nn.log_softmax(z / 2.0) for z in (logits, teacher_x @ teacher_kernel)))
    return 0.5 * _mean(soft, targets != -100) + 0.5 * plain_cross_entropy(logits, targets, "mean")


def plain_linear_jsd(x: jax.Array, kernel: jax.Array, teacher_x: jax.Array, teacher: jax.Array) -> jax.Array:
    return plain_jsd(jax.nn.log_softmax(x @ kernel), jax.nn.log_softmax(teacher_x @ teacher), 0.2)


def log_probs(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.nn.log_softmax(normal(rng, shape, jnp.float32)).astype(dtype)


def where(rng: np.random.Generator, shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(rng.random(shape) < 0.7)


def _models(rng: np.random.Generator, rows: tuple[int, ...], dtype: Any) -> tuple[jax.Array, ...]:
    return (
        normal(rng, (*rows, 24), dtype),
        normal(rng, (24, 70), dtype, 0.3),
        normal(rng, (*rows, 40), dtype),
        normal(rng, (40, 70), dtype, 0.3),
    )


CASES: tuple[Case, ...] = (
    Case(
        "kl_divergence",
        triton(liger_jax.kl_divergence),
        optax.losses.kl_divergence,
        lambda rng, dtype: (
            log_probs(rng, (3, 4, 71), dtype),
            jnp.exp(log_probs(rng, (3, 4, 71), jnp.float32)).astype(dtype),
        ),
        (True, True),
        (0, 1),
        (1, 3),
    ),
    Case(
        "jsd",
        triton(liger_jax.jsd),
        plain_jsd,
        lambda rng, dtype: (log_probs(rng, (3, 4, 71), dtype), log_probs(rng, (3, 4, 71), dtype)),
        (True, True),
        (0, 1),
        (1, 3),
    ),
    Case(
        "jsd-logits-mean",
        functools.partial(
            lambda s, t, w, **options: liger_jax.jsd(s, t, where=w, **options),
            from_logits=True,
            temperature=2.0,
            reduction="mean",
            implementation="triton",
        ),
        plain_of_logits,
        lambda rng, dtype: (
            normal(rng, (9, 64), dtype, 2.0),
            normal(rng, (9, 64), dtype, 2.0),
            where(rng, (9,)),
        ),
        (True, True, True),
        (0,),
        (3, 4),
    ),
    Case(
        "total_variation",
        triton(liger_jax.total_variation),
        lambda p, q: 0.5 * jnp.sum(jnp.abs(p - q), axis=-1),
        lambda rng, dtype: tuple(
            jnp.exp(log_probs(rng, (5, 71), jnp.float32)).astype(dtype) for _ in range(2)
        ),
        (True, True),
        (0,),
        (1, 2),
    ),
    Case(
        "linear_jsd",
        triton(liger_jax.linear_jsd, reduction="mean", temperature=2.0, soft_weight=0.5, hard_weight=0.5),
        plain_distillation,
        lambda rng, dtype: (*_models(rng, (11,), dtype), labels(rng, (11,), 70)),
        (True, False, True, False, True),
        (0, 1),
        (3, 5),
    ),
    Case(
        "linear_jsd-none",
        triton(liger_jax.linear_jsd, beta=0.2),
        plain_linear_jsd,
        lambda rng, dtype: _models(rng, (2, 5), dtype),
        (True, False, True, False),
        (0, 1),
        (1, 2),
    ),
)
