"""Preference losses on a language model's head: DPO, CPO, SimPO, ORPO."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from liger import losses
from liger_torch.functional import fused_linear_logprobs
from liger_torch.valid_rows import valid_rows

Result = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
"""The loss, and what there is to log, without gradients."""


def logp_of_ids(
    input: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    bias: torch.Tensor | None,
    ignore_index: int,
    **options: Any,
) -> torch.Tensor:
    """Log-probabilities of tokens; those that are ignored stay out of the matrix products."""
    return fused_linear_logprobs(
        input,
        weight,
        ids,
        bias,
        ignore_index=ignore_index,
        differentiable=("logp",),
        valid_rows=valid_rows(ids, ignore_index),
        **options,
    ).logp


@torch.no_grad()
def mean_logit(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The mean over all tokens and words of the logits, for the log: the product of two means."""
    axes = tuple(range(input.ndim - 1))
    mean = input.mean(axes, dtype=torch.float32) @ weight.mean(0, dtype=torch.float32)
    return mean if bias is None else mean + bias.mean(dtype=torch.float32)


def check_unused(loss: str, chunk_size: int) -> None:
    """Warn, once, of the argument that has no meaning here."""
    if chunk_size != 1:
        warnings.warn(
            f"{loss}: chunk_size is {chunk_size}, but rows go through in chunks of bytes, not sequences; leave it 1.",
            stacklevel=3,
        )


def _preference(
    loss: str,
    of_pairs: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    input: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    ignore_index: int,
    average_log_prob: bool,
    compute_nll_loss: bool,
    alpha: float = 1.0,
    nll_target: torch.Tensor | None = None,
) -> Result:
    """What the losses have in common: `of_pairs` makes losses and rewards of chosen and rejected log-probabilities."""
    losses.check_pairs(loss, "target", target.shape)
    logp = logp_of_ids(input, weight, target, bias, ignore_index)
    mask = target != ignore_index
    chosen, rejected = losses.pair_logps(logp, mask, average=average_log_prob)
    per_pair, *rest = of_pairs(chosen, rejected)
    nll = logp.new_zeros(())
    if compute_nll_loss:
        if nll_target is None:
            nll = losses.negative_log_likelihood(losses.halves(logp)[0], losses.halves(mask)[0])
        else:
            ids = losses.halves(nll_target)[0]
            nll = losses.negative_log_likelihood(
                logp_of_ids(losses.halves(input)[0], weight, ids, bias, ignore_index), ids != ignore_index
            )
    means = (mean_logit(half, weight, bias) for half in losses.halves(input.detach()))
    total = per_pair.mean() + alpha * nll if compute_nll_loss else per_pair.mean()
    return total, (chosen.detach(), rejected.detach(), *means, nll.detach(), *rest)


