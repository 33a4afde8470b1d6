"""Modules around the functional forms, which explain the arguments; options are attributes that may be changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from liger import losses
from liger_torch.chunked_loss.distillation import (
    UPSTREAM_CHUNK,
    liger_fused_linear_cosine,
    liger_fused_linear_distillation_jsd,
)
from liger_torch.chunked_loss.groups import Result
from liger_torch.chunked_loss.policy import liger_fused_linear_grpo
from liger_torch.chunked_loss.preference import (
    liger_fused_linear_cpo,
    liger_fused_linear_dpo,
    liger_fused_linear_orpo,
    liger_fused_linear_simpo,
)
from liger_torch.chunked_loss.unpaired import liger_fused_linear_kto
from liger_torch.valid_rows import ValidRows


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
        chunk_bytes: int | None = None,
        keep_logits: str | bool | int = "auto",
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
            chunk_bytes=chunk_bytes,
            keep_logits=keep_logits,
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
        valid_rows: ValidRows | None = None,
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
            valid_rows=valid_rows,
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
        chunk_bytes: int | None = None,
        keep_logits: str | bool | int = "auto",
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
            chunk_bytes=chunk_bytes,
            keep_logits=keep_logits,
        )

    def forward(
        self,
        lin_weight: torch.Tensor,
        _input: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        valid_rows: ValidRows | None = None,
    ) -> Result:
        """Head, hidden states and ids to the loss and what there is to log."""
        return liger_fused_linear_cpo(
            _input, lin_weight, target, bias, valid_rows=valid_rows, **self._options
        )


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
        *,
        chunk_bytes: int | None = None,
        keep_logits: str | bool | int = "auto",
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
            chunk_bytes=chunk_bytes,
            keep_logits=keep_logits,
        )

    def forward(
        self,
        lin_weight: torch.Tensor,
        _input: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        valid_rows: ValidRows | None = None,
    ) -> Result:
        """Head, hidden states and ids to the loss and what there is to log."""
        return liger_fused_linear_simpo(
            _input, lin_weight, target, bias, valid_rows=valid_rows, **self._options
        )


class LigerFusedLinearORPOLoss(_Loss):
    """Odds ratio preference optimisation; see `liger_fused_linear_orpo`."""

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        compute_nll_loss: bool = True,
        compiled: bool = True,
        chunk_size: int = 1,
        *,
        chunk_bytes: int | None = None,
        keep_logits: str | bool | int = "auto",
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            beta=beta,
            compute_nll_loss=compute_nll_loss,
            compiled=compiled,
            chunk_size=chunk_size,
            chunk_bytes=chunk_bytes,
            keep_logits=keep_logits,
        )

    def forward(
        self,
        lin_weight: torch.Tensor,
        _input: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None = None,
        nll_target: torch.Tensor | None = None,
        *,
        valid_rows: ValidRows | None = None,
    ) -> Result:
        """Head, hidden states and ids to the loss and what there is to log."""
        return liger_fused_linear_orpo(
            _input, lin_weight, target, bias, nll_target=nll_target, valid_rows=valid_rows, **self._options
        )


class LigerFusedLinearKTOLoss(_Loss):
    """Kahneman-Tversky optimisation; see `liger_fused_linear_kto`."""

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        compiled: bool = True,
        use_ref_model: bool = False,
        average_log_prob: bool = False,
        chunk_size: int = 1,
        *,
        loss_type: str = "kto",
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        chunk_bytes: int | None = None,
        keep_logits: str | bool | int = "auto",
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            beta=beta,
            compiled=compiled,
            use_ref_model=use_ref_model,
            average_log_prob=average_log_prob,
            chunk_size=chunk_size,
            loss_type=loss_type,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
            chunk_bytes=chunk_bytes,
            keep_logits=keep_logits,
        )

    def forward(
        self,
        _input: torch.Tensor,
        lin_weight: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None = None,
        preference_labels: torch.Tensor | None = None,
        ref_input: torch.Tensor | None = None,
        ref_weight: torch.Tensor | None = None,
        ref_bias: torch.Tensor | None = None,
        kl: torch.Tensor | None = None,
        *,
        ref_logps: torch.Tensor | None = None,
        valid_rows: ValidRows | None = None,
    ) -> Result:
        """Hidden states, head and ids to the loss and what there is to log."""
        if preference_labels is None:
            raise ValueError("kto: preference_labels is None; say of each answer whether it is a good one.")
        return liger_fused_linear_kto(
            _input,
            lin_weight,
            target,
            preference_labels,
            bias,
            ref_input,
            ref_weight,
            ref_bias,
            kl,
            ref_logps=ref_logps,
            valid_rows=valid_rows,
            **self._options,
        )


class LigerFusedLinearGRPOLoss(_Loss):
    """Group relative policy optimisation and its kin; see `liger_fused_linear_grpo`."""

    def __init__(
        self,
        beta: float = 0.04,
        compiled: bool = True,
        use_ref_model: bool = True,
        chunk_size: int = 1,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        loss_type: str = "dapo",
        max_completion_length: int | None = None,
        importance_sampling_level: str = "token",
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        temperature: float = 1.0,
        delta: float | None = None,
        use_bias_correction_kl: bool = False,
        vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0,
        vespo_k_neg: float = 3.0,
        vespo_lambda_neg: float = 2.0,
        *,
        entropy_coef: float = 0.0,
        chunk_bytes: int | None = None,
        keep_logits: str | bool | int = "auto",
    ) -> None:
        losses.check_grpo(
            loss_type,
            importance_sampling_level,
            max_completion_length,
            delta,
            sapo_temperature_pos,
            sapo_temperature_neg,
            epsilon_low,
            epsilon_high,
        )
        super().__init__(
            beta=beta,
            compiled=compiled,
            use_ref_model=use_ref_model,
            chunk_size=chunk_size,
            epsilon_low=epsilon_low,
            epsilon_high=epsilon_high,
            loss_type=loss_type,
            max_completion_length=max_completion_length,
            importance_sampling_level=importance_sampling_level,
            sapo_temperature_pos=sapo_temperature_pos,
            sapo_temperature_neg=sapo_temperature_neg,
            temperature=temperature,
            delta=delta,
            use_bias_correction_kl=use_bias_correction_kl,
            vespo_k_pos=vespo_k_pos,
            vespo_lambda_pos=vespo_lambda_pos,
            vespo_k_neg=vespo_k_neg,
            vespo_lambda_neg=vespo_lambda_neg,
            entropy_coef=entropy_coef,
            chunk_bytes=chunk_bytes,
            keep_logits=keep_logits,
        )

    def forward(
        self,
        _input: torch.Tensor,
        lin_weight: torch.Tensor,
        selected_token_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        advantages: torch.Tensor,
        bias: torch.Tensor | None = None,
        ref_per_token_logps: torch.Tensor | None = None,
        old_per_token_logps: torch.Tensor | None = None,
        ref_input: torch.Tensor | None = None,
        ref_weight: torch.Tensor | None = None,
        ref_bias: torch.Tensor | None = None,
        vllm_is_ratio: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | float | None = None,
        *,
        weights: torch.Tensor | None = None,
        high_entropy: torch.Tensor | None = None,
        valid_rows: ValidRows | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Hidden states, head and tokens to the loss and its metrics."""
        return liger_fused_linear_grpo(
            _input,
            lin_weight,
            selected_token_ids,
            attention_mask,
            advantages,
            bias,
            ref_per_token_logps,
            old_per_token_logps,
            ref_input,
            ref_weight,
            ref_bias,
            vllm_is_ratio=vllm_is_ratio,
            num_items_in_batch=num_items_in_batch,
            weights=weights,
            high_entropy=high_entropy,
            valid_rows=valid_rows,
            **self._options,
        )


