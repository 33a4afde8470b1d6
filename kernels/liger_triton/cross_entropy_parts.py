"""Cross entropy where a mesh divides the vocabulary: a row's sums of one part, and its loss from those of all."""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from liger.device import Device
from liger.launch import Launch, Spec, cdiv
from liger_triton.cross_entropy_rows import Options, class_weights, forward_blocks, row_sums, vector_sum
from liger_triton.held import load_held, shift_of
from liger_triton.math import capped

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def cross_entropy_part(
    logits_ptr,  # (n_rows, n_cols)
    labels_ptr,  # (n_rows,)
    weight_ptr,  # (n_classes,)
    bias_ptr,  # (n_cols,)
    first_ptr,  # (1,) int32: class of the first column
    highest_ptr,  # (n_rows,) float32: the highest logit here
    total_ptr,  # (n_rows,) float32: sum_j exp(z_j - highest)
    label_ptr,  # (n_rows,) float32: the label's logit, 0 if it is on another device
    weighted_ptr,  # (n_rows,) float32: sum_j w_j z_j
    best_ptr,  # (n_rows,) int32: class of the highest logit, the first one of several
    n_cols: tl.constexpr,
    n_classes: tl.constexpr,
    row_stride: tl.constexpr,
    ignore_index: tl.constexpr,
    softcap: tl.constexpr,
    scale: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_WEIGHTED: tl.constexpr,
    WANT_BEST: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    label = tl.load(labels_ptr + row)
    first = tl.load(first_ptr)
    if label == ignore_index:
        tl.store(highest_ptr + row, 0.0)
        tl.store(total_ptr + row, 0.0)
        tl.store(label_ptr + row, 0.0)
        if WANT_WEIGHTED:
            tl.store(weighted_ptr + row, 0.0)
        if WANT_BEST:
            tl.store(best_ptr + row, 0)
        return
    held = load_held(row_ptr, n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED)
    here = (label >= first) & (label < first + n_cols)
    column = tl.where(here, label - first, 0)
    label_logit = tl.load(row_ptr + column).to(tl.float32)
    if HAS_BIAS:
        label_logit += tl.load(bias_ptr + column).to(tl.float32)
    label_z = tl.where(here, capped(label_logit, scale, softcap), 0.0)
    in_range = (label >= 0) & (label < n_classes)

    highest, total, weighted, _, best = row_sums(
        row_ptr, held, weight_ptr + first, bias_ptr, n_cols, softcap, scale, HAS_WEIGHT, HAS_BIAS,
        WANT_WEIGHTED, WANT_BEST, LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL,
    )  # fmt: skip
    tl.store(highest_ptr + row, highest)
    tl.store(total_ptr + row, total)
    tl.store(label_ptr + row, tl.where(in_range, label_z, float("nan")))
    if WANT_WEIGHTED:
        tl.store(weighted_ptr + row, weighted)
    if WANT_BEST:
        tl.store(best_ptr + row, first + best)


@triton.jit
def cross_entropy_shift(
    highest_ptr,  # (n_rows,) float32
    top_ptr,  # (n_rows,) float32: the highest of all devices
    total_ptr,  # (n_rows,) float32: sum_j exp(z_j - highest)
    best_ptr,  # (n_rows,) int32
    n_rows,
    shifted_ptr,  # (n_rows,) float32: sum_j exp(z_j - top)
    order_ptr,  # (n_rows,) int32: -best, so that the first one of several is the largest; least where not the top
    WANT_BEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < n_rows
    highest = tl.load(highest_ptr + row, mask=mask, other=0.0)
    top = tl.load(top_ptr + row, mask=mask, other=0.0)
    total = tl.load(total_ptr + row, mask=mask, other=0.0)
    tl.store(shifted_ptr + row, total * tl.exp(highest - shift_of(top)), mask=mask)
    if WANT_BEST:
        best = tl.load(best_ptr + row, mask=mask, other=0)
        tl.store(order_ptr + row, tl.where(highest == top, -best, -2147483647), mask=mask)


@triton.jit
def cross_entropy_whole(
    labels_ptr,  # (n_rows,)
    weight_ptr,  # (n_classes,)
    denominators_ptr,  # (3,) float32
    highest_ptr,  # (n_rows,) float32: of all devices, as the sums below
    total_ptr,  # (n_rows,) float32: sum_j exp(z_j - highest)
    label_ptr,  # (n_rows,) float32: the label's logit
    weighted_ptr,  # (n_rows,) float32: sum_j w_j z_j
    order_ptr,  # (n_rows,) int32: minus the class of the highest logit
    n_rows,
    loss_ptr,  # (n_rows,) float32
    log_total_ptr,  # (n_rows,) float32
    z_loss_ptr,  # (n_rows,) float32
    correct_ptr,  # (n_rows,) float32
    predicted_ptr,  # (n_rows,) int32
    n_classes: tl.constexpr,
    ignore_index: tl.constexpr,
    label_smoothing: tl.constexpr,
    z_loss: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WANT_Z_LOSS: tl.constexpr,
    WANT_CORRECT: tl.constexpr,
    WANT_PREDICTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < n_rows
    label = tl.load(labels_ptr + row, mask=mask, other=ignore_index)
    valid = label != ignore_index
    highest = tl.load(highest_ptr + row, mask=mask, other=0.0)
    log_total = tl.log(tl.where(valid, tl.load(total_ptr + row, mask=mask, other=1.0), 1.0))
    lse = highest + log_total
    nll = log_total + (highest - tl.load(label_ptr + row, mask=mask, other=0.0))
    label_weight = 1.0
    if HAS_WEIGHT:
        in_range = (label >= 0) & (label < n_classes)
        label_weight = tl.load(weight_ptr + label, mask=mask & in_range, other=0.0).to(tl.float32)
    ce = (1.0 - label_smoothing) * label_weight * nll
    if label_smoothing > 0.0:
        weights = n_classes * 1.0
        if HAS_WEIGHT:
            weights = vector_sum(weight_ptr, n_classes, 1024)
        weighted = tl.load(weighted_ptr + row, mask=mask, other=0.0)
        ce += label_smoothing / n_classes * (weights * lse - weighted)
    zl = z_loss * lse * lse * tl.load(denominators_ptr + 1)
    loss = ce * tl.load(denominators_ptr) + zl
    tl.store(loss_ptr + row, tl.where(valid, loss, 0.0), mask=mask)
    tl.store(log_total_ptr + row, log_total, mask=mask)
    if WANT_Z_LOSS:
        tl.store(z_loss_ptr + row, tl.where(valid, zl, 0.0), mask=mask)
    if WANT_CORRECT or WANT_PREDICTED:
        best = -tl.load(order_ptr + row, mask=mask, other=0)
        if WANT_CORRECT:
            tl.store(correct_ptr + row, tl.where(valid & (best == label), 1.0, 0.0), mask=mask)
        if WANT_PREDICTED:
            tl.store(predicted_ptr + row, tl.where(valid, best, -1), mask=mask)


# --------------------------------------------------------------------------------------------------- launches


@functools.lru_cache(4096)
def part_launch(
    n_rows: int,
    n_cols: int,
    dtype: str,
    label_dtype: str,
    row_stride: int,
    weight_dtype: str | None,
    bias_dtype: str | None,
    options: Options,
    parts: int,
    device: Device,
) -> Launch:
    """What one of the `parts` of the vocabulary contributes to the rows' losses."""
    smooths = options.label_smoothing > 0
    weighted = weight_dtype is not None and smooths
    blocks = forward_blocks(
        n_cols,
        dtype,
        (row_stride,),
        options,
        weight_dtype if weighted else None,
        bias_dtype,
        want_gradient=False,
        device=device,
    )
    per_row, nothing = Spec((n_rows,), "float32"), Spec((0,), "float32")
    best = options.return_accuracy or options.return_predicted
    weights = Spec(
        (n_cols * parts,), weight_dtype or "float32", resident=True, unread=not weighted, lookups=n_cols
    )
    return Launch(
        kernel=cross_entropy_part,
        grid=(n_rows,),
        inputs=(
            Spec((n_rows, n_cols), dtype),
            Spec((n_rows,), label_dtype),
            weights,
            Spec((n_cols,), bias_dtype or dtype, resident=True, unread=bias_dtype is None),
            Spec((1,), "int32", resident=True),
        ),
        outputs=(
            per_row,
            per_row,
            per_row,
            per_row if smooths else nothing,
            Spec((n_rows if best else 0,), "int32"),
        ),
        constants=(
            ("n_cols", n_cols),
            ("n_classes", n_cols * parts),
            ("row_stride", row_stride),
            ("ignore_index", options.ignore_index),
            ("softcap", float(options.softcap or 0.0)),
            ("scale", float(options.scale)),
            ("HAS_WEIGHT", weighted),
            ("HAS_BIAS", bias_dtype is not None),
            ("WANT_WEIGHTED", smooths),
            ("WANT_BEST", best),
            *blocks.constants,
        ),
        num_warps=blocks.lanes // device.warp_size,
        flops=5 * n_rows * n_cols,
    )


ROWS_PER_PROGRAM = 256
"""Of the kernels that work on a few numbers per row."""


@functools.lru_cache(4096)
def shift_launch(n_rows: int, want_best: bool) -> Launch:
    """The parts' sums relative to the highest logit of all parts."""
    per_row, index = Spec((n_rows,), "float32"), Spec((n_rows,), "int32", unread=not want_best)
    return Launch(
        kernel=cross_entropy_shift,
        grid=(cdiv(n_rows, ROWS_PER_PROGRAM),),
        inputs=(per_row, per_row, per_row, index),
        integers=(n_rows,),
        outputs=(per_row, Spec((n_rows if want_best else 0,), "int32")),
        constants=(("WANT_BEST", want_best), ("BLOCK", ROWS_PER_PROGRAM)),
        num_warps=4,
        flops=2 * n_rows,
    )


@functools.lru_cache(4096)
def whole_launch(
    n_rows: int, n_classes: int, label_dtype: str, weight_dtype: str | None, options: Options
) -> Launch:
    """The rows' losses from what all parts of the vocabulary add up to."""
    per_row, nothing = Spec((n_rows,), "float32"), Spec((0,), "float32")
    best = options.return_accuracy or options.return_predicted
    return Launch(
        kernel=cross_entropy_whole,
        grid=(cdiv(n_rows, ROWS_PER_PROGRAM),),
        inputs=(
            Spec((n_rows,), label_dtype),
            class_weights(n_rows, n_classes, weight_dtype, options),
            Spec((3,), "float32", resident=True),
            per_row,
            per_row,
            per_row,
            Spec((n_rows,), "float32", unread=options.label_smoothing == 0),
            Spec((n_rows,), "int32", unread=not best),
        ),
        integers=(n_rows,),
        outputs=(
            per_row,
            per_row,
            per_row if options.return_z_loss else nothing,
            per_row if options.return_accuracy else nothing,
            Spec((n_rows if options.return_predicted else 0,), "int32"),
        ),
        constants=(
            ("n_classes", n_classes),
            ("ignore_index", options.ignore_index),
            ("label_smoothing", float(options.label_smoothing)),
            ("z_loss", float(options.z_loss)),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("WANT_Z_LOSS", options.return_z_loss),
            ("WANT_CORRECT", options.return_accuracy),
            ("WANT_PREDICTED", options.return_predicted),
            ("BLOCK", ROWS_PER_PROGRAM),
        ),
        num_warps=4,
        flops=10 * n_rows,
    )
