"""The ops as functions of tensors.

All of them are differentiable once, take float32, bfloat16 and float16 (on a CPU float64 too), compute in float32,
leave their inputs as they were, accept non-contiguous and empty tensors, and trace under
`torch.compile(fullgraph=True)`. On a CPU they run a reference in plain torch, on a GPU the kernels.
"""

from liger_torch.functional.activations import liger_softmax, liger_sparsemax
from liger_torch.functional.divergences import (
    DistillationOutput,
    liger_fused_linear_jsd,
    liger_jsd,
    liger_kl_div,
    liger_tvd,
)
from liger_torch.functional.embedding import liger_embedding
from liger_torch.functional.gates import liger_geglu, liger_relu_squared, liger_swiglu
from liger_torch.functional.logprobs import LogProbs, fused_linear_logprobs, token_logprobs
from liger_torch.functional.losses import (
    CrossEntropyOutput,
    liger_cross_entropy,
    liger_fused_linear_cross_entropy,
)
from liger_torch.functional.map_logits import map_logits
from liger_torch.functional.norms import (
    liger_fused_add_layer_norm,
    liger_fused_add_rms_norm,
    liger_group_norm,
    liger_layer_norm,
    liger_rms_norm,
)
from liger_torch.functional.position import (
    liger_llama4_text_rotary_pos_emb,
    liger_llama4_vision_rotary_pos_emb,
    liger_qk_norm_rope,
    liger_qwen2vl_mrope,
    liger_rope,
    liger_rotary_pos_emb_gpt_oss,
    liger_rotary_pos_emb_vision,
)

__all__ = [
    "CrossEntropyOutput",
    "DistillationOutput",
    "LogProbs",
    "fused_linear_logprobs",
    "liger_cross_entropy",
    "liger_embedding",
    "liger_fused_add_layer_norm",
    "liger_fused_add_rms_norm",
    "liger_fused_linear_cross_entropy",
    "liger_fused_linear_jsd",
    "liger_geglu",
    "liger_group_norm",
    "liger_jsd",
    "liger_kl_div",
    "liger_layer_norm",
    "liger_llama4_text_rotary_pos_emb",
    "liger_llama4_vision_rotary_pos_emb",
    "liger_qk_norm_rope",
    "liger_qwen2vl_mrope",
    "liger_relu_squared",
    "liger_rms_norm",
    "liger_rope",
    "liger_rotary_pos_emb_gpt_oss",
    "liger_rotary_pos_emb_vision",
    "liger_softmax",
    "liger_sparsemax",
    "liger_swiglu",
    "liger_tvd",
    "map_logits",
    "token_logprobs",
]
