"""Divergences of logits: sweeps for the log-sum-exps, for JSD and TVD, and for the gradient."""

from __future__ import annotations

import dataclasses
import functools

import triton
import triton.language as tl

from liger.launch import DTYPE_BYTES, Launch, Spec
from liger_triton.divergence_rows import Options, Rows, constants, counted
from liger_triton.divergence_terms import LN2, LOG2E, column_terms, row_factor, unit
from liger_triton.held import WIDE_BYTES, Blocks, blocks, hidden_zero, store_block, store_zeros
from liger_triton.held_pairs import load_held_pair, sweep_pair

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _exponentials(raw, highest, scale: tl.constexpr):
    """(each thread's highest with these, their shifted exponentials, what earlier ones are multiplied by).

    The highest are of logits times scale * LOG2E, rounded: all that is subtracted is exactly what is kept.
    """
    new = tl.maximum(highest, tl.max(raw, axis=1) * (scale * LOG2E))
    return new, tl.exp2(raw * (scale * LOG2E) - new[:, None]), tl.exp2(highest - new)


@triton.jit
def _rescaled(weighted, rescale):
    """weighted * rescale; 0 where no exponential is left: what it was multiplied by may have been infinite."""
    return tl.where(rescale == 0.0, 0.0, weighted * rescale)


