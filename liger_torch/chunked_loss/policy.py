"""Group relative policy optimisation and its kin on a language model's head."""

from __future__ import annotations

import torch

from liger import losses
from liger_torch.chunked_loss.common import Answers, Budget, check_unused
from liger_torch.chunked_loss.groups import Result
from liger_torch.functional import LogProbs
from liger_torch.valid_rows import ValidRows

IGNORED = -100


def liger_fused_linear_grpo(
    input: torch.Tensor,
    weight: torch.Tensor,
    selected_token_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    advantages: torch.Tensor,
    bias: torch.Tensor | None = None,
    ref_per_token_logps: torch.Tensor | None = None,
    old_per_token_logps: torch.Tensor | None = None,
    ref_input: torch.Tensor | None = None,
    ref_weight: torch.Tensor | None = None,
    ref_bias: torch.Tensor | None = None,
    beta: float = 0.04,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    loss_type: str = "dapo",
    max_completion_length: int | None = None,
    importance_sampling_level: str = "token",
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    temperature: float = 1.0,
    compiled: bool = True,
    use_ref_model: bool = True,
    chunk_size: int = 1,
    vllm_is_ratio: torch.Tensor | None = None,
    delta: float | None = None,
    use_bias_correction_kl: bool = False,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
    num_items_in_batch: torch.Tensor | float | None = None,
    *,
    entropy_coef: float = 0.0,
    weights: torch.Tensor | None = None,
    high_entropy: torch.Tensor | None = None,
    valid_rows: ValidRows | None = None,
    chunk_bytes: int | None = None,
    keep_logits: str | bool | int = "auto",
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Policy optimisation of a language model's head, without its logits.

    The loss of `liger.losses.grpo`, which has the formula of each `loss_type` and its source. Tokens outside the mask
    stay out of the matrix products; answers go through in chunks of bytes; nothing is compiled.

    Args:
        input: hidden states at the positions that predict the answers' tokens (answers, tokens, hidden).
        weight: of the head (vocab, hidden), of input's dtype.
        selected_token_ids: the answers' tokens (answers, tokens), int64.
        attention_mask: the tokens that count (answers, tokens), bool or 0 and 1.
        advantages: (answers,) or (answers, tokens).
        bias: of the head (vocab,).
        ref_per_token_logps: log-probabilities under the reference model (answers, tokens).
        old_per_token_logps: under the policy that sampled; None where it is this one.
        ref_input: the reference model's hidden states, in place of ref_per_token_logps.
        ref_weight: its head.
        ref_bias: likewise.
        beta: factor of the divergence from the reference model.
        epsilon_low: see `liger.losses.grpo`, as the next ones.
        epsilon_high: likewise.
        loss_type: one of `liger.losses.POLICY_LOSSES`.
        max_completion_length: for "dr_grpo".
        importance_sampling_level: "token" or "sequence".
        sapo_temperature_pos: for "sapo".
        sapo_temperature_neg: likewise.
        temperature: of the sampler; divides the logits.
        compiled: True or False, the same: there is nothing to compile.
        use_ref_model: whether there is a reference model. Without one and with none given, the policy is its own, and
            the divergence 0.
        chunk_size: 1; rows go through in chunks of bytes.
        vllm_is_ratio: correction of the sampler's probabilities, (answers,), (answers, 1) or (answers, tokens).
        delta: upper bound of the ratio.
        use_bias_correction_kl: multiply the divergence's estimate by the ratio.
        vespo_k_pos: for "vespo".
        vespo_lambda_pos: likewise.
        vespo_k_neg: likewise.
        vespo_lambda_neg: likewise.
        num_items_in_batch: tokens of the whole step over all processes, which "dapo", "cispo" and "vespo" divide by;
            None for those of this batch over all processes. Either is divided by the number of processes, whose
            gradients are averaged.
        entropy_coef: factor of an entropy bonus.
        weights: factors of the policy term, (answers, 1) or (answers, tokens).
        high_entropy: the tokens that alone take part in the policy term and in the entropy bonus, bool.
        valid_rows: `liger_torch.valid_rows(ids)`, with -100 at the tokens outside the mask, made before the model's
            forward pass: if it is made here, the host waits once for the device to learn how many tokens count.
        chunk_bytes: memory for the logits of one chunk; see `fused_linear_logprobs`.
        keep_logits: "auto" to compute gradients in the forward pass, a few answers at a time, in three matrix products
            and the memory of one chunk, where the loss allows it; then a second backward pass is refused. Otherwise,
            and for an amount of memory, see `fused_linear_logprobs`.

    Returns:
        (loss, metrics): with beta the mean divergence, then the share of tokens whose ratio was clipped; all of shape
        (), float32.

    Raises:
        ValueError: a reference model without its numbers, shapes that do not fit, an option out of range.
    """
    check_unused("grpo", chunk_size)
    if attention_mask.shape != selected_token_ids.shape or selected_token_ids.ndim != 2:
        raise ValueError(
            f"grpo: selected_token_ids has shape {tuple(selected_token_ids.shape)}, attention_mask "
            f"{tuple(attention_mask.shape)}; expected (answers, tokens) for both."
        )
    mask = attention_mask.bool()
    ids = torch.where(mask, selected_token_ids, IGNORED)
    answers = Answers(ids, IGNORED, Budget(chunk_bytes, keep_logits), valid_rows)
    if beta and ref_per_token_logps is None and use_ref_model:
        if ref_input is None or ref_weight is None:
            raise ValueError(
                "grpo: use_ref_model is True and neither ref_per_token_logps nor ref_input with ref_weight is given; "
                "give one of them."
            )
        with torch.no_grad():
            ref_per_token_logps = answers.logprobs(
                ref_input, ref_weight, ref_bias, temperature=temperature
            ).logp
    if loss_type in ("dapo", "cispo", "vespo"):
        num_items_in_batch = _items_per_process(mask, num_items_in_batch)

    def of_tokens(found: LogProbs) -> Result:
        loss = losses.grpo(
            found.logp,
            mask,
            advantages,
            old_logp=old_per_token_logps,
            ref_logp=found.logp.detach() if beta and ref_per_token_logps is None else ref_per_token_logps,
            sampling_ratio=vllm_is_ratio,
            entropy=found.entropy if entropy_coef else None,
            weights=weights,
            high_entropy=high_entropy,
            loss_type=loss_type,
            importance_sampling_level=importance_sampling_level,
            beta=beta,
            epsilon_low=epsilon_low,
            epsilon_high=epsilon_high,
            delta=delta,
            entropy_coef=entropy_coef,
            num_items=num_items_in_batch,
            max_completion_length=max_completion_length,
            use_bias_correction_kl=use_bias_correction_kl,
            sapo_temperature_pos=sapo_temperature_pos,
            sapo_temperature_neg=sapo_temperature_neg,
            vespo_pos=(vespo_k_pos, vespo_lambda_pos),
            vespo_neg=(vespo_k_neg, vespo_lambda_neg),
        )
        clipped = loss.clipped_low + loss.clipped_high
        return loss.loss, (clipped,) if loss.kl is None else (loss.kl, clipped)

    loss, metrics = answers.loss(
        of_tokens, input, weight, bias, parts=1, temperature=temperature, entropy=bool(entropy_coef)
    )
    return loss, list(metrics)


def _items_per_process(mask: torch.Tensor, items: torch.Tensor | float | None) -> torch.Tensor | float:
    """What each process divides by, so that the mean of their gradients is that of the whole step."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    n_processes = torch.distributed.get_world_size() if distributed else 1
    if items is None:
        items = mask.sum().float()
        if n_processes > 1:
            torch.distributed.all_reduce(items)
    return items.to(mask.device) / n_processes if isinstance(items, torch.Tensor) else items / n_processes
