"""The ops as functions: arrays first, options by keyword, reductions left to the caller.

Every function takes `implementation`: "triton" for the kernels, "xla" for the op's reference compiled by XLA, or None
for the better one, as `liger_jax.implementations` lists it and `liger_jax.preferring` changes it. With either, the
backward pass is the op's own: it keeps little and computes gradients only for arguments that are differentiated.
"triton" means kernels where the program is lowered for a GPU (or for a CPU with `TRITON_INTERPRET=1`); on every other
platform the reference runs.

The kernels have a first derivative in reverse mode only; `implementation="xla"` has a second one too.
"""

from liger_jax.functional.activations import softmax, sparsemax
from liger_jax.functional.divergences import (
    Distillation,
    jsd,
    kl_divergence,
    linear_jsd,
    total_variation,
)
from liger_jax.functional.embedding import embedding
from liger_jax.functional.gates import geglu, relu_squared, swiglu
from liger_jax.functional.logprobs import LogProbs, linear_logprobs, token_logprobs
from liger_jax.functional.losses import (
    CrossEntropy,
    linear_softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from liger_jax.functional.map_logits import map_logits
from liger_jax.functional.norms import (
    AddLayerNorm,
    AddRMSNorm,
    add_layer_norm,
    add_rms_norm,
    group_norm,
    layer_norm,
    rms_norm,
)
from liger_jax.functional.position import apply_rope, qk_norm_rope
from liger_jax.functional.quantised import int2_matmul, pack_weights, unpack_weights

__all__ = [
    "AddLayerNorm",
    "AddRMSNorm",
    "CrossEntropy",
    "Distillation",
    "LogProbs",
    "add_layer_norm",
    "add_rms_norm",
    "apply_rope",
    "embedding",
    "geglu",
    "group_norm",
    "int2_matmul",
    "jsd",
    "kl_divergence",
    "layer_norm",
    "linear_jsd",
    "linear_logprobs",
    "linear_softmax_cross_entropy",
    "map_logits",
    "pack_weights",
    "qk_norm_rope",
    "relu_squared",
    "rms_norm",
    "softmax",
    "softmax_cross_entropy_with_integer_labels",
    "sparsemax",
    "swiglu",
    "token_logprobs",
    "total_variation",
    "unpack_weights",
]
