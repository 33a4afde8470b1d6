"""Gated activations."""

from __future__ import annotations

from cases.case import Case, normal, together
from liger_triton import swiglu


def cases() -> list[Case]:
    make = swiglu.Options
    return [
        *(
            Case(f"swiglu-{shape}", swiglu.SWIGLU, make(), together(normal(*shape, scale=3), normal(*shape)))
            for shape in ((1, 1), (3, 5, 33), (7, 2500), (0, 16))
        ),
        *(
            Case(f"swiglu-packed-{shape}", swiglu.SWIGLU, make(), together(normal(*shape, scale=3), None))
            for shape in ((3, 5, 66), (2, 4100))
        ),
    ]
