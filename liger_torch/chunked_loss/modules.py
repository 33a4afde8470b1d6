"""Modules around the functional forms, which explain the arguments; options are attributes that may be changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from liger import losses
from liger_torch.chunked_loss.preference import (
    Result,
    liger_fused_linear_cpo,
    liger_fused_linear_dpo,
    liger_fused_linear_orpo,
    liger_fused_linear_simpo,
)


class _Loss(nn.Module):
    """Holds the options of a functional form by name."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._option_names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    @property
    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._option_names}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._options.items())


class LigerFusedLinearDPOLoss(_Loss):
    """Direct preference optimisation; see `liger_fused_linear_dpo`."""

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        compute_nll_loss: bool = False,
        compiled: bool = True,
        use_ref_model: bool = True,
        average_log_prob: bool = False,
        chunk_size: int = 1,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        discopop_tau: float = 0.05,
        *,
        f_divergence: str = "reverse_kl",
        f_alpha: float = 1.0,
    ) -> None:
        losses.check_dpo(loss_type, beta, label_smoothing, f_divergence, discopop_tau)
        super().__init__(
            ignore_index=ignore_index,
            beta=beta,
            alpha=alpha,
            compute_nll_loss=compute_nll_loss,
            compiled=compiled,
            use_ref_model=use_ref_model,
            average_log_prob=average_log_prob,
            chunk_size=chunk_size,
            loss_type=loss_type,
            label_smoothing=label_smoothing,
            discopop_tau=discopop_tau,
            f_divergence=f_divergence,
            f_alpha=f_alpha,
        )

    def forward(
        self,
        lin_weight: torch.Tensor,
        _input: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None = None,
        ref_input: torch.Tensor | None = None,
        ref_weight: torch.Tensor | None = None,
        ref_bias: torch.Tensor | None = None,
        *,
        ref_logps: torch.Tensor | None = None,
    ) -> Result:
        """Head, hidden states and ids to the loss and what there is to log."""
        return liger_fused_linear_dpo(
            _input,
            lin_weight,
            target,
            bias,
            ref_input,
            ref_weight,
            ref_bias,
            ref_logps=ref_logps,
            **self._options,
        )


class LigerFusedLinearCPOLoss(_Loss):
    """Contrastive preference optimisation; see `liger_fused_linear_cpo`."""

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        label_smoothing: float = 0.0,
        compute_nll_loss: bool = True,
        compiled: bool = True,
        average_log_prob: bool = False,
        chunk_size: int = 1,
        *,
        loss_type: str = "sigmoid",
        reward_alpha: float = 0.0,
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            beta=beta,
            alpha=alpha,
            label_smoothing=label_smoothing,
            compute_nll_loss=compute_nll_loss,
            compiled=compiled,
            average_log_prob=average_log_prob,
            chunk_size=chunk_size,
            loss_type=loss_type,
            reward_alpha=reward_alpha,
        )

    def forward(
        self,
        lin_weight: torch.Tensor,
        _input: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> Result:
        """Head, hidden states and ids to the loss and what there is to log."""
        return liger_fused_linear_cpo(_input, lin_weight, target, bias, **self._options)


class LigerFusedLinearSimPOLoss(_Loss):
    """Simple preference optimisation; see `liger_fused_linear_simpo`."""

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        label_smoothing: float = 0.0,
        compute_nll_loss: bool = True,
        compiled: bool = True,
        gamma: float = 0.5,
        chunk_size: int = 1,
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            beta=beta,
            alpha=alpha,
            label_smoothing=label_smoothing,
            compute_nll_loss=compute_nll_loss,
            compiled=compiled,
            gamma=gamma,
            chunk_size=chunk_size,
        )

    def forward(
        self,
        lin_weight: torch.Tensor,
        _input: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> Result:
        """Head, hidden states and ids to the loss and what there is to log."""
        return liger_fused_linear_simpo(_input, lin_weight, target, bias, **self._options)


class LigerFusedLinearORPOLoss(_Loss):
    """Odds ratio preference optimisation; see `liger_fused_linear_orpo`."""

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        compute_nll_loss: bool = True,
        compiled: bool = True,
        chunk_size: int = 1,
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            beta=beta,
            compute_nll_loss=compute_nll_loss,
            compiled=compiled,
            chunk_size=chunk_size,
        )

    def forward(
        self,
        lin_weight: torch.Tensor,
        _input: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None = None,
        nll_target: torch.Tensor | None = None,
    ) -> Result:
        """Head, hidden states and ids to the loss and what there is to log."""
        return liger_fused_linear_orpo(
            _input, lin_weight, target, bias, nll_target=nll_target, **self._options
        )
