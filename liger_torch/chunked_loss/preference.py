"""Preference losses on a language model's head: DPO, CPO, SimPO, ORPO."""

from __future__ import annotations

from collections.abc import Callable

import torch

from liger import losses
from liger_torch.chunked_loss.common import Answers, Budget, Reference, check_unused, mean_logits
from liger_torch.chunked_loss.groups import Result
from liger_torch.functional import LogProbs
from liger_torch.valid_rows import ValidRows


def _preference(
    of_pairs: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    input: torch.Tensor,
    weight: torch.Tensor,
    answers: Answers,
    bias: torch.Tensor | None,
    *,
    average_log_prob: bool,
    compute_nll_loss: bool,
    alpha: float = 1.0,
    nll_target: torch.Tensor | None = None,
    separable: bool = True,
) -> Result:
    """What the losses have in common: `of_pairs` makes losses and rewards of chosen and rejected log-probabilities.

    It is `separable` where a pair's gradient depends on that pair alone.
    """
    others = None
    if compute_nll_loss and nll_target is not None:
        others = Answers(losses.halves(nll_target)[0], answers.ignore_index, answers.budget)
        likely = others.logprobs(losses.halves(input)[0], weight, bias).logp
    means = [half.mean() for half in losses.halves(mean_logits(input, weight, bias))]

    def of_tokens(found: LogProbs) -> Result:
        chosen, rejected = losses.pair_logps(found.logp, answers.mask, average=average_log_prob)
        per_pair, *rest = of_pairs(chosen, rejected)
        loss, nll = per_pair.mean(), chosen.new_zeros(())
        if others is not None:
            nll = losses.negative_log_likelihood(likely, others.mask)
        elif compute_nll_loss:
            nll = losses.negative_log_likelihood(losses.halves(found.logp)[0], losses.halves(answers.mask)[0])
        if compute_nll_loss:
            loss = loss + alpha * nll
        return loss, (chosen.detach(), rejected.detach(), *means, nll.detach(), *rest)

    # The likelihood of other ids is a head of its own, with gradients of its own.
    parts = 2 if separable and others is None else None
    return answers.loss(of_tokens, input, weight, bias, parts=parts)


