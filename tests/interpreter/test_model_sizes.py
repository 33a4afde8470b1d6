"""Norms and rotations of published models' sizes, a few rows of them."""

from __future__ import annotations

import pytest
from model_sizes import HEADS, WIDTHS, check_norms, check_rotations

ROWS = 5


@pytest.mark.parametrize("width", WIDTHS)
def test_norms(width: int) -> None:
    check_norms(width, ROWS, "cpu")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("model", HEADS)
def test_rotations(model: str, transposed: bool) -> None:
    check_rotations(model, transposed, ROWS, "cpu")
