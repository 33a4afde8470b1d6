"""The JAX frontend on the kernels, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jax_cases
import numpy as np
import pytest
from jax_cases import CASES, Case

import liger_jax

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def equal(ours: Any, expected: Any, tolerance: float = 0.0) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(initial=0))


@cases
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_error_is_no_larger_than_that_of_plain_jax(case: Case, dtype: str) -> None:
    rng = np.random.default_rng(0)
    arguments = case.make(rng, jnp.dtype(dtype))
    cotangent = jax_cases.cotangents(rng, jax.eval_shape(case.ours, *arguments))
    ours = jax.jit(lambda *a: jax_cases.gradients(case.ours, case, a[:-1], a[-1]))(*arguments, cotangent)
    plain = jax_cases.gradients(case.plain, case, arguments, cotangent)
    with jax.enable_x64(True):
        wide = [a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in arguments]
        wide_cotangent = jax.tree.map(lambda g: g.astype(jnp.float64), cotangent)
        exact = jax.tree.map(np.asarray, jax_cases.gradients(case.plain, case, tuple(wide), wide_cotangent))
    # In float32 both are right to the order of their sums, and which is nearer is chance. Gradients computed in the
    # forward pass are rounded once more when they are scaled by a cotangent other than 1.
    slack = 1.5 if dtype == "float32" or case.name == "linear_cross_entropy" else 1.02
    for a, b, c in zip(*map(jax.tree.leaves, (ours, plain, exact)), strict=True):
        scale = jax_cases.root_mean_square(c)
        error, theirs = (jax_cases.root_mean_square(np.asarray(v, np.float64) - c) for v in (a, b))
        assert error <= slack * theirs + 1e-7 * scale, (error, theirs, scale)


@cases
def test_vmap_over_tokens(case: Case) -> None:
    rng = np.random.default_rng(1)
    examples = [case.make(rng, jnp.float32) for _ in range(3)]
    shared = examples[0]
    arguments = tuple(
        jnp.stack([e[i] for e in examples]) if r else shared[i] for i, r in enumerate(case.rows)
    )
    each = [tuple(e[i] if r else shared[i] for i, r in enumerate(case.rows)) for e in examples]
    axes = tuple(0 if r else None for r in case.rows)
    ours = jax.jit(jax.vmap(case.ours, axes))(*arguments)
    one_by_one = [case.ours(*e) for e in each]
    equal(ours, jax.tree.map(lambda *ys: jnp.stack(ys), *one_by_one), 1e-6)

    cotangent = jax_cases.cotangents(rng, ours)
    pull = lambda *a: jax_cases.gradients(case.ours, case, a[:-1], a[-1])[1]  # noqa: E731
    ours = jax.jit(jax.vmap(pull, (*axes, 0)))(*arguments, cotangent)
    one_by_one = [pull(*e, jax.tree.map(lambda g, i=i: g[i], cotangent)) for i, e in enumerate(each)]
    equal(ours, jax.tree.map(lambda *ys: jnp.stack(ys), *one_by_one), 1e-6)


def test_vmap_of_a_weight() -> None:
    x, scale = CASES[0].make(np.random.default_rng(2), jnp.float32)
    scales = jnp.stack([scale, 2 * scale])
    equal(
        jax.vmap(liger_jax.rms_norm, (None, 0))(x, scales),
        jnp.stack([liger_jax.rms_norm(x, s) for s in scales]),
    )


def test_gradient_of_a_shared_weight_through_vmap() -> None:
    x, scale = CASES[0].make(np.random.default_rng(3), jnp.float32)
    loss = lambda scale: jnp.sum(jax.vmap(liger_jax.rms_norm, (0, None))(x, scale) ** 2)  # noqa: E731
    expected = jax.grad(lambda scale: jnp.sum(liger_jax.rms_norm(x, scale) ** 2))(scale)
    equal(jax.grad(loss)(scale), expected, 1e-6)


def test_scan_checkpoint_and_grad() -> None:
    x, scale = CASES[0].make(np.random.default_rng(4), jnp.float32)

    def loss(function: Any, x: jax.Array, scale: jax.Array) -> jax.Array:
        layer = lambda carry, _: (carry + function(carry, scale), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, length=3)[0] ** 2)

    ours = jax.jit(jax.grad(lambda *a: loss(liger_jax.rms_norm, *a), (0, 1)))(x, scale)
    equal(ours, jax.grad(lambda *a: loss(jax_cases.plain_rms_norm, *a), (0, 1))(x, scale), 1e-5)


@cases
def test_empty_batch(case: Case) -> None:
    arguments = case.make(np.random.default_rng(5), jnp.float32)
    arguments = tuple(a[:0] if r else a for a, r in zip(arguments, case.rows, strict=True))
    outputs = case.ours(*arguments)
    cotangent = jax.tree.map(jnp.ones_like, outputs)
    outputs, grads = jax_cases.gradients(case.ours, case, arguments, cotangent)
    plain, plain_grads = jax_cases.gradients(case.plain, case, arguments, cotangent)
    equal((outputs, grads), (plain, plain_grads))


def test_no_input_is_modified() -> None:
    x, kernel, labels = CASES[-2].make(np.random.default_rng(6), jnp.float32)
    before = [np.array(a) for a in (x, kernel)]
    loss = lambda x, kernel: liger_jax.linear_softmax_cross_entropy(x, kernel, labels, reduction="mean")  # noqa: E731
    _, pull_back = jax.vjp(loss, x, kernel)
    first, second = pull_back(jnp.float32(3.0)), pull_back(jnp.float32(3.0))
    equal(first, second)
    for array, copy in zip((x, kernel), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_extras_of_the_losses() -> None:
    rng = np.random.default_rng(7)
    logits, labels = jax_cases.normal(rng, (8, 30), jnp.float32), jax_cases.labels(rng, (8,), 30)
    where = jnp.asarray(rng.random(8) < 0.7)
    results = liger_jax.softmax_cross_entropy_with_integer_labels(
        logits,
        labels,
        where=where,
        z_loss=0.1,
        return_z_loss=True,
        return_accuracy=True,
        return_predicted=True,
    )
    valid = np.asarray(where & (labels != jax_cases.IGNORED))
    predicted = np.where(valid, np.argmax(logits, -1), -1)
    np.testing.assert_array_equal(results.predicted, predicted)
    np.testing.assert_array_equal(results.accuracy, valid & (predicted == labels))
    lse = jax.nn.logsumexp(logits, axis=-1)
    equal(results.z_loss, jnp.where(valid, 0.1 * lse**2, 0), 1e-6)
    plain = jax_cases.plain_cross_entropy(logits, labels)
    equal(results.loss, jnp.where(valid, plain + 0.1 * lse**2, 0), 1e-6)