@triton.jit
def _add_statistics(
    tile,
    state,
    arguments,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    scale: tl.constexpr,
    KIND: tl.constexpr,
    HARD: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """Each thread's statistics with those of one more tile."""
    highest_s, total_s, highest_t, total_t, hard_highest, hard_total, weighted = state
    _, raw_s, raw_t = tile
    new_s, e_s, rescale_s = _exponentials(raw_s, highest_s, scale)
    new_t, e_t, rescale_t = _exponentials(raw_t, highest_t, scale)
    total_s = total_s * rescale_s + tl.sum(e_s, axis=1)
    total_t = total_t * rescale_t + tl.sum(e_t, axis=1)
    if HARD and scale != 1.0:
        hard_highest, e, rescale = _exponentials(raw_s, hard_highest, 1.0)
        hard_total = hard_total * rescale + tl.sum(e, axis=1)
    if KIND == "jsd" and beta == 0.0:
        weighted = _rescaled(weighted, rescale_t) + tl.sum(
            tl.where(e_t == 0.0, 0.0, e_t * (raw_t - raw_s)), axis=1
        )
    elif KIND == "jsd" and beta == 1.0:
        weighted = _rescaled(weighted, rescale_s) + tl.sum(
            tl.where(e_s == 0.0, 0.0, e_s * (raw_t - raw_s)), axis=1
        )
    return new_s, total_s, new_t, total_t, hard_highest, hard_total, weighted


@triton.jit
def _add_terms(
    tile,
    state,
    arguments,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    scale: tl.constexpr,
    KIND: tl.constexpr,
    HARD: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """Each thread's sums of a divergence's terms and of g with those of one more tile."""
    terms, slopes = state
    highest_s, highest_t, weight_s, weight_t, shift = arguments
    _, raw_s, raw_t = tile
    term, g, _, _, _ = column_terms(
        raw_s, raw_t, highest_s, highest_t, weight_s, weight_t, shift, scale, 0.0, beta, KIND, "logits", "logits"
    )  # fmt: skip
    return terms + tl.sum(term, axis=1), slopes + tl.sum(g, axis=1)


@triton.jit
def _over_threads(highest, total):
    """(the highest of all threads, what each one's sums are multiplied by, the sum of all)."""
    top = tl.max(highest, axis=0)
    rescale = tl.exp2(highest - top)
    return top, rescale, tl.sum(total * rescale, axis=0)


@triton.jit
def _store_gradient_tile(
    tile,
    state,
    arguments,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    scale: tl.constexpr,
    KIND: tl.constexpr,
    HARD: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """Store the gradient of one tile; `soft`, `slope` and `hard` have all that is common to its columns."""
    gradient_row_ptr, label, statistics, slope, soft, hard_statistics, hard = arguments
    highest_s, highest_t, weight_s, weight_t, shift = statistics
    hard_highest, hard_weight = hard_statistics
    col, raw_s, raw_t = tile
    if KIND == "tvd":  # which of the two is larger
        _, _, q, _, h = column_terms(
            raw_s, raw_t, highest_s, highest_t, weight_s, weight_t, shift, scale, 0.0, beta, KIND, "logits", "logits"
        )  # fmt: skip
        dz = q * (h * soft - slope)
    else:
        _, _, q, p, h = column_terms(
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
    store_block(gradient_row_ptr, col, dz, n_cols, PARTIAL)
    return state


@triton.jit
def _store_gradient_row(
    rows,
    biases,
    held,
    gradient_row_ptr,
    label,
    statistics,
    slope,
    soft,
    hard_statistics,
    hard,
    zero,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    temperature: tl.constexpr,
    KIND: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    HARD: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNROLL: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """A row's gradient: soft * dz + hard * (that of the cross entropy); `slope` is the sum of g over its columns.

    The statistics are (highest_s, highest_t, weight_s, weight_t, shift), and of the cross entropy (highest, weight).
    """
    scale: tl.constexpr = 1.0 / temperature
    slope *= soft * scale
    soft *= unit(beta, KIND) * scale
    sweep_pair(
        _store_gradient_tile, rows, biases, held, (),
        (gradient_row_ptr, label, statistics, slope, soft, hard_statistics, hard), zero,
        n_cols, beta, scale, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD,
        LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL, FIRST=False, REVERSE=REVERSE, EVICT="evict_first",
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
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Of logits: a sweep for the log-sum-exps, in which KL is found too; one for JSD and TVD; one for the gradient.

    Every other sweep goes backwards through what is not held, of which the cache still has the end. Each thread has
    statistics of its own, which are put together at the end of a sweep: nothing else waits for other threads.
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
                store_zeros(gradient_row_ptr, n_cols, LANES * WIDTH)
            return
    factor = row_factor(counted_ptr, divisor, n_cols, COUNTED, PER_COLUMN)
    label_logit = 0.0
    if HARD:
        # Read before the sweeps, whose sums synchronise the program: the last one may overwrite it.
        in_range = (label >= 0) & (label < n_cols)
        label_logit = tl.load(student_row_ptr + label, mask=in_range, other=float("nan")).to(tl.float32)
        if HAS_STUDENT_BIAS:
            label_logit += tl.load(student_bias_ptr + label, mask=in_range, other=0.0).to(tl.float32)

    KL: tl.constexpr = KIND == "jsd" and (beta == 0.0 or beta == 1.0)
    scale: tl.constexpr = 1.0 / temperature
    rows = (student_row_ptr, teacher_row_ptr)
    biases = (student_bias_ptr, teacher_bias_ptr)
    held = load_held_pair(rows, n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED)
    nothing = tl.zeros((LANES,), tl.float32)
    # Lower than any logit but finite: where a thread meets -inf alone, there is something to be subtracted. (A row of
    # logits below -2.3e38 alone, which are -inf when they are multiplied by LOG2E, is NaN as one of -inf alone is.)
    lowest = tl.full((LANES,), -3.4e38, tl.float32)
    # The last one is of KL: sum_j e_j * (t - s)_j, e the exponentials of the model that it is taken over.
    highest_s, total_s, highest_t, total_t, hard_highest, hard_total, weighted = sweep_pair(
        _add_statistics, rows, biases, held, (lowest, nothing, lowest, nothing, lowest, nothing, nothing), (), 0,
        n_cols, beta, scale, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD,
        LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL, FIRST=True, REVERSE=False, EVICT="evict_last",
    )  # fmt: skip
    top_s, rescale_s, sum_s = _over_threads(highest_s, total_s)
    top_t, rescale_t, sum_t = _over_threads(highest_t, total_t)
    weight_s = 1.0 / sum_s
    weight_t = 1.0 / sum_t
    shift = (top_t - top_s) + (tl.log2(sum_t) - tl.log2(sum_s))
    if KL:
        if beta == 0.0:
            soft = tl.sum(_rescaled(weighted, rescale_t), axis=0) / sum_t * scale - shift * LN2
            slope = 0.0
        else:
            soft = shift * LN2 - tl.sum(_rescaled(weighted, rescale_s), axis=0) / sum_s * scale
            slope = soft
    else:
        # Of a JSD, all that the weights are factors of is summed first.
        own_s = 1.0 if KIND == "jsd" else weight_s
        own_t = 1.0 if KIND == "jsd" else weight_t
        terms, slopes = sweep_pair(
            _add_terms, rows, biases, held, (nothing, nothing), (top_s, top_t, own_s, own_t, shift), hidden_zero(),
            n_cols, beta, scale, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD,
            LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL, FIRST=False, REVERSE=True, EVICT="evict_last",
        )  # fmt: skip
        soft = tl.sum(terms, axis=0)
        slope = tl.sum(slopes, axis=0)
        if KIND == "jsd":
            slope *= weight_s * unit(beta, KIND)
            soft = soft * (weight_t * unit(beta, KIND)) + slope

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
        _store_gradient_row(
            rows, biases, held, gradient_row_ptr, label, (top_s, top_t, weight_s, weight_t, shift), slope,
            soft_weight * factor, (hard_top, 1.0 / hard_sum), hard_factor, hidden_zero(),
            n_cols, beta, temperature, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD,
            LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL, REVERSE=KL,
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
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The student's gradient; SWAPPED: the statistics are of the problem in which it is the teacher."""
    row = tl.program_id(0).to(tl.int64)
    gradient_row_ptr = gradient_ptr + row * gradient_stride
    label = 0
    if HAS_LABELS:
        label = tl.load(labels_ptr + row)
        if label == ignore_index:
            store_zeros(gradient_row_ptr, n_cols, LANES * WIDTH)
            return
    factor = row_factor(counted_ptr, divisor, n_cols, COUNTED, PER_COLUMN)
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
    rows = (student_ptr + row * student_stride, teacher_ptr + row * teacher_stride)
    held = load_held_pair(rows, n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED)
    _store_gradient_row(
        rows, (student_bias_ptr, teacher_bias_ptr), held,
        gradient_row_ptr, label, (top_s, top_t, 1.0 / sum_s, 1.0 / sum_t, shift), slope, soft_weight * factor,
        (hard_top, 1.0 / hard_sum), hard_factor, 0,
        n_cols, beta, temperature, KIND, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD,
        LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL, REVERSE=False,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- launches

STATISTICS = 8
"""Columns that the backward pass from logits reads: the student's highest logit, after the temperature and in units of
log 2, and the sum of its shifted exponentials; the same two of the teacher; the sums of g for the student's gradient
and for the teacher's; and the first two again at temperature 1, for the cross entropy."""


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


def _blocks(rows: Rows, options: Options, lanes: int, held: int, unroll: int) -> Blocks:
    """Blocks of at most so many lanes, of which at most so many are held, and so many of the others loaded together."""
    narrow, wide = sorted(rows.dtypes[:2], key=DTYPE_BYTES.__getitem__)
    biased = any(dtype is not None for dtype in rows.dtypes[3:])
    if biased or options.hard_weight or DTYPE_BYTES[wide] > 2:  # they take the registers
        lanes, held, unroll = 256, 1, 1
    elif any(n % 8 for n in (rows.n_cols, *rows.strides)):
        lanes = 256
    cut = blocks(rows.n_cols, narrow, rows.strides, rows.device, lanes, held, unroll)
    # A bias is aligned even where the rows are not: they take its columns.
    return dataclasses.replace(cut, aligned=True) if biased else cut


def _forward_blocks(rows: Rows, options: Options, want_gradient: bool) -> Blocks:
    """How a program goes through a pair of rows: measured in 16 bits on an H200.

    All threads that a multiprocessor has registers for work on one pair of wide rows, so that the cache still has most
    of it when a sweep turns. JSD gains more by programs that are not in step.
    """
    wide = 2 * rows.n_cols > WIDE_BYTES
    if not want_gradient:
        return _blocks(rows, options, *((256, 2, 2) if options.is_kl else (256, 1, 1)))
    if options.is_kl:
        held = 3 if rows.device.arch == 90 else 2  # elsewhere the third spills
        return _blocks(rows, options, *((1024, held, 2) if wide else (256, 4, 4)))
    if options.kind == "tvd":
        return _blocks(rows, options, *((1024, 2, 1) if wide else (256, 2, 2)))
    return _blocks(rows, options, 256, 2, 2)


@functools.lru_cache(4096)
def logits_forward_launch(
    rows: Rows, options: Options, want_parts: bool, want_statistics: bool, want_gradient: bool, in_place: bool
) -> Launch:
    """Losses from logits, and what is wanted beside them; `in_place`: the gradient over the student's logits."""
    cut = _forward_blocks(rows, options, want_gradient)
    sweeps = (1 if options.is_kl else 2) + want_gradient
    per_row, nothing = Spec((rows.n_rows,), "float32"), Spec((0,), "float32")
    student, teacher, labels, *biases = rows.specs(1 + (sweeps - 1) * cut.reread)
    gradient = Spec(student.shape if want_gradient else (0,), student.dtype)
    return Launch(
        kernel=divergence_of_logits_forward,
        grid=(rows.n_rows,),
        inputs=(student, teacher, labels, *biases, counted(options, rows)),
        integers=(rows.divisor,),
        outputs=(
            per_row,
            per_row if want_parts else nothing,
            per_row if want_parts else nothing,
            Spec((rows.n_rows, STATISTICS), "float32") if want_statistics else nothing,
            gradient,
        ),
        constants=(
            *constants(rows, options),
            *_of_logits(rows, options, rows.strides[0] if in_place else rows.n_cols),
            ("WANT_PARTS", want_parts),
            ("WANT_STATISTICS", want_statistics),
            ("WANT_GRADIENT", want_gradient),
            *cut.constants,
        ),
        num_warps=cut.lanes // rows.device.warp_size,
        aliases=((0, 4),) if want_gradient and in_place else (),
        flops=(40 if want_gradient else 24) * rows.n_rows * rows.n_cols,
    )


@functools.lru_cache(4096)
def logits_backward_launch(rows: Rows, options: Options, swapped: bool, in_place: bool) -> Launch:
    """The student's gradient from logits; `swapped`: by the statistics of the problem in which it is the teacher."""
    cut = _blocks(rows, options, 256, 2, 2)
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
            counted(options, rows),
            Spec((rows.n_rows if tokens else 1,), "float32", resident=not tokens),
        ),
        integers=(rows.divisor,),
        outputs=(Spec(student.shape, student.dtype),),
        constants=(
            *constants(rows, options),
            *_of_logits(rows, options, rows.strides[0] if in_place else rows.n_cols),
            ("COTANGENT_STRIDE", int(tokens)),
            ("SWAPPED", swapped),
            *cut.constants,
        ),
        num_warps=cut.lanes // rows.device.warp_size,
        aliases=((0, 0),) if in_place else (),
        flops=20 * rows.n_rows * rows.n_cols,
    )
