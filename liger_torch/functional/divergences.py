"""Divergences of two distributions over a vocabulary, and fused with the linear layers of a student and a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from liger import check
from liger_torch.autograd import as_autocast, call
from liger_torch.backend import NAMES
from liger_torch.functional.labels import check_labels
from liger_triton import divergence, linear_jsd

OF_ELEMENTS: Mapping[str, str] = {
    "none": "elements",
    "token": "tokens",
    "sum": "sum",
    "mean": "mean_elements",
    "batchmean": "mean_tokens",
}
"""Reductions of losses that torch counts in elements, kl_div above all; "token" is our own."""

OF_TOKENS: Mapping[str, str] = {"none": "tokens", "sum": "sum", "mean": "mean_tokens"}

# What the ops' arguments are called here, where the name is another one.
_NAMES = {"student": "input", "teacher": "target", "labels": "shift_labels"}
_LINEAR_NAMES = {
    "student_x": "student_input",
    "teacher_x": "teacher_input",
    "labels": "shift_labels",
    "beta": "jsd_beta",
    "hard_weight": "weight_hard_loss",
}


@dataclasses.dataclass
class DistillationOutput:
    """A distillation loss with its parts, which have no gradients of their own."""

    loss: torch.Tensor
    soft_loss: torch.Tensor
    hard_loss: torch.Tensor


def liger_kl_div(
    input: torch.Tensor,
    target: torch.Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
    log_target: bool = False,
    eps: float = 1e-10,
    *,
    from_logits: bool = False,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Kullback-Leibler divergence KL(target || input), as torch.nn.functional.kl_div.

    Per token, with y the log-probabilities in `input` and t the probabilities in `target`:

        loss = sum_j t_j * (log max(t_j, eps) - y_j)        t_j = 0 adds nothing, whatever y_j is
        loss = sum_j exp(t_j) * (t_j - y_j)                 log_target

    From logits both are the log-softmax of logits / temperature. Nothing is multiplied by temperature^2.

    Args:
        input: log-probabilities (..., vocab), the student's.
        target: probabilities of input's shape, or their logarithms; the teacher's. It may have another dtype than
            `input`, and both have gradients.
        size_average: deprecated in torch; only None is taken.
        reduce: deprecated in torch; only None is taken.
        reduction: "none" (one number per element), "token" (summed over the vocabulary), "sum", "mean" (the sum over
            the number of elements) or "batchmean" (over the length of the first axis).
        log_target: whether `target` holds logarithms.
        eps: probabilities in `target` below it have its logarithm; with 0 a negative one gives NaN, as in torch.
        from_logits: whether `input` and `target` are logits; reduction "none" is then refused.
        temperature: divides the logits.

    Returns:
        The float32 loss.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes that differ, or an option out of range.
        RuntimeError: a second backward pass through one loss for all tokens.
    """
    for name, value in (("size_average", size_average), ("reduce", reduce)):
        if value is not None:
            raise ValueError(
                f"kl_div: {name} is {value!r}; torch has deprecated it, use "
                'reduction="mean", "batchmean", "sum" or "none".'
            )
    if from_logits and log_target:
        raise ValueError(
            "kl_div: log_target is True beside from_logits, where target holds logits; leave it out."
        )
    chosen = _chosen("kl_div", OF_ELEMENTS, reduction)
    if reduction == "batchmean" and input.ndim != 2:
        chosen = "mean_batch"  # torch's, which in two axes is the mean over tokens
    options = divergence.Options(
        beta=0.0,
        eps=eps if not (log_target or from_logits) else 0.0,
        reduction=chosen,
        recompute=input.dtype == torch.float16,
        **_spaces(from_logits, temperature, teacher=None if log_target else divergence.PROBS),
    )
    return _loss(call(divergence.KL_DIV, options, input, target, None, names=_NAMES))


