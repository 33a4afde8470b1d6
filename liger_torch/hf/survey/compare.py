"""One family: its small model as it is and patched, the loss and every gradient compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from liger_torch.hf.patch import apply_liger_kernel
from liger_torch.hf.report import PatchReport
from liger_torch.hf.survey import tiny

LOSS, GRADIENTS = 1e-6, 1e-5
"""What still counts as equal, relative, in float32."""

NEGLIGIBLE = 1e-2
"""Gradients smaller than this share of the model's largest are compared with that share of it.

The gradient of some parameters is 0 but for rounding errors (attention's key bias): two ways to compute it have no
digit in common.
"""

EQUAL = "equal"
UNEQUAL = "not equal"
FAILED = "fails when patched"
NOT_COMPARED = "not compared"
NOT_BUILT = "not built"
ENDED = "ended"
"""What may come out.

`ENDED`: its process was, by the time limit, for its memory, or by a crash. `NOT_COMPARED`: patched, but without a loss
from text alone, or with another one at every call.
"""

OUTCOMES = (EQUAL, UNEQUAL, FAILED, ENDED, NOT_COMPARED, NOT_BUILT)
BAD = (UNEQUAL, FAILED, ENDED)
"""What must not be."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What came out for a family.

    Attributes:
        family: which.
        outcome: one of `OUTCOMES`.
        reason: why it is not equal; empty if it is.
        report: what was patched and what was not; None where there is no model.
        loss: the loss's relative difference, NaN if none was computed.
        gradients: the largest one of a gradient.
    """

    family: tiny.Family
    outcome: str
    reason: str = ""
    report: PatchReport | None = None
    loss: float = math.nan
    gradients: float = math.nan


@dataclasses.dataclass(frozen=True)
class Step:
    """What a training step computes."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]


def survey(family: tiny.Family, patch: Callable[[nn.Module], PatchReport] = apply_liger_kernel) -> Row:
    """Build a family's small model, patch it and compare."""
    try:
        built = tiny.build(family)
    except tiny.NotBuiltError as error:
        return Row(family, NOT_BUILT, str(error))
    model, report, reason = built.model, None, built.reason
    expected = None if reason else step(model, built.inputs)
    if expected is not None and difference(step(model, built.inputs), expected)[2]:
        expected, reason = None, "gives another loss at every call"
    try:
        report = patch(model)
        if expected is None:
            return Row(family, NOT_COMPARED, reason, report)
        actual = step(model, built.inputs)
    except Exception as error:  # ours, or transformers' own in a way that it does not expect: to be seen to
        return Row(family, FAILED, tiny.short(error), report)
    loss, gradients, reason = difference(actual, expected)
    return Row(family, UNEQUAL if reason else EQUAL, reason, report, loss, gradients)


def step(model: Any, inputs: dict[str, torch.Tensor]) -> Step:
    """The loss and the gradient of every parameter, with the same random numbers (dropout) every time."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    loss = model(**inputs).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Step(loss.detach(), found)


def difference(actual: Step, expected: Step) -> tuple[float, float, str]:
    """How far the loss and the gradients are apart, relative, and what of it is too much; empty for equal."""
    loss = _relative(actual.loss, expected.loss, 1.0)
    if actual.gradients.keys() != expected.gradients.keys():
        names = sorted(actual.gradients.keys() ^ expected.gradients.keys())
        return loss, math.inf, f"{len(names)} parameters have a gradient in only one of the two: {names[0]}"
    floor = NEGLIGIBLE * max(float(g.double().norm()) for g in expected.gradients.values())
    errors = {name: _relative(actual.gradients[name], g, floor) for name, g in expected.gradients.items()}
    worst = max(errors, key=errors.__getitem__)
    reason = ""
    if not loss <= LOSS:
        reason = f"its loss is {loss:.1e} off"
    elif not errors[worst] <= GRADIENTS:
        reason = f"the gradient of {worst} is {errors[worst]:.1e} off"
    return loss, errors[worst], reason


def _relative(actual: torch.Tensor, expected: torch.Tensor, floor: float) -> float:
    """In the Euclidean norm; infinite for NaN, which is equal to nothing."""
    expected = expected.double()
    off = float((actual.double() - expected).norm()) / max(float(expected.norm()), floor)
    return off if math.isfinite(off) else math.inf
