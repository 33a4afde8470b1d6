"""Policy gradients on groups of sampled answers: GRPO and its kin.

Per token, with A the advantage of its answer, rho = pi / pi_old the importance ratio of the token (or, "sequence",
exp of the mean over the answer of its logarithm: GSPO, arXiv:2507.18071), and clip(rho) its value within
[1 - epsilon_low, 1 + epsilon_high]:

    policy term                                                               averaged over
    grpo     -min(min(rho, delta) A, clip(rho) A)      arXiv:2402.03300       tokens of an answer, then answers
    bnpo     the same                                  TRL                    the tokens of this batch
    dr_grpo  the same                                  arXiv:2503.20783       answers * max_completion_length
    dapo     the same                                  arXiv:2503.14476       num_items: tokens of the whole step
    luspo    the same, meant for "sequence"            arXiv:2602.05261       answers (sum over an answer's tokens)
    cispo    -[min(rho, epsilon_high)] A log pi        arXiv:2506.13585       num_items
    sapo     -4 / tau s(tau (rho - 1)) A               arXiv:2511.20347       tokens of an answer, then answers
    vespo    -[phi(w)] A log pi                        arXiv:2602.10693       num_items

    [ ] is constant for differentiation; s is the logistic function; tau is sapo_temperature_pos where A > 0, else _neg;
    w = prod over the answer of rho (and of the sampler's ratio), phi(w) = exp(l + k log w - l w) with (k, l) of
    vespo_pos where A >= 0, else of vespo_neg. delta: arXiv:2505.07291.

    loss = mean(weights * sampling_ratio * policy term + beta * kl) - entropy_coef * mean of the entropy over tokens

with kl the estimate exp(d) - d - 1, d = log pi_ref - log pi, of KL(pi || pi_ref) (Schulman, "Approximating KL
divergence", k3), times rho with `use_bias_correction_kl` (DeepSeek-V3.2, arXiv:2512.02556). `sampling_ratio` corrects
for a sampler whose probabilities differ from pi_old's; VESPO has it in w.

These are TRL's formulas. liger-kernel's differ in "luspo" of tokens, where it counts padding as well.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from liger import check
from liger.losses.arrays import bounded_exponent, sigmoid
from liger.losses.sequences import check_items, check_shapes, lengths, masked_sum, sequence_mean, token_mean
from liger.reference.common import namespace, stop_gradient

POLICY_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
IMPORTANCE_LEVELS = ("token", "sequence")
_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


class PolicyLoss(NamedTuple):
    """The loss, and means over tokens for the log, without gradients.

    Attributes:
        loss: ().
        kl: the mean estimate of KL(pi || pi_ref), () ; None with beta=0.
        clipped_low: the share of tokens whose ratio was held at the lower bound, () ; 0 where there is none.
        clipped_high: at the upper one.
        entropy: the mean entropy, () ; None unless given.
    """

    loss: Any
    kl: Any | None
    clipped_low: Any
    clipped_high: Any
    entropy: Any | None


def check_grpo(
    loss_type: str = "dapo",
    importance_sampling_level: str = "token",
    max_completion_length: int | None = None,
    delta: float | None = None,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
) -> None:
    """Raise ValueError for options of `grpo` that are out of range or exclude each other."""
    check.one_of("grpo", "loss_type", loss_type, POLICY_LOSSES)
    check.one_of("grpo", "importance_sampling_level", importance_sampling_level, IMPORTANCE_LEVELS)
    check.positive("grpo", "sapo_temperature_pos", sapo_temperature_pos)
    check.positive("grpo", "sapo_temperature_neg", sapo_temperature_neg)
    if loss_type == "dr_grpo" and max_completion_length is None:
        raise ValueError(
            'grpo: max_completion_length is None with loss_type="dr_grpo", which divides by it; give the number of '
            "tokens at which answers are cut off."
        )
    # What is in an array is not looked at: the host would wait for it.
    if isinstance(max_completion_length, int):
        check.positive("grpo", "max_completion_length", max_completion_length)
    for name, epsilon in (("epsilon_low", epsilon_low), ("epsilon_high", epsilon_high)):
        if isinstance(epsilon, (int, float)) and not epsilon >= 0:
            raise ValueError(f"grpo: {name} is {epsilon}; it must be at least 0.")
    if delta is not None:
        check.positive("grpo", "delta", delta)
        if loss_type not in _CLIPPED:
            raise ValueError(
                f"grpo: delta is {delta} with loss_type={loss_type!r}, which has no two-sided clipping; leave it None."
            )
    if loss_type == "vespo" and importance_sampling_level == "sequence":
        raise ValueError(
            'grpo: importance_sampling_level is "sequence" with loss_type="vespo", whose weights are those of whole '
            'answers already; leave it "token".'
        )


def vespo_weights(
    log_ratio: Any,
    mask: Any,
    advantages: Any,
    log_sampling_ratio: Any | None = None,
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> Any:
    """phi(w) of the module's table, constant for differentiation: (answers, 1).

    Args:
        log_ratio: log pi - log pi_old (answers, tokens).
        mask: (answers, tokens), bool.
        advantages: (answers, 1) or (answers, tokens).
        log_sampling_ratio: log pi_old less the sampler's, (answers, tokens), 0 outside the mask, or (answers, 1); its
            sum counts.
        positive: (k, l) where the advantage is at least 0.
        negative: elsewhere.
    """
    xp = namespace(log_ratio)
    lowest, highest = math.log(1e-8), 20.0
    log_w = masked_sum(xp.clip(stop_gradient(log_ratio), -20.0, 20.0), mask)[:, None]
    if log_sampling_ratio is not None:
        log_w = log_w + xp.sum(xp.clip(log_sampling_ratio, lowest, highest), axis=-1)[:, None]
    log_w = xp.clip(log_w, lowest, highest)
    ones, up = xp.ones_like(advantages), advantages >= 0
    k = xp.where(up, positive[0] * ones, negative[0] * ones)
    rate = xp.where(up, max(positive[1], 1e-4) * ones, max(negative[1], 1e-4) * ones)
    return xp.exp(rate + k * log_w - rate * xp.exp(log_w))


def grpo(
    logp: Any,
    mask: Any,
    advantages: Any,
    *,
    old_logp: Any | None = None,
    ref_logp: Any | None = None,
    sampling_ratio: Any | None = None,
    entropy: Any | None = None,
    weights: Any | None = None,
    high_entropy: Any | None = None,
    loss_type: str = "dapo",
    importance_sampling_level: str = "token",
    beta: float = 0.0,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    entropy_coef: float = 0.0,
    num_items: Any | None = None,
    max_completion_length: int | None = None,
    use_bias_correction_kl: bool = False,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    vespo_pos: tuple[float, float] = (2.0, 3.0),
    vespo_neg: tuple[float, float] = (3.0, 2.0),
) -> PolicyLoss:
    """Group relative policy optimisation and its kin; the module has the formulas and their sources.

    Args:
        logp: log-probabilities of tokens under the policy (answers, tokens), float32 or float64.
        mask: the tokens that count (answers, tokens), bool; numbers of others are not read.
        advantages: (answers,), (answers, 1) or (answers, tokens).
        old_logp: under the policy that sampled the answers; None where that is this policy: rho is 1.
        ref_logp: under the reference model; for beta.
        sampling_ratio: pi_old over the sampler's probability, (answers,), (answers, 1) or (answers, tokens).
        entropy: of each token's distribution (answers, tokens).
        weights: factors of the policy term alone, (answers, 1) or (answers, tokens), such as a mask of answers that
            are too far off the policy.
        high_entropy: the tokens that alone take part in the policy term and in the entropy bonus (answers, tokens),
            bool (arXiv:2506.01939).
        loss_type: a name of the module's table.
        importance_sampling_level: "token" or "sequence".
        beta: factor of the divergence from the reference model.
        epsilon_low: lower bound of the ratio, 1 - epsilon_low.
        epsilon_high: upper bound, 1 + epsilon_high; with "cispo" epsilon_high itself.
        delta: upper bound of the ratio where clipping would not hold it, for negative advantages.
        entropy_coef: factor of the entropy bonus.
        num_items: what "dapo", "cispo" and "vespo" divide by: the tokens of a whole optimiser step, per process; a
            number or an array (). None for the tokens in the mask.
        max_completion_length: what "dr_grpo" divides by, per answer.
        use_bias_correction_kl: multiply the divergence's estimate by rho.
        sapo_temperature_pos: tau for positive advantages.
        sapo_temperature_neg: for others.
        vespo_pos: (k, l) for advantages of at least 0.
        vespo_neg: for others.

    Returns:
        `PolicyLoss`. Gradients flow into logp and entropy alone.

    Raises:
        ValueError: an option out of range, an array that an option needs and that is not there, shapes that do not fit.
    """
    check_grpo(
        loss_type,
        importance_sampling_level,
        max_completion_length,
        delta,
        sapo_temperature_pos,
        sapo_temperature_neg,
        epsilon_low,
        epsilon_high,
    )
    check_items("grpo", num_items)
    if beta and ref_logp is None:
        raise ValueError(
            f"grpo: ref_logp is None with beta={beta}; give the reference model's or set beta to 0."
        )
    if entropy_coef and entropy is None:
        raise ValueError(f"grpo: entropy is None with entropy_coef={entropy_coef}; give each token's.")
    n_answers, tokens = mask.shape
    full, column = (n_answers, tokens), (n_answers, 1)
    check_shapes(
        "grpo",
        [full],
        "answers, tokens",
        logp=logp,
        old_logp=old_logp,
        ref_logp=ref_logp,
        entropy=entropy,
        high_entropy=high_entropy,
    )
    check_shapes(
        "grpo",
        [(n_answers,), column, full],
        "one number per answer or token",
        advantages=advantages,
        sampling_ratio=sampling_ratio,
    )
    check_shapes("grpo", [column, full], "one number per answer or token", weights=weights)
    xp = namespace(logp)
    zero, one = xp.zeros_like(logp), xp.ones_like(logp)
    # Not to decide the dtype of the loss.
    advantages = stop_gradient(xp.astype(advantages, logp.dtype))
    sampling_ratio = None if sampling_ratio is None else stop_gradient(sampling_ratio)
    weights = None if weights is None else stop_gradient(weights)
    logp = xp.where(mask, logp, zero)
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    if sampling_ratio is not None and sampling_ratio.ndim == 1:
        sampling_ratio = sampling_ratio[:, None]
    advantages, sampling_ratio, weights = (
        _of_tokens(array, mask, neutral)
        for array, neutral in ((advantages, 0), (sampling_ratio, 1), (weights, 0))
    )
    old = stop_gradient(logp) if old_logp is None else xp.where(mask, stop_gradient(old_logp), zero)
    log_ratio = logp - old
    if importance_sampling_level == "sequence":
        log_ratio_used = sequence_mean(log_ratio, mask)[:, None] + zero
    else:
        log_ratio_used = log_ratio
    ratio = xp.exp(bounded_exponent(log_ratio_used))

    low = high = xp.zeros_like(mask)
    if loss_type in _CLIPPED:
        clipped = xp.clip(ratio, 1 - epsilon_low, 1 + epsilon_high) * advantages
        free = (ratio if delta is None else xp.where(ratio < delta, ratio, delta * one)) * advantages
        policy = -xp.where(clipped < free, clipped, free)
        low = (ratio < 1 - epsilon_low) & (advantages < 0)
        high = (ratio > 1 + epsilon_high) & (advantages > 0)
    elif loss_type == "cispo":
        bounded = stop_gradient(xp.where(ratio < epsilon_high, ratio, epsilon_high * one))
        policy = -bounded * advantages * logp
        high = (ratio > epsilon_high) & (advantages > 0)
    elif loss_type == "sapo":
        tau = xp.where(advantages > 0, sapo_temperature_pos * one, sapo_temperature_neg * one)
        policy = -sigmoid(tau * (ratio - 1)) * 4 / tau * advantages
    else:
        log_sampling = None if sampling_ratio is None else xp.log(sampling_ratio)
        phi = vespo_weights(log_ratio, mask, advantages, log_sampling, positive=vespo_pos, negative=vespo_neg)
        policy = -phi * advantages * logp

    if weights is not None:
        policy = policy * weights
    if high_entropy is not None:
        policy = xp.where(high_entropy, policy, zero)
    if sampling_ratio is not None and loss_type != "vespo":
        policy = policy * sampling_ratio
    per_token, kl = policy, None
    if beta:
        difference = bounded_exponent(xp.where(mask, stop_gradient(ref_logp), zero) - logp)
        kl = xp.expm1(difference) - difference
        if use_bias_correction_kl:
            kl = kl * ratio
        per_token = per_token + beta * kl

    loss = _aggregate(per_token, mask, loss_type, num_items, max_completion_length)
    if entropy_coef:
        acts = mask if high_entropy is None else mask & high_entropy
        loss = loss - entropy_coef * token_mean(entropy, acts)
    return PolicyLoss(
        loss,
        None if kl is None else stop_gradient(token_mean(kl, mask)),
        token_mean(xp.astype(low, logp.dtype), mask),
        token_mean(xp.astype(high, logp.dtype), mask),
        None if entropy is None else stop_gradient(token_mean(entropy, mask)),
    )


def _of_tokens(array: Any | None, mask: Any, neutral: int) -> Any | None:
    """An array with a number per token has `neutral` outside the mask, where it may hold NaN."""
    if array is None or tuple(array.shape) != tuple(mask.shape):
        return array
    xp = namespace(array)
    return xp.where(mask, array, xp.full_like(array, neutral))


def _aggregate(
    per_token: Any, mask: Any, loss_type: str, num_items: Any | None, max_completion_length: int | None
) -> Any:
    """The mean that belongs to the loss."""
    xp = namespace(per_token)
    if loss_type in ("grpo", "sapo"):
        return xp.mean(sequence_mean(per_token, mask))
    per_answer = masked_sum(per_token, mask)
    if loss_type == "luspo":
        return xp.mean(per_answer)
    if loss_type == "dr_grpo":
        assert max_completion_length is not None
        return xp.sum(per_answer) / (mask.shape[0] * max_completion_length)
    n = xp.sum(lengths(mask, per_token))
    if loss_type != "bnpo" and num_items is not None:
        n = xp.zeros_like(n) + num_items
    return xp.sum(per_answer) / xp.where(n > 1, n, xp.ones_like(n))
