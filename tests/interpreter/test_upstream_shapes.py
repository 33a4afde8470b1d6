"""Shapes, dtypes and tolerances of liger-kernel's tests, on the kernels; the full number of tokens is for a GPU."""

from __future__ import annotations

import pytest
import torch
from upstream import CHECKS, Check, assert_holds, with_fewer_tokens

MOST = 50_000
"""Elements of an operand, about: what the interpreter does in a moment."""

MOST_OF_A_MEAN = 200_000
"""Of a mean over tokens: the absolute tolerance of its gradient counts on many."""


RUNS = [(check, dtype) for check in CHECKS for dtype in check.tolerances]


@pytest.mark.parametrize(("check", "dtype"), RUNS, ids=[f"{check.name}-{dtype}" for check, dtype in RUNS])
def test_upstreams_tolerances_hold(check: Check, dtype: torch.dtype) -> None:
    most = MOST_OF_A_MEAN if check.name.startswith("cross_entropy") else MOST
    for shape in check.shapes:
        assert_holds(check, with_fewer_tokens(shape, most), dtype, "cpu")
