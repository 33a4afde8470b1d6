"""Ops on a mesh of four CPU devices, beside one device; run as a program of its own, with the parts to run.

No kernel runs here, but everything around it does: how a call is divided, what is summed over the mesh, and what XLA
makes of it. In the program for all devices no array that is divided may be gathered.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import CASES, Case
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import liger_jax
from liger import interpret
from liger.op import Operand
from liger_jax import implementations
from liger_jax.vjp import apply
from liger_triton import linear_jsd

P = PartitionSpec
KINDS = (AxisType.Auto, AxisType.Explicit)


def collectives(program: str) -> dict[str, int]:
    """How often each collective occurs in a compiled program."""
    names = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    return {name: len(re.findall(rf" {name}(?:-start)?\(", program)) for name in names}


def reduced(program: str) -> set[int]:
    """How many elements the arrays have that a compiled program sums over devices."""
    results = re.findall(r" = (.*?) all-reduce(?:-start)?\(", program)
    shapes = re.findall(r"\w+\[([\d,]*)\]", " ".join(results))
    return {math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes}


def gathered(program: str) -> int:
    """Elements of the largest array that a compiled program gathers."""
    shapes = re.findall(r" = \(?\w+\[([\d,]*)\].* all-gather(?:-start)?\(", program)
    return max((math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes), default=0)


@contextlib.contextmanager
def mesh_of(kind: AxisType) -> Iterator[Any]:
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        yield mesh


def on_mesh(kind: AxisType, function: Callable[..., Any], arguments: Any, specs: Any) -> tuple[Any, str]:
    """What the jitted function returns, and its program."""
    with mesh_of(kind) as mesh:
        placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arguments, specs, strict=True)]
        compiled = jax.jit(function).lower(*placed).compile()
        return compiled(*placed), compiled.as_text()


def check_nothing_gathered(
    program: str, kind: AxisType, implementation: str, tokens: int, message: str
) -> None:
    """Nothing that is divided is gathered; where XLA alone divides plain jnp code, no more than numbers per token."""
    if interpret.enabled() and kind == AxisType.Auto:
        return  # JAX crashes on what would be needed (liger_jax.meshes)
    found = collectives(program)
    assert found["all-to-all"] == found["collective-permute"] == 0, (message, found)
    alone = implementation == "xla" and kind == AxisType.Auto
    assert gathered(program) <= (4 * tokens if alone else 0), (message, found, gathered(program))


def close(ours: Any, expected: Any, message: str) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), message
        scale = np.abs(np.asarray(b, np.float64)).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * scale, err_msg=message)


# -------------------------------------------------------------------------------------------------- rows, every op


def token_axes(operand: Operand, array: np.ndarray) -> int:
    return max(array.ndim - operand.axes, 0) if operand.role == "rows" else 0


def divisible(case: Case) -> list[Any]:
    """The case's operands with twice as many entries along every token axis; a table for all tokens stays as it is."""
    arrays: list[Any] = list(case.operands())
    rank, tokens = token_axes(case.op.operands[0], arrays[0]), arrays[0].shape
    for i, (operand, array) in enumerate(zip(case.op.operands, arrays, strict=True)):
        n = 0 if array is None else token_axes(operand, array)
        for axis in range(n):
            if arrays[i].shape[axis] == tokens[rank - n + axis]:
                arrays[i] = np.concatenate([arrays[i], arrays[i]], axis)
    return arrays


def one_case_per_op() -> list[Case]:
    """For each op the case with most token axes, or reductions; what only torch has is left out."""
    chosen: dict[tuple[str, str], Case] = {}
    for case in CASES:
        arrays = case.operands()
        torch_only = any(
            a is not None and o.name in ("rows", "weight_grad")
            for o, a in zip(case.op.operands, arrays, strict=True)
        )
        torch_only |= getattr(case.options, "reduction", "") == "mean_batch"
        if torch_only or any(a is not None and a.size == 0 for a in arrays):
            continue
        key = case.op.name, getattr(case.options, "reduction", "")
        best = chosen.get(key)
        if best is None or token_axes(case.op.operands[0], arrays[0]) > token_axes(
            case.op.operands[0], best.operands()[0]
        ):
            chosen[key] = case
    return list(chosen.values())


def lead(rank: int, entries: Sequence[Any]) -> tuple[Any, ...]:
    """Mesh axes of a token array's leading axes."""
    return (*entries, *(None,) * rank)[:rank]


