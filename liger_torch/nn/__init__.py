"""The ops as modules, under the names that users of Liger-Kernel know."""

from liger_torch.nn.activations import LigerReLUSquared, LigerSoftmax, LigerSparsemax
from liger_torch.nn.divergences import LigerFusedLinearJSD, LigerJSD, LigerKLDIVLoss, LigerTVDLoss
from liger_torch.nn.embedding import LigerEmbedding
from liger_torch.nn.losses import LigerCrossEntropyLoss, LigerFusedLinearCrossEntropyLoss
from liger_torch.nn.mlp import (
    LigerBlockSparseTop2MLP,
    LigerExperts,
    LigerFalconH1SwiGLUMLP,
    LigerGEGLUMLP,
    LigerPhi3SwiGLUMLP,
    LigerQwen3MoeSwiGLUMLP,
    LigerSwiGLUMLP,
)
from liger_torch.nn.norms import (
    LigerFusedAddLayerNorm,
    LigerFusedAddRMSNorm,
    LigerGroupNorm,
    LigerLayerNorm,
    LigerRMSNorm,
)

__all__ = [
    "LigerBlockSparseTop2MLP",
    "LigerCrossEntropyLoss",
    "LigerEmbedding",
    "LigerExperts",
    "LigerFalconH1SwiGLUMLP",
    "LigerFusedAddLayerNorm",
    "LigerFusedAddRMSNorm",
    "LigerFusedLinearCrossEntropyLoss",
    "LigerFusedLinearJSD",
    "LigerGEGLUMLP",
    "LigerGroupNorm",
    "LigerJSD",
    "LigerKLDIVLoss",
    "LigerLayerNorm",
    "LigerPhi3SwiGLUMLP",
    "LigerQwen3MoeSwiGLUMLP",
    "LigerRMSNorm",
    "LigerReLUSquared",
    "LigerSoftmax",
    "LigerSparsemax",
    "LigerSwiGLUMLP",
    "LigerTVDLoss",
]