def liger_fused_linear_dpo(
    input: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None = None,
    ref_input: torch.Tensor | None = None,
    ref_weight: torch.Tensor | None = None,
    ref_bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    beta: float = 0.1,
    compute_nll_loss: bool = False,
    compiled: bool = True,
    use_ref_model: bool = True,
    average_log_prob: bool = False,
    chunk_size: int = 1,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    discopop_tau: float = 0.05,
    alpha: float = 1.0,
    *,
    ref_logps: torch.Tensor | None = None,
    f_divergence: str = "reverse_kl",
    f_alpha: float = 1.0,
) -> Result:
    """Direct preference optimisation of a language model's head, without its logits.

    The mean over pairs of `liger.losses.dpo`, which has the formula of each `loss_type` and its source, plus, with
    compute_nll_loss, alpha times the mean negative log-likelihood of the chosen answers' tokens.

    Where it differs from liger-kernel: label_smoothing counts with "sigmoid" as well (cDPO), "ipo" is there, and the
    reference's log-probabilities may be given. Nothing is compiled; memory is that of `fused_linear_logprobs`, whatever
    the number of pairs.

    Args:
        input: hidden states (2 * pairs, tokens, hidden), chosen answers first.
        weight: of the head (vocab, hidden), of input's dtype.
        target: the ids to predict at each position (2 * pairs, tokens), `ignore_index` at those that do not count.
        bias: of the head (vocab,).
        ref_input: the reference model's hidden states, of a head of its own width.
        ref_weight: its head.
        ref_bias: likewise.
        ignore_index: the id of prompt tokens and padding.
        beta: strength of the pull towards the reference model.
        compute_nll_loss: add the likelihood term.
        compiled: True or False, the same: there is nothing to compile.
        use_ref_model: False for a uniform reference.
        average_log_prob: take means over tokens in place of sums.
        chunk_size: 1; rows go through in chunks of bytes.
        loss_type: the variant, one of `liger.losses.DPO_LOSSES`.
        label_smoothing: the share of preferences taken to be wrong.
        discopop_tau: temperature of "discopop".
        alpha: factor of the likelihood term.
        ref_logps: log-probabilities of whole answers under the reference model (2 * pairs,), as `average_log_prob`
            says, in place of ref_input and ref_weight.
        f_divergence: the divergence from the reference model: one of `liger.losses.F_DIVERGENCES`.
        f_alpha: of the alpha divergence.

    Returns:
        (loss, (chosen_logps, rejected_logps, chosen_logits_mean, rejected_logits_mean, nll_loss, chosen_rewards,
        rejected_rewards)), of shapes (), (pairs,), (pairs,), (), (), (), (pairs,), (pairs,); float32. The loss alone
        has a gradient.

    Raises:
        ValueError: a reference that is missing or given twice, shapes that do not fit, an option out of range.
    """
    check_unused("dpo", chunk_size)
    losses.check_dpo(loss_type, beta, label_smoothing, f_divergence, discopop_tau)
    given = [name for name, a in (("ref_input", ref_input), ("ref_logps", ref_logps)) if a is not None]
    if len(given) != int(use_ref_model):
        raise ValueError(
            f"dpo: use_ref_model is {use_ref_model} and {' and '.join(given) or 'neither ref_input nor ref_logps'} is "
            "given; with a reference model give one of the two, without one neither."
        )
    if ref_input is not None and ref_weight is None:
        raise ValueError("dpo: ref_input is given without ref_weight; give the reference model's head too.")
    if ref_input is not None:
        assert ref_weight is not None
        with torch.no_grad():
            ref = logp_of_ids(ref_input, ref_weight, target, ref_bias, ignore_index)
            ref_logps = losses.sequence_logp(ref, target != ignore_index, average=average_log_prob)
    ref_w, ref_l = (None, None) if ref_logps is None else losses.halves(ref_logps)
    lengths = None
    if not average_log_prob:
        lengths = losses.halves((target != ignore_index).sum(-1).float())

    def of_pairs(chosen: torch.Tensor, rejected: torch.Tensor) -> losses.PreferenceLosses:
        return losses.dpo(
            chosen,
            rejected,
            ref_w,
            ref_l,
            loss_type=loss_type,
            beta=beta,
            label_smoothing=label_smoothing,
            f_divergence=f_divergence,
            f_alpha=f_alpha,
            discopop_tau=discopop_tau,
            lengths=lengths,
        )

    return _preference(
        "dpo",
        of_pairs,
        input,
        weight,
        target,
        bias,
        ignore_index=ignore_index,
        average_log_prob=average_log_prob,
        compute_nll_loss=compute_nll_loss,
        alpha=alpha,
    )


