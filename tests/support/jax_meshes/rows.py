"""Every op with its tokens divided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import CASES, Case
from jax.sharding import PartitionSpec

from jax_meshes.mesh import KINDS, P, check_nothing_gathered, close, collectives, on_mesh
from liger.op import Operand
from liger_jax import implementations
from liger_jax.vjp import apply


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


def every_op() -> None:
    for case in one_case_per_op():
        for implementation in dict.fromkeys(("triton", implementations.DEFAULTS[case.op.name])):
            check_rows(case, implementation)
