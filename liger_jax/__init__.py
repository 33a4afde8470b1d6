"""The JAX frontend: the package's ops as pure functions with gradients.

Every function works under jit, grad, vmap, scan and checkpoint. What runs is decided when XLA lowers the program: on
a GPU the Triton kernels, elsewhere the op's reference, which XLA compiles; with `TRITON_INTERPRET=1` the kernels on
a CPU, in Triton's interpreter. On a mesh, inside `jax.shard_map` or outside of it with Auto or Explicit axes, every
device computes on its own tokens, and none that are divided are gathered, but by `map_logits`; heads that are divided,
as in tensor parallelism, are (`apply_rope`, `qk_norm_rope`): call these inside `jax.shard_map`. See `liger_jax.meshes`.

Give tokens batch axes rather than `jax.vmap` a function of one example: with a shared weight, a vmapped gradient
computes the examples one after the other and holds a gradient of the weight for each.

`liger_jax.nnx` and `liger_jax.linen` have layers for Flax, `liger_jax.losses` the losses of post-training,
`liger_jax.experimental` what upstream calls so. Each of them is imported by itself.
"""

from liger_jax.functional import (
    AddLayerNorm,
    AddRMSNorm,
    CrossEntropy,
    Distillation,
    LogProbs,
    add_layer_norm,
    add_rms_norm,
    apply_rope,
    embedding,
    geglu,
    group_norm,
    jsd,
    kl_divergence,
    layer_norm,
    linear_jsd,
    linear_logprobs,
    linear_softmax_cross_entropy,
    map_logits,
    qk_norm_rope,
    relu_squared,
    rms_norm,
    softmax,
    softmax_cross_entropy_with_integer_labels,
    sparsemax,
    swiglu,
    token_logprobs,
    total_variation,
)
from liger_jax.implementations import preferring
from liger_jax.planning import planning_for

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
    "jsd",
    "kl_divergence",
    "layer_norm",
    "linear_jsd",
    "linear_logprobs",
    "linear_softmax_cross_entropy",
    "map_logits",
    "planning_for",
    "preferring",
    "qk_norm_rope",
    "relu_squared",
    "rms_norm",
    "softmax",
    "softmax_cross_entropy_with_integer_labels",
    "sparsemax",
    "swiglu",
    "token_logprobs",
    "total_variation",
]
