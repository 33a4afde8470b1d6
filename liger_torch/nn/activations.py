"""Activations without a gate."""

from __future__ import annotations

import torch
from torch import nn

from liger_torch.functional import liger_relu_squared, liger_softmax, liger_sparsemax


class LigerReLUSquared(nn.Module):
    """max(x, 0)^2; see `liger_torch.functional.liger_relu_squared`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of x's shape and dtype."""
        return liger_relu_squared(x)


class LigerSoftmax(nn.Module):
    """`torch.nn.Softmax` along `dim`; see `liger_torch.functional.liger_softmax`."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of x's shape and dtype."""
        return liger_softmax(x, self.dim)

    def extra_repr(self) -> str:
        """As of `torch.nn.Softmax`."""
        return f"dim={self.dim}"


class LigerSparsemax(nn.Module):
    """Sparsemax along `dim`; see `liger_torch.functional.liger_sparsemax`."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of x's shape and dtype."""
        return liger_sparsemax(x, self.dim)

    def extra_repr(self) -> str:
        """As of `torch.nn.Softmax`."""
        return f"dim={self.dim}"
