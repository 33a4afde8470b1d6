"""Buffers to which gradients are added, where plain torch runs an op."""

from __future__ import annotations

from typing import Any

import torch

from liger_torch.first_order import refusal


class IntoBuffer(torch.autograd.Function):
    """The same tensor, whose gradient is added to a buffer instead of being handed on."""

    @staticmethod
    def forward(ctx: Any, op: str, tensor: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        """The tensor."""
        ctx.op, ctx.buffer = op, buffer
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        """Add the gradient."""
        if torch.is_grad_enabled():
            raise refusal(ctx.op, "What is added to weight_grad has no graph: leave it out.")
        ctx.buffer.add_(gradient)
        return None, None, None
