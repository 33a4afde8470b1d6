"""Kahneman-Tversky optimisation on a language model's head."""

from __future__ import annotations

import torch

from liger import losses
from liger_torch.chunked_loss.common import Answers, Budget, Reference, check_unused, mean_logits
from liger_torch.chunked_loss.groups import Result
from liger_torch.functional import LogProbs
from liger_torch.valid_rows import ValidRows


def liger_fused_linear_kto(
    input: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    preference_labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    ref_input: torch.Tensor | None = None,
    ref_weight: torch.Tensor | None = None,
    ref_bias: torch.Tensor | None = None,
    kl: torch.Tensor | None = None,
    ignore_index: int = -100,
    beta: float = 0.1,
    compiled: bool = True,
    use_ref_model: bool = True,
    average_log_prob: bool = False,
    chunk_size: int = 1,
    *,
    ref_logps: torch.Tensor | None = None,
    loss_type: str = "kto",
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    valid_rows: ValidRows | None = None,
    chunk_bytes: int | None = None,
    keep_logits: str | bool | int = "auto",
) -> Result:
    """Kahneman-Tversky optimisation (arXiv:2402.01306) of a language model's head, without its logits.

    The mean over answers of `liger.losses.kto`, which has the formula. Answers go through in
    chunks of bytes, whatever their number; nothing is compiled.

    Args:
        input: hidden states (answers, tokens, hidden).
        weight: of the head (vocab, hidden), of input's dtype.
        target: the ids to predict at each position (answers, tokens), `ignore_index` at those that do not count.
        preference_labels: whether each answer is a good one (answers,), bool.
        bias: of the head (vocab,).
        ref_input: the reference model's hidden states, of a head of its own width.
        ref_weight: its head.
        ref_bias: likewise.
        kl: estimate of the policy's divergence from the reference, () or (answers,): `liger.losses.kl_estimate` of
            log-probabilities of answers to other prompts. None for 0.
        ignore_index: the id of prompt tokens and padding.
        beta: strength of the pull towards the reference model.
        compiled: True or False, the same: there is nothing to compile.
        use_ref_model: False for a uniform reference.
        average_log_prob: take means over tokens in place of sums.
        chunk_size: 1; rows go through in chunks of bytes.
        ref_logps: log-probabilities of whole answers under the reference model (answers,), in place of ref_input.
        loss_type: "kto" or "apo_zero_unpaired".
        desirable_weight: factor of the loss of good answers.
        undesirable_weight: factor of the loss of bad ones.
        valid_rows: `liger_torch.valid_rows(target, ignore_index)`, made before the models' forward passes: if it is
            made here, the host waits once for the device to learn how many tokens count.
        chunk_bytes: memory for the logits of one chunk; see `fused_linear_logprobs`.
        keep_logits: "auto" to compute gradients in the forward pass, a few answers at a time, in three matrix products
            and the memory of one chunk, where the loss allows it; then a second backward pass is refused. Otherwise,
            and for an amount of memory, see `fused_linear_logprobs`.

    Returns:
        (loss, (chosen_logps_sum, rejected_logps_sum, chosen_logits_sum, rejected_logits_sum, chosen_rewards_sum,
        rejected_rewards_sum)), all (), float32: sums over good and over bad answers. The loss alone has a gradient.

    Raises:
        TypeError: preference_labels are not bool.
        ValueError: a reference that is missing or given twice, shapes that do not fit, an option out of range.
    """
    check_unused("kto", chunk_size)
    if target.ndim != 2 or preference_labels.shape != target.shape[:1]:
        raise ValueError(
            f"kto: target has shape {tuple(target.shape)} and preference_labels {tuple(preference_labels.shape)}; "
            "expected (answers, tokens) and (answers,)."
        )
    if preference_labels.dtype != torch.bool:
        raise TypeError(
            f"kto: preference_labels has dtype {preference_labels.dtype}; it must be bool, such as `labels > 0`."
        )
    answers = Answers(target, ignore_index, Budget(chunk_bytes, keep_logits), valid_rows)
    reference = Reference(ref_input, ref_weight, ref_bias, ref_logps)
    ref = reference.of("kto", answers, wanted=use_ref_model, average=average_log_prob)
    logits = mean_logits(input, weight, bias) * (input.shape[1] * weight.shape[0])

    def of_tokens(all_tokens: LogProbs) -> Result:
        logps = losses.sequence_logp(all_tokens.logp, answers.mask, average=average_log_prob)
        found = losses.kto(
            logps,
            preference_labels,
            ref,
            kl=kl,
            loss_type=loss_type,
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        )
        with torch.no_grad():
            sums = [
                torch.where(chosen, values, 0).sum()
                for values in (logps, logits, found.rewards)
                for chosen in (preference_labels, ~preference_labels)
            ]
        return found.loss.mean(), tuple(sums)

    return answers.loss(of_tokens, input, weight, bias, parts=1)
