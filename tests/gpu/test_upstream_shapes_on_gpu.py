"""Shapes, dtypes and tolerances of liger-kernel's tests, in full."""

from __future__ import annotations

import pytest
import torch
from upstream import CHECKS, Check, assert_holds

pytestmark = pytest.mark.gpu

RUNS = [(check, shape, dtype) for check in CHECKS for shape in check.shapes for dtype in check.tolerances]


@pytest.mark.parametrize(
    ("check", "shape", "dtype"), RUNS, ids=[f"{check.name}-{shape}-{dtype}" for check, shape, dtype in RUNS]
)
def test_upstreams_tolerances_hold(check: Check, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_holds(check, shape, dtype, "cuda")
