"""Loss modules that compare a student with a teacher."""

from __future__ import annotations

import torch
from torch import nn

from liger_torch.functional import (
    DistillationOutput,
    liger_fused_linear_jsd,
    liger_jsd,
    liger_kl_div,
    liger_tvd,
)


class LigerKLDIVLoss(nn.Module):
    """KL divergence; see `liger_torch.functional.liger_kl_div`."""

    def __init__(
        self,
        reduction: str = "batchmean",
        log_target: bool = False,
        eps: float = 1e-10,
        *,
        from_logits: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.log_target = log_target
        self.eps = eps
        self.from_logits = from_logits
        self.temperature = temperature

    def forward(self, y_pred: torch.Tensor, y_true: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (..., vocab) and (log-)probabilities of the same shape to the loss."""
        return liger_kl_div(
            y_pred,
            y_true,
            reduction=self.reduction,
            log_target=self.log_target,
            eps=self.eps,
            from_logits=self.from_logits,
            temperature=self.temperature,
        )


class LigerJSD(nn.Module):
    """Generalised Jensen-Shannon divergence; see `liger_torch.functional.liger_jsd`."""

    def __init__(
        self,
        beta: float = 0.5,
        ignore_index: int = -100,
        *,
        reduction: str = "mean",
        from_logits: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.from_logits = from_logits
        self.temperature = temperature

    def forward(
        self, log_q: torch.Tensor, log_p: torch.Tensor, shift_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log-probabilities of the student and of the teacher (..., vocab), and labels (...), to the loss."""
        return liger_jsd(
            log_q,
            log_p,
            shift_labels,
            self.beta,
            self.ignore_index,
            reduction=self.reduction,
            from_logits=self.from_logits,
            temperature=self.temperature,
        )


class LigerTVDLoss(nn.Module):
    """Total variation distance; see `liger_torch.functional.liger_tvd`."""

    def __init__(
        self,
        reduction: str = "batchmean",
        ignore_index: int = -100,
        *,
        from_logits: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.from_logits = from_logits
        self.temperature = temperature

    def forward(
        self, p: torch.Tensor, q: torch.Tensor, shift_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Probabilities p and q (..., vocab), and labels (...), to the loss."""
        return liger_tvd(
            p,
            q,
            shift_labels,
            self.reduction,
            self.ignore_index,
            from_logits=self.from_logits,
            temperature=self.temperature,
        )


class LigerFusedLinearJSD(nn.Module):
    """Generalised JSD of two linear layers' logits; see `liger_torch.functional.liger_fused_linear_jsd`."""

    def __init__(
        self,
        jsd_beta: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
        accum_dtype: torch.dtype | None = None,
        *,
        weight_soft_loss: float = 1.0,
        weight_hard_loss: float = 0.0,
        reduction: str = "mean",
        return_soft_hard_loss: bool = False,
        chunk_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.jsd_beta = jsd_beta
        self.ignore_index = ignore_index
        self.temperature = temperature
        self.accum_dtype = accum_dtype
        self.weight_soft_loss = weight_soft_loss
        self.weight_hard_loss = weight_hard_loss
        self.reduction = reduction
        self.return_soft_hard_loss = return_soft_hard_loss
        self.chunk_bytes = chunk_bytes

    def forward(
        self,
        student_input: torch.Tensor,
        student_weight: torch.Tensor,
        teacher_input: torch.Tensor,
        teacher_weight: torch.Tensor,
        shift_labels: torch.Tensor | None = None,
        *,
        student_bias: torch.Tensor | None = None,
        teacher_bias: torch.Tensor | None = None,
    ) -> torch.Tensor | DistillationOutput:
        """Inputs (..., hidden) and weights (vocab, hidden) of both models, and labels (...), to the loss."""
        return liger_fused_linear_jsd(
            student_input,
            student_weight,
            teacher_input,
            teacher_weight,
            shift_labels,
            self.jsd_beta,
            self.ignore_index,
            self.temperature,
            self.accum_dtype,
            student_bias=student_bias,
            teacher_bias=teacher_bias,
            weight_soft_loss=self.weight_soft_loss,
            weight_hard_loss=self.weight_hard_loss,
            reduction=self.reduction,
            return_soft_hard_loss=self.return_soft_hard_loss,
            chunk_bytes=self.chunk_bytes,
        )