def check_rows(case: Case, implementation: str) -> None:
    arrays = divisible(case)
    needs = case.needs()
    present = [i for i, a in enumerate(arrays) if a is not None]
    rank = token_axes(case.op.operands[0], arrays[0])

    def specs_for(entries: Sequence[Any]) -> list[PartitionSpec]:
        specs = []
        for i in present:
            operand, array = case.op.operands[i], arrays[i]
            n = token_axes(operand, array)
            names = lead(rank, entries)[rank - n :]
            specs.append(P(*(None if array.shape[k] == 1 else name for k, name in enumerate(names))))
        return specs

    def function(*values: jax.Array) -> Any:
        full: list[Any] = [None] * len(arrays)
        for i, value in zip(present, values, strict=True):
            full[i] = value
        wanted = [i for i in present if needs[i]]

        def outputs(*active: jax.Array) -> Any:
            given = list(full)
            for i, value in zip(wanted, active, strict=True):
                given[i] = value
            results = apply(case.op, case.options, *given, implementation=implementation)
            return [
                y for y, o in zip(results, case.op.outputs, strict=True) if y is not None and o.differentiable
            ]

        results, pull_back = jax.vjp(outputs, *(full[i] for i in wanted))
        return results, pull_back([jnp.cos(y).astype(y.dtype) for y in results])

    values = [jnp.asarray(arrays[i]) for i in present]
    expected = jax.jit(function)(*values)
    reduced = any(y.ndim == 0 for y in jax.tree.leaves(expected[0]))
    summed = reduced or any(case.op.operands[i].role == "shared" and needs[i] for i in present)
    for kind in KINDS:
        message = f"{case.name} {implementation} {kind}"
        ours, program = on_mesh(kind, function, values, specs_for(("data", "model")))
        close(ours, expected, message)
        check_nothing_gathered(program, kind, implementation, math.prod(values[0].shape[:rank]), message)
        assert bool(collectives(program)["all-reduce"]) == summed, (message, collectives(program))


def rows() -> None:
    for case in one_case_per_op():
        for implementation in dict.fromkeys(("triton", implementations.DEFAULTS[case.op.name])):
            check_rows(case, implementation)


# ------------------------------------------------------------------------------------------------ one norm, closely


def norm() -> None:
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.standard_normal((8, 4, 64)), jnp.float32) for _ in range(2))
    scale = jnp.asarray(rng.standard_normal(64), jnp.float32)

    def function(x: jax.Array, scale: jax.Array, g: jax.Array) -> Any:
        y, pull_back = jax.vjp(liger_jax.rms_norm, x, scale)
        return y, pull_back(g)

    expected = jax.jit(function)(x, scale, g)
    for kind in KINDS:
        for spec in (P("data"), P(("data", "model")), P("data", "model"), P("data", None, "model"), P()):
            message = f"{kind} {spec}"
            (y, (dx, dscale)), program = on_mesh(kind, function, (x, scale, g), (spec, P(), P(*spec[:2])))
            found = collectives(program)
            close((y, (dx, dscale)), expected, message)
            features_divided = len(spec) == 3
            assert bool(found["all-gather"]) == features_divided, (message, found)
            # The sum over the tokens, of the scale's gradient alone.
            assert found["all-reduce"] == (spec != P()), (message, found)
            whole = NamedSharding(y.sharding.mesh, P(*spec[:2]))
            assert y.sharding.is_equivalent_to(whole, 3), (message, y.sharding)


def features() -> None:
    """Elementwise ops of an MLP whose features are divided, as between a column- and a row-parallel layer."""
    rng = np.random.default_rng(2)
    gate, up, g = (jnp.asarray(rng.standard_normal((4, 8, 64)), jnp.float32) for _ in range(3))
    functions: dict[str, Any] = {
        "swiglu": liger_jax.swiglu,
        "geglu": liger_jax.geglu,
        "relu_squared": lambda gate, up: liger_jax.relu_squared(gate) * up,
    }
    for name, op in functions.items():

        def function(gate: jax.Array, up: jax.Array, g: jax.Array, op: Any = op) -> Any:
            y, pull_back = jax.vjp(op, gate, up)
            return y, pull_back(g)

        expected = jax.jit(function)(gate, up, g)
        for kind in KINDS:
            for spec in (P("data", None, "model"), P(None, None, ("data", "model")), P("data")):
                message = f"{name} {kind} {spec}"
                ours, program = on_mesh(kind, function, (gate, up, g), (spec,) * 3)
                close(ours, expected, message)
                assert not any(collectives(program).values()), (message, collectives(program))
                for array in jax.tree.leaves(ours):
                    whole = NamedSharding(array.sharding.mesh, spec)
                    assert array.sharding.is_equivalent_to(whole, 3), (message, array.sharding)
    # One feature axis alone, each device with its own part; and gate and up in one array, which is read as a whole.
    vector = gate[0, 0]
    packed = lambda gate, up, g: liger_jax.swiglu(jnp.concatenate((gate, up)))  # noqa: E731
    for kind in KINDS:
        for each in (lambda gate, up, g: liger_jax.swiglu(gate, up), packed):
            ours, _ = on_mesh(kind, each, (vector, up[0, 0], vector), (P("model"),) * 3)
            close(ours, liger_jax.swiglu(vector, up[0, 0]), f"one axis {kind}")


