"""Run a case on torch: through the op as users call it, through the reference in float64, through plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from cases import Case

from liger_torch.autograd import call
from liger_torch.backend import DTYPES

Results = tuple[list[torch.Tensor], list[torch.Tensor | None]]
"""Outputs, and one gradient per operand."""


def tensors(case: Case, dtype: str, device: str = "cpu") -> list[torch.Tensor | None]:
    """The case's operands, those that need it with requires_grad."""
    made: list[torch.Tensor | None] = []
    for operand, value, need in zip(case.op.operands, case.operands(), case.needs(), strict=True):
        if value is None:
            made.append(None)
            continue
        tensor = torch.from_numpy(np.ascontiguousarray(value)).to(device)
        if tensor.is_floating_point() and operand.name not in case.keep_dtype:
            tensor = tensor.to(DTYPES[dtype])
        made.append(tensor.requires_grad_(need))
    return made


def cotangents(case: Case, dtype: str, outputs: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Random cotangents of the outputs that get one, the same numbers for every path: those that `dtype` holds."""
    rng = np.random.default_rng(1)
    made: list[torch.Tensor | None] = []
    for output, tensor in zip(case.op.outputs, outputs, strict=True):
        if tensor is None or not output.differentiable or output.name in case.unused:
            made.append(None)
            continue
        values = torch.from_numpy(rng.standard_normal(tuple(tensor.shape))).to(tensor.device)
        made.append(values.to(DTYPES[dtype]).to(tensor.dtype))
    return made


def grad(
    outputs: list[torch.Tensor], wanted: list[torch.Tensor], incoming: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The gradients of those that want one; none of an op of integers."""
    return torch.autograd.grad(outputs, wanted, incoming) if wanted else ()


def differentiate(
    case: Case,
    dtype: str,
    operands: list[torch.Tensor | None],
    outputs: list[torch.Tensor | None],
    incoming: list[torch.Tensor | None] | None = None,
) -> list[torch.Tensor | None]:
    """The gradients of the operands that need one, for the case's cotangents."""
    incoming = incoming or cotangents(case, dtype, outputs)
    pairs = [
        (o, c)
        for o, c in zip(outputs, incoming, strict=True)
        if o is not None and c is not None and o.requires_grad
    ]
    wanted = [t for t in operands if t is not None and t.requires_grad]
    found = iter(grad([o for o, _ in pairs], wanted, [c for _, c in pairs]))
    return [next(found) if t is not None and t.requires_grad else None for t in operands]


def run(case: Case, dtype: str, device: str = "cpu") -> Results:
    """The op as users call it."""
    operands = tensors(case, dtype, device)
    outputs = list(call(case.op, case.options, *operands))
    return outputs, differentiate(case, dtype, operands, outputs)


def run_reference(case: Case, dtype: str, function: Any = None) -> Results:
    """The reference in float64 on the CPU, at operands rounded to `dtype`, with that dtype's cotangents."""
    operands: list[torch.Tensor | None] = [
        None
        if t is None
        else t.detach().double().requires_grad_(t.requires_grad)
        if t.is_floating_point()
        else t
        for t in tensors(case, dtype)
    ]
    outputs = list((function or case.op.reference)(tuple(operands), case.options))
    return outputs, differentiate(case, dtype, operands, outputs)


def error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative error in the Euclidean norm; of an exact zero, the norm itself."""
    difference = (actual.double().to(exact.device) - exact.double()).norm().item()
    size = exact.double().norm().item()
    return difference / size if size else difference


EPSILON = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Largest relative error of one rounding."""


def bound(case: Case, dtype: str) -> float:
    """Independent roundings add like a random walk; fp32 sums add a few of their own."""
    if dtype == "float32":
        return 24 * EPSILON[dtype]
    roundings = case.roundings
    if dtype == "float16" and case.float16_roundings is not None:
        roundings = case.float16_roundings
    return roundings**0.5 * EPSILON[dtype]


def check_against_float64(case: Case, dtype: str, found: Results, exact: Results) -> None:
    """Assert that outputs and gradients err by no more than their roundings explain."""
    (outputs, gradients), (exact_outputs, exact_gradients) = found, exact
    for declared, actual, truth in zip(case.op.outputs, outputs, exact_outputs, strict=True):
        assert (actual is None) == (truth is None), declared.name
        if actual is None or truth is None or declared.name in ("accuracy", "predicted"):
            continue
        assert actual.shape == truth.shape
        assert error(actual, truth) <= bound(case, dtype), declared.name
    for operand, actual, truth in zip(case.op.operands, gradients, exact_gradients, strict=True):
        assert (actual is None) == (truth is None), operand.name
        if actual is not None and truth is not None:
            assert error(actual, truth) <= bound(case, dtype), f"gradient of {operand.name}"
