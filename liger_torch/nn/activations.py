"""Activations without a gate, as modules."""

from __future__ import annotations

import torch
from torch import nn

from liger_torch.functional import liger_relu_squared


class LigerReLUSquared(nn.Module):
    """max(x, 0)^2; see `liger_torch.functional.liger_relu_squared`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of x's shape and dtype."""
        return liger_relu_squared(x)