def liger_fused_linear_cpo(
    input: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    beta: float = 0.1,
    alpha: float = 1.0,
    label_smoothing: float = 0.0,
    compute_nll_loss: bool = True,
    compiled: bool = True,
    average_log_prob: bool = False,
    chunk_size: int = 1,
    *,
    loss_type: str = "sigmoid",
    reward_alpha: float = 0.0,
) -> Result:
    """Contrastive preference optimisation (arXiv:2401.08417) of a language model's head, without its logits.

    The mean over pairs of `liger.losses.cpo`, plus alpha times the mean negative log-likelihood of the chosen answers'
    tokens. Arguments, results and errors are those of `liger_fused_linear_dpo`, and:

    Args:
        input: hidden states (2 * pairs, tokens, hidden), chosen answers first.
        weight: of the head (vocab, hidden).
        target: the ids to predict (2 * pairs, tokens).
        bias: of the head (vocab,).
        ignore_index: the id of prompt tokens and padding.
        beta: scale of the rewards.
        alpha: factor of the likelihood term.
        label_smoothing: the share of preferences taken to be wrong.
        compute_nll_loss: add the likelihood term.
        compiled: True or False, the same.
        average_log_prob: take means over tokens in place of sums.
        chunk_size: 1.
        loss_type: "sigmoid", "hinge" or "ipo"; SimPO has a function of its own.
        reward_alpha: of AlphaPO (arXiv:2501.03884); 0 for log-probabilities.
    """
    check_unused("cpo", chunk_size)

    def of_pairs(chosen: torch.Tensor, rejected: torch.Tensor) -> losses.PreferenceLosses:
        return losses.cpo(
            chosen,
            rejected,
            loss_type=loss_type,
            beta=beta,
            label_smoothing=label_smoothing,
            reward_alpha=reward_alpha,
        )

    return _preference(
        "cpo",
        of_pairs,
        input,
        weight,
        target,
        bias,
        ignore_index=ignore_index,
        average_log_prob=average_log_prob,
        compute_nll_loss=compute_nll_loss,
        alpha=alpha,
    )


def liger_fused_linear_simpo(
    input: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    beta: float = 0.1,
    alpha: float = 1.0,
    label_smoothing: float = 0.0,
    compute_nll_loss: bool = False,
    compiled: bool = True,
    gamma: float = 0.5,
    chunk_size: int = 1,
) -> Result:
    """Simple preference optimisation (arXiv:2405.14734) of a language model's head, without its logits.

    The mean over pairs of `liger.losses.simpo`, of mean log-probabilities, plus, with compute_nll_loss, alpha times the
    mean negative log-likelihood of the chosen answers' tokens. Arguments, results and errors are those of
    `liger_fused_linear_cpo`; `gamma` is the target margin of beta times the difference.
    """
    check_unused("simpo", chunk_size)

    def of_pairs(chosen: torch.Tensor, rejected: torch.Tensor) -> losses.PreferenceLosses:
        return losses.simpo(chosen, rejected, beta=beta, gamma=gamma, label_smoothing=label_smoothing)

    return _preference(
        "simpo",
        of_pairs,
        input,
        weight,
        target,
        bias,
        ignore_index=ignore_index,
        average_log_prob=True,
        compute_nll_loss=compute_nll_loss,
        alpha=alpha,
    )


def liger_fused_linear_orpo(
    input: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    beta: float = 0.1,
    compute_nll_loss: bool = True,
    nll_target: torch.Tensor | None = None,
    compiled: bool = True,
    chunk_size: int = 1,
) -> Result:
    """Odds ratio preference optimisation (arXiv:2403.07691) of a language model's head, without its logits.

    The mean over pairs of `liger.losses.orpo`, of mean log-probabilities, plus, with compute_nll_loss, the mean
    negative log-likelihood of the chosen answers: of their tokens, or of the ids of `nll_target` (2 * pairs, tokens),
    whose first half is taken, such as those of prompt and answer; that takes the products of the chosen answers once
    more. Other arguments and errors are those of `liger_fused_linear_cpo`.

    Returns:
        As `liger_fused_linear_dpo`, with log_odds_ratio and log_odds_chosen, means over pairs, at the end of the second
        tuple.
    """
    check_unused("orpo", chunk_size)

    def of_pairs(chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = losses.orpo(chosen, rejected, beta=beta)
        return *found[:3], found.log_odds_ratio.mean(), found.log_odds_chosen.mean()

    return _preference(
        "orpo",
        of_pairs,
        input,
        weight,
        target,
        bias,
        ignore_index=ignore_index,
        average_log_prob=True,
        compute_nll_loss=compute_nll_loss,
        nll_target=nll_target,
    )
