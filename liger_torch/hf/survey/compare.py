"""One family: its small model as it is and patched, the loss and every gradient compared.

For a text, and for what looks at images by itself: without an image in the text it would not run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

from liger_torch.hf.patch import apply_liger_kernel
from liger_torch.hf.report import PatchReport
from liger_torch.hf.survey import images, tiny

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
from text alone, or with one that is not certain to so many digits.
"""

TEXT = "text"

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
        compared: `TEXT`, and the names of the parts that look at images.
        loss: the loss's relative difference, NaN if none was computed.
        gradients: the largest one of a gradient.
    """

    family: tiny.Family
    outcome: str
    reason: str = ""
    report: PatchReport | None = None
    compared: tuple[str, ...] = ()
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
    model, report = built.model, None
    losses: dict[str, Callable[[], torch.Tensor]] = images.losses(model)
    if not built.reason:
        losses = {TEXT: lambda: model(**built.inputs).loss, **losses}
    expected = {name: step(model, loss) for name, loss in losses.items()}
    with moved_by_a_digit(model):
        unsure = {name: difference(step(model, loss), expected[name])[2] for name, loss in losses.items()}
    try:
        report = patch(model)
        actual = {name: step(model, loss) for name, loss in losses.items()}
    except Exception as error:  # ours, or transformers' own in a way that it does not expect: to be seen to
        return Row(family, FAILED, tiny.short(error), report)
    off = {name: difference(actual[name], expected[name]) for name in losses}
    wrong = [f"{name}: {reason}" for name, (_, _, reason) in off.items() if reason and not unsure[name]]
    compared = tuple(name for name, (_, _, reason) in off.items() if not (reason and unsure[name]))
    loss = max((off[name][0] for name in compared), default=math.nan)
    gradients = max((off[name][1] for name in compared), default=math.nan)
    if wrong:
        outcome, reason = UNEQUAL, wrong[0]
    elif TEXT not in compared:
        uncertain = f"moving its weights by their last digit does as much: {unsure.get(TEXT)}"
        outcome, reason = NOT_COMPARED, built.reason or uncertain
    else:
        outcome, reason = EQUAL, ""
    return Row(family, outcome, reason, report, compared, loss, gradients)


@contextlib.contextmanager
def moved_by_a_digit(model: nn.Module) -> Iterator[None]:
    """With every weight at the next number above or below.

    A result that this changes is not certain to that, in float32; so is one that is another at every call.
    """
    weights = [p for p in model.parameters() if p.is_floating_point()]
    before = [p.detach().clone() for p in weights]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in weights:
            up = torch.rand(p.shape, generator=generator) < 0.5
            p.copy_(torch.nextafter(p, torch.where(up, math.inf, -math.inf).to(p.dtype)))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, values in zip(weights, before, strict=True):
                p.copy_(values)


def step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    """The loss and the gradient of every parameter, with the same random numbers (dropout) every time."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    value = loss()
    value.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Step(value.detach(), found)


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
