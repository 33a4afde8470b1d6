"""The search for sparsemax's threshold, beside a sort in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.activations import sparsemax_by_sorting

from liger_torch import functional as f
from liger_triton import softmax

WIDE = softmax.MAX_BLOCK + 1001
RNG = np.random.default_rng(0)
ROWS = {
    "normal": RNG.standard_normal,
    "narrow": lambda n: 1e-3 * RNG.standard_normal(n),
    "uniform": RNG.random,
    "equal": lambda n: np.full(n, 7.0),
    "far from zero": lambda n: 1000 + RNG.standard_normal(n),
    "equal and far from zero": lambda n: np.full(n, 1e4),
    "further than the support is wide": lambda n: 1e4 + 1e-3 * RNG.standard_normal(n),
    "one beyond all digits": lambda n: np.where(np.arange(n) == n // 2, 2e7, RNG.standard_normal(n)),
    "the first block masked": lambda n: np.where(np.arange(n) < n // 2, -np.inf, RNG.standard_normal(n)),
    # Every step of Newton's method leaves most of what is left.
    "geometric": lambda n: -np.geomspace(1e-7, 1, n),
    "masked": lambda n: np.where(np.arange(n) % 3 == 1, -np.inf, RNG.standard_normal(n)),
    "rising": lambda n: np.linspace(-1, 1, n),
}


@pytest.mark.parametrize("n", [1000, WIDE])
@pytest.mark.parametrize("name", ROWS)
def test_every_entry_is_right_to_its_rounding(name: str, n: int) -> None:
    x = ROWS[name](n).astype(np.float32)
    y = f.liger_sparsemax(torch.from_numpy(x)).double().numpy()
    expected = sparsemax_by_sorting(x)
    # An entry that is barely in the support is a difference of nearly equal numbers.
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=3e-7 * expected.max())
    assert abs(y.sum() - 1) < 1e-6
    reference = softmax.SPARSEMAX.reference((torch.from_numpy(x),), None)[0]
    # Its running sums in float32 are off by more than the kernel's.
    np.testing.assert_allclose(reference.double().numpy(), expected, rtol=1e-6, atol=6e-7 * expected.max())


@pytest.mark.parametrize("n", [64, WIDE])
def test_entries_at_the_threshold_are_left_out(n: int) -> None:
    """16 zeros make the threshold -1/16 exactly, where all others lie."""
    x = torch.full((n,), -1 / 16)
    x[:16] = 0.0
    x.requires_grad_()
    y = f.liger_sparsemax(x)
    assert torch.equal(y, torch.where(torch.arange(n) < 16, 1 / 16, 0.0))
    (dx,) = torch.autograd.grad(y, x, torch.arange(n).float())
    assert torch.equal(dx, torch.where(torch.arange(n) < 16, torch.arange(n) - 7.5, 0.0))


@pytest.mark.parametrize("n", [5, WIDE])
@pytest.mark.parametrize("function", [f.liger_softmax, f.liger_sparsemax])
def test_a_row_without_a_number_is_nan(function: object, n: int) -> None:
    x = torch.full((2, n), float("-inf"))
    x[1, 1] = 0.0
    x.requires_grad_()
    y = function(x)  # type: ignore[operator]
    assert y[0].isnan().all()
    assert torch.equal(y[1], (torch.arange(n) == 1).float())
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert dx[0].isnan().all()
    assert (dx[1] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("n", [5, WIDE])
@pytest.mark.parametrize("function", [f.liger_softmax, f.liger_sparsemax])
def test_what_is_no_number_is_seen_in_all_of_its_row(function: object, n: int, value: float) -> None:
    x = torch.zeros(2, n)
    x[0, 3] = value
    y = function(x)  # type: ignore[operator]
    assert y[0].isnan().all()
    assert y[1].isfinite().all()
