"""Batches of preference losses: chosen answers in the first half, the rejected ones in the same order in the second."""

from __future__ import annotations

from typing import Any

from liger.losses.sequences import masked_sum, sequence_logp, token_mean
from liger.reference.common import namespace, stop_gradient


def halves(array: Any) -> tuple[Any, Any]:
    """The first and the second half of the first axis."""
    n = array.shape[0] // 2
    return array[:n], array[n:]


def check_pairs(loss: str, argument: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless ids are (2 * pairs, tokens)."""
    if len(shape) != 2 or shape[0] % 2:
        raise ValueError(
            f"{loss}: {argument} has shape {tuple(shape)}; expected (2 * pairs, tokens), the chosen answers in the "
            "first half and the rejected ones in the same order in the second."
        )


def pair_logps(logp: Any, mask: Any, *, average: bool) -> tuple[Any, Any]:
    """Log-probabilities of chosen and of rejected answers, (pairs,) each, from those of tokens (2 * pairs, tokens)."""
    return halves(sequence_logp(logp, mask, average=average))


def desensitized_pair_logps(logp: Any, mask: Any, *, ld_alpha: float) -> tuple[Any, Any]:
    """What LD-DPO (arXiv:2409.06411) takes in place of `pair_logps`, of policy and reference model alike:

        sum of the first n tokens' + ld_alpha * sum of the others',     n the length of the pair's shorter answer

    Args:
        logp: (2 * pairs, tokens).
        mask: the tokens that count (2 * pairs, tokens), bool.
        ld_alpha: 1 for DPO, 0 to count nothing beyond the shorter answer.

    Returns:
        (pairs,) each.
    """
    xp = namespace(logp)
    # Of integers: torch's of floats is not deterministic on a GPU.
    position = xp.cumulative_sum(xp.astype(mask, xp.int32), axis=-1)
    chosen, rejected = halves(position[:, -1])
    shorter = xp.where(chosen < rejected, chosen, rejected)
    beyond = mask & (position > xp.concat([shorter, shorter])[:, None])
    return halves(masked_sum(logp, mask) - (1 - ld_alpha) * masked_sum(logp, beyond))


def wpo_weights(logp: Any, mask: Any, log_sum_sq_probs: Any) -> Any:
    """WPO's factors of the losses of pairs (arXiv:2406.11827, eq. 2), constant for differentiation: (pairs,).

        exp(mean over chosen tokens of a) * exp(mean over rejected tokens of a),   a = log pi_t - log sum_j p_j^2

    The last term is a difference of log-sum-exps, of which `fused_linear_logprobs` gives one per temperature:
    lse at half the temperature, less twice the lse.

    Args:
        logp: under the policy (2 * pairs, tokens).
        mask: the tokens that count (2 * pairs, tokens), bool.
        log_sum_sq_probs: of each token's distribution (2 * pairs, tokens).
    """
    aligned = stop_gradient(logp - log_sum_sq_probs)
    chosen, rejected = pair_logps(aligned, mask, average=True)
    return namespace(logp).exp(chosen + rejected)


def negative_log_likelihood(logp: Any, mask: Any) -> Any:
    """-mean log-probability of all tokens in the mask, () ; of chosen answers, the term that CPO and ORPO add."""
    return -token_mean(logp, mask)
