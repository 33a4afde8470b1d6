"""Gated activations."""

from __future__ import annotations

import torch

from liger_torch.autograd import call
from liger_triton import swiglu


def liger_swiglu(a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """y = silu(a) * b, silu(a) = a * sigmoid(a) (Shazeer, arXiv:2002.05202).

    Args:
        a: the gate, (..., intermediate); or, without b, gate and up projection packed as [gate | up] along the last
            axis. Slices of a packed projection are read without a copy.
        b: the up projection, of a's shape and dtype.

    Returns:
        (..., intermediate).

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes that differ; a packed last axis of odd length.
    """
    (y,) = call(swiglu.SWIGLU, swiglu.Options(), a, b)
    assert y is not None
    return y
