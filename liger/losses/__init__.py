"""Losses of post-training: algebra on numbers of tokens and sequences, on the Python array API.

No loss here sees a logit. Its inputs are what `fused_linear_logprobs` (PyTorch) and `linear_logprobs` (JAX) give per
token, and any loss of one's own can be made of the same; gradients pass through these functions as through all others.
Arrays are those of any array API library: torch, jax.numpy, numpy.
"""

from liger.losses.arrays import log1mexp, log_sigmoid, relu, sigmoid
from liger.losses.distillation import cosine_distance, rows_per_chunk, top_k_divergence
from liger.losses.pairs import (
    check_pairs,
    desensitized_pair_logps,
    halves,
    negative_log_likelihood,
    pair_logps,
    wpo_weights,
)
from liger.losses.policy import (
    IMPORTANCE_LEVELS,
    POLICY_LOSSES,
    PolicyLoss,
    check_grpo,
    grpo,
    vespo_weights,
)
from liger.losses.preference import (
    CPO_LOSSES,
    DPO_LOSSES,
    F_DIVERGENCES,
    SORTED_LOSSES,
    OddsRatioLosses,
    PreferenceLosses,
    check_dpo,
    cpo,
    dpo,
    orpo,
    simpo,
)
from liger.losses.sequences import check_shapes, lengths, masked_sum, sequence_logp, token_mean
from liger.losses.supervised import SFT_LOSSES, sft
from liger.losses.unpaired import UNPAIRED_LOSSES, UnpairedLosses, kl_estimate, kto

__all__ = [
    "CPO_LOSSES",
    "DPO_LOSSES",
    "F_DIVERGENCES",
    "IMPORTANCE_LEVELS",
    "POLICY_LOSSES",
    "SFT_LOSSES",
    "SORTED_LOSSES",
    "UNPAIRED_LOSSES",
    "OddsRatioLosses",
    "PolicyLoss",
    "PreferenceLosses",
    "UnpairedLosses",
    "check_dpo",
    "check_grpo",
    "check_pairs",
    "check_shapes",
    "cosine_distance",
    "cpo",
    "desensitized_pair_logps",
    "dpo",
    "grpo",
    "halves",
    "kl_estimate",
    "kto",
    "lengths",
    "log1mexp",
    "log_sigmoid",
    "masked_sum",
    "negative_log_likelihood",
    "orpo",
    "pair_logps",
    "relu",
    "rows_per_chunk",
    "sequence_logp",
    "sft",
    "sigmoid",
    "simpo",
    "token_mean",
    "top_k_divergence",
    "vespo_weights",
    "wpo_weights",
]
