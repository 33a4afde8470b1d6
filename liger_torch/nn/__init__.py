"""The ops as modules, under the names that users of Liger-Kernel know."""

from liger_torch.nn.losses import LigerCrossEntropyLoss, LigerFusedLinearCrossEntropyLoss
from liger_torch.nn.mlp import LigerBlockSparseTop2MLP, LigerPhi3SwiGLUMLP, LigerSwiGLUMLP
from liger_torch.nn.norms import LigerFusedAddRMSNorm, LigerRMSNorm

__all__ = [
    "LigerBlockSparseTop2MLP",
    "LigerCrossEntropyLoss",
    "LigerFusedAddRMSNorm",
    "LigerFusedLinearCrossEntropyLoss",
    "LigerPhi3SwiGLUMLP",
    "LigerRMSNorm",
    "LigerSwiGLUMLP",
]
