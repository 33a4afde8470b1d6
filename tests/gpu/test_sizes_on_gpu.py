"""Norms and rotations of published models' sizes, on a GPU."""

from __future__ import annotations

import pytest
from model_sizes import HEADS, WIDTHS, check_norms, check_rotations

pytestmark = pytest.mark.gpu

ROWS = 600
"""More than the programs that the GPU holds at once of a backward pass."""


@pytest.mark.parametrize("width", WIDTHS)
def test_norms(width: int) -> None:
    check_norms(width, ROWS, "cuda")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("model", HEADS)
def test_rotations(model: str, transposed: bool) -> None:
    check_rotations(model, transposed, ROWS, "cuda")