# ---------------------------------------------------------------------------------------------------- vmap, no mesh


def transforms() -> None:
    rng = np.random.default_rng(1)
    x, scale = jnp.asarray(rng.standard_normal((4, 6, 16)), jnp.float32), jnp.ones(16)
    loss = lambda x, scale: jnp.sum(jnp.cos(liger_jax.rms_norm(x, scale)))  # noqa: E731
    expected = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (0, None)))(x, scale)
    for kind in KINDS:
        ours, _ = on_mesh(
            kind, jax.vmap(jax.grad(loss, (0, 1)), (0, None)), (x, scale), (P(None, "data"), P())
        )
        close(ours, expected, f"vmap {kind}")
    # Without a mesh around the call: the arrays alone say that they are divided.
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    placed = jax.device_put(x, NamedSharding(mesh, P("d"))), jax.device_put(scale, NamedSharding(mesh, P()))
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*placed).compile()
    close(compiled(*placed), jax.grad(loss, (0, 1))(x, scale), "no mesh")
    assert collectives(compiled.as_text())["all-gather"] == 0
    close(jax.grad(loss, (0, 1))(*placed), jax.grad(loss, (0, 1))(x, scale), "no mesh, no jit")


# ---------------------------------------------------------------------------------------------------------- shard_map


def loss_of(x: jax.Array, kernel: jax.Array, labels: jax.Array, reduction: str) -> jax.Array:
    result = liger_jax.linear_softmax_cross_entropy(x, kernel, labels, reduction=reduction)
    assert isinstance(result, jax.Array)
    return jnp.sum(result)


def in_shard_map(check: bool, function: Callable[..., Any], arguments: Any, specs: Any) -> Any:
    """Differentiated inside: with check_vma, a replicated argument's gradient is summed over the mesh."""

    def per_device(*arguments: Any) -> Any:
        value, (rows, shared) = jax.value_and_grad(function, (0, 1))(*arguments)
        return jax.lax.psum(value, "data"), (rows, shared if check else jax.lax.psum(shared, "data"))

    out_specs = (P(), (P("data"), P()))
    return jax.jit(jax.shard_map(per_device, in_specs=specs, out_specs=out_specs, check_vma=check))(
        *arguments
    )


def around_shard_map(check: bool, function: Callable[..., Any], arguments: Any, specs: Any) -> Any:
    mapped = jax.shard_map(
        lambda *a: jax.lax.psum(function(*a), "data"), in_specs=specs, out_specs=P(), check_vma=check
    )
    return jax.jit(jax.value_and_grad(mapped, (0, 1)))(*arguments)


def distilled(
    x: jax.Array, kernel: jax.Array, teacher_x: jax.Array, labels: jax.Array, reduction: str
) -> jax.Array:
    teacher = jnp.cos(jnp.arange(90.0)).reshape(3, 30)
    options: dict[str, Any] = {"temperature": 2.0, "hard_weight": 0.5, "reduction": reduction}
    loss = liger_jax.linear_jsd(x, kernel, teacher_x, teacher, labels, **options)
    assert isinstance(loss, jax.Array)
    return jnp.sum(loss)


def manual() -> None:
    rng = np.random.default_rng(0)
    x, scale, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, 8), (8,), (8, 30)))
    teacher_x = jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)
    labels = jnp.array([1, 2, -100, 4])
    cases: tuple[Any, ...] = (
        (lambda x, scale: jnp.sum(liger_jax.rms_norm(x, scale) ** 2), (x, scale), (P("data"), P())),
        *(
            (functools.partial(loss_of, reduction=r), (x, kernel, labels), (P("data"), P(), P("data")))
            for r in ("none", "sum")
        ),
        *(
            (
                functools.partial(distilled, reduction=r),
                (x, kernel, teacher_x, labels),
                (P("data"), P(), P("data"), P("data")),
            )
            for r in ("none", "sum")
        ),
    )
    for function, arguments, specs in cases:
        expected = jax.jit(jax.value_and_grad(function, (0, 1)))(*arguments)
        for run in (in_shard_map, around_shard_map):
            for check in (False, True):
                with mesh_of(AxisType.Auto):
                    close(run(check, function, arguments, specs), expected, f"{run} {check}")


