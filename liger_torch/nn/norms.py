"""Normalisation layers."""

from __future__ import annotations

import torch
from torch import nn

from liger_torch.functional import (
    liger_fused_add_layer_norm,
    liger_fused_add_rms_norm,
    liger_group_norm,
    liger_layer_norm,
    liger_rms_norm,
)

_INITIAL = {"ones": torch.ones, "zeros": torch.zeros}


def _initial(module: nn.Module, size: int, init_fn: str) -> torch.Tensor:
    if init_fn not in _INITIAL:
        raise ValueError(f"{type(module).__name__}: init_fn is {init_fn!r}; choose 'ones' or 'zeros'.")
    return _INITIAL[init_fn](size)


def _register_affine(module: nn.Module, size: int, init_fn: str, bias: bool, affine: bool) -> None:
    """Give a layer its weight and its bias, or neither."""
    if bias and not affine:
        raise ValueError(
            f"{type(module).__name__}: bias is True, but the layer is not to be affine; leave bias out, or let it be."
        )
    weight = _initial(module, size, init_fn)
    module.register_parameter("weight", nn.Parameter(weight) if affine else None)
    module.register_parameter("bias", nn.Parameter(torch.zeros(size)) if bias else None)


class _RMSNorm(nn.Module):
    weight: nn.Parameter | None

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
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self.offset = offset
        self.casting_mode = casting_mode
        self.in_place = in_place
        weight = _initial(self, hidden_size, init_fn)
        self.register_parameter("weight", nn.Parameter(weight) if elementwise_affine else None)

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


class _LayerNorm(nn.Module):
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        bias: bool = False,
        init_fn: str = "ones",
        elementwise_affine: bool = True,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        _register_affine(self, hidden_size, init_fn, bias, elementwise_affine)

    def extra_repr(self) -> str:
        """The layer's arguments."""
        return (
            f"{self.hidden_size}, eps={self.variance_epsilon}, bias={self.bias is not None}, "
            f"elementwise_affine={self.weight is not None}"
        )


class LigerLayerNorm(_LayerNorm):
    """LayerNorm over the last axis: (x - mean(x)) / sqrt(var(x) + eps) * weight + bias.

    A state_dict of `torch.nn.LayerNorm` loads where that has the same parameters.

    Args:
        hidden_size: length of the last axis.
        eps: added to the variance.
        bias: whether there is a bias; it starts at zero.
        init_fn: the weight's first value, "ones" or "zeros".
        elementwise_affine: whether there is a weight.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) to the same."""
        return liger_layer_norm(hidden_states, self.weight, self.bias, self.variance_epsilon)


class LigerFusedAddLayerNorm(_LayerNorm):
    """Residual add and LayerNorm in one pass; the arguments are those of `LigerLayerNorm`."""

    def forward(
        self, hidden_states: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Two tensors (..., hidden_size) to (normalised sum, sum)."""
        return liger_fused_add_layer_norm(
            hidden_states, residual, self.weight, self.bias, self.variance_epsilon
        )


class LigerGroupNorm(nn.Module):
    """GroupNorm: (x - mean) / sqrt(var + eps) * weight + bias, over each group of channels of each image.

    A state_dict of `torch.nn.GroupNorm` loads where that has the same parameters.

    Args:
        num_channels: channels of the input, its second axis.
        num_groups: groups of neighbouring channels; a divisor of num_channels.
        eps: added to the variance.
        bias: whether there is a bias; it starts at zero.
        init_fn: the weight's first value, "ones" or "zeros".
        affine: whether there is a weight.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_channels: int,
        num_groups: int,
        eps: float = 1e-6,
        bias: bool = False,
        init_fn: str = "ones",
        affine: bool = True,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"LigerGroupNorm: num_groups is {num_groups} and num_channels {num_channels}; choose a divisor of "
                "num_channels. (torch.nn.GroupNorm takes the two in the other order.)"
            )
        self.num_channels = num_channels
        self.num_groups = num_groups
        self.variance_epsilon = eps
        _register_affine(self, num_channels, init_fn, bias, affine)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(N, num_channels, *) to the same."""
        return liger_group_norm(
            hidden_states, self.weight, self.bias, self.num_channels, self.num_groups, self.variance_epsilon
        )

    def extra_repr(self) -> str:
        """The layer's arguments."""
        return (
            f"{self.num_channels}, {self.num_groups}, eps={self.variance_epsilon}, "
            f"bias={self.bias is not None}, affine={self.weight is not None}"
        )
