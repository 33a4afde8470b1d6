"""Loss modules."""

from __future__ import annotations

import torch
from torch import nn

from liger_torch.functional import (
    CrossEntropyOutput,
    liger_cross_entropy,
    liger_fused_linear_cross_entropy,
)
from liger_torch.valid_rows import ValidRows


class LigerCrossEntropyLoss(nn.Module):
    """Cross entropy of logits; the arguments and formula are those of `liger_torch.functional.liger_cross_entropy`."""

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: float | None = None,
        return_z_loss: bool = False,
        return_token_accuracy: bool = False,
        return_predicted_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.weight: torch.Tensor | None
        self.register_buffer("weight", weight, persistent=False)
        self.ignore_index = ignore_index
        self.lse_square_scale = lse_square_scale
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.softcap = softcap
        self.return_z_loss = return_z_loss
        self.return_token_accuracy = return_token_accuracy
        self.return_predicted_tokens = return_predicted_tokens

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor | CrossEntropyOutput:
        """Logits (..., vocab) and labels (...) to the loss."""
        return liger_cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            lse_square_scale=self.lse_square_scale,
            softcap=self.softcap,
            return_z_loss=self.return_z_loss,
            return_token_accuracy=self.return_token_accuracy,
            return_predicted_tokens=self.return_predicted_tokens,
        )


class LigerFusedLinearCrossEntropyLoss(nn.Module):
    """Cross entropy of a linear layer; see `liger_torch.functional.liger_fused_linear_cross_entropy`."""

    def __init__(
        self,
        ce_weight: torch.Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: float | None = None,
        return_z_loss: bool = False,
        accum_dtype: torch.dtype | None = None,
        use_token_scaling: bool = False,
        return_token_accuracy: bool = False,
        return_predicted_tokens: bool = False,
        *,
        scale: float = 1.0,
        chunk_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.ce_weight: torch.Tensor | None
        self.register_buffer("ce_weight", ce_weight, persistent=False)
        self.ignore_index = ignore_index
        self.lse_square_scale = lse_square_scale
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.softcap = softcap
        self.return_z_loss = return_z_loss
        self.accum_dtype = accum_dtype
        self.use_token_scaling = use_token_scaling
        self.return_token_accuracy = return_token_accuracy
        self.return_predicted_tokens = return_predicted_tokens
        self.scale = scale
        self.chunk_bytes = chunk_bytes

    def forward(
        self,
        lin_weight: torch.Tensor,
        input: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        valid_rows: ValidRows | None = None,
        weight_grad: torch.Tensor | None = None,
    ) -> torch.Tensor | CrossEntropyOutput:
        """Weight (vocab, hidden), input (..., hidden), labels (...) and bias (vocab,) to the loss."""
        return liger_fused_linear_cross_entropy(
            input,
            lin_weight,
            target,
            bias=bias,
            ce_weight=self.ce_weight,
            ignore_index=self.ignore_index,
            lse_square_scale=self.lse_square_scale,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            softcap=self.softcap,
            return_z_loss=self.return_z_loss,
            accum_dtype=self.accum_dtype,
            use_token_scaling=self.use_token_scaling,
            return_token_accuracy=self.return_token_accuracy,
            return_predicted_tokens=self.return_predicted_tokens,
            scale=self.scale,
            valid_rows=valid_rows,
            weight_grad=weight_grad,
            chunk_bytes=self.chunk_bytes,
        )