def liger_jsd(
    input: torch.Tensor,
    target: torch.Tensor,
    shift_labels: torch.Tensor | None = None,
    beta: float = 0.5,
    ignore_index: int = -100,
    *,
    reduction: str = "mean",
    from_logits: bool = False,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence of a student's distribution Q from a teacher's P (arXiv:2306.13649).

    Per token, with M = beta * P + (1 - beta) * Q:

        loss = beta * KL(P || M) + (1 - beta) * KL(Q || M)

    and at the ends, where that would be 0, beta 0: KL(P || Q), the forward one; beta 1: KL(Q || P), the reverse one.

    Args:
        input: log-probabilities (..., vocab) of the student, or its logits.
        target: those of the teacher. It may have another dtype than `input`, and both have gradients.
        shift_labels: labels (...), int64 or int32, of which only those that are `ignore_index` matter.
        beta: in [0, 1].
        ignore_index: tokens with this label have no loss and no gradient.
        reduction: "mean" over the tokens that are not ignored (0 over none), "sum", or "none" for one number per token.
        from_logits: whether `input` and `target` are logits, whose softmax is taken here.
        temperature: divides the logits.

    Returns:
        The float32 loss. No array of one loss per token and word exists on the way.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes that do not fit, or an option out of range.
        RuntimeError: a second backward pass through a mean or sum.
    """
    options = divergence.Options(
        beta=beta,
        reduction=_chosen("jsd", OF_TOKENS, reduction),
        ignore_index=ignore_index,
        recompute=input.dtype == torch.float16,
        **_spaces(from_logits, temperature),
    )
    return _loss(call(divergence.JSD, options, input, target, shift_labels, names=_NAMES))


def liger_tvd(
    input: torch.Tensor,
    target: torch.Tensor,
    shift_labels: torch.Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    *,
    from_logits: bool = False,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Total variation distance of two distributions, 1/2 * sum_j |p_j - q_j| per token.

    Args:
        input: probabilities p (..., vocab), or logits.
        target: q, of input's shape. It may have another dtype than `input`, and both have gradients; where the two
            probabilities are equal the gradient is 0.
        shift_labels: labels (...), int64 or int32, of which only those that are `ignore_index` matter.
        reduction: "none" (one number per element), "token" (summed over the vocabulary), "sum", "mean" (over the
            elements of tokens that are not ignored) or "batchmean" (over those tokens).
        ignore_index: tokens with this label have no loss and no gradient.
        from_logits: whether `input` and `target` are logits; reduction "none" is then refused.
        temperature: divides the logits.

    Returns:
        The float32 loss.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes that do not fit, or an option out of range.
        RuntimeError: a second backward pass through one loss for all tokens.
    """
    options = divergence.Options(
        kind="tvd",
        reduction=_chosen("tvd", OF_ELEMENTS, reduction),
        ignore_index=ignore_index,
        recompute=input.dtype == torch.float16,
        **_spaces(from_logits, temperature, student=divergence.PROBS, teacher=divergence.PROBS),
    )
    return _loss(call(divergence.TVD, options, input, target, shift_labels, names=_NAMES))


def liger_fused_linear_jsd(
    student_input: torch.Tensor,
    student_weight: torch.Tensor,
    teacher_input: torch.Tensor,
    teacher_weight: torch.Tensor,
    shift_labels: torch.Tensor | None = None,
    jsd_beta: float = 0.5,
    ignore_index: int = -100,
    temperature: float = 1.0,
    accum_dtype: torch.dtype | None = None,
    *,
    student_bias: torch.Tensor | None = None,
    teacher_bias: torch.Tensor | None = None,
    weight_soft_loss: float = 1.0,
    weight_hard_loss: float = 0.0,
    reduction: str = "mean",
    return_soft_hard_loss: bool = False,
    chunk_bytes: int | None = None,
) -> torch.Tensor | DistillationOutput:
    """Generalised Jensen-Shannon divergence of two linear layers' logits, without ever holding them all.

    With the formula of `liger_jsd` on softmax(logits / temperature), logits = input @ weight^T + bias of each model:

        soft = JSD_beta(teacher, student)
        hard = cross entropy of the student's logits, at temperature 1, with shift_labels
        loss = weight_soft_loss * soft + weight_hard_loss * hard

    Distillation with both: Hinton et al., arXiv:1503.02531; nothing is multiplied by temperature^2. The models may
    differ in hidden size and dtype, but not in their vocabulary. Rows go through in a few chunks; at most one chunk's
    logits of either model, in its dtype, exist at a time.

    A mean or sum computes its gradients in the forward pass (four matrix products) and can go back once;
    reduction="none" and float16 recompute the logits in the backward pass (six).

    Under autocast inputs, weights and biases are cast to its dtype, as in a linear layer.

    Args:
        student_input: (..., hidden).
        student_weight: (vocab, hidden), of student_input's dtype.
        teacher_input: (..., teacher hidden). It has no gradient and must not require one.
        teacher_weight: (vocab, teacher hidden), of teacher_input's dtype. A constant, as teacher_bias is: the weight
            of a teacher that is not frozen is taken, and gets no gradient.
        shift_labels: labels (...), int64 or int32; for the hard loss, and for which tokens are ignored.
        jsd_beta: in [0, 1]; 0 is the forward, 1 the reverse KL divergence.
        ignore_index: tokens with this label have no loss and no gradient.
        temperature: divides the logits in the soft loss.
        accum_dtype: dtype in which the weight's gradient is gathered over the chunks; see
            `liger_fused_linear_cross_entropy`.
        student_bias: (vocab,).
        teacher_bias: (vocab,).
        weight_soft_loss: see above.
        weight_hard_loss: see above; not 0 only with shift_labels.
        reduction: "mean" over the tokens that are not ignored (0 over none), "sum", or "none" for one number per token.
        return_soft_hard_loss: return a `DistillationOutput` with the soft and the hard loss. The hard loss is 0 where
            it has no weight.
        chunk_bytes: memory for one chunk's logits of one model.

    Returns:
        The float32 loss; a `DistillationOutput` if its parts are asked for.

    Raises:
        TypeError: a dtype that is not supported, or differs between a model's input and weight.
        ValueError: shapes that do not fit, vocabularies that differ, an option out of range, a teacher_input that
            requires a gradient, and, on a CPU, a label out of range.
        RuntimeError: a second backward pass through a mean or sum.
    """
    if weight_hard_loss and shift_labels is not None:
        check_labels(
            "linear_jsd", "shift_labels", shift_labels, ignore_index, student_input, student_weight, 0
        )
    teacher_weight = teacher_weight.detach()
    teacher_bias = None if teacher_bias is None else teacher_bias.detach()
    student_input, student_weight, student_bias = as_autocast(student_input, student_weight, student_bias)
    teacher_input, teacher_weight, teacher_bias = as_autocast(teacher_input, teacher_weight, teacher_bias)
    options = linear_jsd.Options(
        beta=jsd_beta,
        temperature=temperature,
        reduction=_chosen("linear_jsd", OF_TOKENS, reduction),
        ignore_index=ignore_index,
        # In float16 gradients must be computed when the loss scale is known.
        recompute=student_input.dtype == torch.float16,
        soft_weight=weight_soft_loss,
        hard_weight=weight_hard_loss,
        accum_dtype=None if accum_dtype is None else NAMES.get(accum_dtype, str(accum_dtype)),
        chunk_bytes=chunk_bytes,
        return_parts=return_soft_hard_loss,
    )
    outputs = call(
        linear_jsd.LINEAR_JSD,
        options,
        student_input,
        student_weight,
        teacher_input,
        teacher_weight,
        shift_labels,
        student_bias,
        teacher_bias,
        names=_LINEAR_NAMES,
    )
    if not return_soft_hard_loss:
        return _loss(outputs)
    loss, soft, hard = outputs
    assert loss is not None and soft is not None and hard is not None
    return DistillationOutput(loss, soft, hard)


def _chosen(op: str, names: Mapping[str, str], reduction: str) -> str:
    check.one_of(op, "reduction", reduction, names)
    return names[reduction]


def _spaces(
    from_logits: bool, temperature: float, student: str | None = None, teacher: str | None = None
) -> dict[str, Any]:
    """Options that say what the arrays hold: logits, or else what is named, log-probs by default."""
    both = divergence.LOGITS if from_logits else None
    return {
        "student_space": both or student or divergence.LOG_PROBS,
        "teacher_space": both or teacher or divergence.LOG_PROBS,
        "temperature": temperature,
    }


def _loss(outputs: tuple[torch.Tensor | None, ...]) -> torch.Tensor:
    return next(output for output in outputs if output is not None)
