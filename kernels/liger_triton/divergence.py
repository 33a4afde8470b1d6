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
d alone, which is exact there: see `_log2_mean`.

Logarithms are in units of log 2 until the end: `tl.exp2` is one instruction, where `tl.exp` is five.

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
from liger.device import Device
from liger.launch import DTYPE_BYTES, Launch, Spec, cdiv, next_power_of_2
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


LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load(
    row_ptr,
    bias_ptr,
    col,
    n_cols: tl.constexpr,
    SPACE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MASK: tl.constexpr,
):
    """What the array holds; columns beyond the last one have no probability."""
    other: tl.constexpr = 0.0 if SPACE == "probs" else float("-inf")
    if MASK:
        raw = tl.load(row_ptr + col, mask=col < n_cols, other=other).to(tl.float32)
        if HAS_BIAS:
            raw += tl.load(bias_ptr + col, mask=col < n_cols, other=0.0).to(tl.float32)
    else:
        raw = tl.load(row_ptr + col).to(tl.float32)
        if HAS_BIAS:
            raw += tl.load(bias_ptr + col).to(tl.float32)
    return raw


@triton.jit
def _log2(x):
    """Of positive normal numbers, in 14 instructions: `tl.log2`, which takes any number, has 24."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23  # of the power of 2 that leaves a factor in [sqrt(1/2), sqrt(2))
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    # log2(1 + f) / f, at most 5e-8 from log2(1 + f) when it is multiplied.
    y = -0.1459897260388466 * f + 0.23674569225573078
    y = y * f - 0.2499238147759397
    y = y * f + 0.2867273921616919
    y = y * f - 0.3601038178232643
    y = y * f + 0.4809384678021541
    y = y * f - 0.7213566479236577
    y = y * f + 1.4426947916902595
    return y * f + exponent.to(tl.float32)


@triton.jit
def _log2_mean(size, ratio, d, beta: tl.constexpr):
    """log2(larger / m), m the mixture, from size = |d| and ratio = 2^-|d|.

    With w the weight of the smaller one of p and q this is -log2(1 - w * (1 - ratio)): near 0 the cumulant generating
    function of a Bernoulli variable, whose series keeps the digits of a small d (1e-8 at 0.36).
    """
    k2: tl.constexpr = beta * (1.0 - beta)
    k3: tl.constexpr = k2 * (1.0 - 2.0 * beta)
    k4: tl.constexpr = k2 * (1.0 - 6.0 * k2)
    k5: tl.constexpr = k3 * (1.0 - 12.0 * k2)
    k6: tl.constexpr = k2 * (1.0 - 30.0 * k2 + 120.0 * k2 * k2)
    c2: tl.constexpr = k2 * LN2 / 2
    c3: tl.constexpr = k3 * LN2 * LN2 / 6
    c4: tl.constexpr = k4 * LN2 * LN2 * LN2 / 24
    c5: tl.constexpr = k5 * LN2 * LN2 * LN2 * LN2 / 120
    c6: tl.constexpr = k6 * LN2 * LN2 * LN2 * LN2 * LN2 / 720
    square = d * d
    if beta == 0.5:
        series = size * 0.5 - square * (c2 + square * (c4 + square * c6))
        # -log2(1 - v / 2) / v on [0, 1], 1.3e-7 at most from it: less work than any logarithm.
        v = 1.0 - ratio
        t = 0.006846210379711254 * v - 0.01277994501499314
        t = t * v + 0.018516486445571672
        t = t * v + 0.0011607704845774062
        t = t * v + 0.02474210463799411
        t = t * v + 0.05981477238900411
        t = t * v + 0.18035208027895067
        t = t * v + 0.7213473933336254
        t = t * v
    else:
        w = tl.where(d > 0.0, 1.0 - beta, beta)
        series = size * w - square * (c2 + d * (c3 + d * (c4 + d * (c5 + d * c6))))
        t = -_log2(1.0 - w * (1.0 - ratio))
    return tl.where(size < 0.36, series, t)


@triton.jit
def _mixture(d, beta: tl.constexpr):
    """(log2 q - log2 m, log2 p - log2 m) from d = log2 p - log2 q."""
    # Where both logarithms are -inf, d is NaN; their probabilities are 0, and whatever is finite will do.
    size = tl.abs(d)
    size = tl.where(size < 1e5, size, 1e5)
    larger = _log2_mean(size, tl.exp2(-size), d, beta)
    smaller = larger - size
    student_smaller = d > 0.0
    return tl.where(student_smaller, smaller, larger), tl.where(student_smaller, larger, smaller)


@triton.jit
def _terms(
    raw_s,
    raw_t,
    highest_s,
    highest_t,
    weight_s,
    weight_t,
    shift,
    scale: tl.constexpr,
    eps: tl.constexpr,
    beta: tl.constexpr,
    KIND: tl.constexpr,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
):
    """Of each column: its part of the divergence, g without the multiple of q, q, p, and what g is q times.

    Of a JSD the first is what is beside g. Logits are multiplied by `scale` and LOG2E; `highest_s` and `highest_t` are
    what is subtracted of them then, `weight_s` and `weight_t` what the exponentials are multiplied by, so that no
    rounding of a large logarithm is in the probabilities; `shift` is log2 of the second model's sum over the first's.
    The first two results and the last one are in units of `_unit`.
    """
    if STUDENT == "probs":
        q = raw_s
        log_q = tl.log2(tl.maximum(raw_s, eps))
    else:
        log_q = raw_s * (scale * LOG2E) - highest_s
        q = tl.exp2(log_q) * weight_s
    if TEACHER == "probs":
        p = raw_t
        log_p = tl.log2(tl.maximum(raw_t, eps))
    else:
        log_p = raw_t * (scale * LOG2E) - highest_t
        p = tl.exp2(log_p) * weight_t
    if STUDENT == "probs" or TEACHER == "probs":
        d = tl.where(log_p == log_q, 0.0, log_p - log_q)
    else:  # the difference of what is held is exact where the two are alike
        d = (raw_t - raw_s) * (scale * LOG2E) - shift
    if KIND == "tvd":
        term = 0.5 * tl.abs(q - p)
        h = tl.where(q == p, 0.0, tl.where(q > p, 0.5, -0.5))
        g = q * h
    elif beta == 0.0:
        h = d * LN2
        term = tl.where(p == 0.0, 0.0, p * h)
        g = -p
    elif beta == 1.0:
        h = d * -LN2
        term = tl.where(q == 0.0, 0.0, q * h)
        g = term
    else:
        h, to_p = _mixture(d, beta)
        g = q * h
        term = p * to_p * (beta / (1.0 - beta))
    return term, g, q, p, h


@triton.jit
def _between(beta: tl.constexpr, KIND: tl.constexpr):
    """Whether this is a JSD that is no KL."""
    return KIND == "jsd" and beta > 0.0 and beta < 1.0


@triton.jit
def _unit(beta: tl.constexpr, KIND: tl.constexpr):
    """What the results of `_terms` are in units of."""
    return (1.0 - beta) * LN2 if _between(beta, KIND) else 1.0


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
def _block_of_probs(
    student_row_ptr,
    teacher_row_ptr,
    loss_row_ptr,
    gradient_row_ptr,
    cotangent_row_ptr,
    start,
    factor,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    eps: tl.constexpr,
    KIND: tl.constexpr,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
    STORE_TERMS: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    HAS_COTANGENT: tl.constexpr,
    READ_STUDENT: tl.constexpr,
    BLOCK: tl.constexpr,
    MASK: tl.constexpr,
):
    """The terms of one block's columns, and what is stored of it."""
    col = start + tl.arange(0, BLOCK)
    mask = None
    if MASK:
        mask = col < n_cols
    raw_t = _load(teacher_row_ptr, teacher_row_ptr, col, n_cols, TEACHER, False, MASK)
    raw_s = raw_t
    if READ_STUDENT:
        raw_s = _load(student_row_ptr, student_row_ptr, col, n_cols, STUDENT, False, MASK)
    term, g, _, _, h = _terms(raw_s, raw_t, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, eps, beta, KIND, STUDENT, TEACHER)
    if _between(beta, KIND):
        term += g
    if STORE_TERMS:
        tl.store(loss_row_ptr + col, term * factor, mask=mask)
    if WANT_GRADIENT:
        if STUDENT == "probs":
            # A probability that counts as eps has the logarithm's derivative 0.
            gradient = h if KIND == "tvd" else h + tl.where(raw_s > eps, 1.0, 0.0)
        elif KIND == "jsd" and beta == 1.0:
            gradient = g + tl.exp2(raw_s * LOG2E)
        else:
            gradient = g
        gradient *= factor
        if HAS_COTANGENT:
            gradient *= tl.load(cotangent_row_ptr + col, mask=mask, other=0.0 if MASK else None)
        tl.store(gradient_row_ptr + col, gradient.to(gradient_row_ptr.dtype.element_ty), mask=mask)
    return term


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
    STAGES: tl.constexpr,
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
    factor = _factor(counted_ptr, divisor, n_cols, COUNTED, PER_COLUMN) * _unit(beta, KIND)
    student_row_ptr = student_ptr + row * student_stride
    teacher_row_ptr = teacher_ptr + row * teacher_stride
    loss_row_ptr = loss_ptr + row * n_cols
    gradient_row_ptr = gradient_ptr + row * n_cols
    FULL: tl.constexpr = n_cols // BLOCK * BLOCK
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, FULL, BLOCK, num_stages=STAGES):
        sums += _block_of_probs(
            student_row_ptr, teacher_row_ptr, loss_row_ptr, gradient_row_ptr, loss_row_ptr, start, factor,
            n_cols, beta, eps, KIND, STUDENT, TEACHER, ELEMENTS, WANT_GRADIENT, False, True, BLOCK, False,
        )  # fmt: skip
    if n_cols > FULL:
        sums += _block_of_probs(
            student_row_ptr, teacher_row_ptr, loss_row_ptr, gradient_row_ptr, loss_row_ptr, FULL, factor,
            n_cols, beta, eps, KIND, STUDENT, TEACHER, ELEMENTS, WANT_GRADIENT, False, True, BLOCK, True,
        )  # fmt: skip
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
    STAGES: tl.constexpr,
):
    """The student's gradient from probabilities or their logarithms."""
    row = tl.program_id(0).to(tl.int64)
    if HAS_LABELS:
        label = tl.load(labels_ptr + row)
        if label == ignore_index:
            _store_zeros(gradient_ptr + row * n_cols, n_cols, BLOCK)
            return
    factor = _factor(counted_ptr, divisor, n_cols, COUNTED, PER_COLUMN) * _unit(beta, KIND)
    if not ELEMENTS:
        factor *= tl.load(dloss_ptr + row * COTANGENT_STRIDE)
    FULL: tl.constexpr = n_cols // BLOCK * BLOCK
    READ_STUDENT: tl.constexpr = KIND == "tvd" or beta > 0.0  # otherwise the gradient is -p
    student_row_ptr = student_ptr + row * student_stride
    teacher_row_ptr = teacher_ptr + row * teacher_stride
    dloss_row_ptr = dloss_ptr + row * n_cols
    gradient_row_ptr = gradient_ptr + row * n_cols
    for start in tl.range(0, FULL, BLOCK, num_stages=STAGES):
        _block_of_probs(
            student_row_ptr, teacher_row_ptr, dloss_row_ptr, gradient_row_ptr, dloss_row_ptr, start, factor,
            n_cols, beta, eps, KIND, STUDENT, TEACHER, False, True, ELEMENTS, READ_STUDENT, BLOCK, False,
        )  # fmt: skip
    if n_cols > FULL:
        _block_of_probs(
            student_row_ptr, teacher_row_ptr, dloss_row_ptr, gradient_row_ptr, dloss_row_ptr, FULL, factor,
            n_cols, beta, eps, KIND, STUDENT, TEACHER, False, True, ELEMENTS, READ_STUDENT, BLOCK, True,
        )  # fmt: skip


