"""What the gates before timing have in common, whichever the framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.providers import Function
from liger.op import Op

ROWS = 48
"""Tokens of the problem that is checked: the operands' own weights, a few of their tokens."""

FACTOR = 4.0
"""How many times the plain formula's error (torch eager's, XLA's) an implementation may make, or of one rounding."""

PLAIN_ROUNDINGS = 2.0
"""No more of the plain formula's error counts: one that is wrong is no measure of the others."""


def few_rows(op: Op, operands: Sequence[Any]) -> tuple[Any, ...]:
    """The operands of the first few tokens; what is not by token stays."""
    return tuple(
        array[(slice(ROWS),) * (array.ndim - declared.axes)]
        if array is not None and declared.role == "rows"
        else array
        for declared, array in zip(op.operands, operands, strict=True)
    )


def reference_of(op: Op, options: Any, outputs: Sequence[str] | None) -> Function:
    """The op's reference, of the outputs that implementations return: these, or all that are differentiable."""
    names = [o.name for o in op.outputs]
    wanted = outputs or [o.name for o in op.outputs if o.differentiable] or names

    def reference(*arrays: Any) -> tuple[Any, ...]:
        found = op.reference(arrays, options)
        return tuple(o for name, o in zip(names, found, strict=True) if o is not None and name in wanted)

    return reference


def limit(plain_error: float | None, rounding: float) -> float:
    """The largest error of an implementation that is timed; the plain formula's own may be `limit(inf, rounding)`."""
    return FACTOR * min(max(plain_error or 0.0, rounding), PLAIN_ROUNDINGS * rounding)
