"""Any call of any op: shapes, dtypes, layouts, options and gradients drawn at random, in both frontends.

The error against float64 is no larger than the op's roundings explain, plus what a rounding of the operands themselves
would change: where results cancel, or hang on small differences, no arithmetic in that precision can do better.
"""

from __future__ import annotations

import dataclasses

import jax_runner
import numpy as np
import pytest
import torch
import torch_runner
from cases import Case
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, laid_out
from strategies import SPACES, Example, Space, examples
from torch_runner import EPSILON, bound, run_reference

from liger_torch.autograd import call
from liger_torch.backend import DTYPES
from liger_triton.ops import OPS


def nudged(case: Case, dtype: str) -> Case:
    """The same call with every floating operand changed by one rounding."""
    # Where an op rounds in between to the storage dtype, that is what its results may hang on.
    epsilon = EPSILON[dtype if case.roundings > 1 else "float32"]
    rng = np.random.default_rng(5)

    def nudge(name: str, value: np.ndarray | None) -> np.ndarray | None:
        if value is None or not np.issubdtype(value.dtype, np.floating):
            return value
        stored = "float32" if name in case.keep_dtype else dtype
        exact = torch.from_numpy(value).to(DTYPES[stored]).double().numpy()
        return exact * (1 + epsilon * rng.choice((-1.0, 1.0), value.shape))

    names = tuple(operand.name for operand in case.op.operands)
    values = tuple(map(nudge, names, case.operands()))
    return dataclasses.replace(case, make=lambda _: values, keep_dtype=names)


def check(example: Example, found: tuple[list, list]) -> None:
    case, dtype = example.case, example.dtype
    exact, near = run_reference(case, dtype), run_reference(nudged(case, dtype), dtype)
    # Outputs that choose between numbers: which of two that differ by a rounding is the larger is chance.
    choices = {o.name for o in case.op.outputs if not o.differentiable}
    names = [*(o.name for o in case.op.outputs), *(f"gradient of {o.name}" for o in case.op.operands)]
    for name, actual, truth, other in zip(
        names, (*found[0], *found[1]), (*exact[0], *exact[1]), (*near[0], *near[1]), strict=True
    ):
        assert (actual is None) == (truth is None), name
        if actual is None or name in choices:
            continue
        if not torch.is_tensor(actual):
            actual = torch.from_numpy(np.asarray(actual, np.float64))
        assert actual.shape == truth.shape, name
        # What cancelling numbers of the incoming gradients' size leave: a probability and a target, a kept result that
        # was rounded to the storage dtype and its sum.
        floor = 8 * EPSILON["float32"] + (EPSILON[dtype] if case.roundings > 1 else 0.0)
        allowed = (
            bound(case, dtype) * truth.norm() + 16 * (truth - other).norm() + floor * truth.numel() ** 0.5
        )
        assert (actual.double() - truth).norm() <= allowed, name


def test_every_op_is_drawn() -> None:
    assert sorted(space.op.name for space in SPACES) == sorted(op.name for op in OPS)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.op.name)
@settings(max_examples=25)
@given(data=st.data())
def test_torch(space: Space, data: st.DataObject) -> None:
    example = data.draw(examples(space, ("dense", *LAYOUTS)))
    case = example.case
    operands = [
        laid_out(t, layout)
        for t, layout in zip(torch_runner.tensors(case, example.dtype), example.layouts, strict=True)
    ]
    copies = [None if t is None else t.detach().clone() for t in operands]
    outputs = list(call(case.op, case.options, *operands))
    check(example, (outputs, torch_runner.differentiate(case, example.dtype, operands, outputs)))
    assert all(t is None or torch.equal(t, copy) for t, copy in zip(operands, copies, strict=True))


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.op.name)
@settings(max_examples=4)  # the kernels are those above; each example is compiled by XLA
@given(data=st.data())
def test_jax(space: Space, data: st.DataObject) -> None:
    example = data.draw(examples(space, ("dense",)))
    case, dtype = example.case, example.dtype
    shapes = run_reference(case, dtype)[0]
    incoming = [
        None if c is None else c.float().numpy() for c in torch_runner.cotangents(case, dtype, shapes)
    ]
    check(example, jax_runner.run(case, dtype, incoming))
