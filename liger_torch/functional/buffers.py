"""Buffers to which gradients are added, where plain torch runs an op."""

from __future__ import annotations

from typing import Any

import torch


class IntoBuffer(torch.autograd.Function):
    """The same tensor, whose gradient is added to a buffer instead of being handed on."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        """The tensor."""
        ctx.buffer = buffer
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None]:
        """Add the gradient."""
        ctx.buffer.add_(gradient)
        return None, None
