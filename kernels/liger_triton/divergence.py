"""Divergences of two distributions over a vocabulary: Kullback-Leibler, generalised Jensen-Shannon, total variation.

Per row, of a student's distribution Q and a teacher's P, with m = beta * p + (1 - beta) * q:

    KL    beta 0:   sum_j p_j * d_j                          d_j = log p_j - log q_j
    KL    beta 1:   sum_j q_j * -d_j
    JSD   between:  sum_j beta * p_j * (log p_j - log m_j) + (1 - beta) * q_j * (log q_j - log m_j)
    TVD             1/2 * sum_j |q_j - p_j|

The derivative by log q_j, each taken as a variable of its own:

    g_j = -p_j                                KL, beta 0
    g_j = q_j * (1 - d_j)                     KL, beta 1
    g_j = (1 - beta) * q_j * (log q_j - log m_j)
    g_j = 1/2 * sign(q_j - p_j) * q_j         TVD

and by the logits z behind log q = log softmax(z / T), for which a multiple of q in g makes no difference:

    dz_j = (g_j - q_j * sum_k g_k) / T

A divergence stays the same when student and teacher change places and beta becomes 1 - beta, so the teacher's gradient
is the student's of that problem.

JSD needs log q - log m, a small difference of large numbers where the two distributions are alike. It is found from
d alone, which is exact there: see `_mixture`.

Generalised JSD with these ends: Agarwal et al., arXiv:2306.13649; KL: torch.nn.functional.kl_div.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import triton
import triton.language as tl

from liger import check
from liger.backend import Array, Backend
from liger.launch import Launch, Spec, next_power_of_2
from liger.mesh import ONE_DEVICE, Mesh
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import divergence as reference
from liger_triton.cross_entropy import (
    _store_zeros,
    cotangent_rows,
    denominators_launch,
    inverses_launch,
    totals_launch,
)
from liger_triton.scale import scaled

LOGITS, LOG_PROBS, PROBS = "logits", "log_probs", "probs"

REDUCTIONS = ("elements", "tokens", "sum", "mean_elements", "mean_tokens", "mean_batch")

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _load(
    row_ptr,
    bias_ptr,
    col,
    mask,
    temperature: tl.constexpr,
    eps: tl.constexpr,
    SPACE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """(what the array holds, z): log p = z - highest - log_total, the latter two 0 for what is no logit."""
    if SPACE == "probs":
        raw = tl.load(row_ptr + col, mask=mask, other=0.0).to(tl.float32)
        z = tl.log(tl.maximum(raw, eps))
    else:
        raw = tl.load(row_ptr + col, mask=mask, other=float("-inf")).to(tl.float32)
        if HAS_BIAS:
            raw += tl.load(bias_ptr + col, mask=mask, other=0.0).to(tl.float32)
        z = raw
        if SPACE == "logits" and temperature != 1.0:
            z = raw * (1.0 / temperature)
    return raw, z


@triton.jit
def _difference(z_s, z_t):
    """z_t - z_s, and 0 where both are -inf."""
    return tl.where(z_t == z_s, 0.0, z_t - z_s)


@triton.jit
def _mixture(d, beta: tl.constexpr):
    """(log q - log m, log p - log m, exp(-|d|)) from d = log p - log q.

    With w the weight of the smaller one of p and q, log m = log(larger) + log(1 - w * (1 - exp(-|d|))). The second
    logarithm is the cumulant generating function of a Bernoulli variable at -|d|, whose series keeps the digits of
    a small d: 1e-8 at 1/4.
    """
    k2: tl.constexpr = beta * (1.0 - beta)
    k3: tl.constexpr = k2 * (1.0 - 2.0 * beta)
    k4: tl.constexpr = k2 * (1.0 - 6.0 * k2)
    k5: tl.constexpr = k3 * (1.0 - 12.0 * k2)
    k6: tl.constexpr = k2 * (1.0 - 30.0 * k2 + 120.0 * k2 * k2)
    student_smaller = d > 0.0
    # The smaller of a number and NaN is the number. Where both logarithms are -inf, d is 0; but beyond the vocabulary,
    # in lanes that are known to be masked, Triton 3.6 gave NaN for two 16-bit -inf on an H100.
    size = tl.minimum(tl.abs(d), 1e5)
    ratio = tl.exp(-size)
    w = tl.where(student_smaller, 1.0 - beta, beta)
    c3 = tl.where(student_smaller, -k3 / 6, k3 / 6)
    c5 = tl.where(student_smaller, -k5 / 120, k5 / 120)
    series = size * (
        w + size * (-k2 / 2 + size * (c3 + size * (-k4 / 24 + size * (c5 + size * (-k6 / 720)))))
    )
    larger = tl.where(size < 0.25, series, -tl.log(1.0 - w * (1.0 - ratio)))
    smaller = larger - size
    return (
        tl.where(student_smaller, smaller, larger),
        tl.where(student_smaller, larger, smaller),
        ratio,
    )


@triton.jit
def _terms(
    raw_s,
    z_s,
    raw_t,
    z_t,
    highest_s,
    log_total_s,
    highest_t,
    log_total_t,
    beta: tl.constexpr,
    KIND: tl.constexpr,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
):
    """Of each column: its part of the divergence, g without the multiple of q, q, and d."""
    log_q = z_s - highest_s - log_total_s
    log_p = z_t - highest_t - log_total_t
    # The logits' difference is exact where they are alike, the difference of the log-probs is not.
    d = _difference(z_s, z_t) - ((highest_t - highest_s) + (log_total_t - log_total_s))
    if KIND == "jsd" and beta > 0.0 and beta < 1.0:
        to_q, to_p, ratio = _mixture(d, beta)
        larger = tl.exp(tl.maximum(log_q, log_p))
        q = tl.where(d > 0.0, larger * ratio, larger)
        p = tl.where(d > 0.0, larger, larger * ratio)
        g = (1.0 - beta) * tl.where(q == 0.0, 0.0, q * to_q)
        term = g + beta * tl.where(p == 0.0, 0.0, p * to_p)
    else:
        q = raw_s if STUDENT == "probs" else tl.exp(log_q)
        p = raw_t if TEACHER == "probs" else tl.exp(log_p)
        if KIND == "tvd":
            term = 0.5 * tl.abs(q - p)
            g = tl.where(q == p, 0.0, tl.where(q > p, 0.5 * q, -0.5 * q))
        elif beta == 0.0:
            term = tl.where(p == 0.0, 0.0, p * d)
            g = -p
        else:
            term = tl.where(q == 0.0, 0.0, -q * d)
            g = term
    return term, g, q, d


@triton.jit
def _gradient(
    raw_s,
    g,
    q,
    d,
    slope,
    temperature: tl.constexpr,
    eps: tl.constexpr,
    beta: tl.constexpr,
    KIND: tl.constexpr,
    STUDENT: tl.constexpr,
):
    """The derivative by what the student's array holds; `slope` is the sum of g over the row's columns."""
    if STUDENT == "logits":
        if KIND == "jsd" and beta == 0.0:
            dz = q + g
        else:
            dz = g - q * slope
        result = dz * (1.0 / temperature)
    elif STUDENT == "probs":
        if KIND == "tvd":
            result = tl.where(g == 0.0, 0.0, tl.where(g > 0.0, 0.5, -0.5))
        else:
            result = tl.where(raw_s > eps, 1.0 - d, -d)
    elif KIND == "jsd" and beta == 1.0:
        result = g + q
    else:
        result = g
    return result


@triton.jit
def _factor(counted_ptr, divisor, n_cols: tl.constexpr, COUNTED: tl.constexpr, PER_COLUMN: tl.constexpr):
    """What a row's loss is multiplied by."""
    if COUNTED:
        factor = tl.load(counted_ptr)
    else:
        factor = 1.0 / divisor
    if PER_COLUMN:
        factor *= 1.0 / n_cols
    return factor