@triton.jit
def _load_logits(
    student_row_ptr,
    teacher_row_ptr,
    student_bias_ptr,
    teacher_bias_ptr,
    start,
    n_cols: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    THREADS: tl.constexpr,
    WIDTH: tl.constexpr,
    MASK: tl.constexpr,
):
    """(columns, student's logits, teacher's), (THREADS, WIDTH): a row of the tile is one thread's."""
    col = start + tl.arange(0, THREADS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    raw_s = _load(student_row_ptr, student_bias_ptr, col, n_cols, "logits", HAS_STUDENT_BIAS, MASK)
    raw_t = _load(teacher_row_ptr, teacher_bias_ptr, col, n_cols, "logits", HAS_TEACHER_BIAS, MASK)
    return col, raw_s, raw_t


@triton.jit
def _exponentials(raw, highest, scale: tl.constexpr):
    """(each thread's highest with these, their shifted exponentials, what earlier ones are multiplied by).

    The highest are of logits times scale * LOG2E, rounded: all that is subtracted is exactly what is kept.
    """
    new = tl.maximum(highest, tl.max(raw, axis=1) * (scale * LOG2E))
    return new, tl.exp2(raw * (scale * LOG2E) - new[:, None]), tl.exp2(highest - new)


@triton.jit
def _add_statistics(
    student_row_ptr,
    teacher_row_ptr,
    student_bias_ptr,
    teacher_bias_ptr,
    start,
    highest_s,
    total_s,
    highest_t,
    total_t,
    hard_highest,
    hard_total,
    weighted,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    scale: tl.constexpr,
    KIND: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    HARD: tl.constexpr,
    THREADS: tl.constexpr,
    WIDTH: tl.constexpr,
    MASK: tl.constexpr,
):
    """Each thread's statistics with those of one more tile."""
    _, raw_s, raw_t = _load_logits(
        student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, start,
        n_cols, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, THREADS, WIDTH, MASK,
    )  # fmt: skip
    new_s, e_s, rescale_s = _exponentials(raw_s, highest_s, scale)
    new_t, e_t, rescale_t = _exponentials(raw_t, highest_t, scale)
    total_s = total_s * rescale_s + tl.sum(e_s, axis=1)
    total_t = total_t * rescale_t + tl.sum(e_t, axis=1)
    if HARD and scale != 1.0:
        hard_highest, e, rescale = _exponentials(raw_s, hard_highest, 1.0)
        hard_total = hard_total * rescale + tl.sum(e, axis=1)
    if KIND == "jsd" and beta == 0.0:
        weighted = weighted * rescale_t + tl.sum(tl.where(e_t == 0.0, 0.0, e_t * (raw_t - raw_s)), axis=1)
    elif KIND == "jsd" and beta == 1.0:
        weighted = weighted * rescale_s + tl.sum(tl.where(e_s == 0.0, 0.0, e_s * (raw_t - raw_s)), axis=1)
    return new_s, total_s, new_t, total_t, hard_highest, hard_total, weighted


@triton.jit
def _add_terms(
    student_row_ptr,
    teacher_row_ptr,
    student_bias_ptr,
    teacher_bias_ptr,
    start,
    terms,
    slopes,
    highest_s,
    highest_t,
    weight_s,
    weight_t,
    shift,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    scale: tl.constexpr,
    KIND: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    THREADS: tl.constexpr,
    WIDTH: tl.constexpr,
    MASK: tl.constexpr,
):
    """Each thread's sums of a divergence's terms and of g with those of one more tile."""
    _, raw_s, raw_t = _load_logits(
        student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, start,
        n_cols, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, THREADS, WIDTH, MASK,
    )  # fmt: skip
    term, g, _, _, _ = _terms(
        raw_s,
        raw_t,
        highest_s,
        highest_t,
        weight_s,
        weight_t,
        shift,
        scale,
        0.0,
        beta,
        KIND,
        "logits",
        "logits",
    )
    return terms + tl.sum(term, axis=1), slopes + tl.sum(g, axis=1)


@triton.jit
def _over_threads(highest, total):
    """(the highest of all threads, what each one's sums are multiplied by, the sum of all)."""
    top = tl.max(highest, axis=0)
    rescale = tl.exp2(highest - top)
    return top, rescale, tl.sum(total * rescale, axis=0)


@triton.jit
def _logits_gradient(
    student_row_ptr,
    teacher_row_ptr,
    student_bias_ptr,
    teacher_bias_ptr,
    gradient_row_ptr,
    label,
    start,
    highest_s,
    highest_t,
    weight_s,
    weight_t,
    shift,
    slope,
    hard_highest,
    hard_weight,
    soft,
    hard,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    scale: tl.constexpr,
    KIND: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    HARD: tl.constexpr,
    THREADS: tl.constexpr,
    WIDTH: tl.constexpr,
    MASK: tl.constexpr,
):
    """Store the gradient of one tile; `soft`, `slope` and `hard` have all that is common to its columns."""
    col, raw_s, raw_t = _load_logits(
        student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, start,
        n_cols, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, THREADS, WIDTH, MASK,
    )  # fmt: skip
    if KIND == "tvd":  # which of the two is larger
        _, _, q, _, h = _terms(
            raw_s,
            raw_t,
            highest_s,
            highest_t,
            weight_s,
            weight_t,
            shift,
            scale,
            0.0,
            beta,
            KIND,
            "logits",
            "logits",
        )
        dz = q * (h * soft - slope)
    else:
        _, _, q, p, h = _terms(
            raw_s, raw_t, highest_s, highest_t, 1.0, 1.0, shift, scale, 0.0, beta, KIND, "logits", "logits"
        )
        if beta == 0.0:
            dz = q * (soft * weight_s) - p * (soft * weight_t)
        else:
            dz = q * (h * (soft * weight_s) - slope * weight_s)
            if beta == 1.0:
                dz = tl.where(q == 0.0, 0.0, dz)
    if HARD:
        probability = tl.exp2(raw_s * LOG2E - hard_highest) * (hard * hard_weight)
        dz += tl.where(col == label, probability - hard, probability)
    dz = dz.to(gradient_row_ptr.dtype.element_ty)
    if MASK:
        tl.store(gradient_row_ptr + col, dz, mask=col < n_cols, eviction_policy="evict_first")
    else:
        tl.store(gradient_row_ptr + col, dz, eviction_policy="evict_first")


@triton.jit
def _store_logits_gradient(
    student_row_ptr,
    teacher_row_ptr,
    student_bias_ptr,
    teacher_bias_ptr,
    gradient_row_ptr,
    label,
    highest_s,
    highest_t,
    weight_s,
    weight_t,
    shift,
    slope,
    hard_highest,
    hard_weight,
    soft,
    hard,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    temperature: tl.constexpr,
    KIND: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    HARD: tl.constexpr,
    THREADS: tl.constexpr,
    WIDTH: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """soft * dz + hard * (the gradient of the cross entropy); `slope` is the sum of g over the row's columns."""
    scale: tl.constexpr = 1.0 / temperature
    STEP: tl.constexpr = THREADS * WIDTH
    FULL: tl.constexpr = n_cols // STEP
    slope *= soft * scale
    soft *= _unit(beta, KIND) * scale
    if REVERSE and n_cols > FULL * STEP:
        _logits_gradient(
            student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, gradient_row_ptr, label,
            FULL * STEP, highest_s, highest_t, weight_s, weight_t, shift, slope, hard_highest, hard_weight,
            soft, hard, n_cols, beta, scale, KIND,
            HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD, THREADS, WIDTH, True,
        )  # fmt: skip
    for i in range(0, FULL):
        start = (FULL - 1 - i if REVERSE else i) * STEP
        _logits_gradient(
            student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, gradient_row_ptr, label,
            start, highest_s, highest_t, weight_s, weight_t, shift, slope, hard_highest, hard_weight,
            soft, hard, n_cols, beta, scale, KIND,
            HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD, THREADS, WIDTH, False,
        )  # fmt: skip
    if not REVERSE and n_cols > FULL * STEP:
        _logits_gradient(
            student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, gradient_row_ptr, label,
            FULL * STEP, highest_s, highest_t, weight_s, weight_t, shift, slope, hard_highest, hard_weight,
            soft, hard, n_cols, beta, scale, KIND,
            HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD, THREADS, WIDTH, True,
        )  # fmt: skip


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
    statistics_ptr,  # (n_rows, 8) float32: see STATISTICS
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
    THREADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Of logits: a sweep for the log-sum-exps, in which KL is found too; one for JSD and TVD; one for the gradient.

    Every other sweep runs from the end of the row, which the cache still has. Each thread has statistics of its own,
    which are put together at the end of a sweep: nothing else waits for other threads.
    """
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
                tl.store(statistics_ptr + row * 8 + i, tl.zeros((8,), tl.float32))
            if WANT_GRADIENT:
                _store_zeros(gradient_row_ptr, n_cols, THREADS * WIDTH)
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
    scale: tl.constexpr = 1.0 / temperature
    STEP: tl.constexpr = THREADS * WIDTH
    FULL: tl.constexpr = n_cols // STEP
    # Lower than any logit but finite: where a thread meets -inf alone, there is something to be subtracted.
    highest_s = tl.full((THREADS,), -1e30, tl.float32)
    highest_t = tl.full((THREADS,), -1e30, tl.float32)
    total_s = tl.zeros((THREADS,), tl.float32)
    total_t = tl.zeros((THREADS,), tl.float32)
    hard_highest = tl.full((THREADS,), -1e30, tl.float32)
    hard_total = tl.zeros((THREADS,), tl.float32)
    # KL: sum_j e_j * (t - s)_j, e the exponentials of the model that it is taken over.
    weighted = tl.zeros((THREADS,), tl.float32)
    for i in range(0, FULL):
        highest_s, total_s, highest_t, total_t, hard_highest, hard_total, weighted = _add_statistics(
            student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, i * STEP,
            highest_s, total_s, highest_t, total_t, hard_highest, hard_total, weighted,
            n_cols, beta, scale, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD, THREADS, WIDTH, False,
        )  # fmt: skip
    if n_cols > FULL * STEP:
        highest_s, total_s, highest_t, total_t, hard_highest, hard_total, weighted = _add_statistics(
            student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, FULL * STEP,
            highest_s, total_s, highest_t, total_t, hard_highest, hard_total, weighted,
            n_cols, beta, scale, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD, THREADS, WIDTH, True,
        )  # fmt: skip
    top_s, rescale_s, sum_s = _over_threads(highest_s, total_s)
    top_t, rescale_t, sum_t = _over_threads(highest_t, total_t)
    weight_s = 1.0 / sum_s
    weight_t = 1.0 / sum_t
    shift = (top_t - top_s) + (tl.log2(sum_t) - tl.log2(sum_s))
    if KL:
        if beta == 0.0:
            soft = tl.sum(weighted * rescale_t, axis=0) / sum_t * scale - shift * LN2
            slope = 0.0
        else:
            soft = shift * LN2 - tl.sum(weighted * rescale_s, axis=0) / sum_s * scale
            slope = soft
    else:
        # Of a JSD, all that the weights are factors of is summed first.
        own_s = 1.0 if KIND == "jsd" else weight_s
        own_t = 1.0 if KIND == "jsd" else weight_t
        terms = tl.zeros((THREADS,), tl.float32)
        slopes = tl.zeros((THREADS,), tl.float32)
        if n_cols > FULL * STEP:
            terms, slopes = _add_terms(
                student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, FULL * STEP,
                terms, slopes, top_s, top_t, own_s, own_t, shift,
                n_cols, beta, scale, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, THREADS, WIDTH, True,
            )  # fmt: skip
        for i in range(0, FULL):
            terms, slopes = _add_terms(
                student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, (FULL - 1 - i) * STEP,
                terms, slopes, top_s, top_t, own_s, own_t, shift,
                n_cols, beta, scale, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, THREADS, WIDTH, False,
            )  # fmt: skip
        soft = tl.sum(terms, axis=0)
        slope = tl.sum(slopes, axis=0)
        if KIND == "jsd":
            slope *= weight_s * _unit(beta, KIND)
            soft = soft * (weight_t * _unit(beta, KIND)) + slope

    loss = soft_weight * soft
    hard = 0.0
    hard_top = top_s
    hard_sum = sum_s
    if HARD:
        if temperature != 1.0:
            hard_top, _, hard_sum = _over_threads(hard_highest, hard_total)
        hard = (tl.log2(hard_sum) + (hard_top - label_logit * LOG2E)) * LN2  # NaN for a label out of range
        loss += hard_weight * hard
    tl.store(loss_ptr + row, loss * factor)
    if WANT_PARTS:
        tl.store(soft_ptr + row, soft * factor)
        tl.store(hard_ptr + row, hard * factor)
    if WANT_STATISTICS:
        tl.store(statistics_ptr + row * 8, top_s)
        tl.store(statistics_ptr + row * 8 + 1, sum_s)
        tl.store(statistics_ptr + row * 8 + 2, top_t)
        tl.store(statistics_ptr + row * 8 + 3, sum_t)
        tl.store(statistics_ptr + row * 8 + 4, slope)
        tl.store(statistics_ptr + row * 8 + 5, soft - slope)
        tl.store(statistics_ptr + row * 8 + 6, hard_top)
        tl.store(statistics_ptr + row * 8 + 7, hard_sum)
    if WANT_GRADIENT:
        hard_factor = hard_weight * factor
        if HARD:
            hard_factor = tl.where(in_range, hard_factor, float("nan"))
        _store_logits_gradient(
            student_row_ptr, teacher_row_ptr, student_bias_ptr, teacher_bias_ptr, gradient_row_ptr, label,
            top_s, top_t, weight_s, weight_t, shift, slope, hard_top, 1.0 / hard_sum, soft_weight * factor, hard_factor,
            n_cols, beta, temperature, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD, THREADS, WIDTH, KL,
        )  # fmt: skip


@triton.jit
def divergence_of_logits_backward(
    student_ptr,  # (n_rows, n_cols)
    teacher_ptr,  # (n_rows, n_cols)
    labels_ptr,  # (n_rows,)
    student_bias_ptr,  # (n_cols,)
    teacher_bias_ptr,  # (n_cols,)
    statistics_ptr,  # (n_rows, 8) float32
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
    THREADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The student's gradient; SWAPPED: the statistics are of the problem in which it is the teacher."""
    row = tl.program_id(0).to(tl.int64)
    gradient_row_ptr = gradient_ptr + row * gradient_stride
    label = 0
    if HAS_LABELS:
        label = tl.load(labels_ptr + row)
        if label == ignore_index:
            _store_zeros(gradient_row_ptr, n_cols, THREADS * WIDTH)
            return
    factor = _factor(counted_ptr, divisor, n_cols, COUNTED, PER_COLUMN)
    factor *= tl.load(dloss_ptr + row * COTANGENT_STRIDE)
    first_ptr = statistics_ptr + row * 8
    S: tl.constexpr = 2 if SWAPPED else 0
    top_s = tl.load(first_ptr + S)
    sum_s = tl.load(first_ptr + S + 1)
    top_t = tl.load(first_ptr + (2 - S))
    sum_t = tl.load(first_ptr + (2 - S) + 1)
    shift = (top_t - top_s) + (tl.log2(sum_t) - tl.log2(sum_s))
    slope = tl.load(first_ptr + (5 if SWAPPED else 4))
    hard_top = 0.0
    hard_sum = 1.0
    hard_factor = hard_weight * factor
    if HARD:
        hard_top = tl.load(first_ptr + 6)
        hard_sum = tl.load(first_ptr + 7)
        in_range = (label >= 0) & (label < n_cols)
        hard_factor = tl.where(in_range, hard_factor, float("nan"))
    _store_logits_gradient(
        student_ptr + row * student_stride, teacher_ptr + row * teacher_stride, student_bias_ptr, teacher_bias_ptr,
        gradient_row_ptr, label, top_s, top_t, 1.0 / sum_s, 1.0 / sum_t, shift, slope, hard_top, 1.0 / hard_sum,
        soft_weight * factor, hard_factor,
        n_cols, beta, temperature, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD, THREADS, WIDTH, False,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- launches

STATISTICS = 8
"""Columns that the backward pass from logits reads: the student's highest logit, after the temperature and in units of
log 2, and the sum of its shifted exponentials; the same two of the teacher; the sums of g for the student's gradient
and for the teacher's; and the first two again at temperature 1, for the cross entropy."""


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
        device: where they are.
    """

    n_rows: int
    n_cols: int
    dtypes: tuple[str, str, str | None, str | None, str | None]
    strides: tuple[int, int]
    divisor: int
    device: Device

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


READ_AHEAD = 48 << 10
"""Bytes that a program reads ahead, in shared memory: four programs have room on a multiprocessor."""


def _block(n_cols: int) -> tuple[int, int]:
    """Columns of a block and warps of a program: 16 columns of both arrays for a thread."""
    block = min(next_power_of_2(n_cols), 4096)
    return block, min(max(block // 512, 1), 8)


def _stages(device: Device, block: int, *dtypes: str | None) -> int:
    """Blocks of a row that are on the way at a time, the one at work included, where these dtypes are read."""
    if device.vendor == "hip":  # not measured
        return 1
    block_bytes = block * sum(DTYPE_BYTES[dtype] for dtype in dtypes if dtype is not None)
    return min(max(READ_AHEAD // block_bytes, 1), 3) + 1


def _lanes(rows: Rows, options: Options) -> tuple[tuple[tuple[str, int], ...], int]:
    """How a program cuts a row of logits, a tile of (THREADS, WIDTH) after the other, and its warps."""
    width = 16 // min(DTYPE_BYTES[dtype] for dtype in rows.dtypes[:2] if dtype is not None)
    # The more threads a row has, the fewer rows are on the way at a time, and the more of them the cache still has when
    # a sweep turns. JSD, which is bound by its arithmetic, had more of programs that are not in step.
    kl = options.kind == "jsd" and options.beta in (0, 1)
    most = 512 if kl and rows.n_cols % width == 0 else 256
    threads = min(max(next_power_of_2(cdiv(rows.n_cols, width)), rows.device.warp_size), most)
    return (("THREADS", threads), ("WIDTH", width)), threads // rows.device.warp_size


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
            ("STAGES", _stages(rows.device, block, *rows.dtypes[:2])),
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
    read = (rows.dtypes[0] if reads_student else None, rows.dtypes[1], "float32" if elements else None)
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
            ("STAGES", _stages(rows.device, block, *read)),
        ),
        num_warps=warps,
        flops=16 * rows.n_rows * rows.n_cols,
    )


@functools.lru_cache(4096)
def logits_forward_launch(
    rows: Rows, options: Options, want_parts: bool, want_statistics: bool, want_gradient: bool, in_place: bool
) -> Launch:
    """Losses from logits, and what is wanted beside them; `in_place`: the gradient over the student's logits."""
    tiles, warps = _lanes(rows, options)
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
            *tiles,
        ),
        num_warps=warps,
        aliases=((0, 4),) if want_gradient and in_place else (),
        flops=(40 if want_gradient else 24) * rows.n_rows * rows.n_cols,
    )


@functools.lru_cache(4096)
def logits_backward_launch(rows: Rows, options: Options, swapped: bool, in_place: bool) -> Launch:
    """The student's gradient from logits; `swapped`: by the statistics of the problem in which it is the teacher."""
    tiles, warps = _lanes(rows, options)
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
            *tiles,
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
            backend.device,
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
