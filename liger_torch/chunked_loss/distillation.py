"""Distillation on two language models' heads: generalised JSD and cosine distance, with hard labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from liger import losses
from liger_torch.chunked_loss.common import check_unused
from liger_torch.functional import (
    DistillationOutput,
    liger_cross_entropy,
    liger_fused_linear_cross_entropy,
    liger_fused_linear_jsd,
    map_logits,
)
from liger_torch.valid_rows import ValidRows
from liger_torch.valid_rows import valid_rows as find_valid_rows

UPSTREAM_CHUNK = 1024
"""liger-kernel's default of the argument that has no meaning here."""


def _valid(
    labels: torch.Tensor, ignore_index: int, rows: ValidRows | None, *inputs: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The labels and rows of inputs that count, flat."""
    flat = labels.reshape(-1)
    known = find_valid_rows(labels, ignore_index) if rows is None else rows
    index = None if known is None else known.index()
    arrays = (flat, *(a.reshape(-1, a.shape[-1]) for a in inputs))
    return arrays if index is None else tuple(a.index_select(0, index) for a in arrays)


def _cross_entropy(
    x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None, ignore_index: int
) -> torch.Tensor:
    loss = liger_fused_linear_cross_entropy(x, weight, labels, bias, ignore_index=ignore_index)
    assert isinstance(loss, torch.Tensor)
    return loss


def liger_fused_linear_distillation_jsd(
    student_input: torch.Tensor,
    student_weight: torch.Tensor,
    teacher_input: torch.Tensor,
    teacher_weight: torch.Tensor,
    true_labels: torch.Tensor,
    student_bias: torch.Tensor | None = None,
    teacher_bias: torch.Tensor | None = None,
    weight_hard_loss: float = 0.5,
    weight_soft_loss: float = 0.5,
    beta: float = 0.5,
    ignore_index: int = -100,
    temperature: float = 1.0,
    compiled: bool = True,
    chunk_size: int = UPSTREAM_CHUNK,
    return_soft_hard_loss: bool = False,
    *,
    valid_rows: ValidRows | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Generalised JSD (arXiv:2306.13649) of two heads' logits, mixed with the cross entropy of labels.

        loss = weight_soft_loss * JSD_beta(teacher, student; temperature) + weight_hard_loss * cross entropy

    means over the tokens that count: `liger_torch.functional.liger_fused_linear_jsd`, of which this is the form with
    liger-kernel's arguments (`liger_kernel.chunked_loss`'s, where that function has `liger_kernel.transformers`'s).
    Tokens that do not count stay out of the matrix products. Vocabularies must not differ: of a teacher whose head is
    padded, pass the rows of the words that the student has.

    Args:
        student_input: (..., hidden).
        student_weight: (vocab, hidden).
        teacher_input: (..., teacher hidden), a constant.
        teacher_weight: (vocab, teacher hidden), a constant.
        true_labels: (...), `ignore_index` at the tokens that do not count.
        student_bias: (vocab,).
        teacher_bias: (vocab,).
        weight_hard_loss: see above.
        weight_soft_loss: see above.
        beta: 0 is the forward, 1 the reverse KL divergence.
        ignore_index: the label of tokens that do not count.
        temperature: divides the logits in the soft loss.
        compiled: True or False, the same: there is nothing to compile.
        chunk_size: 1024; rows go through in chunks of bytes.
        return_soft_hard_loss: return (loss, soft loss, hard loss), of which the loss has a gradient.
        valid_rows: `liger_torch.valid_rows(true_labels, ignore_index)`, made before the models' forward passes: if it
            is made here, the host waits once for the device to learn how many tokens count.

    Returns:
        The loss, () float32, or the three.

    Raises:
        TypeError, ValueError: as `liger_fused_linear_jsd`.
    """
    check_unused("distillation", chunk_size, UPSTREAM_CHUNK)
    labels, x, teacher_x = _valid(true_labels, ignore_index, valid_rows, student_input, teacher_input)
    found = liger_fused_linear_jsd(
        x,
        student_weight,
        teacher_x.detach(),
        teacher_weight,
        labels,
        beta,
        ignore_index,
        temperature,
        student_bias=student_bias,
        teacher_bias=teacher_bias,
        weight_soft_loss=weight_soft_loss,
        weight_hard_loss=weight_hard_loss,
        return_soft_hard_loss=return_soft_hard_loss,
    )
    if not isinstance(found, DistillationOutput):
        return found
    hard = found.hard_loss
    if not weight_hard_loss:  # then it is not computed with the rest
        with torch.no_grad():
            hard = _cross_entropy(x, student_weight, labels, student_bias, ignore_index)
    return found.loss, found.soft_loss.detach(), hard.detach()


def liger_fused_linear_cosine(
    student_input: torch.Tensor,
    student_weight: torch.Tensor,
    teacher_input: torch.Tensor,
    teacher_weight: torch.Tensor,
    true_labels: torch.Tensor,
    student_bias: torch.Tensor | None = None,
    teacher_bias: torch.Tensor | None = None,
    weight_hard_loss: float = 0.5,
    weight_soft_loss: float = 0.5,
    beta: float = 0.5,
    ignore_index: int = -100,
    temperature: float = 1.0,
    compiled: bool = True,
    chunk_size: int = UPSTREAM_CHUNK,
    return_soft_hard_loss: bool = False,
    *,
    chunk_bytes: int | None = None,
    valid_rows: ValidRows | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosine distance of two heads' logits, mixed with the cross entropy of labels.

        loss = weight_soft_loss * beta * (1 - cos(student's, teacher's logits)) + weight_hard_loss * cross entropy

    means over the tokens that count, which alone take part in the matrix products. The logits are computed chunk by
    chunk, those of the student twice (`liger_torch.functional.map_logits`). A temperature changes no angle.
    Results are those of `liger_fused_linear_distillation_jsd`.

    Args:
        student_input: (..., hidden).
        student_weight: (vocab, hidden).
        teacher_input: (..., teacher hidden), a constant.
        teacher_weight: (vocab, teacher hidden), a constant.
        true_labels: (...), `ignore_index` at the tokens that do not count.
        student_bias: (vocab,).
        teacher_bias: (vocab,).
        weight_hard_loss: see above.
        weight_soft_loss: see above.
        beta: factor of the distance.
        ignore_index: the label of tokens that do not count.
        temperature: without effect; it must be positive.
        compiled: True or False, the same: there is nothing to compile.
        chunk_size: 1024; rows go through in chunks of bytes.
        return_soft_hard_loss: return (loss, soft loss, hard loss), of which the loss has a gradient.
        valid_rows: see `liger_fused_linear_distillation_jsd`.
        chunk_bytes: memory for the float32 logits of one chunk of one model.

    Raises:
        ValueError: shapes that do not fit, an option out of range.
    """
    check_unused("cosine", chunk_size, UPSTREAM_CHUNK)
    if not temperature > 0:
        raise ValueError(f"cosine: temperature is {temperature}; it must be positive.")
    if student_weight.shape[0] != teacher_weight.shape[0]:
        raise ValueError(
            f"cosine: teacher_weight has a vocabulary of {teacher_weight.shape[0]}, student_weight one of "
            f"{student_weight.shape[0]}; where the larger one is only padded, pass its weight without those rows."
        )
    labels, x, teacher_x = _valid(true_labels, ignore_index, valid_rows, student_input, teacher_input)
    teacher_weight = teacher_weight.detach()
    hard_wanted = bool(weight_hard_loss) or return_soft_hard_loss

    def of_logits(logits: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        distance = losses.cosine_distance(logits, F.linear(hidden, teacher_weight, teacher_bias))
        parts = [torch.where(labels == ignore_index, 0.0, distance)]
        if hard_wanted:
            hard = liger_cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
            assert isinstance(hard, torch.Tensor)
            parts.append(hard)
        return torch.stack(parts, dim=-1)

    found = map_logits(
        of_logits, x, student_weight, teacher_x.detach(), labels, bias=student_bias, chunk_bytes=chunk_bytes
    )
    soft, *rest = (found.sum(0) / (labels != ignore_index).sum().clamp(min=1)).unbind()
    soft, hard = beta * soft, rest[0] if rest else soft.new_zeros(())
    loss = weight_soft_loss * soft + weight_hard_loss * hard
    return (loss, soft.detach(), hard.detach()) if return_soft_hard_loss else loss
