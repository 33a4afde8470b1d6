"""The ops as modules, under the names that users of Liger-Kernel know."""

from liger_torch.nn.activations import LigerReLUSquared, LigerSoftmax, LigerSparsemax
from liger_torch.nn.divergences import LigerFusedLinearJSD, LigerJSD, LigerKLDIVLoss, LigerTVDLoss
from liger_torch.nn.embedding import LigerEmbedding
from liger_torch.nn.losses import LigerCrossEntropyLoss, LigerFusedLinearCrossEntropyLoss
from liger_torch.nn.mlp import (
    LigerBlockSparseTop2MLP,
    LigerFalconH1SwiGLUMLP,
    LigerGEGLUMLP,
    LigerPhi3SwiGLUMLP,
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
    "LigerRMSNorm",
    "LigerReLUSquared",
    "LigerSoftmax",
    "LigerSparsemax",
    "LigerSwiGLUMLP",
    "LigerTVDLoss",
]