class _DistillationLoss(_Loss):
    """The arguments that the distillation losses share."""

    def __init__(
        self,
        weight_hard_loss: float = 0.5,
        weight_soft_loss: float = 0.5,
        beta: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
        compiled: bool = True,
        chunk_size: int = UPSTREAM_CHUNK,
        return_soft_hard_loss: bool = False,
    ) -> None:
        super().__init__(
            weight_hard_loss=weight_hard_loss,
            weight_soft_loss=weight_soft_loss,
            beta=beta,
            ignore_index=ignore_index,
            temperature=temperature,
            compiled=compiled,
            chunk_size=chunk_size,
            return_soft_hard_loss=return_soft_hard_loss,
        )

    _function: Callable[..., torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

    def forward(
        self,
        student_input: torch.Tensor,
        student_weight: torch.Tensor,
        teacher_input: torch.Tensor,
        teacher_weight: torch.Tensor,
        true_labels: torch.Tensor,
        student_bias: torch.Tensor | None = None,
        teacher_bias: torch.Tensor | None = None,
        *,
        valid_rows: ValidRows | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden states and heads of both models, and labels, to the loss."""
        return type(self)._function(
            student_input,
            student_weight,
            teacher_input,
            teacher_weight,
            true_labels,
            student_bias,
            teacher_bias,
            valid_rows=valid_rows,
            **self._options,
        )


class LigerFusedLinearJSDLoss(_DistillationLoss):
    """Generalised JSD of two heads' logits; see `liger_fused_linear_distillation_jsd`."""

    _function = staticmethod(liger_fused_linear_distillation_jsd)


class LigerFusedLinearCosineSimilarityLoss(_DistillationLoss):
    """Cosine distance of two heads' logits; see `liger_fused_linear_cosine`."""

    _function = staticmethod(liger_fused_linear_cosine)
