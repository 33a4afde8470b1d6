"""Losses of post-training on the log-probabilities of tokens: those of `liger.losses`, on JAX arrays.

None of them sees a logit: `linear_logprobs` gives what they take, chunk by chunk. DPO (arXiv:2305.18290) of a batch
with the chosen answers in the first half and the rejected ones in the second:

>>> import jax, jax.numpy as jnp
>>> from liger_jax import linear_logprobs, losses
>>> def loss(kernel, x, ids, mask, reference):
...     logp = linear_logprobs(x, kernel, ids, where=mask, differentiable=("logp",)).logp
...     chosen, rejected = losses.pair_logps(logp, mask, average=False)
...     return losses.dpo(chosen, rejected, *losses.halves(reference), beta=0.1).loss.mean()
>>> x, ids, mask = jnp.eye(4).reshape(2, 2, 4), jnp.array([[0, 1], [1, 0]]), jnp.ones((2, 2), bool)
>>> jnp.round(1000 * loss(jnp.zeros((4, 2)), x, ids, mask, jnp.array([-1.0, -1.5])))
Array(718., dtype=float32)

All of them are pure functions under jit, grad and vmap; on a mesh, numbers of tokens are divided as the batch is.
"""

from liger.losses import (
    CPO_LOSSES,
    DPO_LOSSES,
    F_DIVERGENCES,
    POLICY_LOSSES,
    SFT_LOSSES,
    UNPAIRED_LOSSES,
    OddsRatioLosses,
    PolicyLoss,
    PreferenceLosses,
    UnpairedLosses,
    cosine_distance,
    cpo,
    desensitized_pair_logps,
    dpo,
    grpo,
    halves,
    kl_estimate,
    kto,
    negative_log_likelihood,
    orpo,
    pair_logps,
    sequence_logp,
    sft,
    simpo,
    token_mean,
    top_k_divergence,
    vespo_weights,
    wpo_weights,
)

__all__ = [
    "CPO_LOSSES",
    "DPO_LOSSES",
    "F_DIVERGENCES",
    "POLICY_LOSSES",
    "SFT_LOSSES",
    "UNPAIRED_LOSSES",
    "OddsRatioLosses",
    "PolicyLoss",
    "PreferenceLosses",
    "UnpairedLosses",
    "cosine_distance",
    "cpo",
    "desensitized_pair_logps",
    "dpo",
    "grpo",
    "halves",
    "kl_estimate",
    "kto",
    "negative_log_likelihood",
    "orpo",
    "pair_logps",
    "sequence_logp",
    "sft",
    "simpo",
    "token_mean",
    "top_k_divergence",
    "vespo_weights",
    "wpo_weights",
]
