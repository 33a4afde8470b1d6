"""The JAX frontend on the kernels, in Triton's interpreter."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import jax_cases
import numpy as np
import pytest
from jax_cases import CASES, Case

import liger_jax
from liger.device import DEFAULT
from liger_triton.linear_chunks import plan

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def equal(ours: Any, expected: Any, tolerance: float = 0.0) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(initial=0))


# The kernels are compared in every dtype with the reference from torch, and with torch from JAX. What JAX itself
# computes, it may compute otherwise in another dtype: matrix products.
RUNS = [
    (case, dtype)
    for case in CASES
    for dtype in ("float32", "bfloat16", "float16")
    if dtype == "bfloat16" or case.name.startswith("linear_")
]


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=[f"{case.name}-{dtype}" for case, dtype in RUNS])
def test_error_is_no_larger_than_that_of_plain_jax(case: Case, dtype: str) -> None:
    rng = np.random.default_rng(0)
    arguments = case.make(rng, jnp.dtype(dtype))
    cotangent = jax_cases.cotangents(rng, jax.eval_shape(case.ours, *arguments))
    ours = jax.jit(lambda *a: jax_cases.gradients(case.ours, case, a[:-1], a[-1]))(*arguments, cotangent)
    plain = jax_cases.gradients(case.plain, case, arguments, cotangent)
    with jax.enable_x64(True):
        wide = [a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in arguments]
        wide_cotangent = jax.tree.map(lambda g: g.astype(jnp.float64), cotangent)
        reference = jax.jit(functools.partial(jax_cases.gradients, case.plain, case))
        exact = jax.tree.map(np.asarray, reference(tuple(wide), wide_cotangent))
    # In float32 both are right to the order of their sums, and which is nearer is chance. Gradients computed in the
    # forward pass are rounded once more when they are scaled by a cotangent other than 1.
    scaled = case.name in ("linear_cross_entropy", "linear_logprobs-prepared", "linear_jsd")
    slack = 1.5 if dtype == "float32" or scaled else 1.02
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
    alone = jax.jit(case.ours)
    one_by_one = [alone(*e) for e in each]
    equal(ours, jax.tree.map(lambda *ys: jnp.stack(ys), *one_by_one), 1e-6)

    cotangent = jax_cases.cotangents(rng, ours)
    pull = lambda *a: jax_cases.gradients(case.ours, case, a[:-1], a[-1])[1]  # noqa: E731
    ours = jax.jit(jax.vmap(pull, (*axes, 0)))(*arguments, cotangent)
    alone = jax.jit(pull)
    one_by_one = [alone(*e, jax.tree.map(lambda g, i=i: g[i], cotangent)) for i, e in enumerate(each)]
    equal(ours, jax.tree.map(lambda *ys: jnp.stack(ys), *one_by_one), 1e-6)


def test_vmap_of_a_weight() -> None:
    x, scale = jax_cases.named("rms_norm").make(np.random.default_rng(2), jnp.float32)
    scales = jnp.stack([scale, 2 * scale])
    equal(
        jax.vmap(liger_jax.rms_norm, (None, 0))(x, scales),
        jnp.stack([liger_jax.rms_norm(x, s) for s in scales]),
    )


def test_gradient_of_a_shared_weight_through_vmap() -> None:
    x, scale = jax_cases.named("rms_norm").make(np.random.default_rng(3), jnp.float32)
    loss = lambda scale: jnp.sum(jax.vmap(liger_jax.rms_norm, (0, None))(x, scale) ** 2)  # noqa: E731
    expected = jax.grad(lambda scale: jnp.sum(liger_jax.rms_norm(x, scale) ** 2))(scale)
    equal(jax.grad(loss)(scale), expected, 1e-6)


def test_scan_checkpoint_and_grad() -> None:
    x, scale = jax_cases.named("rms_norm").make(np.random.default_rng(4), jnp.float32)

    def loss(function: Any, x: jax.Array, scale: jax.Array) -> jax.Array:
        layer = lambda carry, _: (carry + function(carry, scale), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, length=3)[0] ** 2)

    ours = jax.jit(jax.grad(lambda *a: loss(liger_jax.rms_norm, *a), (0, 1)))(x, scale)
    equal(ours, jax.grad(lambda *a: loss(jax_cases.plain_rms_norm, *a), (0, 1))(x, scale), 1e-5)


@cases
def test_empty_batch(case: Case) -> None:
    arguments = case.make(np.random.default_rng(5), jnp.float32)
    arguments = tuple(a[:0] if r else a for a, r in zip(arguments, case.rows, strict=True))
    outputs = jax.eval_shape(case.ours, *arguments)
    cotangent = jax.tree.map(lambda output: jnp.ones(output.shape, output.dtype), outputs)
    ours, plain = (
        jax.jit(lambda *a, f=f: jax_cases.gradients(f, case, a, cotangent))(*arguments)
        for f in (case.ours, case.plain)
    )
    equal(ours, plain)


def test_no_input_is_modified() -> None:
    x, kernel, labels = jax_cases.named("linear_cross_entropy").make(np.random.default_rng(6), jnp.float32)
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


ALL_RESULTS: dict[str, Any] = {"return_z_loss": True, "return_accuracy": True, "return_predicted": True}
options = pytest.mark.parametrize("name", jax_cases.LOSS_OPTIONS)


def compare_loss(ours: Any, plain: Any, arguments: tuple[Any, ...], reduction: str) -> None:
    """Results, and the gradients of everything that is differentiable, for cotangents of the loss and the z-loss."""
    # Of one sign, so that the sums over the tokens do not cancel and the tolerance can be relative.
    cotangents = (
        (1.5, 0.5) if reduction != "none" else (jnp.linspace(1.0, 2.0, 10), jnp.linspace(0.5, 1.0, 10))
    )

    def loss(function: Any, *arguments: Any) -> Any:
        results = function(*arguments)
        total = sum(jnp.sum(g * r.ravel()) for g, r in zip(cotangents, results[:2], strict=True))
        return total, results

    def both(function: Any) -> Any:
        every = tuple(range(len(arguments)))
        return jax.value_and_grad(lambda *a: loss(function, *a), every, has_aux=True)(*arguments)

    (_, expected), expected_gradients = both(plain)
    for implementation in ("triton", "xla"):
        (_, results), gradients = both(lambda *a: ours(*a, implementation=implementation))  # noqa: B023
        equal((results, gradients), (expected, expected_gradients), 2e-6)


@options
def test_options_of_cross_entropy(name: str) -> None:
    rng = np.random.default_rng(8)
    logits, labels = jax_cases.normal(rng, (2, 5, 37), jnp.float32, 2.0), jax_cases.labels(rng, (2, 5), 37)
    chosen = jax_cases.loss_options(name, rng, (2, 5), 37)
    compare_loss(
        lambda logits, implementation: liger_jax.softmax_cross_entropy_with_integer_labels(
            logits, labels, **chosen, **ALL_RESULTS, implementation=implementation
        ),
        lambda logits: jax_cases.plain_loss(logits, labels, **chosen),
        (logits,),
        chosen.get("reduction", "none"),
    )


@options
@pytest.mark.parametrize("layout", ["hv", "vh"])
def test_options_of_linear_cross_entropy(name: str, layout: str) -> None:
    rng = np.random.default_rng(9)
    x, labels = jax_cases.normal(rng, (2, 5, 24), jnp.float32), jax_cases.labels(rng, (2, 5), 37)
    kernel, bias = (
        jax_cases.normal(rng, (24, 37), jnp.float32, 0.3),
        jax_cases.normal(rng, (37,), jnp.float32),
    )
    chosen = jax_cases.loss_options(name, rng, (2, 5), 37)
    chunk_bytes = 3 * 37 * 4
    assert plan(10, 24, 37, "float32", True, None, chunk_bytes, DEFAULT).n_chunks == 4

    def ours(x: Any, kernel: Any, bias: Any, implementation: str) -> Any:
        return liger_jax.linear_softmax_cross_entropy(
            x,
            kernel if layout == "hv" else kernel.T,
            labels,
            bias=bias,
            kernel_layout=layout,
            chunk_bytes=chunk_bytes,
            **chosen,
            **ALL_RESULTS,
            implementation=implementation,
        )

    compare_loss(
        ours,
        lambda x, kernel, bias: jax_cases.plain_loss(x @ kernel + bias, labels, **chosen),
        (x, kernel, bias),
        chosen.get("reduction", "none"),
    )


def test_accum_dtype_is_that_of_the_sum_over_chunks() -> None:
    rng = np.random.default_rng(10)
    x, labels = jax_cases.normal(rng, (48, 16), jnp.bfloat16), jnp.asarray(rng.integers(0, 40, 48), jnp.int32)
    kernel = jax_cases.normal(rng, (16, 40), jnp.bfloat16, 0.3)
    wide = (a.astype(jnp.float32) for a in (x, kernel))
    exact = jax.grad(jax_cases.plain_linear, 1)(*wide, labels)

    def error(accum_dtype: Any) -> float:
        gradient = jax.grad(
            lambda kernel: liger_jax.linear_softmax_cross_entropy(
                x,
                kernel,
                labels,
                reduction="mean",
                accum_dtype=accum_dtype,
                chunk_bytes=4 * 40 * 2,
                implementation="triton",
            )
        )(kernel)
        assert gradient.dtype == jnp.bfloat16
        return jax_cases.root_mean_square(np.asarray(gradient, np.float32) - exact)

    assert error(jnp.float32) < 0.7 * error("bfloat16")


def test_one_token_without_an_axis() -> None:
    jax_cases.check_one_token(equal)


def test_without_jit() -> None:
    x, scale = jax_cases.named("rms_norm").make(np.random.default_rng(11), jnp.float32)
    both = jax.value_and_grad(lambda *a: jnp.sum(liger_jax.rms_norm(*a) ** 2), (0, 1))
    expected = both(x, scale)
    with jax.disable_jit():
        equal(both(x, scale), expected, 1e-6)