@triton.jit
def _store_logits_gradient(
    student_row_ptr,
    teacher_row_ptr,
    student_bias_ptr,
    teacher_bias_ptr,
    gradient_row_ptr,
    label,
    raw_highest,
    highest_s,
    log_total_s,
    highest_t,
    log_total_t,
    slope,
    hard_log_total,
    soft,
    hard,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    temperature: tl.constexpr,
    KIND: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    HARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """soft * dz + hard * (the gradient of the cross entropy)."""
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        raw_s, z_s = _load(
            student_row_ptr, student_bias_ptr, col, mask, temperature, 0.0, "logits", HAS_STUDENT_BIAS
        )
        raw_t, z_t = _load(
            teacher_row_ptr, teacher_bias_ptr, col, mask, temperature, 0.0, "logits", HAS_TEACHER_BIAS
        )
        _, g, q, d = _terms(
            raw_s, z_s, raw_t, z_t, highest_s, log_total_s, highest_t, log_total_t, beta, KIND, "logits", "logits"
        )  # fmt: skip
        dz = soft * _gradient(raw_s, g, q, d, slope, temperature, 0.0, beta, KIND, "logits")
        if HARD:
            probability = tl.exp(raw_s - raw_highest - hard_log_total)
            dz += hard * tl.where(col == label, probability - 1.0, probability)
        tl.store(gradient_row_ptr + col, dz.to(gradient_row_ptr.dtype.element_ty), mask=mask)


@triton.jit
def divergence_forward(
    student_ptr,  # (n_rows, n_cols)
    teacher_ptr,  # (n_rows, n_cols)
    labels_ptr,  # (n_rows,)
    counted_ptr,  # (3,) float32: 1 / the number of labels that are not ignored
    divisor,
    loss_ptr,  # (n_rows,) or (n_rows, n_cols) float32
    gradient_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    student_stride: tl.constexpr,
    teacher_stride: tl.constexpr,
    ignore_index: tl.constexpr,
    beta: tl.constexpr,
    eps: tl.constexpr,
    KIND: tl.constexpr,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    COUNTED: tl.constexpr,
    PER_COLUMN: tl.constexpr,
    ELEMENTS: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of probabilities or their logarithms: one sweep."""
    row = tl.program_id(0).to(tl.int64)
    if HAS_LABELS:
        label = tl.load(labels_ptr + row)
        if label == ignore_index:
            if ELEMENTS:
                _store_zeros(loss_ptr + row * n_cols, n_cols, BLOCK)
            else:
                tl.store(loss_ptr + row, 0.0)
            if WANT_GRADIENT:
                _store_zeros(gradient_ptr + row * n_cols, n_cols, BLOCK)
            return
    factor = _factor(counted_ptr, divisor, n_cols, COUNTED, PER_COLUMN)
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        raw_s, z_s = _load(
            student_ptr + row * student_stride, student_ptr, col, mask, 1.0, eps, STUDENT, False
        )
        raw_t, z_t = _load(
            teacher_ptr + row * teacher_stride, teacher_ptr, col, mask, 1.0, eps, TEACHER, False
        )
        term, g, q, d = _terms(
            raw_s, z_s, raw_t, z_t, 0.0, 0.0, 0.0, 0.0, beta, KIND, STUDENT, TEACHER
        )  # fmt: skip
        if ELEMENTS:
            tl.store(loss_ptr + row * n_cols + col, term * factor, mask=mask)
        else:
            sums += term
        if WANT_GRADIENT:
            gradient = factor * _gradient(raw_s, g, q, d, 0.0, 1.0, eps, beta, KIND, STUDENT)
            tl.store(gradient_ptr + row * n_cols + col, gradient.to(gradient_ptr.dtype.element_ty), mask=mask)
    if not ELEMENTS:
        tl.store(loss_ptr + row, tl.sum(sums, axis=0) * factor)


@triton.jit
def divergence_backward(
    student_ptr,  # (n_rows, n_cols)
    teacher_ptr,  # (n_rows, n_cols)
    labels_ptr,  # (n_rows,)
    counted_ptr,  # (3,) float32
    dloss_ptr,  # (1,), (n_rows,) or (n_rows, n_cols) float32
    divisor,
    gradient_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    student_stride: tl.constexpr,
    teacher_stride: tl.constexpr,
    ignore_index: tl.constexpr,
    beta: tl.constexpr,
    eps: tl.constexpr,
    KIND: tl.constexpr,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    COUNTED: tl.constexpr,
    PER_COLUMN: tl.constexpr,
    ELEMENTS: tl.constexpr,
    COTANGENT_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The student's gradient from probabilities or their logarithms."""
    row = tl.program_id(0).to(tl.int64)
    if HAS_LABELS:
        label = tl.load(labels_ptr + row)
        if label == ignore_index:
            _store_zeros(gradient_ptr + row * n_cols, n_cols, BLOCK)
            return
    factor = _factor(counted_ptr, divisor, n_cols, COUNTED, PER_COLUMN)
    if not ELEMENTS:
        factor *= tl.load(dloss_ptr + row * COTANGENT_STRIDE)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        raw_t, z_t = _load(
            teacher_ptr + row * teacher_stride, teacher_ptr, col, mask, 1.0, eps, TEACHER, False
        )
        raw_s, z_s = raw_t, z_t
        if KIND == "tvd" or beta > 0.0:  # otherwise the gradient is -p
            raw_s, z_s = _load(
                student_ptr + row * student_stride, student_ptr, col, mask, 1.0, eps, STUDENT, False
            )
        _, g, q, d = _terms(raw_s, z_s, raw_t, z_t, 0.0, 0.0, 0.0, 0.0, beta, KIND, STUDENT, TEACHER)
        gradient = factor * _gradient(raw_s, g, q, d, 0.0, 1.0, eps, beta, KIND, STUDENT)
        if ELEMENTS:
            gradient *= tl.load(dloss_ptr + row * n_cols + col, mask=mask, other=0.0)
        tl.store(gradient_ptr + row * n_cols + col, gradient.to(gradient_ptr.dtype.element_ty), mask=mask)


@triton.jit
def divergence_of_logits_forward(
    student_ptr,  # (n_rows, n_cols)
    teacher_ptr,  # (n_rows, n_cols)
    labels_ptr,  # (n_rows,)
    student_bias_ptr,  # (n_cols,)
    teacher_bias_ptr,  # (n_cols,)
    counted_ptr,  # (3,) float32
    divisor,
    loss_ptr,  # (n_rows,) float32
    soft_ptr,  # (n_rows,) float32: the divergence alone
    hard_ptr,  # (n_rows,) float32: the cross entropy alone
    statistics_ptr,  # (n_rows, 7) float32: see STATISTICS
    gradient_ptr,  # (n_rows, n_cols); may be student_ptr
    n_cols: tl.constexpr,
    student_stride: tl.constexpr,
    teacher_stride: tl.constexpr,
    gradient_stride: tl.constexpr,
    ignore_index: tl.constexpr,
    beta: tl.constexpr,
    temperature: tl.constexpr,
    soft_weight: tl.constexpr,
    hard_weight: tl.constexpr,
    KIND: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    COUNTED: tl.constexpr,
    PER_COLUMN: tl.constexpr,
    HARD: tl.constexpr,
    WANT_PARTS: tl.constexpr,
    WANT_STATISTICS: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of logits: a sweep for the log-sum-exps, in which KL is found too; one for JSD and TVD; one for the gradient."""
    row = tl.program_id(0).to(tl.int64)
    student_row_ptr = student_ptr + row * student_stride
    teacher_row_ptr = teacher_ptr + row * teacher_stride
    gradient_row_ptr = gradient_ptr + row * gradient_stride
    label = 0
    if HAS_LABELS:
        label = tl.load(labels_ptr + row)
        if label == ignore_index:
            tl.store(loss_ptr + row, 0.0)
            if WANT_PARTS:
                tl.store(soft_ptr + row, 0.0)
                tl.store(hard_ptr + row, 0.0)
            if WANT_STATISTICS:
                i = tl.arange(0, 8)
                tl.store(statistics_ptr + row * 7 + i, tl.zeros((8,), tl.float32), mask=i < 7)
            if WANT_GRADIENT:
                _store_zeros(gradient_row_ptr, n_cols, BLOCK)
            return
    factor = _factor(counted_ptr, divisor, n_cols, COUNTED, PER_COLUMN)
    label_logit = 0.0
    if HARD:
        # Read before the sweeps, whose sums synchronise the program: the last one may overwrite it.
        in_range = (label >= 0) & (label < n_cols)
        label_logit = tl.load(student_row_ptr + label, mask=in_range, other=float("nan")).to(tl.float32)
        if HAS_STUDENT_BIAS:
            label_logit += tl.load(student_bias_ptr + label, mask=in_range, other=0.0).to(tl.float32)

    KL: tl.constexpr = KIND == "jsd" and (beta == 0.0 or beta == 1.0)
    raw_highest_s = float("-inf")  # before the temperature
    raw_highest_t = float("-inf")
    total_s = 0.0
    total_t = 0.0
    hard_total = 0.0
    weighted = 0.0  # KL: sum_j e_j * (z_t - z_s)_j, e the teacher's or the student's exponentials
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        raw_s, z_s = _load(
            student_row_ptr, student_bias_ptr, col, mask, temperature, 0.0, "logits", HAS_STUDENT_BIAS
        )
        raw_t, z_t = _load(
            teacher_row_ptr, teacher_bias_ptr, col, mask, temperature, 0.0, "logits", HAS_TEACHER_BIAS
        )
        new_s = tl.maximum(raw_highest_s, tl.max(raw_s, axis=0))
        new_t = tl.maximum(raw_highest_t, tl.max(raw_t, axis=0))
        # A block of -inf alone (a masked part of the vocabulary) has nothing to be shifted by.
        raw_shift = tl.where(new_s == float("-inf"), 0.0, new_s)
        shift_s = raw_shift * (1.0 / temperature)
        shift_t = tl.where(new_t == float("-inf"), 0.0, new_t) * (1.0 / temperature)
        rescale_s = tl.exp(raw_highest_s * (1.0 / temperature) - shift_s)
        rescale_t = tl.exp(raw_highest_t * (1.0 / temperature) - shift_t)
        e_s = tl.exp(z_s - shift_s)
        e_t = tl.exp(z_t - shift_t)
        total_s = total_s * rescale_s + tl.sum(e_s, axis=0)
        total_t = total_t * rescale_t + tl.sum(e_t, axis=0)
        if HARD and temperature != 1.0:
            hard_total = hard_total * tl.exp(raw_highest_s - raw_shift) + tl.sum(
                tl.exp(raw_s - raw_shift), axis=0
            )
        if KL:
            d = _difference(z_s, z_t)
            if beta == 0.0:
                weighted = weighted * rescale_t + tl.sum(tl.where(e_t == 0.0, 0.0, e_t * d), axis=0)
            else:
                weighted = weighted * rescale_s + tl.sum(tl.where(e_s == 0.0, 0.0, e_s * d), axis=0)
        raw_highest_s = new_s
        raw_highest_t = new_t
    highest_s = raw_highest_s * (1.0 / temperature)
    highest_t = raw_highest_t * (1.0 / temperature)
    log_total_s = tl.log(total_s)
    log_total_t = tl.log(total_t)
    if KL:
        shift = (highest_t - highest_s) + (log_total_t - log_total_s)
        if beta == 0.0:
            soft = weighted / total_t - shift
            slope = 0.0
        else:
            soft = shift - weighted / total_s
            slope = soft
    else:
        terms = tl.zeros((BLOCK,), tl.float32)
        slopes = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, n_cols, BLOCK):
            col = start + tl.arange(0, BLOCK)
            mask = col < n_cols
            raw_s, z_s = _load(
                student_row_ptr, student_bias_ptr, col, mask, temperature, 0.0, "logits", HAS_STUDENT_BIAS
            )
            raw_t, z_t = _load(
                teacher_row_ptr, teacher_bias_ptr, col, mask, temperature, 0.0, "logits", HAS_TEACHER_BIAS
            )
            term, g, _, _ = _terms(
                raw_s, z_s, raw_t, z_t, highest_s, log_total_s, highest_t, log_total_t, beta, KIND, "logits", "logits"
            )  # fmt: skip
            terms += term
            slopes += g
        soft = tl.sum(terms, axis=0)
        slope = tl.sum(slopes, axis=0)

    loss = soft_weight * soft
    hard = 0.0
    hard_log_total = log_total_s
    if HARD:
        if temperature != 1.0:
            hard_log_total = tl.log(hard_total)
        hard = hard_log_total + (raw_highest_s - label_logit)  # NaN for a label out of range
        loss += hard_weight * hard
    tl.store(loss_ptr + row, loss * factor)
    if WANT_PARTS:
        tl.store(soft_ptr + row, soft * factor)
        tl.store(hard_ptr + row, hard * factor)
    if WANT_STATISTICS:
        tl.store(statistics_ptr + row * 7, raw_highest_s)
        tl.store(statistics_ptr + row * 7 + 1, log_total_s)
        tl.store(statistics_ptr + row * 7 + 2, raw_highest_t)
        tl.store(statistics_ptr + row * 7 + 3, log_total_t)
        tl.store(statistics_ptr + row * 7 + 4, slope)
        tl.store(statistics_ptr + row * 7 + 5, soft - slope)
        tl.store(statistics_ptr + row * 7 + 6, hard_log_total)
    if WANT_GRADIENT:
        hard_factor = hard_weight * factor
        if HARD:
            hard_factor = tl.where(in_range, hard_factor, float("nan"))
        _store_logits_gradient(
            student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, gradient_row_ptr, label,
            raw_highest_s, highest_s, log_total_s, highest_t, log_total_t, slope, hard_log_total,
            soft_weight * factor, hard_factor,
            n_cols, beta, temperature, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD, BLOCK,
        )  # fmt: skip


@triton.jit
def divergence_of_logits_backward(
    student_ptr,  # (n_rows, n_cols)
    teacher_ptr,  # (n_rows, n_cols)
    labels_ptr,  # (n_rows,)
    student_bias_ptr,  # (n_cols,)
    teacher_bias_ptr,  # (n_cols,)
    statistics_ptr,  # (n_rows, 7) float32
    counted_ptr,  # (3,) float32
    dloss_ptr,  # (n_rows,) or (1,) float32
    divisor,
    gradient_ptr,  # (n_rows, n_cols); may be student_ptr
    n_cols: tl.constexpr,
    student_stride: tl.constexpr,
    teacher_stride: tl.constexpr,
    gradient_stride: tl.constexpr,
    ignore_index: tl.constexpr,
    beta: tl.constexpr,
    temperature: tl.constexpr,
    soft_weight: tl.constexpr,
    hard_weight: tl.constexpr,
    KIND: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    COUNTED: tl.constexpr,
    PER_COLUMN: tl.constexpr,
    HARD: tl.constexpr,
    COTANGENT_STRIDE: tl.constexpr,
    SWAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The student's gradient; SWAPPED: the statistics are of the problem in which it is the teacher."""
    row = tl.program_id(0).to(tl.int64)
    gradient_row_ptr = gradient_ptr + row * gradient_stride
    label = 0
    if HAS_LABELS:
        label = tl.load(labels_ptr + row)
        if label == ignore_index:
            _store_zeros(gradient_row_ptr, n_cols, BLOCK)
            return
    factor = _factor(counted_ptr, divisor, n_cols, COUNTED, PER_COLUMN)
    factor *= tl.load(dloss_ptr + row * COTANGENT_STRIDE)
    first_ptr = statistics_ptr + row * 7
    S: tl.constexpr = 2 if SWAPPED else 0
    raw_highest_s = tl.load(first_ptr + S)
    log_total_s = tl.load(first_ptr + S + 1)
    highest_t = tl.load(first_ptr + (2 - S)) * (1.0 / temperature)
    log_total_t = tl.load(first_ptr + (2 - S) + 1)
    slope = tl.load(first_ptr + (5 if SWAPPED else 4))
    hard_log_total = 0.0
    hard_factor = hard_weight * factor
    if HARD:
        hard_log_total = tl.load(first_ptr + 6)
        in_range = (label >= 0) & (label < n_cols)
        hard_factor = tl.where(in_range, hard_factor, float("nan"))
    _store_logits_gradient(
        student_ptr + row * student_stride, teacher_ptr + row * teacher_stride, student_bias_ptr, teacher_bias_ptr,
        gradient_row_ptr, label, raw_highest_s, raw_highest_s * (1.0 / temperature), log_total_s, highest_t,
        log_total_t, slope, hard_log_total, soft_weight * factor, hard_factor,
        n_cols, beta, temperature, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD, BLOCK,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- launches

STATISTICS = 7
"""Columns that the backward pass from logits reads: the student's highest logit (before the temperature) and the
logarithm of the sum of its shifted exponentials; the same two of the teacher; the sums of g for the student's gradient
and for the teacher's; and the second number again at temperature 1, for the cross entropy."""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What is compared, and how; the formulas are at the top of this file.

    Attributes:
        kind: "jsd" or "tvd".
        beta: of "jsd".
        student_space: what the student's array holds: "logits", "log_probs" or "probs".
        teacher_space: likewise; logits on both sides or on neither.
        temperature: divides logits.
        eps: probabilities below it have its logarithm.
        reduction: "elements" (one number per token and word; not from logits), "tokens" (one per token), or one number:
            "sum", "mean_elements", "mean_tokens", or "mean_batch", the sum over the length of the first axis; this last
            one is torch's, and not for meshes.
        ignore_index: tokens with this label have no loss and no gradient, and do not count in a mean.
        recompute: compute gradients in the backward pass, where the forward pass could leave them.
        soft_weight: factor of the divergence in the loss.
        hard_weight: factor of the student's cross entropy with the labels in the loss; from logits only.
    """

    kind: str = "jsd"
    beta: float = 0.5
    student_space: str = LOG_PROBS
    teacher_space: str = LOG_PROBS
    temperature: float = 1.0
    eps: float = 0.0
    reduction: str = "mean_tokens"
    ignore_index: int = -100
    recompute: bool = False
    soft_weight: float = 1.0
    hard_weight: float = 0.0

    @property
    def swapped(self) -> Options:
        """The same divergence with student and teacher in each other's place."""
        return dataclasses.replace(
            self, beta=1.0 - self.beta, student_space=self.teacher_space, teacher_space=self.student_space
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """What the launches have to know of the arrays.

    Attributes:
        n_rows: tokens.
        n_cols: size of the vocabulary.
        dtypes: of student, teacher, labels, student's bias and teacher's bias.
        strides: of a row of student and teacher.
        divisor: what sums are divided by, where no labels are counted for it.
    """

    n_rows: int
    n_cols: int
    dtypes: tuple[str, str, str | None, str | None, str | None]
    strides: tuple[int, int]
    divisor: int

    def specs(self, passes: int, reads_student: bool = True) -> tuple[Spec, ...]:
        """Student, teacher, labels; and the two biases."""
        student, teacher, labels, student_bias, teacher_bias = self.dtypes
        return (
            Spec((self.n_rows, self.n_cols), student, passes, unread=not reads_student),
            Spec((self.n_rows, self.n_cols), teacher, passes),
            Spec((self.n_rows,), labels or "int32", unread=labels is None),
            Spec((self.n_cols,), student_bias or student, resident=True, unread=student_bias is None),
            Spec((self.n_cols,), teacher_bias or teacher, resident=True, unread=teacher_bias is None),
        )


def counts_labels(options: Options, labels: object | None) -> bool:
    """Whether a mean is over those labels that are not ignored, which the device has to count."""
    return labels is not None and options.reduction in ("mean_elements", "mean_tokens")


def _constants(rows: Rows, options: Options) -> tuple[tuple[str, int | float | bool | str], ...]:
    labels = rows.dtypes[2]
    return (
        ("n_cols", rows.n_cols),
        ("student_stride", rows.strides[0]),
        ("teacher_stride", rows.strides[1]),
        ("ignore_index", options.ignore_index),
        ("beta", float(options.beta)),
        ("KIND", options.kind),
        ("HAS_LABELS", labels is not None),
        ("COUNTED", counts_labels(options, labels)),
        ("PER_COLUMN", options.reduction == "mean_elements"),
    )


def _of_logits(
    rows: Rows, options: Options, gradient_stride: int
) -> tuple[tuple[str, int | float | bool], ...]:
    return (
        ("gradient_stride", gradient_stride),
        ("temperature", float(options.temperature)),
        ("soft_weight", float(options.soft_weight)),
        ("hard_weight", float(options.hard_weight)),
        ("HAS_STUDENT_BIAS", rows.dtypes[3] is not None),
        ("HAS_TEACHER_BIAS", rows.dtypes[4] is not None),
        ("HARD", options.hard_weight != 0),
    )


def _spaces(options: Options) -> tuple[tuple[str, int | float | bool | str], ...]:
    return (
        ("eps", float(options.eps)),
        ("STUDENT", options.student_space),
        ("TEACHER", options.teacher_space),
        ("ELEMENTS", options.reduction == "elements"),
    )


def _block(n_cols: int) -> tuple[int, int]:
    """Columns of a block and warps of a program: 16 columns of both arrays for a thread."""
    block = min(next_power_of_2(n_cols), 4096)
    return block, min(max(block // 512, 1), 8)


@functools.lru_cache(4096)
def forward_launch(rows: Rows, options: Options, want_gradient: bool) -> Launch:
    """Losses from probabilities or their logarithms, and with `want_gradient` the gradient for a cotangent of 1."""
    block, warps = _block(rows.n_cols)
    elements = options.reduction == "elements"
    matrix = (rows.n_rows, rows.n_cols)
    return Launch(
        kernel=divergence_forward,
        grid=(rows.n_rows,),
        inputs=(*rows.specs(1)[:3], _counted(options, rows)),
        integers=(rows.divisor,),
        outputs=(
            Spec(matrix if elements else (rows.n_rows,), "float32"),
            Spec(matrix if want_gradient else (0,), rows.dtypes[0]),
        ),
        constants=(
            *_constants(rows, options),
            *_spaces(options),
            ("WANT_GRADIENT", want_gradient),
            ("BLOCK", block),
        ),
        num_warps=warps,
        flops=(20 if want_gradient else 16) * rows.n_rows * rows.n_cols,
    )


@functools.lru_cache(4096)
def backward_launch(rows: Rows, options: Options) -> Launch:
    """The student's gradient from probabilities or their logarithms."""
    block, warps = _block(rows.n_cols)
    elements, tokens = options.reduction == "elements", options.reduction == "tokens"
    # The derivative of KL(P || Q) by log q is -p.
    reads_student = options.kind == "tvd" or options.beta > 0
    dloss = (rows.n_rows, rows.n_cols) if elements else (rows.n_rows if tokens else 1,)
    return Launch(
        kernel=divergence_backward,
        grid=(rows.n_rows,),
        inputs=(
            *rows.specs(1, reads_student)[:3],
            _counted(options, rows),
            Spec(dloss, "float32", resident=not elements and not tokens),
        ),
        integers=(rows.divisor,),
        outputs=(Spec((rows.n_rows, rows.n_cols), rows.dtypes[0]),),
        constants=(
            *_constants(rows, options),
            *_spaces(options),
            ("COTANGENT_STRIDE", int(tokens)),
            ("BLOCK", block),
        ),
        num_warps=warps,
        flops=16 * rows.n_rows * rows.n_cols,
    )


@functools.lru_cache(4096)
def logits_forward_launch(
    rows: Rows, options: Options, want_parts: bool, want_statistics: bool, want_gradient: bool, in_place: bool
) -> Launch:
    """Losses from logits, and what is wanted beside them; `in_place`: the gradient over the student's logits."""
    block, warps = _block(rows.n_cols)
    finds_kl = options.kind == "jsd" and options.beta in (0.0, 1.0)
    per_row, nothing = Spec((rows.n_rows,), "float32"), Spec((0,), "float32")
    student, teacher, labels, *biases = rows.specs((1 if finds_kl else 2) + want_gradient)
    gradient = Spec(student.shape if want_gradient else (0,), student.dtype)
    return Launch(
        kernel=divergence_of_logits_forward,
        grid=(rows.n_rows,),
        inputs=(student, teacher, labels, *biases, _counted(options, rows)),
        integers=(rows.divisor,),
        outputs=(
            per_row,
            per_row if want_parts else nothing,
            per_row if want_parts else nothing,
            Spec((rows.n_rows, STATISTICS), "float32") if want_statistics else nothing,
            gradient,
        ),
        constants=(
            *_constants(rows, options),
            *_of_logits(rows, options, rows.strides[0] if in_place else rows.n_cols),
            ("WANT_PARTS", want_parts),
            ("WANT_STATISTICS", want_statistics),
            ("WANT_GRADIENT", want_gradient),
            ("BLOCK", block),
        ),
        num_warps=warps,
        aliases=((0, 4),) if want_gradient and in_place else (),
        flops=(40 if want_gradient else 24) * rows.n_rows * rows.n_cols,
    )


@functools.lru_cache(4096)
def logits_backward_launch(rows: Rows, options: Options, swapped: bool, in_place: bool) -> Launch:
    """The student's gradient from logits; `swapped`: by the statistics of the problem in which it is the teacher."""
    block, warps = _block(rows.n_cols)
    tokens = options.reduction == "tokens"
    student, teacher, labels, *biases = rows.specs(1)
    return Launch(
        kernel=divergence_of_logits_backward,
        grid=(rows.n_rows,),
        inputs=(
            student,
            teacher,
            labels,
            *biases,
            Spec((rows.n_rows, STATISTICS), "float32"),
            _counted(options, rows),
            Spec((rows.n_rows if tokens else 1,), "float32", resident=not tokens),
        ),
        integers=(rows.divisor,),
        outputs=(Spec(student.shape, student.dtype),),
        constants=(
            *_constants(rows, options),
            *_of_logits(rows, options, rows.strides[0] if in_place else rows.n_cols),
            ("COTANGENT_STRIDE", int(tokens)),
            ("SWAPPED", swapped),
            ("BLOCK", block),
        ),
        num_warps=warps,
        aliases=((0, 0),) if in_place else (),
        flops=20 * rows.n_rows * rows.n_cols,
    )


def _counted(options: Options, rows: Rows) -> Spec:
    return Spec((3,), "float32", resident=True, unread=not counts_labels(options, rows.dtypes[2]))


# ------------------------------------------------------------------------------------------------- algorithms


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Matrices of a student and a teacher with all that is common to their rows.

    Attributes:
        labels: one per row, or None.
        counted: what `cross_entropy_denominators` found of the labels, where a mean needs it.
        divisor: what sums are divided by otherwise.
        biases: of the student's and of the teacher's logits.
    """

    backend: Backend
    options: Options
    labels: Array | None
    counted: Array | None
    divisor: int
    biases: tuple[Array | None, Array | None] = (None, None)

    @property
    def swapped(self) -> Problem:
        """The problem with student and teacher in each other's place."""
        return dataclasses.replace(self, options=self.options.swapped, biases=self.biases[::-1])

    def rows(self, student: Array, teacher: Array) -> Rows:
        """What the launches for these matrices have to know."""
        backend = self.backend

        def dtype(array: Array | None) -> str | None:
            return None if array is None else backend.dtype(array)

        n_rows, n_cols = student.shape
        return Rows(
            n_rows,
            n_cols,
            (
                backend.dtype(student),
                backend.dtype(teacher),
                dtype(self.labels),
                dtype(self.biases[0]),
                dtype(self.biases[1]),
            ),
            (backend.strides(student)[0], backend.strides(teacher)[0]),
            self.divisor,
        )

    def _inputs(self, student: Array, teacher: Array) -> tuple[Array, ...]:
        """The inputs that every kernel takes first; pointers that it does not read get the student's."""
        biases = self.biases if self.options.student_space == LOGITS else ()
        return (student, teacher, *(student if a is None else a for a in (self.labels, *biases)))

    def forward(
        self,
        student: Array,
        teacher: Array,
        *,
        want_gradient: bool = False,
        want_statistics: bool = False,
        want_parts: bool = False,
        in_place: bool = False,
    ) -> tuple[Array, Array | None, Array | None, Array | None, Array | None]:
        """(loss, soft, hard, statistics, gradient): losses per row, divided, and the gradient for a cotangent of 1."""
        rows, options = self.rows(student, teacher), self.options
        if options.student_space == LOGITS:
            launch = logits_forward_launch(
                rows, options, want_parts, want_statistics, want_gradient, in_place
            )
        else:
            launch = forward_launch(rows, options, want_gradient)
        counted = student if self.counted is None else self.counted
        loss, *rest = self.backend.launch(launch, *self._inputs(student, teacher), counted)
        soft, hard, statistics, gradient = rest if len(rest) == 4 else (None, None, None, rest[0])
        return (
            loss,
            soft if want_parts else None,
            hard if want_parts else None,
            statistics if want_statistics else None,
            gradient if want_gradient else None,
        )

    def backward(
        self,
        student: Array,
        teacher: Array,
        statistics: Array | None,
        dloss: Array,
        *,
        swapped: bool = False,
        in_place: bool = False,
    ) -> Array:
        """The student's gradient; `dloss` is dense and float32."""
        rows, options = self.rows(student, teacher), self.options
        counted = student if self.counted is None else self.counted
        if options.student_space == LOGITS:
            launch = logits_backward_launch(rows, options, swapped, in_place)
            own: tuple[Array, ...] = (statistics, counted, dloss)
        else:
            launch, own = backward_launch(rows, options), (counted, dloss)
        return self.backend.launch(launch, *self._inputs(student, teacher), *own)[0]


def problem(
    backend: Backend,
    options: Options,
    labels: Array | None,
    n_rows: int,
    n_batch: int,
    biases: tuple[Array | None, Array | None] = (None, None),
) -> Problem:
    """The problem of `n_rows` tokens here with these labels, already flat; `n_batch`: the length of the first axis."""
    counted, divisor, n_parts = None, 1, backend.size("rows")
    if counts_labels(options, labels):
        launch = denominators_launch(
            n_rows, 1, backend.dtype(labels), None, options.ignore_index, True, n_parts > 1
        )
        (counted,) = backend.launch(launch, labels, labels)
        if n_parts > 1:
            (counted,) = backend.launch(inverses_launch(True), *backend.psum(counted, over="rows"))
    elif options.reduction in ("mean_elements", "mean_tokens"):
        divisor = max(n_rows, 1) * n_parts
    elif options.reduction == "mean_batch":
        assert n_parts == 1  # no device knows which axis is divided
        divisor = max(n_batch, 1)
    return Problem(backend, options, labels, counted, divisor, biases)


def total(backend: Backend, rows: Array) -> Array:
    """The sum of one number per row, on all devices of a mesh, in a fixed order, as an array of no axes."""
    launch = totals_launch(rows.shape[0], False, False)
    (whole,) = backend.psum(backend.launch(launch, rows, rows, rows, rows)[0], over="rows")
    return backend.reshape(whole, ())


def in_forward(options: Options, needs: Needs) -> bool:
    """Whether the forward pass computes the gradients: it does where one scalar cotangent is all that can come."""
    return any(needs) and options.reduction not in ("elements", "tokens") and not options.recompute


def _problem(backend: Backend, student: Array, labels: Array | None, options: Options) -> Problem:
    n_rows = 1
    for n in student.shape[:-1]:
        n_rows *= n
    flat = None if labels is None else backend.reshape(backend.dense(labels), (-1,))
    return problem(backend, options, flat, n_rows, student.shape[0])


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    student, teacher, labels = operands
    assert student is not None and teacher is not None
    whole = _problem(backend, student, labels, options)
    now = in_forward(options, needs)
    s, t = backend.matrix(student), backend.matrix(teacher)
    from_logits = options.student_space == LOGITS
    loss, _, _, statistics, grad_s = whole.forward(
        s, t, want_gradient=now and needs[0], want_statistics=from_logits and any(needs) and not now
    )
    grad_t = whole.swapped.forward(t, s, want_gradient=True)[4] if now and needs[1] else None
    if options.reduction == "elements":
        outputs = None, backend.reshape(loss, student.shape)
    elif options.reduction == "tokens":
        outputs = backend.reshape(loss, student.shape[:-1]), None
    else:
        outputs = total(backend, loss), None
    return outputs, (
        None if grad_s is None else backend.reshape(grad_s, student.shape),
        None if grad_t is None else backend.reshape(grad_t, teacher.shape),
        None if statistics is None else backend.reshape(statistics, (*student.shape[:-1], STATISTICS)),
    )


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    dloss = cotangent_rows(backend, cotangents[options.reduction == "elements"])
    if in_forward(options, needs):
        saved = (kept["grad_student"], kept["grad_teacher"])
        return *(scaled(backend, g, dloss) if n else None for g, n in zip(saved, needs, strict=False)), None
    student, teacher, statistics = kept["student"], kept["teacher"], kept["statistics"]
    assert student is not None and teacher is not None
    if statistics is not None:
        statistics = backend.matrix(statistics)
    whole = _problem(backend, student, kept["labels"], options)
    s, t = backend.matrix(student), backend.matrix(teacher)
    grad_s = whole.backward(s, t, statistics, dloss) if needs[0] else None
    grad_t = whole.swapped.backward(t, s, statistics, dloss, swapped=True) if needs[1] else None
    return (
        None if grad_s is None else backend.reshape(grad_s, student.shape),
        None if grad_t is None else backend.reshape(grad_t, teacher.shape),
        None,
    )


# --------------------------------------------------------------------------------------------------------- op


def check_options(name: str, options: Options) -> None:
    """Raise for option values outside their range."""
    check.in_range(name, "beta", options.beta, 0.0, 1.0)
    check.positive(name, "temperature", options.temperature)
    check.in_range(name, "eps", options.eps, 0.0, 1.0)
    check.one_of(name, "reduction", options.reduction, REDUCTIONS)


def check_labels(name: str, labels: Spec | None, leading: tuple[int, ...]) -> None:
    """Raise unless labels fit the rows."""
    if labels is not None:
        check.dtype(name, "labels", labels, check.LABEL_DTYPES)
        check.shape(name, "labels", labels, leading, "one label per row")


def _check(name: str, operands: tuple[Spec | None, ...], options: Options) -> None:
    student, teacher, labels = operands
    assert student is not None and teacher is not None
    check.rank_at_least(name, "student", student, 2, "(..., vocab)")
    check.dtype(name, "student", student, check.REFERENCE_FLOATS)
    check.not_empty(name, "student", student, -1, "vocab")
    check.dtype(name, "teacher", teacher, check.REFERENCE_FLOATS)
    check.shape(name, "teacher", teacher, tuple(student.shape), "the shape of student")
    check_labels(name, labels, tuple(student.shape[:-1]))
    check_options(name, options)
    if options.student_space == LOGITS and options.reduction == "elements":
        raise ValueError(
            f'{name}: reduction is "none", one number per token and word, which is not computed from logits; choose '
            "one per token, or pass log-probs."
        )
    if options.student_space != LOGITS and options.temperature != 1:
        raise ValueError(
            f"{name}: temperature is {options.temperature} beside probabilities, which it does not divide; "
            "pass logits and from_logits=True."
        )


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    student, teacher, _ = operands
    assert student is not None and teacher is not None
    elements = Spec(student.shape, "float32") if options.reduction == "elements" else None
    loss = Spec(student.shape[:-1] if options.reduction == "tokens" else (), "float32")
    now = in_forward(options, needs)
    statistics = None
    if options.student_space == LOGITS and any(needs) and not now:
        statistics = Spec((*student.shape[:-1], STATISTICS), "float32")
    return (None if elements else loss, elements), (
        Spec(student.shape, student.dtype) if now and needs[0] else None,
        Spec(teacher.shape, teacher.dtype) if now and needs[1] else None,
        statistics,
    )


def formula_options(options: Options) -> dict[str, object]:
    """The reference's keyword arguments."""
    names = (
        "kind",
        "beta",
        "student_space",
        "teacher_space",
        "temperature",
        "eps",
        "reduction",
        "ignore_index",
    )
    return {name: getattr(options, name) for name in names}


def _reference(operands: Arrays, options: Options, mesh: Mesh = ONE_DEVICE) -> Arrays:
    result = reference.divergence(*operands, **formula_options(options), mesh=mesh)  # type: ignore[arg-type]
    return (None, result) if options.reduction == "elements" else (result, None)


def _keeps(options: Options, needs: Needs) -> tuple[str, ...]:
    return ("student", "teacher", "labels") if any(needs) and not in_forward(options, needs) else ()


def _op(name: str) -> Op:
    return Op(
        name=name,
        operands=(
            Operand("student", "rows"),
            Operand("teacher", "rows"),
            Operand("labels", "rows", differentiable=False, optional=True, axes=0),
        ),
        # One of the two: one number per token or one in all; or one per token and word.
        outputs=(Output("loss", "rows", axes=0), Output("elements", "rows")),
        saved=(
            Output("grad_student", "rows", differentiable=False),
            Output("grad_teacher", "rows", differentiable=False),
            Output("statistics", "rows", differentiable=False),
        ),
        options=Options,
        check=functools.partial(_check, name),
        infer=_infer,
        forward=_forward,
        backward=_backward,
        reference=_reference,
        keeps=_keeps,
        gradient_like=(("student", "grad_student"), ("teacher", "grad_teacher")),
        backward_once=in_forward,
        reference_on=_reference,
    )


KL_DIV, JSD, TVD = _op("kl_div"), _op("jsd"), _op("tvd")
