"""Losses of post-training on a language model's head, which never hold (tokens x vocabulary) logits.

Each is algebra of `liger.losses` on the log-probabilities that `fused_linear_logprobs` gives; a loss that is not here
is written in the same way. Names, arguments and results are those of liger-kernel's package of this name.
"""

from liger_torch.chunked_loss.distillation import (
    liger_fused_linear_cosine,
    liger_fused_linear_distillation_jsd,
)
from liger_torch.chunked_loss.modules import (
    LigerFusedLinearCosineSimilarityLoss,
    LigerFusedLinearCPOLoss,
    LigerFusedLinearDPOLoss,
    LigerFusedLinearGRPOLoss,
    LigerFusedLinearJSDLoss,
    LigerFusedLinearKTOLoss,
    LigerFusedLinearORPOLoss,
    LigerFusedLinearSimPOLoss,
)
from liger_torch.chunked_loss.policy import liger_fused_linear_grpo
from liger_torch.chunked_loss.preference import (
    liger_fused_linear_cpo,
    liger_fused_linear_dpo,
    liger_fused_linear_orpo,
    liger_fused_linear_simpo,
)
from liger_torch.chunked_loss.unpaired import liger_fused_linear_kto

LigerFusedLinearCosineLoss = LigerFusedLinearCosineSimilarityLoss
liger_fused_linear_jsd = liger_fused_linear_distillation_jsd

__all__ = [
    "LigerFusedLinearCPOLoss",
    "LigerFusedLinearCosineLoss",
    "LigerFusedLinearCosineSimilarityLoss",
    "LigerFusedLinearDPOLoss",
    "LigerFusedLinearGRPOLoss",
    "LigerFusedLinearJSDLoss",
    "LigerFusedLinearKTOLoss",
    "LigerFusedLinearORPOLoss",
    "LigerFusedLinearSimPOLoss",
    "liger_fused_linear_cosine",
    "liger_fused_linear_cpo",
    "liger_fused_linear_distillation_jsd",
    "liger_fused_linear_dpo",
    "liger_fused_linear_grpo",
    "liger_fused_linear_jsd",
    "liger_fused_linear_kto",
    "liger_fused_linear_orpo",
    "liger_fused_linear_simpo",
]
