"""What the JAX frontend promises for every op, as far as it can be seen without running a kernel."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import jax_cases
import numpy as np
import pytest
from jax_cases import CASES, Case

from liger_jax.primitives import Call
from liger_triton.ops import OPS


def kernels(case: Case) -> Any:
    return functools.partial(case.ours, implementation="triton")


def calls(function: Any, *arguments: Any) -> list[tuple[str, Call]]:
    """Primitives and calls of the ops in what a function traces to."""
    found = []

    def visit(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("liger_forward", "liger_backward"):
                found.append((equation.primitive.name, equation.params["call"]))
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


def inputs(case: Case, seed: int = 0) -> tuple[tuple[Any, ...], Any]:
    rng = np.random.default_rng(seed)
    arguments = case.make(rng, jnp.float32)
    return arguments, jax_cases.cotangents(rng, jax.eval_shape(case.ours, *arguments))


def op_of(case: Case) -> str:
    ((_, call),) = calls(kernels(case), *inputs(case)[0])
    return call.op.name


FIRST: dict[str, Case] = {}
"""One case of every op."""
for _case in CASES:
    FIRST.setdefault(op_of(_case), _case)

each_op = pytest.mark.parametrize(
    "case", [case for case in FIRST.values() if case.differentiable], ids=lambda case: case.name
)


def test_every_op_has_a_case() -> None:
    assert set(FIRST) == {op.name for op in OPS}


def loss(case: Case, function: Any) -> tuple[Any, tuple[Any, ...]]:
    """A number made of a function's results, over its differentiable arguments, and these."""
    arguments, cotangent = inputs(case)

    def total(*active: Any) -> Any:
        full = list(arguments)
        for i, value in zip(case.differentiable, active, strict=True):
            full[i] = value
        results = jax.tree.leaves(function(*full))
        return sum(jnp.sum(g * y) for g, y in zip(jax.tree.leaves(cotangent), results, strict=True))

    return total, tuple(arguments[i] for i in case.differentiable)


@each_op
def test_a_second_derivative_is_refused_with_a_sentence(case: Case) -> None:
    total, active = loss(case, kernels(case))
    with pytest.raises(
        NotImplementedError, match=r": its kernels have a first derivative in reverse mode only"
    ):
        jax.grad(lambda *a: sum(jnp.sum(g**2) for g in jax.grad(total)(*a)[:1]))(*active)


@each_op
def test_forward_mode_is_refused(case: Case) -> None:
    """By JAX itself, of either implementation; of gradients, with the sentence of a second derivative."""
    for implementation in ("triton", "xla"):
        total, active = loss(case, functools.partial(case.ours, implementation=implementation))
        for differentiate in (jax.jvp, lambda f, at, _: jax.linearize(f, *at)[1](*at)):
            with pytest.raises(TypeError, match="forward-mode"):
                differentiate(total, active, active)
    total, active = loss(case, kernels(case))
    with pytest.raises(NotImplementedError, match=r": its kernels have a first derivative"):
        jax.jvp(jax.grad(total), active, active)


@each_op
def test_xla_has_second_derivatives(case: Case) -> None:
    """Of every operand with respect to every other, as plain code has them."""

    def second(function: Any) -> Any:
        total, active = loss(case, function)
        every = tuple(range(len(active)))

        def of_gradients(*active: Any) -> Any:
            return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(total, every)(*active))

        return jax.jit(jax.grad(of_gradients, every))(*active)

    ours, plain = second(functools.partial(case.ours, implementation="xla")), second(case.plain)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * (float(jnp.abs(b).max()) + 1e-6))


@each_op
def test_residuals_have_names_for_checkpoint_policies(case: Case) -> None:
    """Saved by name, the forward pass is not run again; and the names that it is saved by are all there are."""
    total, active = loss(case, kernels(case))
    every = tuple(range(len(active)))

    def traced(policy: Any) -> list[tuple[str, Call]]:
        return calls(jax.grad(jax.checkpoint(total, policy=policy), every), *active)

    policies = jax.checkpoint_policies
    again = traced(policies.nothing_saveable)
    (backward,) = (call for name, call in again if name == "liger_backward")
    names = [f"liger_{backward.op.name}_{kept}" for kept in backward.kept]
    passes = [name for name, _ in traced(policies.save_only_these_names(*names))].count("liger_forward")
    assert passes == 1
    assert [name for name, _ in again].count("liger_forward") == (2 if names else 1)


@each_op
def test_scan_of_checkpoints(case: Case) -> None:
    """Over layers or chunks, as a model or a loss is written: what plain code gives."""
    examples = [inputs(case, seed) for seed in range(2)]
    shared = examples[0][0]
    rows = tuple(i for i in range(len(shared)) if case.rows[i])
    scanned = jax.tree.map(lambda *a: jnp.stack(a), *[([e[i] for i in rows], g) for e, g in examples])

    def gradients(function: Any) -> Any:
        def total(*active: Any) -> Any:
            full = list(shared)
            for i, value in zip(case.differentiable, active, strict=True):
                full[i] = value

            def step(carry: Any, example: Any) -> Any:
                values, cotangent = example
                given = list(full)
                for i, value in zip(rows, values, strict=True):
                    # What is differentiated is the same for all steps, and shifted by what is not.
                    given[i] = full[i] + value if i in case.differentiable else value
                results = jax.tree.leaves(function(*given))
                terms = zip(jax.tree.leaves(cotangent), results, strict=True)
                return carry + sum(jnp.sum(g * y) for g, y in terms), None

            return jax.lax.scan(jax.checkpoint(step), jnp.float32(0), scanned)[0]

        active = tuple(shared[i] for i in case.differentiable)
        return jax.jit(jax.grad(total, tuple(range(len(active)))))(*active)

    for ours, plain in zip(*map(jax.tree.leaves, map(gradients, (kernels(case), case.plain))), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5 * float(jnp.abs(plain).max()))
