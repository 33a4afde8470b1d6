"""Every op's kernels, forward and backward, from torch, in Triton's interpreter, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, DTYPES, REPRESENTATIVES, Case
from torch_runner import check_against_float64, cotangents, differentiate, run, run_reference, tensors

from liger_torch.autograd import call

# Float16 differs in what is loaded and stored alone, whatever the shapes.
RUNS = [(c, dtype) for c in CASES for dtype in DTYPES if dtype != "float16" or c in REPRESENTATIVES]


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=[f"{c.name}-{dtype}" for c, dtype in RUNS])
def test_against_float64(case: Case, dtype: str) -> None:
    """And no operand or incoming gradient is written to."""
    operands = tensors(case, dtype)
    outputs = list(call(case.op, case.options, *operands))
    incoming = cotangents(case, dtype, outputs)
    arrays = *operands, *incoming
    versions = [None if t is None else t._version for t in arrays]
    found = outputs, differentiate(case, dtype, operands, outputs, incoming)
    check_against_float64(case, dtype, found, run_reference(case, dtype))
    assert [None if t is None else t._version for t in arrays] == versions
    for array, made_again in zip(
        arrays, (*tensors(case, dtype), *cotangents(case, dtype, outputs)), strict=True
    ):
        assert array is None or torch.equal(array, made_again)


PREDICTING = [
    c
    for c in CASES
    if getattr(c.options, "return_accuracy", False) or getattr(c.options, "return_predicted", False)
]


@pytest.mark.parametrize("case", PREDICTING, ids=lambda c: c.name)
def test_predictions_are_exact(case: Case) -> None:
    """In float32 the predicted tokens and their accuracy are those of the reference."""
    outputs, _ = run(case, "float32")
    exact, _ = run_reference(case, "float32")
    assert any(o is not None for o in outputs[2:])
    for actual, expected in zip(outputs[2:], exact[2:], strict=True):
        if actual is not None and expected is not None:
            assert torch.allclose(actual.double(), expected.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", [c for c in CASES if not c.kernels_alone], ids=lambda c: c.name)
def test_same_bits_twice(case: Case) -> None:
    """With matrix products; kernels alone give the same bits in JAX too (test_parity), so in a second run."""
    first, second = run(case, "bfloat16"), run(case, "bfloat16")
    for a, b in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True):
        assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("case", REPRESENTATIVES, ids=lambda c: c.name)
def test_shapes_and_dtypes_are_those_inferred(case: Case) -> None:
    """`Op.infer`, on which torch.compile and JAX rely, tells the truth."""
    from liger.launch import Spec
    from liger_torch.backend import NAMES, backend_for

    operands = tuple(tensors(case, "bfloat16"))
    specs = tuple(None if t is None else Spec(tuple(t.shape), NAMES[t.dtype]) for t in operands)
    for needs in (case.needs(), (False,) * len(operands)):
        todo = case.op.computed(needs)
        expected = case.op.infer(specs, case.options, todo)
        with torch.no_grad():
            found = case.op.forward(backend_for(torch.device("cpu")), operands, case.options, todo)
        for inferred, arrays in zip(expected, found, strict=True):
            for spec, array in zip(inferred, arrays, strict=True):
                assert (spec is None) == (array is None)
                if spec is not None:
                    assert (tuple(array.shape), NAMES[array.dtype]) == (tuple(spec.shape), spec.dtype)
