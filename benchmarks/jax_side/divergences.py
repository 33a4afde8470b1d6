"""Divergences of a student from a teacher, and fused with the linear layers of both."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import liger_jax
from benchmarks.jax_side.entry import Draw, Entry, key_of, normal
from benchmarks.providers import Function, peer
from benchmarks.sizes import Sizes
from liger_triton import divergence, linear_jsd

EPS = 1e-10


def _log_probs(n: int, vocab: int, probs: bool = False) -> Draw:
    draw = normal(n, vocab, dtype=jnp.float32)

    @jax.jit
    def found(key: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(draw(key), axis=-1).astype(jnp.bfloat16)
        return jnp.exp(log_p) if probs else log_p

    return found


def _wide(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(a.astype(jnp.float32) for a in arrays)


def plain_kl(student: jax.Array, teacher: jax.Array, _: None = None) -> jax.Array:
    """KL(P || Q) of log-probabilities of Q and probabilities of P, per token and averaged."""
    log_q, p = _wide(student, teacher)
    return jnp.mean(jnp.sum(p * (jnp.log(jnp.maximum(p, EPS)) - log_q), axis=-1))


def plain_jsd(student: jax.Array, teacher: jax.Array, _: None = None) -> jax.Array:
    """Of log-probabilities."""
    log_q, log_p = _wide(student, teacher)
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    log_m = jnp.logaddexp(log_q, log_p) - np.log(2.0)
    return jnp.mean(0.5 * jnp.sum(p * (log_p - log_m) + q * (log_q - log_m), axis=-1))


def _of_logits(function: Function, student: jax.Array, teacher: jax.Array, _: None = None) -> jax.Array:
    return function(*(jax.nn.log_softmax(a, axis=-1) for a in _wide(student, teacher)))


def _forward_kl(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))


def _tvd(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    return jnp.mean(0.5 * jnp.sum(jnp.abs(jnp.exp(log_q) - jnp.exp(log_p)), axis=-1))


def _optax_kl() -> dict[str, Function]:
    """In float32, as the others."""
    function = peer("optax", "optax.kl_divergence")
    return {"optax": lambda y, t, _: jnp.mean(function(*_wide(y, t)))}


def _products(n: int, v: int) -> Function:
    # Not zeros: a product of zeros runs faster than one of numbers.
    d = normal(n, v)

    def prepare(
        x: jax.Array, kernel: jax.Array, t: jax.Array, teacher: jax.Array, *_: Any
    ) -> tuple[Function, tuple[jax.Array, ...]]:
        def call(x: Any, kernel: Any, t: Any, teacher: Any, d: Any) -> tuple[jax.Array, ...]:
            return t @ teacher, x @ kernel, d @ kernel.T, x.T @ d

        return call, (x, kernel, t, teacher, d(key_of(7)))

    return prepare


def entries(sizes: Sizes) -> Iterator[Entry]:
    """At the vocabularies of Llama 2 and 3."""
    of_logits: dict[str, Any] = {"student_space": divergence.LOGITS, "teacher_space": divergence.LOGITS}
    for n, v in sizes.divergences:
        yield Entry(
            f"kl_div {n}x{v}",
            divergence.KL_DIV,
            divergence.Options(beta=0.0, teacher_space=divergence.PROBS, eps=EPS),
            (_log_probs(n, v), _log_probs(n, v, probs=True), None),
            (0,),
            lambda y, t, _, **more: liger_jax.kl_divergence(y, t, reduction="mean", **more),
            plain_kl,
            _optax_kl(),
            step=True,
        )
        yield Entry(
            f"jsd {n}x{v}",
            divergence.JSD,
            divergence.Options(),
            (_log_probs(n, v), _log_probs(n, v), None),
            (0,),
            lambda y, t, _, **more: liger_jax.jsd(y, t, reduction="mean", **more),
            plain_jsd,
            step=True,
        )
        for name, beta, plain in (("jsd", 0.5, plain_jsd), ("forward kl", 0.0, _forward_kl)):
            yield Entry(
                f"{name} of logits {n}x{v}",
                divergence.JSD,
                divergence.Options(beta=beta, **of_logits),
                (normal(n, v), normal(n, v), None),
                (0,),
                functools.partial(_jsd_of_logits, beta),
                functools.partial(_of_logits, plain),
                step=True,
            )
    n, v = sizes.divergences[0]
    yield Entry(
        f"tvd of logits {n}x{v}",
        divergence.TVD,
        divergence.Options(kind="tvd", **of_logits),
        (normal(n, v), normal(n, v), None),
        (0,),
        lambda y, t, _, **more: liger_jax.total_variation(y, t, reduction="mean", from_logits=True, **more),
        functools.partial(_of_logits, _tvd),
        step=True,
    )
    for n, h, teacher_h, v in sizes.linear_divergences:
        yield Entry(
            f"linear_jsd {n} tokens, hidden {h} and {teacher_h}, vocabulary {v}",
            linear_jsd.LINEAR_JSD,
            linear_jsd.Options(weight_layout="hv"),
            (
                normal(n, h),
                normal(h, v, scale=0.02),
                normal(n, teacher_h),
                normal(teacher_h, v, scale=0.02),
                None,
                None,
                None,
            ),
            (0, 1),
            lambda x, w, t, u, *_, **more: liger_jax.linear_jsd(x, w, t, u, reduction="mean", **more),
            lambda x, w, t, u, *_: _of_logits(plain_jsd, x @ w, t @ u),
            products=_products(n, v),
            step=True,
        )


def _jsd_of_logits(beta: float, student: jax.Array, teacher: jax.Array, _: None, **more: Any) -> Any:
    return liger_jax.jsd(student, teacher, beta=beta, from_logits=True, reduction="mean", **more)
