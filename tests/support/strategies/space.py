"""What may be drawn for an op: options, shapes, layouts, dtypes and which gradients are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from cases import CASES, DTYPES, Case
from hypothesis import strategies as st

from liger.op import Op

Maker = Callable[[np.random.Generator], np.ndarray]

LENGTHS = st.sampled_from((*range(1, 8), 0))
WIDTHS = st.integers(2, 70)
SCALES = st.sampled_from((1.0, 1e-2, 10.0))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Sizes and options of one example, from which the operands are made.

    Attributes:
        tokens: lengths of the token axes.
        sizes: lengths of the named axes.
        options: of the op.
        present: which optional operands there are.
        scale: of the numbers.
    """

    tokens: tuple[int, ...]
    sizes: Mapping[str, int]
    options: Any
    present: frozenset[str]
    scale: float

    def __getitem__(self, name: str) -> int:
        return self.sizes[name]


@dataclasses.dataclass(frozen=True, repr=False)
class Space:
    """All calls of an op that its examples are drawn from.

    Attributes:
        op: the op.
        options: strategy of its options.
        operands: the operands' makers by name; those that are optional and not in `present` are left out.
        sizes: strategies of the named axes.
        token_axes: fewest and most token axes.
        needed: the optional operands without which an op refuses these options.
        keep_dtype: as in `Case`.
        roundings: as in `Case`, where the op's cases count fewer; 2 for an op that keeps its rounded result.
    """

    op: Op
    options: st.SearchStrategy[Any]
    operands: Callable[[Drawn], Mapping[str, Maker]]
    sizes: Mapping[str, st.SearchStrategy[int]] = dataclasses.field(default_factory=lambda: {"width": WIDTHS})
    token_axes: tuple[int, int] = (1, 3)
    needed: Callable[[Any], tuple[str, ...]] = lambda _: ()
    keep_dtype: tuple[str, ...] = ()
    roundings: int = 1

    def __repr__(self) -> str:
        return f"calls of {self.op.name}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For hypothesis, which would print every field of a dataclass."""
        printer.text(repr(self))


@dataclasses.dataclass(frozen=True, repr=False)
class Example:
    """One call: a case, the dtype of its arrays, and how each operand lies in memory."""

    case: Case
    dtype: str
    layouts: tuple[str, ...]

    def __repr__(self) -> str:
        operands = ", ".join(
            f"{operand.name} {value.shape} {layout}{' with gradient' if need else ''}"
            for operand, value, layout, need in zip(
                self.case.op.operands, self.case.operands(), self.layouts, self.case.needs(), strict=True
            )
            if value is not None
        )
        return f"{self.case.op.name} of {operands}, in {self.dtype}, {self.case.options}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For hypothesis, which would print every field of a dataclass."""
        printer.text(repr(self))


@st.composite
def examples(draw: st.DrawFn, space: Space, layouts: tuple[str, ...]) -> Example:
    """One example; its operands are drawn by a generator of their own, so that shrinking is left with the shapes."""
    op = space.op
    optional = [operand.name for operand in op.operands if operand.optional]
    options = draw(space.options)
    drawn = Drawn(
        tokens=tuple(draw(st.lists(LENGTHS, min_size=space.token_axes[0], max_size=space.token_axes[1]))),
        sizes={name: draw(size) for name, size in space.sizes.items()},
        options=options,
        present=frozenset(name for name in optional if draw(st.booleans()) or name in space.needed(options)),
        scale=draw(SCALES),
    )
    makers = space.operands(drawn)
    missing = set(optional) - drawn.present
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    values = tuple(
        None if operand.name not in makers or operand.name in missing else makers[operand.name](rng)
        for operand in op.operands
    )
    differentiable = [
        o.name for o, v in zip(op.operands, values, strict=True) if v is not None and o.differentiable
    ]
    wanted = draw(st.sets(st.sampled_from(differentiable), min_size=1)) if differentiable else set()
    like = [case for case in CASES if case.op is op]
    case = Case(
        name=f"{op.name}-drawn",
        op=op,
        options=drawn.options,
        make=lambda _: values,
        keep_dtype=space.keep_dtype,
        frozen=tuple(name for name in differentiable if name not in wanted),
        roundings=max(space.roundings, *(case.roundings for case in like)),
        float16_roundings=max(space.roundings, *(case.float16_roundings or case.roundings for case in like)),
        kernels_alone=like[0].kernels_alone,
    )
    return Example(
        case, draw(st.sampled_from(DTYPES)), tuple(draw(st.sampled_from(layouts)) for _ in op.operands)
    )
