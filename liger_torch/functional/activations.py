"""Softmax and sparsemax."""

from __future__ import annotations

import torch

from liger.op import Op
from liger_torch.autograd import call
from liger_triton import softmax


def liger_softmax(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """y_i = exp(x_i) / sum_j exp(x_j) along one axis, shifted by the maximum, in float32 and rounded once.

    Args:
        x: of any shape with at least one axis.
        dim: the axis to normalise. The last one is read as it lies; for another one x is copied.

    Returns:
        Of x's shape and dtype; a row of nothing but -inf gives NaN, as in torch.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: a scalar, or an axis of length zero.
        IndexError: an axis that x has not.
    """
    return _along(softmax.SOFTMAX, x, dim)


def liger_sparsemax(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The probabilities nearest to x, most of them 0 (Martins & Astudillo, arXiv:1602.02068).

        y_i = max(x_i - tau, 0),    tau such that sum_i y_i = 1

    Found without sorting, to float32's rounding of y; the gradient is that over the support, the entries with y > 0.

    Args:
        x: of any shape with at least one axis.
        dim: the axis to normalise. The last one is read as it lies; for another one x is copied.

    Returns:
        Of x's shape and dtype; a row of nothing but -inf gives NaN, as softmax does.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: a scalar, or an axis of length zero.
        IndexError: an axis that x has not.
    """
    return _along(softmax.SPARSEMAX, x, dim)


def _along(op: Op, x: torch.Tensor, dim: int) -> torch.Tensor:
    last = dim in (-1, x.dim() - 1)
    (y,) = call(op, (), x if last else x.transpose(dim, -1))
    assert y is not None
    return y if last else y.transpose(dim, -1)
