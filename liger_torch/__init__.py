"""The PyTorch frontend: functions, modules and the patching of Hugging Face models.

`liger_torch.hf` needs transformers and is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from liger_torch import functional
from liger_torch.functional import (
    CrossEntropyOutput,
    DistillationOutput,
    LogProbs,
    fused_linear_logprobs,
    liger_llama4_text_rotary_pos_emb,
    liger_llama4_vision_rotary_pos_emb,
    liger_rotary_pos_emb_gpt_oss,
    liger_rotary_pos_emb_vision,
    token_logprobs,
)
from liger_torch.functional import liger_qwen2vl_mrope as liger_multimodal_rotary_pos_emb
from liger_torch.functional import liger_rope as liger_rotary_pos_emb
from liger_torch.nn import (
    LigerBlockSparseTop2MLP,
    LigerCrossEntropyLoss,
    LigerExperts,
    LigerFalconH1SwiGLUMLP,
    LigerFusedAddLayerNorm,
    LigerFusedAddRMSNorm,
    LigerFusedLinearCrossEntropyLoss,
    LigerFusedLinearJSD,
    LigerGEGLUMLP,
    LigerGroupNorm,
    LigerJSD,
    LigerKLDIVLoss,
    LigerLayerNorm,
    LigerPhi3SwiGLUMLP,
    LigerQwen3MoeSwiGLUMLP,
    LigerReLUSquared,
    LigerRMSNorm,
    LigerSoftmax,
    LigerSparsemax,
    LigerSwiGLUMLP,
    LigerTVDLoss,
)
from liger_torch.valid_rows import ValidRows, valid_rows

if TYPE_CHECKING:
    from liger_torch.hf import (
        AutoLigerKernelForCausalLM,
        PatchReport,
        apply_liger_kernel,
        apply_liger_kernel_to_gemma,
        apply_liger_kernel_to_gemma2,
        apply_liger_kernel_to_llama,
        apply_liger_kernel_to_mistral,
        apply_liger_kernel_to_mixtral,
        apply_liger_kernel_to_mllama,
        apply_liger_kernel_to_phi3,
        apply_liger_kernel_to_qwen2,
        apply_liger_kernel_to_qwen2_vl,
        explain,
        remove_liger_kernel,
    )

_FROM_HF = (
    "AutoLigerKernelForCausalLM",
    "PatchReport",
    "apply_liger_kernel",
    "explain",
    "remove_liger_kernel",
)

__all__ = [
    "AutoLigerKernelForCausalLM",
    "CrossEntropyOutput",
    "DistillationOutput",
    "LigerBlockSparseTop2MLP",
    "LigerCrossEntropyLoss",
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
    "LogProbs",
    "PatchReport",
    "ValidRows",
    "apply_liger_kernel",
    "apply_liger_kernel_to_gemma",
    "apply_liger_kernel_to_gemma2",
    "apply_liger_kernel_to_llama",
    "apply_liger_kernel_to_mistral",
    "apply_liger_kernel_to_mixtral",
    "apply_liger_kernel_to_mllama",
    "apply_liger_kernel_to_phi3",
    "apply_liger_kernel_to_qwen2",
    "apply_liger_kernel_to_qwen2_vl",
    "explain",
    "functional",
    "fused_linear_logprobs",
    "liger_llama4_text_rotary_pos_emb",
    "liger_llama4_vision_rotary_pos_emb",
    "liger_multimodal_rotary_pos_emb",
    "liger_rotary_pos_emb",
    "liger_rotary_pos_emb_gpt_oss",
    "liger_rotary_pos_emb_vision",
    "remove_liger_kernel",
    "token_logprobs",
    "valid_rows",
]


def __getattr__(name: str) -> Any:
    if name in _FROM_HF or name.startswith("apply_liger_kernel_to_"):
        return getattr(importlib.import_module("liger_torch.hf"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