def _pairs(
    loss: str, target: torch.Tensor, ignore_index: int, rows: ValidRows | None, budget: Budget
) -> Answers:
    losses.check_pairs(loss, "target", target.shape)
    return Answers(target, ignore_index, budget, rows)


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
    valid_rows: ValidRows | None = None,
    chunk_bytes: int | None = None,
    keep_logits: str | bool | int = "auto",
) -> Result:
    """Direct preference optimisation of a language model's head, without its logits.

    The mean over pairs of `liger.losses.dpo`, which has the formula of each `loss_type` and its source, plus, with
    compute_nll_loss, alpha times the mean negative log-likelihood of the chosen answers' tokens.

    Where it differs from liger-kernel: label_smoothing counts with "sigmoid" as well (cDPO), "ipo" is there, the
    reference's log-probabilities may be given, and the mean of an answer without tokens is 0 where there it is NaN.
    Nothing is compiled; pairs go through in chunks of bytes, whatever their number.

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
        valid_rows: `liger_torch.valid_rows(target, ignore_index)`, made before the models' forward passes: if it is
            made here, the host waits once for the device to learn how many tokens count.
        chunk_bytes: memory for the logits of one chunk; see `fused_linear_logprobs`.
        keep_logits: "auto" to compute gradients in the forward pass, a few pairs at a time, in three matrix products
            and the memory of one chunk, where the loss allows it; then a second backward pass is refused. Otherwise,
            and for an amount of memory, see `fused_linear_logprobs`.

    Returns:
        (loss, (chosen_logps, rejected_logps, chosen_logits_mean, rejected_logits_mean, nll_loss, chosen_rewards,
        rejected_rewards)), of shapes (), (pairs,), (pairs,), (), (), (), (pairs,), (pairs,); float32. The loss alone
        has a gradient.

    Raises:
        ValueError: a reference that is missing or given twice, shapes that do not fit, an option out of range.
    """
    check_unused("dpo", chunk_size)
    losses.check_dpo(loss_type, beta, label_smoothing, f_divergence, discopop_tau)
    answers = _pairs("dpo", target, ignore_index, valid_rows, Budget(chunk_bytes, keep_logits))
    reference = Reference(ref_input, ref_weight, ref_bias, ref_logps)
    ref = reference.of("dpo", answers, wanted=use_ref_model, average=average_log_prob)
    ref_w, ref_l = (None, None) if ref is None else losses.halves(ref)
    lengths = None if average_log_prob else losses.halves(answers.mask.sum(-1).float())

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
        of_pairs,
        input,
        weight,
        answers,
        bias,
        average_log_prob=average_log_prob,
        compute_nll_loss=compute_nll_loss,
        alpha=alpha,
        separable=loss_type not in losses.SORTED_LOSSES,
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
    valid_rows: ValidRows | None = None,
    chunk_bytes: int | None = None,
    keep_logits: str | bool | int = "auto",
) -> Result:
    """Contrastive preference optimisation (arXiv:2401.08417) of a language model's head, without its logits.

    The mean over pairs of `liger.losses.cpo`, plus alpha times the mean negative log-likelihood of the chosen answers'
    tokens. Results and errors are those of `liger_fused_linear_dpo`.

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
        valid_rows: see `liger_fused_linear_dpo`, as the next ones.
        chunk_bytes: likewise.
        keep_logits: likewise.
    """
    check_unused("cpo", chunk_size)
    answers = _pairs("cpo", target, ignore_index, valid_rows, Budget(chunk_bytes, keep_logits))

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
        of_pairs,
        input,
        weight,
        answers,
        bias,
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
    *,
    valid_rows: ValidRows | None = None,
    chunk_bytes: int | None = None,
    keep_logits: str | bool | int = "auto",
) -> Result:
    """Simple preference optimisation (arXiv:2405.14734) of a language model's head, without its logits.

    The mean over pairs of `liger.losses.simpo`, of mean log-probabilities, plus, with compute_nll_loss, alpha times the
    mean negative log-likelihood of the chosen answers' tokens. Results and errors are those of
    `liger_fused_linear_cpo`.

    Args:
        input: hidden states (2 * pairs, tokens, hidden), chosen answers first.
        weight: of the head (vocab, hidden), of input's dtype.
        target: the ids to predict (2 * pairs, tokens), `ignore_index` at those that do not count.
        bias: of the head (vocab,).
        ignore_index: the id of prompt tokens and padding.
        beta: scale of the rewards.
        alpha: factor of the likelihood term.
        label_smoothing: the share of preferences taken to be wrong.
        compute_nll_loss: add the likelihood term.
        compiled: True or False, the same: there is nothing to compile.
        gamma: the target margin of beta times the difference.
        chunk_size: 1; rows go through in chunks of bytes.
        valid_rows: see `liger_fused_linear_dpo`, as the next ones.
        chunk_bytes: likewise.
        keep_logits: likewise.
    """
    check_unused("simpo", chunk_size)
    answers = _pairs("simpo", target, ignore_index, valid_rows, Budget(chunk_bytes, keep_logits))

    def of_pairs(chosen: torch.Tensor, rejected: torch.Tensor) -> losses.PreferenceLosses:
        return losses.simpo(chosen, rejected, beta=beta, gamma=gamma, label_smoothing=label_smoothing)

    return _preference(
        of_pairs,
        input,
        weight,
        answers,
        bias,
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
    *,
    valid_rows: ValidRows | None = None,
    chunk_bytes: int | None = None,
    keep_logits: str | bool | int = "auto",
) -> Result:
    """Odds ratio preference optimisation (arXiv:2403.07691) of a language model's head, without its logits.

    The mean over pairs of `liger.losses.orpo`, of mean log-probabilities, plus, with compute_nll_loss, the mean
    negative log-likelihood of the chosen answers: of their tokens, or of the ids of `nll_target` (2 * pairs, tokens),
    whose first half is taken, such as those of prompt and answer; that takes the products of the chosen answers once
    more. Errors are those of `liger_fused_linear_cpo`.

    Args:
        input: hidden states (2 * pairs, tokens, hidden), chosen answers first.
        weight: of the head (vocab, hidden), of input's dtype.
        target: the ids to predict (2 * pairs, tokens), `ignore_index` at those that do not count.
        bias: of the head (vocab,).
        ignore_index: the id of prompt tokens and padding.
        beta: lambda of the paper.
        compute_nll_loss: add the likelihood term.
        nll_target: the ids whose likelihood is added.
        compiled: True or False, the same: there is nothing to compile.
        chunk_size: 1; rows go through in chunks of bytes.
        valid_rows: see `liger_fused_linear_dpo`, as the next ones.
        chunk_bytes: likewise.
        keep_logits: likewise.

    Returns:
        As `liger_fused_linear_dpo`, with log_odds_ratio and log_odds_chosen, means over pairs, at the end of the second
        tuple.
    """
    check_unused("orpo", chunk_size)
    answers = _pairs("orpo", target, ignore_index, valid_rows, Budget(chunk_bytes, keep_logits))

    def of_pairs(chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = losses.orpo(chosen, rejected, beta=beta)
        return *found[:3], found.log_odds_ratio.mean(), found.log_odds_chosen.mean()

    return _preference(
        of_pairs,
        input,
        weight,
        answers,
        bias,
        average_log_prob=True,
        compute_nll_loss=compute_nll_loss,
        nll_target=nll_target,
    )
