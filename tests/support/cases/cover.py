"""Which cases stand for an op where running all of them would show no more, and cases at other token counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from cases.case import Case, Operands

Feature = tuple[object, ...]


def representatives(cases: Iterable[Case], *, options: bool = True) -> tuple[Case, ...]:
    """For each op the fewest small cases, found greedily, that have every form of it.

    A form is: an operand is present or absent, an output is returned or not and has an axis or none, the backward pass
    can be run once only or again; with `options`, an option has this name or is given or not.
    """
    small: dict[str, list[Case]] = {}
    for case in cases:
        if all(value is None or 0 < value.size < 10_000 for value in case.operands()) and n_tokens(case) > 1:
            small.setdefault(case.op.name, []).append(case)
    return tuple(chosen for family in small.values() for chosen in _cover(family, options))


def each_once(cases: Iterable[Case], chosen: Iterable[Case]) -> tuple[tuple[Case, str], ...]:
    """Every case with one dtype: those chosen in float32, the others in bfloat16.

    Of an op with no others, one that is chosen runs in bfloat16 too.
    """
    cases, chosen = tuple(cases), tuple(chosen)
    narrow = [case for case in cases if case not in chosen]
    seen = {case.op.name for case in narrow}
    alone = {case.op.name: case for case in chosen if case.op.name not in seen}
    return (
        *((case, "bfloat16") for case in (*narrow, *alone.values())),
        *((case, "float32") for case in chosen),
    )


def _cover(cases: list[Case], options: bool) -> Iterator[Case]:
    forms = {case.name: {form for form in _forms(case) if options or form[0] != "option"} for case in cases}
    missing = set().union(*forms.values())
    while missing:
        best = max(cases, key=lambda case: len(forms[case.name] & missing))
        missing -= forms[best.name]
        yield best


def _forms(case: Case) -> Iterator[Feature]:
    from liger.launch import Spec

    operands = case.operands()
    specs = tuple(None if v is None else Spec(v.shape, v.dtype.name) for v in operands)
    outputs, _ = case.op.infer(specs, case.options, case.op.computed(case.needs()))
    for operand, value in zip(case.op.operands, operands, strict=True):
        yield "operand", operand.name, value is None
    for output, spec in zip(case.op.outputs, outputs, strict=True):
        yield "output", output.name, None if spec is None else bool(spec.shape)
    for field in dataclasses.fields(case.options):
        value = getattr(case.options, field.name)
        yield "option", field.name, value if isinstance(value, str) else bool(value)
    yield "once", case.op.backward_once(case.options, case.op.computed(case.needs()))


def token_axis(case: Case, position: int) -> int | None:
    """The last axis of an operand that runs over tokens; None if none does."""
    operand, value = case.op.operands[position], case.operands()[position]
    if value is None or operand.role != "rows" or value.ndim <= operand.axes:
        return None
    return value.ndim - operand.axes - 1


def n_tokens(case: Case) -> int:
    """Length of the first operand's last token axis."""
    axis, value = token_axis(case, 0), case.operands()[0]
    return 1 if axis is None or value is None else value.shape[axis]


def with_tokens(case: Case, count: int) -> Case:
    """The case with another number of tokens: its own, repeated or left out."""
    old = n_tokens(case)
    index = np.arange(count) % max(old, 1)

    def make(rng: np.random.Generator) -> Operands:
        values = case.operands()
        axes = [token_axis(case, position) for position in range(len(values))]
        return tuple(
            value
            if value is None or axis is None or value.shape[axis] != old
            else np.take(value, index, axis)
            for value, axis in zip(values, axes, strict=True)
        )

    return dataclasses.replace(case, name=f"{case.name}-{count}-tokens", make=make)
