"""Normalisation layers."""

from __future__ import annotations

import torch
from torch import nn

from liger_torch.functional import liger_fused_add_rms_norm, liger_rms_norm

_INITIAL = {"ones": torch.ones, "zeros": torch.zeros}


class _RMSNorm(nn.Module):
    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        offset: float = 0.0,
        casting_mode: str = "llama",
        init_fn: str = "ones",
        in_place: bool = False,
        elementwise_affine: bool = True,
    ) -> None:
        super().__init__()
        if init_fn not in _INITIAL:
            raise ValueError(f"{type(self).__name__}: init_fn is {init_fn!r}; choose 'ones' or 'zeros'.")
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self.offset = offset
        self.casting_mode = casting_mode
        self.in_place = in_place
        if elementwise_affine:
            self.weight: nn.Parameter | None = nn.Parameter(_INITIAL[init_fn](hidden_size))
        else:
            self.register_parameter("weight", None)

    def extra_repr(self) -> str:
        """The layer's arguments."""
        return (
            f"{self.hidden_size}, eps={self.variance_epsilon}, offset={self.offset}, "
            f"casting_mode={self.casting_mode!r}, in_place={self.in_place}"
        )


class LigerRMSNorm(_RMSNorm):
    """RMSNorm over the last axis: x / sqrt(mean(x^2) + eps) * (offset + weight).

    Args:
        hidden_size: length of the last axis.
        eps: added to the mean square.
        offset: added to the weight; 1.0 for Gemma.
        casting_mode: where the result is rounded, see `liger_torch.functional.liger_rms_norm`.
        init_fn: "ones" or "zeros".
        in_place: the backward pass may overwrite the incoming gradient.
        elementwise_affine: whether there is a weight.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) to the same."""
        return liger_rms_norm(
            hidden_states, self.weight, self.variance_epsilon, self.offset, self.casting_mode, self.in_place
        )


class LigerFusedAddRMSNorm(_RMSNorm):
    """Residual add and RMSNorm in one pass; the arguments are those of `LigerRMSNorm`."""

    def forward(
        self, hidden_states: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Two tensors (..., hidden_size) to (normalised sum, sum)."""
        return liger_fused_add_rms_norm(
            hidden_states,
            residual,
            self.weight,
            self.variance_epsilon,
            self.offset,
            self.casting_mode,
            self.in_place,
        )
