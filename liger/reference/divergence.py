"""Divergences of two distributions over a vocabulary: Kullback-Leibler, generalised Jensen-Shannon, total variation."""

from __future__ import annotations

from typing import Any

from liger.mesh import ONE_DEVICE, Mesh
from liger.reference.common import compute_dtype, namespace, stop_gradient
from liger.reference.cross_entropy import cross_entropy, inverse, linear


def divergence(
    student: Any,
    teacher: Any,
    labels: Any | None,
    *,
    kind: str,
    beta: float,
    student_space: str,
    teacher_space: str,
    temperature: float,
    eps: float,
    reduction: str,
    ignore_index: int,
    mesh: Mesh = ONE_DEVICE,
) -> Any:
    """Divergence of a student's distribution Q from a teacher's P, arrays (..., vocab), with labels (...) as a mask.

    Per token, with p, q the probabilities and M = beta * P + (1 - beta) * Q:

        "jsd", beta 0    KL(P || Q) = sum_j p_j * (log p_j - log q_j)
        "jsd", beta 1    KL(Q || P)
        "jsd", between   beta * KL(P || M) + (1 - beta) * KL(Q || M)
        "tvd"            1/2 * sum_j |q_j - p_j|

    0 * log 0 is 0. A space is "logits" (softmax at `temperature`), "log_probs", or "probs" (whose logarithm is
    log max(p, eps), or log p with eps 0, NaN for a negative one); what is no logit is taken as it is, normalised or
    not. Tokens whose label is `ignore_index` have no loss; means are over the others, and 0 over none. On a mesh sums
    and means are over the tokens of all devices.

    Generalised JSD with these ends: Agarwal et al., arXiv:2306.13649. KL: torch.nn.functional.kl_div.
    """
    xp = namespace(student)
    compute = xp.float64 if xp.float64 in (compute_dtype(student), compute_dtype(teacher)) else xp.float32
    student, teacher = xp.astype(student, compute), xp.astype(teacher, compute)
    valid = None if labels is None else labels != ignore_index
    if valid is not None:  # whatever an ignored row holds, its gradient is 0
        student, teacher = (xp.where(valid[..., None], a, xp.zeros_like(a)) for a in (student, teacher))
    log_q, q = _distribution(student, student_space, temperature, eps)
    log_p, p = _distribution(teacher, teacher_space, temperature, eps)
    terms = 0.5 * xp.abs(q - p) if kind == "tvd" else _jsd(log_q, q, log_p, p, beta)
    if valid is not None:
        terms = xp.where(valid[..., None], terms, xp.zeros_like(terms))
    if reduction == "elements":
        return terms
    rows = xp.sum(terms, axis=-1)
    if reduction == "tokens":
        return rows
    (total,) = mesh.psum(xp.sum(rows), over="rows")
    if reduction == "sum":
        return total
    if reduction == "mean_batch":
        assert mesh.size("rows") == 1
        return total / max(student.shape[0], 1)
    counted = xp.ones_like(rows) if valid is None else xp.astype(valid, compute)
    (count,) = mesh.psum(xp.sum(counted), over="rows")
    mean = total * inverse(count)
    return mean / student.shape[-1] if reduction == "mean_elements" else mean


def _distribution(array: Any, space: str, temperature: float, eps: float) -> tuple[Any, Any]:
    """(log p, p)."""
    xp = namespace(array)
    if space == "probs":
        tiny = xp.full_like(array, eps)
        if eps > 0:
            return xp.log(xp.where(array <= tiny, tiny, array)), array  # NaN stays
        above = array > tiny
        positive = xp.log(xp.where(above, array, xp.ones_like(array)))
        log = xp.where(above, positive, xp.log(stop_gradient(array)))  # -inf of 0, NaN of what is below
        return log, array
    if space == "logits":
        z = array / temperature
        shifted = z - stop_gradient(xp.max(z, axis=-1, keepdims=True))
        array = shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
    return array, xp.exp(array)


def _jsd(log_q: Any, q: Any, log_p: Any, p: Any, beta: float) -> Any:
    xp = namespace(q)
    nothing = xp.zeros_like(q)
    if beta == 0.0:
        return p * xp.where(p == 0, nothing, log_p - log_q)
    if beta == 1.0:
        return q * xp.where(q == 0, nothing, log_q - log_p)
    # log m from the larger of the two; where both are 0 there is nothing.
    highest = stop_gradient(xp.where(log_q > log_p, log_q, log_p))
    alive = highest != -xp.inf  # NaN, the logarithm of a negative number, is to be seen
    highest = xp.where(alive, highest, nothing)
    mixed = beta * xp.exp(log_p - highest) + (1 - beta) * xp.exp(log_q - highest)
    log_m = highest + xp.log(xp.where(alive, mixed, xp.ones_like(mixed)))
    to_p = xp.where(p > 0, log_p, nothing) - log_m
    to_q = xp.where(q > 0, log_q, nothing) - log_m
    return beta * p * to_p + (1 - beta) * q * to_q


def linear_jsd(
    student_x: Any,
    student_weight: Any,
    teacher_x: Any,
    teacher_weight: Any,
    labels: Any | None,
    student_bias: Any | None,
    teacher_bias: Any | None,
    *,
    weight_layout: str,
    beta: float,
    temperature: float,
    soft_weight: float,
    hard_weight: float,
    reduction: str,
    ignore_index: int,
    mesh: Mesh = ONE_DEVICE,
) -> tuple[Any, Any, Any]:
    """(loss, soft, hard) of two linear layers' logits.

        soft = JSD_beta(softmax(teacher logits / temperature), softmax(student logits / temperature))
        hard = cross entropy of the student's logits with the labels
        loss = soft_weight * soft + hard_weight * hard

    The hard loss is computed only if its weight is not 0. Knowledge distillation: Hinton et al., arXiv:1503.02531.
    """
    logits = linear(student_x, student_weight, student_bias, weight_layout)
    soft = divergence(
        logits,
        linear(teacher_x, teacher_weight, teacher_bias, weight_layout),
        labels,
        kind="jsd",
        beta=beta,
        student_space="logits",
        teacher_space="logits",
        temperature=temperature,
        eps=0.0,
        reduction=reduction,
        ignore_index=ignore_index,
        mesh=mesh,
    )
    if labels is None or not hard_weight:
        return soft_weight * soft, soft, namespace(soft).zeros_like(soft)
    hard, *_ = cross_entropy(
        logits,
        labels,
        None,
        ignore_index=ignore_index,
        label_smoothing=0.0,
        z_loss=0.0,
        softcap=None,
        scale=1.0,
        reduction={"tokens": "none", "sum": "sum", "mean_tokens": "mean"}[reduction],
        token_scaling=False,
        mesh=mesh,
    )
    return soft_weight * soft + hard_weight * hard, soft, hard
