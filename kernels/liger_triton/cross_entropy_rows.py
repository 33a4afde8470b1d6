"""Cross entropy of rows of logits: losses, gradients, and both in one launch that overwrites the logits."""

from __future__ import annotations

import dataclasses
import functools

import triton
import triton.language as tl

from liger.device import Device
from liger.launch import Launch, Spec, next_power_of_2
from liger_triton.held import (
    Blocks,
    add_exponentials,
    fold_row,
    load_block,
    load_held,
    read_once,
    read_twice,
    row_total,
    store_row,
    store_zeros,
)
from liger_triton.math import capped, exp

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _store_gradient(
    row_ptr,
    weight_ptr,
    bias_ptr,
    gradient_row_ptr,
    label,
    highest,
    log_total,
    a,
    b,
    c,
    n_cols: tl.constexpr,
    label_smoothing: tl.constexpr,
    softcap: tl.constexpr,
    scale: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx of one row, by `_gradient`."""
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        x = tl.load(row_ptr + col, mask=mask, other=0.0).to(tl.float32)
        dx = _gradient(
            x, col, weight_ptr, bias_ptr, tl.where(col == label, b, 0.0), highest, log_total, a, c,
            n_cols, label_smoothing, softcap, scale, HAS_WEIGHT, HAS_BIAS, PARTIAL=True,
        )  # fmt: skip
        tl.store(gradient_row_ptr + col, dx.to(gradient_row_ptr.dtype.element_ty), mask=mask)


@triton.jit
def vector_sum(ptr, n: tl.constexpr, BLOCK: tl.constexpr):
    """Of n numbers, in fp32."""
    total = 0.0
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(ptr + i, mask=i < n, other=0.0).to(tl.float32), axis=0)
    return total


@triton.jit
def _folded(x, col, sums, arguments, PARTIAL: tl.constexpr):
    """Every lane's sums with its columns of one more block; see `row_sums`."""
    highest, total, weighted, weights, best = sums
    weight_ptr, bias_ptr, n_cols, softcap, scale, HAS_WEIGHT, HAS_BIAS, WANT_WEIGHTED, WANT_BEST = arguments
    if HAS_BIAS:
        x += load_block(bias_ptr, col, n_cols, PARTIAL).to(tl.float32)
    z = capped(x, scale, softcap)
    if WANT_WEIGHTED:
        weighted_z = z
        if HAS_WEIGHT:
            w = load_block(weight_ptr, col, n_cols, PARTIAL).to(tl.float32)
            weights += tl.sum(w, axis=1)
            weighted_z = w * z
        if PARTIAL:
            weighted_z = tl.where(col < n_cols, weighted_z, 0.0)
        weighted += tl.sum(weighted_z, axis=1)
    if PARTIAL:
        z = tl.where(col < n_cols, z, float("-inf"))
    if WANT_BEST:
        block_highest = tl.max(z, axis=1)
        block_best = tl.min(tl.where(z == block_highest[:, None], col, n_cols), axis=1)
        first = (block_highest == highest) & (block_best < best)
        best = tl.where((block_highest > highest) | first, block_best, best)
    highest, total = add_exponentials(z, highest, total)
    return highest, total, weighted, weights, best


@triton.jit
def row_sums(
    row_ptr,
    held,
    weight_ptr,
    bias_ptr,
    n_cols: tl.constexpr,
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
    """Of a row: the highest logit, sum_j exp(z_j - highest), sum_j w_j z_j, sum_j w_j, the highest logit's index."""
    nothing = (
        tl.full((LANES,), float("-inf"), tl.float32),
        tl.zeros((LANES,), tl.float32),
        tl.zeros((LANES,), tl.float32),
        tl.zeros((LANES,), tl.float32),
        tl.full((LANES,), n_cols, tl.int32),
    )
    highest, total, weighted, weights, best = fold_row(
        _folded, row_ptr, held, nothing,
        (weight_ptr, bias_ptr, n_cols, softcap, scale, HAS_WEIGHT, HAS_BIAS, WANT_WEIGHTED, WANT_BEST),
        n_cols, "evict_last", LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL,
    )  # fmt: skip
    top, total = row_total(highest, total)
    best = tl.min(tl.where(highest == top, best, n_cols), axis=0)
    best = tl.where(best == n_cols, 0, best)  # of a row of NaN
    return top, total, tl.sum(weighted, axis=0), tl.sum(weights, axis=0), best


@triton.jit
def _gradient(
    x,
    col,
    weight_ptr,
    bias_ptr,
    on_label,
    highest,
    log_total,
    a,
    c,
    n_cols: tl.constexpr,
    label_smoothing: tl.constexpr,
    softcap: tl.constexpr,
    scale: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """dx of a block of one row from its a, c and b [j = y], which is `on_label`; see `liger_triton.cross_entropy`."""
    if HAS_BIAS:
        x += load_block(bias_ptr, col, n_cols, PARTIAL).to(tl.float32)
    z = capped(x, scale, softcap)
    dz = a * exp((z - highest) - log_total)
    if label_smoothing > 0.0:
        if HAS_WEIGHT:
            dz -= c * load_block(weight_ptr, col, n_cols, PARTIAL).to(tl.float32)
        else:
            dz -= c
    dz -= on_label
    if softcap > 0.0:
        t = z / softcap
        dz *= 1.0 - t * t
    return dz * scale


@triton.jit
def _gradient_off_label(x, col, arguments, PARTIAL: tl.constexpr):
    """dx of one more block, of which the label's column is stored over."""
    (
        weight_ptr, bias_ptr, highest, log_total, a, c, n_cols, label_smoothing, softcap, scale, HAS_WEIGHT, HAS_BIAS,
    ) = arguments  # fmt: skip
    return _gradient(
        x, col, weight_ptr, bias_ptr, 0.0, highest, log_total, a, c,
        n_cols, label_smoothing, softcap, scale, HAS_WEIGHT, HAS_BIAS, PARTIAL,
    )  # fmt: skip


@triton.jit
def cross_entropy_forward(
    logits_ptr,  # (n_rows, n_cols)
    labels_ptr,  # (n_rows,)
    weight_ptr,  # (n_cols,)
    bias_ptr,  # (n_cols,)
    denominators_ptr,  # (3,) float32: see cross_entropy_denominators
    loss_ptr,  # (n_rows,) float32
    highest_ptr,  # (n_rows,) float32: the highest logit
    log_total_ptr,  # (n_rows,) float32: lse = highest + log_total
    z_loss_ptr,  # (n_rows,) float32
    correct_ptr,  # (n_rows,) float32
    predicted_ptr,  # (n_rows,) int32
    gradient_ptr,  # (n_rows, n_cols); may be logits_ptr
    n_cols: tl.constexpr,
    row_stride: tl.constexpr,
    gradient_stride: tl.constexpr,
    ignore_index: tl.constexpr,
    label_smoothing: tl.constexpr,
    z_loss: tl.constexpr,
    softcap: tl.constexpr,
    scale: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TOKEN_SCALING: tl.constexpr,
    WANT_Z_LOSS: tl.constexpr,
    WANT_CORRECT: tl.constexpr,
    WANT_PREDICTED: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    gradient_row_ptr = gradient_ptr + row * gradient_stride
    label = tl.load(labels_ptr + row)
    if label == ignore_index:
        tl.store(loss_ptr + row, 0.0)
        tl.store(highest_ptr + row, 0.0)
        tl.store(log_total_ptr + row, 0.0)
        if WANT_Z_LOSS:
            tl.store(z_loss_ptr + row, 0.0)
        if WANT_CORRECT:
            tl.store(correct_ptr + row, 0.0)
        if WANT_PREDICTED:
            tl.store(predicted_ptr + row, -1)
        if WANT_GRADIENT:
            store_zeros(gradient_row_ptr, n_cols, LANES * WIDTH)
        return
    held = load_held(row_ptr, n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED)
    in_range = (label >= 0) & (label < n_cols)
    # Read before the sweep below, whose sums synchronise the program: the second sweep may overwrite it.
    label_logit = tl.load(row_ptr + label, mask=in_range, other=float("nan")).to(tl.float32)
    label_weight = 1.0
    if HAS_WEIGHT:
        label_weight = tl.load(weight_ptr + label, mask=in_range, other=0.0).to(tl.float32)
    if HAS_BIAS:
        label_logit += tl.load(bias_ptr + label, mask=in_range, other=0.0).to(tl.float32)
    label_z = capped(label_logit, scale, softcap)

    highest, total, weighted, weights, best = row_sums(
        row_ptr, held, weight_ptr, bias_ptr, n_cols, softcap, scale, HAS_WEIGHT, HAS_BIAS,
        label_smoothing > 0.0, WANT_CORRECT or WANT_PREDICTED,
        LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL,
    )  # fmt: skip
    log_total = tl.log(total)
    lse = highest + log_total
    # Not lse - label_z: where the label has nearly all of the probability, the two are nearly equal.
    nll = log_total + (highest - label_z)
    if not HAS_WEIGHT:
        weights = n_cols * 1.0

    keep = 1.0 - label_smoothing
    smooth = label_smoothing / n_cols
    ce = keep * label_weight * nll
    if label_smoothing > 0.0:
        ce += smooth * (weights * lse - weighted)
    zl = z_loss * lse * lse
    factor = 1.0
    if TOKEN_SCALING:
        factor = tl.exp(-nll)
        ce *= factor
        zl *= factor
    ce_denominator = tl.load(denominators_ptr)
    z_denominator = tl.load(denominators_ptr + 1)
    tl.store(loss_ptr + row, ce * ce_denominator + zl * z_denominator)
    tl.store(highest_ptr + row, highest)
    tl.store(log_total_ptr + row, log_total)
    if WANT_Z_LOSS:
        tl.store(z_loss_ptr + row, zl * z_denominator)
    if WANT_CORRECT:
        tl.store(correct_ptr + row, tl.where(best == label, 1.0, 0.0))
    if WANT_PREDICTED:
        tl.store(predicted_ptr + row, best)

    if WANT_GRADIENT:
        g = ce_denominator * factor
        b = g * keep * label_weight
        c = g * smooth
        a = b + c * weights + 2.0 * z_loss * lse * z_denominator * factor
        a = tl.where(in_range, a, float("nan"))
        store_row(
            _gradient_off_label, row_ptr, held, gradient_row_ptr,
            (
                weight_ptr, bias_ptr, highest, log_total, a, c,
                n_cols, label_smoothing, softcap, scale, HAS_WEIGHT, HAS_BIAS,
            ),
            n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL,
        )  # fmt: skip
        # The label's own gradient: a comparison of every column with it would cost more than the exponential.
        dz = a * exp((label_z - highest) - log_total) - b - c * label_weight
        if softcap > 0.0:
            t = label_z / softcap
            dz *= 1.0 - t * t
        tl.debug_barrier()
        tl.store(gradient_row_ptr + label, (dz * scale).to(gradient_ptr.dtype.element_ty), mask=in_range)


@triton.jit
def cross_entropy_backward(
    logits_ptr,  # (n_rows, n_cols)
    labels_ptr,  # (n_rows,)
    weight_ptr,  # (n_cols,)
    bias_ptr,  # (n_cols,)
    highest_ptr,  # (n_rows,) float32
    log_total_ptr,  # (n_rows,) float32
    denominators_ptr,  # (3,) float32
    dloss_ptr,  # (n_rows,) or (1,) float32
    dz_loss_ptr,  # likewise
    first_ptr,  # (1,) int32: class of the first column
    unit_ptr,  # (n_rows, n_cols): the gradient for a cotangent of 1, in the memory of gradient_ptr
    gradient_ptr,  # (n_rows, n_cols); may be logits_ptr
    n_cols: tl.constexpr,
    n_classes: tl.constexpr,
    row_stride: tl.constexpr,
    gradient_stride: tl.constexpr,
    ignore_index: tl.constexpr,
    label_smoothing: tl.constexpr,
    z_loss: tl.constexpr,
    softcap: tl.constexpr,
    scale: tl.constexpr,
    COTANGENT_STRIDE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_DLOSS: tl.constexpr,
    HAS_DZ_LOSS: tl.constexpr,
    UNIT_COTANGENT: tl.constexpr,
    HAS_UNIT: tl.constexpr,
    TOKEN_SCALING: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if HAS_UNIT:
        if (
            tl.load(dloss_ptr) == 1.0
        ):  # as in most training steps: nothing is left to do, and nothing is moved
            return
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    gradient_row_ptr = gradient_ptr + row * gradient_stride
    label = tl.load(labels_ptr + row)
    if label == ignore_index:
        store_zeros(gradient_row_ptr, n_cols, BLOCK)
        return
    in_range = (label >= 0) & (label < n_classes)
    label_weight = 1.0
    weights = n_classes * 1.0
    if HAS_WEIGHT:
        label_weight = tl.load(weight_ptr + label, mask=in_range, other=0.0).to(tl.float32)
        if label_smoothing > 0.0:
            weights = vector_sum(weight_ptr, n_classes, BLOCK)
    if PART:
        first = tl.load(first_ptr)
        label -= first
        weight_ptr += first
    highest = tl.load(highest_ptr + row)
    log_total = tl.load(log_total_ptr + row)
    lse = highest + log_total
    g = 1.0 if UNIT_COTANGENT else 0.0
    h = g
    if HAS_DLOSS:
        dloss = tl.load(dloss_ptr + row * COTANGENT_STRIDE)
        g = dloss
        h = dloss
    if HAS_DZ_LOSS:
        h += tl.load(dz_loss_ptr + row * COTANGENT_STRIDE)
    g *= tl.load(denominators_ptr)
    h *= tl.load(denominators_ptr + 1)
    if TOKEN_SCALING:
        label_logit = tl.load(row_ptr + label, mask=in_range, other=float("nan")).to(tl.float32)
        if HAS_BIAS:
            label_logit += tl.load(bias_ptr + label, mask=in_range, other=0.0).to(tl.float32)
        probability = tl.exp(capped(label_logit, scale, softcap) - highest - log_total)
        g *= probability
        h *= probability
        # Every thread has read the label's logit before any of them may overwrite it.
        tl.debug_barrier()
    b = g * (1.0 - label_smoothing) * label_weight
    c = g * (label_smoothing / n_classes)
    a = b + c * weights + 2.0 * z_loss * lse * h
    a = tl.where(in_range, a, float("nan"))
    _store_gradient(
        row_ptr, weight_ptr, bias_ptr, gradient_row_ptr, label, highest, log_total, a, b, c,
        n_cols, label_smoothing, softcap, scale, HAS_WEIGHT, HAS_BIAS, BLOCK,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- launches


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What cross entropy is asked to do; `liger_triton.cross_entropy` has the formulas.

    Attributes:
        ignore_index: rows with this label have no loss and no gradient.
        label_smoothing: e, in [0, 1].
        z_loss: factor of lse^2 in the loss.
        softcap: cap of the logits' magnitude, or None.
        scale: multiplies the logits before the cap.
        reduction: "none", "sum" or "mean".
        token_scaling: multiply a row's loss by the probability of its label, taken as a constant.
        return_z_loss: return the z-loss alone too, differentiable.
        return_accuracy: return the share of labels that have the highest logit.
        return_predicted: return the index of the highest logit, the first one of several; -1 for ignored rows.
        recompute: compute gradients in the backward pass, also where one scalar cotangent is all that can come.
    """

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    scale: float = 1.0
    reduction: str = "mean"
    token_scaling: bool = False
    return_z_loss: bool = False
    return_accuracy: bool = False
    return_predicted: bool = False
    recompute: bool = False


def forward_blocks(
    n_cols: int,
    dtype: str,
    strides: tuple[int, ...],
    options: Options,
    weight_dtype: str | None,
    bias_dtype: str | None,
    want_gradient: bool,
    device: Device,
) -> Blocks:
    """How the forward kernels go through a row."""
    sweep = read_twice if want_gradient else read_once
    weighted = weight_dtype is not None and options.label_smoothing > 0
    index = options.return_accuracy or options.return_predicted
    if weighted or bias_dtype is not None or options.softcap is not None or index:
        # Their numbers take the registers that would hold a row.
        return sweep(n_cols, dtype, strides, device, held=2, unroll=1)
    return sweep(n_cols, dtype, strides, device)


def _block(n_cols: int) -> tuple[int, int]:
    """Columns that the backward kernel works on at a time, and its warps."""
    block = min(next_power_of_2(n_cols), 4096)
    return block, min(max(block // 1024, 1), 4) * 2


def class_weights(n_rows: int, n_cols: int, dtype: str | None, options: Options) -> Spec:
    """The class weights: those of the labels, or, where labels are smoothed, all of them."""
    lookups = None if options.label_smoothing else n_rows
    return Spec((n_cols,), dtype or "float32", resident=True, unread=dtype is None, lookups=lookups)


@functools.lru_cache(4096)
def forward_launch(
    n_rows: int,
    n_cols: int,
    dtype: str,
    label_dtype: str,
    row_stride: int,
    weight_dtype: str | None,
    bias_dtype: str | None,
    options: Options,
    want_gradient: bool,
    device: Device,
    in_place: bool = True,
) -> Launch:
    """Per-row losses, and with `want_gradient` the gradient for a cotangent of 1; `in_place`: over the logits."""
    gradient_stride = row_stride if in_place else n_cols
    blocks = forward_blocks(
        n_cols, dtype, (row_stride, gradient_stride), options, weight_dtype, bias_dtype, want_gradient, device
    )
    per_row = Spec((n_rows,), "float32")
    nothing = Spec((0,), "float32")
    matrix = Spec((n_rows, n_cols), dtype)
    return Launch(
        kernel=cross_entropy_forward,
        grid=(n_rows,),
        inputs=(
            dataclasses.replace(matrix, passes=blocks.passes if want_gradient else 1),
            Spec((n_rows,), label_dtype),
            class_weights(n_rows, n_cols, weight_dtype, options),
            Spec((n_cols,), bias_dtype or dtype, resident=True, unread=bias_dtype is None),
            Spec((3,), "float32", resident=True),
        ),
        outputs=(
            per_row,
            per_row,
            per_row,
            per_row if options.return_z_loss else nothing,
            per_row if options.return_accuracy else nothing,
            Spec((n_rows,), "int32") if options.return_predicted else Spec((0,), "int32"),
            matrix if want_gradient else Spec((0,), dtype),
        ),
        constants=(
            ("n_cols", n_cols),
            ("row_stride", row_stride),
            ("gradient_stride", gradient_stride),
            *_formula(options),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("HAS_BIAS", bias_dtype is not None),
            ("TOKEN_SCALING", options.token_scaling),
            ("WANT_Z_LOSS", options.return_z_loss),
            ("WANT_CORRECT", options.return_accuracy),
            ("WANT_PREDICTED", options.return_predicted),
            ("WANT_GRADIENT", want_gradient),
            *blocks.constants,
        ),
        num_warps=blocks.lanes // device.warp_size,
        aliases=((0, 6),) if want_gradient and in_place else (),
        flops=(12 if want_gradient else 5) * n_rows * n_cols,
    )


def _formula(options: Options) -> tuple[tuple[str, int | float], ...]:
    return (
        ("ignore_index", options.ignore_index),
        ("label_smoothing", float(options.label_smoothing)),
        ("z_loss", float(options.z_loss)),
        ("softcap", float(options.softcap or 0.0)),
        ("scale", float(options.scale)),
    )


@functools.lru_cache(4096)
def backward_launch(
    n_rows: int,
    n_cols: int,
    dtype: str,
    label_dtype: str,
    row_stride: int,
    weight_dtype: str | None,
    bias_dtype: str | None,
    has_dloss: bool,
    has_dz_loss: bool,
    options: Options,
    in_place: bool,
    parts: int = 1,
    unit_cotangent: bool = False,
    has_unit: bool = False,
) -> Launch:
    """The logits' gradient, for one cotangent per row ("none") or one in all; `in_place`: over the logits.

    Of one of the `parts` of the vocabulary; with `unit_cotangent` for a loss whose cotangent is 1; with `has_unit` over
    the gradient for a cotangent of 1, which stays as it is if that is what comes.
    """
    block, warps = _block(n_cols)
    rows = n_rows if options.reduction == "none" else 1
    matrix = Spec((n_rows, n_cols), dtype)
    return Launch(
        kernel=cross_entropy_backward,
        grid=(n_rows,),
        inputs=(
            matrix,
            Spec((n_rows,), label_dtype),
            class_weights(n_rows, n_cols * parts, weight_dtype, options),
            Spec((n_cols,), bias_dtype or dtype, resident=True, unread=bias_dtype is None),
            Spec((n_rows,), "float32"),
            Spec((n_rows,), "float32"),
            Spec((3,), "float32", resident=True),
            Spec((rows,), "float32", resident=rows == 1, unread=not has_dloss),
            Spec((rows,), "float32", resident=rows == 1, unread=not has_dz_loss),
            Spec((1,), "int32", resident=True, unread=parts == 1),
            dataclasses.replace(matrix, unread=True),
        ),
        outputs=(matrix,),
        constants=(
            ("n_cols", n_cols),
            ("n_classes", n_cols * parts),
            ("row_stride", row_stride),
            ("gradient_stride", row_stride if in_place else n_cols),
            *_formula(options),
            ("COTANGENT_STRIDE", 1 if options.reduction == "none" else 0),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("HAS_BIAS", bias_dtype is not None),
            ("HAS_DLOSS", has_dloss),
            ("HAS_DZ_LOSS", has_dz_loss),
            ("UNIT_COTANGENT", unit_cotangent),
            ("HAS_UNIT", has_unit),
            ("TOKEN_SCALING", options.token_scaling),
            ("PART", parts > 1),
            ("BLOCK", block),
        ),
        num_warps=warps,
        aliases=((0, 0),) if in_place else ((10, 0),) if has_unit else (),
        flops=7 * n_rows * n_cols,
    )