# -------------------------------------------------------------------------------------------------------- divergences


def divergences() -> None:
    """Losses of tokens, and means over all devices' tokens, of which one device has none that counts."""
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    student, teacher = draw(4, 4, 20), draw(4, 4, 20)
    log_q, p = jax.nn.log_softmax(student), jax.nn.softmax(teacher)
    x, kernel, bias = draw(4, 4, 6), draw(6, 20), draw(20)
    teacher_x, teacher_kernel = draw(4, 4, 10), draw(10, 20)
    where = jnp.asarray(rng.random((4, 4)) < 0.5).at[:2, :2].set(False).at[2:, 2:].set(True)
    labels = jnp.where(where, jnp.asarray(rng.integers(0, 20, (4, 4)), jnp.int32), -100)
    tokens = P("data", "model")
    distilled = {"temperature": 2.0, "soft_weight": 0.4, "hard_weight": 0.6}

    def linear(x: Any, kernel: Any, bias: Any, *others: Any, **options: Any) -> Any:
        return liger_jax.linear_jsd(x, kernel, *others, student_bias=bias, **distilled, **options)

    def recomputed(x: Any, kernel: Any, bias: Any, *others: Any, reduction: str, **more: Any) -> Any:
        chosen = {"none": "tokens", "mean": "mean_tokens"}[reduction]
        options = linear_jsd.Options(
            reduction=chosen, recompute=True, hard_weight=0.6, weight_layout="hv", chunk_bytes=400
        )
        return apply(linear_jsd.LINEAR_JSD, options, x, kernel, *others, bias, None, **more)[0]

    def masked(function: Any, **chosen: Any) -> Any:
        return lambda q, p, where, **options: function(q, p, where=where, **chosen, **options)

    logits = {"from_logits": True, "temperature": 2.0}
    of_two = (tokens, tokens, tokens)
    of_models = (x, kernel, bias, teacher_x, teacher_kernel, labels)
    of_layers = (tokens, P(), P(), tokens, P(), tokens)
    for function, arguments, specs, argnums in (
        (masked(liger_jax.kl_divergence), (log_q, p, where), of_two, (0, 1)),
        (masked(liger_jax.jsd, beta=0.3, **logits), (student, teacher, where), of_two, (0, 1)),
        (masked(liger_jax.jsd, beta=1.0), (log_q, jnp.log(p), where), of_two, (0,)),
        (liger_jax.total_variation, (jnp.exp(log_q), p), of_two[:2], (0,)),
        (linear, of_models, of_layers, (0, 1, 2)),
        (recomputed, of_models, of_layers, (0, 1, 2)),
    ):
        for reduction, implementation in (("none", "triton"), ("mean", "triton"), ("mean", "xla")):
            if interpret.enabled() and implementation == "xla":
                continue
            chosen = functools.partial(function, reduction=reduction, implementation=implementation)
            check_divergence(chosen, arguments, specs, argnums, reduction, implementation)
    # A batch axis in front of the divided ones.
    gradients = jax.vmap(jax.grad(lambda s, t: jnp.sum(jnp.sin(liger_jax.jsd(s, t, **logits))), (0, 1)))
    for kind in KINDS:
        ours, program = on_mesh(kind, gradients, (student, teacher), [P(None, ("data", "model"))] * 2)
        close(ours, jax.jit(gradients)(student, teacher), f"jsd vmap {kind}")
        check_nothing_gathered(program, kind, "triton", 0, f"jsd vmap {kind}")


