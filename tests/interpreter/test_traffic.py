"""Each launch moves the bytes that its formula says, counted in the interpreter, over every op forward and backward."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, normal, together
from torch_runner import run

from liger import traffic
from liger_triton import rms_norm
from liger_triton.ops import OPS

STREAMED_TWICE = {
    "rms_norm_forward_wide",
    "rms_norm_input_gradient_wide",
    "cross_entropy_forward",  # where it writes the gradient as well
    "rms_norm_backward",  # of the widest rows in float32
}
"""Kernels that may read an array twice; every other one moves the least bytes possible."""

WIDEST = Case(
    "rms_norm-widest-held-row",
    rms_norm.RMS_NORM,
    rms_norm.Options(),
    together(normal(3, 9000), normal(9000)),
)


def every_row_counts(case: Case) -> Case:
    """The case without ignored labels: their rows are not read, which the formulas do not know."""

    def make(rng: np.random.Generator) -> tuple[Any, ...]:
        return tuple(
            np.abs(value) % 50 if value is not None and value.dtype == np.int32 else value for value in case.make(rng)
        )

    return dataclasses.replace(case, make=make)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [*CASES, WIDEST], ids=lambda c: c.name)
def test_launches_move_what_they_say(case: Case, dtype: str) -> None:
    with traffic.count() as counted:
        run(every_row_counts(case), dtype)
    if not counted.counts:
        assert any(value is not None and value.size == 0 for value in case.operands()), "nothing was launched"
    for count in counted.counts:
        launch = count.launch
        assert count.moved == pytest.approx(launch.traffic, rel=0.05), launch.name
        assert launch.traffic >= launch.bytes
        if launch.name not in STREAMED_TWICE:
            assert launch.traffic == launch.bytes, launch.name


def test_the_exceptions_are_needed() -> None:
    """Every kernel that may stream twice does so somewhere; otherwise it does not belong on the list."""
    twice = set()
    for case in (*(c for c in CASES if "wide" in c.name or "20001" in c.name or c.name.endswith("mean")), WIDEST):
        with traffic.count() as counted:
            run(every_row_counts(case), "float32")
        twice |= {c.launch.name for c in counted.counts if c.launch.traffic > c.launch.bytes}
    assert twice == STREAMED_TWICE


def test_every_op_is_counted() -> None:
    assert {case.op.name for case in CASES} == {op.name for op in OPS}


def test_the_count_itself() -> None:
    """A resident array counts once, a streamed one as often as it is read, and stores are counted."""
    case = Case("count", rms_norm.RMS_NORM, rms_norm.Options(), together(normal(100, 64), normal(64)), frozen=("x",))
    with traffic.count() as counted:
        run(case, "float32")
    forward = counted.counts[0]
    assert forward.launch.name == "rms_norm_forward"
    assert forward.launch.grid[0] > 1  # so the weight is read more than once
    assert forward.moved == 4 * (100 * 64 + 64 + 100 * 64 + 100)
    with traffic.count() as nothing:
        pass
    assert nothing.counts == []
