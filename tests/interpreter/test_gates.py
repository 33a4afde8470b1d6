"""The normal distribution in GELU's kernels, digit by digit: a gradient check would not see its tail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from liger_torch import functional


def _exact(t: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-float(x) * math.sqrt(0.5)) for x in t])


@pytest.mark.parametrize(("first", "last", "relative"), [(-1, 13, 5e-7), (-5, -1, 2e-6), (-12, -5, 1e-5)])
def test_normal_distribution_keeps_its_digits_in_the_tail(first: float, last: float, relative: float) -> None:
    """y = t P(t) of up = 1 and of t between the bounds; the bell's argument, rounded, is what the tail's error grows by."""
    t = torch.linspace(first, last, 2000, dtype=torch.float32)[None]
    y = functional.liger_geglu(t, torch.ones_like(t), approximate="none")
    expected = t[0].double().numpy() * _exact(t[0].numpy())
    np.testing.assert_allclose(y[0].double().numpy(), expected, rtol=relative, atol=0)


def test_gelu_of_what_is_not_finite_is_as_in_float64() -> None:
    """Infinity stays, and neither NaN nor 0 times infinity is hidden."""
    t = torch.tensor([[math.inf, -math.inf, math.nan, 3e38, -3e38, 0.0]])
    y = functional.liger_geglu(t, torch.ones_like(t), approximate="none")
    torch.testing.assert_close(y, torch.nn.functional.gelu(t.double()).float(), equal_nan=True)