def check_divergence(
    function: Any, arguments: Any, specs: Any, argnums: Any, reduction: str, implementation: str
) -> None:
    weighed = 1.0 + jnp.arange(16.0).reshape(4, 4)

    def both(*arguments: Any) -> Any:
        def total(*a: Any) -> Any:
            loss = function(*a)
            return jnp.sum(loss * weighed) if reduction == "none" else loss, loss

        return jax.value_and_grad(total, argnums, has_aux=True)(*arguments)

    expected = jax.jit(both)(*arguments)
    shared = {arguments[i].size for i in argnums if specs[i] == P()}
    for kind in KINDS:
        message = f"{function} {kind}"
        ours, program = on_mesh(kind, both, arguments, specs)
        close(ours, expected, message)
        check_nothing_gathered(program, kind, implementation, 0, message)
        if interpret.enabled() and kind == AxisType.Auto:
            continue
        # Losses and counts, and the gradients of what all devices have.
        assert {n for n in reduced(program) if n > 3} == shared, (message, reduced(program))
        (_, loss), gradients = ours
        divided = [g for i, g in zip(argnums, gradients, strict=True) if specs[i] != P()]
        for array in (loss, *divided) if reduction == "none" else divided:
            whole = NamedSharding(array.sharding.mesh, P("data", "model"))
            assert array.sharding.is_equivalent_to(whole, array.ndim), (message, array.sharding)


# --------------------------------------------------------------------------------------------- a divided vocabulary

EXTRAS: dict[str, Any] = {"return_z_loss": True, "return_accuracy": True, "return_predicted": True}


def vocabulary() -> None:
    """Every option somewhere, with every reduction; in the interpreter, with all of them."""
    rng = np.random.default_rng(2)
    n, hidden, vocab = 8, 6, 20
    x = jnp.asarray(rng.standard_normal((4, n // 4, hidden)), jnp.float32)
    kernel = jnp.asarray(0.7 * rng.standard_normal((hidden, vocab)), jnp.float32)
    bias = jnp.asarray(rng.standard_normal(vocab), jnp.float32)
    labels = jnp.asarray(rng.integers(0, vocab, (4, n // 4)), jnp.int32).at[1, 0].set(-100)
    weights = jnp.asarray(rng.uniform(0.5, 2, vocab), jnp.float32)
    every = {
        "label_smoothing": 0.2,
        "z_loss": 0.05,
        "softcap": 3.0,
        "logit_scale": 0.7,
        "class_weights": weights,
    }
    for reduction, options, implementation in (
        ("none", every | EXTRAS, "triton"),
        ("none", every | EXTRAS, "xla"),
        ("sum", every, "triton"),
        ("mean", {}, "triton"),
        ("mean", every | EXTRAS, "triton"),
    ):
        if interpret.enabled() and implementation == "xla":
            continue
        chosen = {**options, "reduction": reduction, "implementation": implementation}
        check_vocabulary(x, kernel, bias, labels, chosen)
    check_logprobs(x, kernel, bias, labels)


def check_logprobs(x: Any, kernel: Any, bias: Any, ids: Any) -> None:
    chosen = {"softcap": 3.0, "logit_scale": 0.7, "temperature": 1.3, "return_predicted": True}

    def combined(results: liger_jax.LogProbs) -> jax.Array:
        return jnp.sum(jnp.cos(results.logp) + 0.3 * results.lse**2 + results.entropy * results.logp)

    def fused(x: Any, kernel: Any, bias: Any, ids: Any, **more: Any) -> Any:
        return combined(liger_jax.linear_logprobs(x, kernel, ids, bias=bias, **chosen, **more))

    def kept(x: Any, kernel: Any, bias: Any, ids: Any, **more: Any) -> Any:
        return fused(x, kernel, bias, ids, keep_logits=True, **more)

    def frozen(x: Any, kernel: Any, bias: Any, ids: Any, **more: Any) -> Any:
        results = liger_jax.linear_logprobs(
            x, kernel, ids, bias=bias, differentiable=("logp",), **chosen, **more
        )
        return jnp.sum(jnp.cos(results.logp))

    def logits(z: Any, ids: Any, **more: Any) -> Any:
        return combined(liger_jax.token_logprobs(z, ids, **chosen, **more))

    linear_specs = (P("data"), P(None, "model"), P("model"), P("data"))
    for name, function, arguments, specs, argnums in (
        ("fused", fused, (x, kernel, bias, ids), linear_specs, (0, 1, 2)),
        ("kept", kept, (x, kernel, bias, ids), linear_specs, (0, 1, 2)),
        ("frozen", frozen, (x, kernel, bias, ids), linear_specs, (0,)),
        ("logits", logits, (x @ kernel + bias, ids), (P("data", None, "model"), P("data")), (0,)),
    ):
        both = jax.value_and_grad(function, argnums)
        expected = jax.jit(both)(*arguments)
        for kind in KINDS:
            message = f"logprobs {name} {kind}"
            ours, program = on_mesh(kind, both, arguments, specs)
            close(ours, expected, message)
            check_nothing_gathered(program, kind, "triton", ids.size, message)
        for check in (False, True):
            mapped = functools.partial(
                jax.shard_map,
                lambda *a, f=function: jax.lax.psum(f(*a, vocab_axis="model"), "data"),
                in_specs=specs,
                out_specs=P(),
                check_vma=check,
            )
            with mesh_of(AxisType.Auto) as mesh:
                ours = jax.jit(jax.value_and_grad(mapped(mesh=mesh), argnums))(*arguments)
            close(ours, expected, f"logprobs {name} shard_map {check}")


def check_vocabulary(x: Any, kernel: Any, bias: Any, labels: Any, options: dict[str, Any]) -> None:
    def fused(x: Any, kernel: Any, bias: Any, labels: Any, **more: Any) -> Any:
        return liger_jax.linear_softmax_cross_entropy(x, kernel, labels, bias=bias, **options, **more)

    def tied(x: Any, kernel: Any, bias: Any, labels: Any, **more: Any) -> Any:
        return liger_jax.linear_softmax_cross_entropy(
            x, kernel.T, labels, bias=bias, kernel_layout="vh", **options, **more
        )

    def logits(z: Any, labels: Any, **more: Any) -> Any:
        return liger_jax.softmax_cross_entropy_with_integer_labels(z, labels, **options, **more)

    z = x @ kernel + bias
    linear_specs = (P("data"), P(None, "model"), P("model"), P("data"))
    for name, function, arguments, specs in (
        ("fused", fused, (x, kernel, bias, labels), linear_specs),
        ("tied", tied, (x, kernel, bias, labels), linear_specs),
        ("logits", logits, (z, labels), (P("data", None, "model"), P("data"))),
    ):
        if name == "tied" and options["reduction"] != "sum":
            continue
        argnums = tuple(range(len(arguments) - 1))

        def both(*arguments: Any, function: Any = function, argnums: Any = argnums) -> Any:
            def total(*a: Any) -> Any:
                results = function(*a)
                loss = results if isinstance(results, jax.Array) else results.loss + results.z_loss
                return jnp.sum(loss * (1.0 if loss.ndim == 0 else jnp.arange(1.0, 5.0)[:, None])), results

            return jax.value_and_grad(total, argnums, has_aux=True)(*arguments)

        expected = jax.jit(both)(*arguments)
        for kind in KINDS:
            message = f"{name} {options} {kind}"
            ours, program = on_mesh(kind, both, arguments, specs)
            close(ours, expected, message)
            check_nothing_gathered(program, kind, options["implementation"], labels.size, message)
        expected = of_halves(function, arguments, specs, argnums)
        for check in (False, True):
            close(
                of_shard_map(check, function, arguments, specs, argnums),
                expected,
                f"{name} {options} shard_map {check}",
            )


def total_loss(results: Any) -> jax.Array:
    return jnp.sum(results if isinstance(results, jax.Array) else results.loss)


def of_halves(function: Any, arguments: Any, specs: Any, argnums: Any) -> Any:
    """Loss and gradients where each half of the tokens has a loss of its own, on one device."""

    def halves(*arguments: Any) -> Any:
        parts = [
            jnp.split(a, 2) if s[:1] == ("data",) else (a, a) for a, s in zip(arguments, specs, strict=True)
        ]
        return sum(total_loss(function(*half)) for half in zip(*parts, strict=True))

    return jax.jit(jax.value_and_grad(halves, argnums))(*arguments)


def of_shard_map(check: bool, function: Any, arguments: Any, specs: Any, argnums: Any) -> Any:
    """Loss and gradients around a shard_map that divides tokens and vocabulary."""
    mapped = functools.partial(
        jax.shard_map,
        lambda *a: jax.lax.psum(total_loss(function(*a, vocab_axis="model")), "data"),
        in_specs=specs,
        out_specs=P(),
        check_vma=check,
    )
    with mesh_of(AxisType.Auto) as mesh:
        return jax.jit(jax.value_and_grad(mapped(mesh=mesh), argnums))(*arguments)


PARTS: dict[str, Callable[[], None]] = {
    "rows": rows,
    "norm": norm,
    "features": features,
    "transforms": transforms,
    "manual": manual,
    "divergences": divergences,
    "vocabulary": vocabulary,
}


def run_on_four_devices(part: str) -> None:
    """Run a part as a program of its own."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
        ),
    }
    command = [sys.executable, "-P", __file__, part]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    assert jax.device_count() == 4
    for part in sys.argv[1:]:
        PARTS[part]()
