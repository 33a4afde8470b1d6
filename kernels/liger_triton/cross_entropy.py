"""Cross entropy on logits: forward, backward, and both in one launch that overwrites the logits.

Per row, with z = scale * (x + bias), capped as c * tanh(z / c), class weights w, smoothing e, V classes and label y:

    lse  = log sum_j exp(z_j)
    ce   = (1 - e) * w_y * (lse - z_y) + e / V * sum_j w_j * (lse - z_j)
    zl   = z_loss * lse^2
    loss = ce + zl

    dz_j = a * p_j - b * [j = y] - c * w_j,     p_j = exp(z_j - lse)
    b    = g * (1 - e) * w_y
    c    = g * e / V
    a    = b + c * sum_j w_j + h * 2 * z_loss * lse
    dx_j = dz_j * scale * (1 - (z_j / cap)^2)

g and h are the cotangents of ce and zl. "mean" divides ce by the sum of the labels' weights and zl by the number of
labels that are not ignored. torch.nn.CrossEntropyLoss; z-loss: PaLM, arXiv:2204.02311; softcap: Gemma 2,
arXiv:2408.00118; token scaling: arXiv:2508.05629.

A label outside the vocabulary that is not `ignore_index` makes its row's loss and gradient NaN: finding it out
before the launch would stall the stream.

Where a mesh divides the vocabulary, every device reduces its part of a row to three numbers, the highest logit, the
sum of the exponentials relative to it and the label's logit if it is here (`cross_entropy_part`); what the devices
add up to gives the loss (`cross_entropy_whole`), and each one the gradient of its own part. Class weights are whole
on every device.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping

import triton
import triton.language as tl

from liger import check
from liger.backend import Array, Backend
from liger.device import Device
from liger.launch import Launch, Spec, cdiv, next_power_of_2
from liger.mesh import ONE_DEVICE, Mesh
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import cross_entropy as reference
from liger_triton.held import (
    Blocks,
    add_exponentials,
    block_columns,
    held_block,
    hidden_zero,
    load_block,
    load_held,
    load_streamed,
    read_once,
    read_twice,
    row_total,
    shift_of,
    store_block,
)
from liger_triton.math import capped, exp

REDUCTIONS = ("none", "sum", "mean")

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
def _sum(ptr, n: tl.constexpr, BLOCK: tl.constexpr):
    total = 0.0
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(ptr + i, mask=i < n, other=0.0).to(tl.float32), axis=0)
    return total


@triton.jit
def _store_zeros(row_ptr, n_cols: tl.constexpr, BLOCK: tl.constexpr):
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        tl.store(row_ptr + col, tl.zeros((BLOCK,), row_ptr.dtype.element_ty), mask=col < n_cols)


@triton.jit
def _folded(
    x,
    col,
    weight_ptr,
    bias_ptr,
    highest,
    total,
    weighted,
    weights,
    best,
    n_cols: tl.constexpr,
    softcap: tl.constexpr,
    scale: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_WEIGHTED: tl.constexpr,
    WANT_BEST: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """Every lane's sums with its columns of one more block; see `_sums`."""
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
def _sums(
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
    highest = tl.full((LANES,), float("-inf"), tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    weighted = tl.zeros((LANES,), tl.float32)
    weights = tl.zeros((LANES,), tl.float32)
    best = tl.full((LANES,), n_cols, tl.int32)
    columns = block_columns(LANES, WIDTH, ALIGNED)
    for block in tl.static_range(HELD):
        highest, total, weighted, weights, best = _folded(
            held_block(held[block], 0, row_ptr.dtype.element_ty, LANES, WIDTH),
            (STREAMED + block) * (LANES * WIDTH) + columns,
            weight_ptr, bias_ptr, highest, total, weighted, weights, best,
            n_cols, softcap, scale, HAS_WEIGHT, HAS_BIAS, WANT_WEIGHTED, WANT_BEST,
            PARTIAL=(STREAMED + block + 1) * LANES * WIDTH > n_cols,
        )  # fmt: skip
    for group in range(STREAMED // UNROLL):
        loaded = load_streamed(row_ptr, group, LANES, WIDTH, UNROLL, ALIGNED, "evict_last")
        for i in tl.static_range(UNROLL):
            highest, total, weighted, weights, best = _folded(
                loaded[i].to(tl.float32),
                (group * UNROLL + i) * (LANES * WIDTH) + columns,
                weight_ptr, bias_ptr, highest, total, weighted, weights, best,
                n_cols, softcap, scale, HAS_WEIGHT, HAS_BIAS, WANT_WEIGHTED, WANT_BEST, PARTIAL=False,
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
    """dx of a block of one row from its a, c and b [j = y], which is `on_label`; see the top of the file."""
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
            _store_zeros(gradient_row_ptr, n_cols, LANES * WIDTH)
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

    highest, total, weighted, weights, best = _sums(
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
        columns = block_columns(LANES, WIDTH, ALIGNED)
        # Backwards: what was read last may still be in the cache.
        for group_back in range(STREAMED // UNROLL):
            group = STREAMED // UNROLL - 1 - group_back
            loaded = load_streamed(row_ptr, group, LANES, WIDTH, UNROLL, ALIGNED, "evict_first")
            for i in tl.static_range(UNROLL):
                col = (group * UNROLL + i) * (LANES * WIDTH) + columns
                dx = _gradient(
                    loaded[i].to(tl.float32), col, weight_ptr, bias_ptr, 0.0, highest, log_total, a, c,
                    n_cols, label_smoothing, softcap, scale, HAS_WEIGHT, HAS_BIAS, PARTIAL=False,
                )  # fmt: skip
                store_block(gradient_row_ptr, col, dx, n_cols, PARTIAL=False)
        zero = hidden_zero()
        for block in tl.static_range(HELD):
            col = (STREAMED + block) * (LANES * WIDTH) + columns
            dx = _gradient(
                held_block(held[block], zero, row_ptr.dtype.element_ty, LANES, WIDTH),
                col, weight_ptr, bias_ptr, 0.0, highest, log_total, a, c,
                n_cols, label_smoothing, softcap, scale, HAS_WEIGHT, HAS_BIAS,
                PARTIAL=(STREAMED + block + 1) * LANES * WIDTH > n_cols,
            )  # fmt: skip
            store_block(
                gradient_row_ptr, col, dx, n_cols, PARTIAL=(STREAMED + block + 1) * LANES * WIDTH > n_cols
            )
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
        _store_zeros(gradient_row_ptr, n_cols, BLOCK)
        return
    in_range = (label >= 0) & (label < n_classes)
    label_weight = 1.0
    weights = n_classes * 1.0
    if HAS_WEIGHT:
        label_weight = tl.load(weight_ptr + label, mask=in_range, other=0.0).to(tl.float32)
        if label_smoothing > 0.0:
            weights = _sum(weight_ptr, n_classes, BLOCK)
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

    highest, total, weighted, _, best = _sums(
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
            weights = _sum(weight_ptr, n_classes, 1024)
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


@triton.jit
def cross_entropy_denominators(
    labels_ptr,  # (n_rows,)
    weight_ptr,  # (n_cols,)
    n_rows,
    out_ptr,  # (3,) float32
    n_cols: tl.constexpr,
    ignore_index: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    MEAN: tl.constexpr,
    TOTALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Factors of ce, of zl and of the count of right predictions; each is 0 where there is nothing to divide by.

    With `TOTALS` what they are the inverses of, to be added up over a mesh first.
    """
    count = tl.zeros((BLOCK,), tl.float32)
    weights = tl.zeros((BLOCK,), tl.float32)
    for start in range(tl.zeros((), tl.int64), n_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        label = tl.load(labels_ptr + row, mask=row < n_rows, other=ignore_index)
        valid = label != ignore_index
        count += tl.where(valid, 1.0, 0.0)
        if HAS_WEIGHT:
            here = valid & (label >= 0) & (label < n_cols)
            weights += tl.load(weight_ptr + label, mask=here, other=0.0).to(tl.float32)
    n = tl.sum(count, axis=0)
    total = n
    if HAS_WEIGHT:
        total = tl.sum(weights, axis=0)
    if TOTALS:
        tl.store(out_ptr, total)
        tl.store(out_ptr + 1, n)
        tl.store(out_ptr + 2, n)
    else:
        _store_denominators(out_ptr, total, n, MEAN)


@triton.jit
def _store_denominators(out_ptr, total, n, MEAN: tl.constexpr):
    inverse_n = tl.where(n != 0.0, 1.0 / tl.where(n != 0.0, n, 1.0), 0.0)
    inverse_total = tl.where(total != 0.0, 1.0 / tl.where(total != 0.0, total, 1.0), 0.0)
    if MEAN:
        tl.store(out_ptr, inverse_total)
        tl.store(out_ptr + 1, inverse_n)
    else:
        tl.store(out_ptr, 1.0)
        tl.store(out_ptr + 1, 1.0)
    tl.store(out_ptr + 2, inverse_n)


@triton.jit
def cross_entropy_inverses(
    totals_ptr,  # (3,) float32: what `cross_entropy_denominators` stores with TOTALS, added up
    out_ptr,  # (3,) float32
    MEAN: tl.constexpr,
):
    _store_denominators(out_ptr, tl.load(totals_ptr), tl.load(totals_ptr + 1), MEAN)


@triton.jit
def cross_entropy_totals(
    loss_ptr,  # (n_rows,) float32
    z_loss_ptr,
    correct_ptr,
    denominators_ptr,  # (3,) float32
    n_rows,
    loss_out_ptr,  # (1,) float32
    z_loss_out_ptr,
    accuracy_ptr,
    WANT_Z_LOSS: tl.constexpr,
    WANT_ACCURACY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over the rows, in a fixed order."""
    loss = tl.zeros((BLOCK,), tl.float32)
    z_loss = tl.zeros((BLOCK,), tl.float32)
    correct = tl.zeros((BLOCK,), tl.float32)
    for start in range(tl.zeros((), tl.int64), n_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        loss += tl.load(loss_ptr + row, mask=row < n_rows, other=0.0)
        if WANT_Z_LOSS:
            z_loss += tl.load(z_loss_ptr + row, mask=row < n_rows, other=0.0)
        if WANT_ACCURACY:
            correct += tl.load(correct_ptr + row, mask=row < n_rows, other=0.0)
    tl.store(loss_out_ptr, tl.sum(loss, axis=0))
    if WANT_Z_LOSS:
        tl.store(z_loss_out_ptr, tl.sum(z_loss, axis=0))
    if WANT_ACCURACY:
        tl.store(accuracy_ptr, tl.sum(correct, axis=0) * tl.load(denominators_ptr + 2))


# --------------------------------------------------------------------------------------------------- launches


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What cross entropy is asked to do; the formulas are at the top of this file.

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


def _blocks(
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


def _class_weights(n_rows: int, n_cols: int, dtype: str | None, options: Options) -> Spec:
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
    blocks = _blocks(
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
            _class_weights(n_rows, n_cols, weight_dtype, options),
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
            _class_weights(n_rows, n_cols * parts, weight_dtype, options),
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
    blocks = _blocks(
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
            _class_weights(n_rows, n_classes, weight_dtype, options),
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


@functools.lru_cache(4096)
def denominators_launch(
    n_rows: int,
    n_cols: int,
    label_dtype: str,
    weight_dtype: str | None,
    ignore_index: int,
    mean: bool,
    totals: bool = False,
) -> Launch:
    """What losses are divided by, found on the device; `totals`: before it is inverted."""
    return Launch(
        kernel=cross_entropy_denominators,
        grid=(1,),
        inputs=(
            Spec((n_rows,), label_dtype),
            Spec(
                (n_cols,),
                weight_dtype or "float32",
                resident=True,
                unread=weight_dtype is None,
                lookups=n_rows,
            ),
        ),
        integers=(n_rows,),
        outputs=(Spec((3,), "float32"),),
        constants=(
            ("n_cols", n_cols),
            ("ignore_index", ignore_index),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("MEAN", mean),
            ("TOTALS", totals),
            ("BLOCK", 4096),
        ),
        num_warps=8,
        flops=2 * n_rows,
    )


@functools.lru_cache(2)
def inverses_launch(mean: bool) -> Launch:
    """What losses are divided by, from totals that were added up."""
    three = Spec((3,), "float32")
    return Launch(
        kernel=cross_entropy_inverses,
        grid=(1,),
        inputs=(dataclasses.replace(three, resident=True),),
        outputs=(three,),
        constants=(("MEAN", mean),),
        num_warps=1,
        flops=2,
    )


@functools.lru_cache(4096)
def totals_launch(n_rows: int, want_z_loss: bool, want_accuracy: bool) -> Launch:
    """Losses of the rows summed."""
    rows, one, nothing = Spec((n_rows,), "float32"), Spec((1,), "float32"), Spec((0,), "float32")
    return Launch(
        kernel=cross_entropy_totals,
        grid=(1,),
        inputs=(
            rows,
            dataclasses.replace(rows, unread=not want_z_loss),
            dataclasses.replace(rows, unread=not want_accuracy),
            Spec((3,), "float32", resident=True, unread=not want_accuracy),
        ),
        integers=(n_rows,),
        outputs=(one, one if want_z_loss else nothing, one if want_accuracy else nothing),
        constants=(("WANT_Z_LOSS", want_z_loss), ("WANT_ACCURACY", want_accuracy), ("BLOCK", 4096)),
        num_warps=8,
        flops=n_rows,
    )


# ------------------------------------------------------------------------------------------------- algorithms


def denominators(
    backend: Backend, labels: Array, weight: Array | None, n_cols: int, options: Options
) -> Array:
    """The (3,) factors that the loss kernels read; `n_cols` of the classes are here."""
    mean = options.reduction == "mean"
    weight = weight if mean else None
    everywhere = backend.size("rows") > 1 and (
        mean or (options.return_accuracy and options.reduction == "sum")
    )
    launch = denominators_launch(
        labels.shape[0],
        n_cols * backend.size("columns"),
        backend.dtype(labels),
        None if weight is None else backend.dtype(weight),
        options.ignore_index,
        mean,
        everywhere,
    )
    (factors,) = backend.launch(launch, labels, labels if weight is None else weight)
    if everywhere:
        (factors,) = backend.launch(inverses_launch(mean), *backend.psum(factors, over="rows"))
    return factors


def totals(
    backend: Backend,
    loss: Array,
    z_loss: Array | None,
    correct: Array | None,
    factors: Array,
    options: Options,
) -> tuple[Array, Array | None, Array | None]:
    """Scalar loss, z-loss and accuracy from those of the rows."""
    launch = totals_launch(loss.shape[0], options.return_z_loss, options.return_accuracy)
    results = backend.launch(
        launch, loss, loss if z_loss is None else z_loss, loss if correct is None else correct, factors
    )
    wanted = (True, options.return_z_loss, options.return_accuracy)
    sums = iter(backend.psum(*(r for r, w in zip(results, wanted, strict=True) if w), over="rows"))
    total, z_total, accuracy = (backend.reshape(next(sums), ()) if w else None for w in wanted)
    return total, z_total, accuracy


def forward_rows(
    backend: Backend,
    logits: Array,
    labels: Array,
    weight: Array | None,
    bias: Array | None,
    factors: Array,
    options: Options,
    want_gradient: bool,
    in_place: bool = True,
) -> tuple[Array, Array, Array, Array | None, Array | None, Array | None, Array | None]:
    """(loss, highest, log_total, z_loss, correct, predicted, gradient) of logits; `in_place`: over the logits.

    lse = highest + log_total; the two are kept apart because their sum has not the digits of the second.
    """
    if backend.size("columns") > 1:
        return _forward_parts(
            backend, logits, labels, weight, bias, factors, options, want_gradient, in_place
        )
    launch = forward_launch(
        *logits.shape,
        backend.dtype(logits),
        backend.dtype(labels),
        backend.strides(logits)[0],
        None if weight is None else backend.dtype(weight),
        None if bias is None else backend.dtype(bias),
        options,
        want_gradient,
        backend.device,
        in_place,
    )
    loss, highest, log_total, z_loss, correct, predicted, gradient = backend.launch(
        launch,
        logits,
        labels,
        labels if weight is None else weight,
        labels if bias is None else bias,
        factors,
    )
    return (
        loss,
        highest,
        log_total,
        z_loss if options.return_z_loss else None,
        correct if options.return_accuracy else None,
        predicted if options.return_predicted else None,
        gradient if want_gradient else None,
    )


def _forward_parts(
    backend: Backend,
    logits: Array,
    labels: Array,
    weight: Array | None,
    bias: Array | None,
    factors: Array,
    options: Options,
    want_gradient: bool,
    in_place: bool,
) -> tuple[Array, Array, Array, Array | None, Array | None, Array | None, Array | None]:
    """`forward_rows` where every device has a part of the vocabulary."""
    n_rows, n_cols = logits.shape
    parts = backend.size("columns")
    weight_dtype = None if weight is None else backend.dtype(weight)
    want_weighted = options.label_smoothing > 0
    want_best = options.return_accuracy or options.return_predicted
    launch = part_launch(
        n_rows,
        n_cols,
        backend.dtype(logits),
        backend.dtype(labels),
        backend.strides(logits)[0],
        weight_dtype,
        None if bias is None else backend.dtype(bias),
        options,
        parts,
        backend.device,
    )
    weight_operand = labels if weight is None else weight
    highest, total, label_logit, weighted, best = backend.launch(
        launch,
        logits,
        labels,
        weight_operand,
        labels if bias is None else bias,
        backend.first_column(n_cols),
    )
    top = backend.pmax(highest, over="columns")
    total, order = backend.launch(
        shift_launch(n_rows, want_best), highest, top, total, best if want_best else labels
    )
    total, label_logit, *rest = backend.psum(
        total, label_logit, *((weighted,) if want_weighted else ()), over="columns"
    )
    loss, log_total, z_loss, correct, predicted = backend.launch(
        whole_launch(n_rows, n_cols * parts, backend.dtype(labels), weight_dtype, options),
        labels,
        weight_operand,
        factors,
        top,
        total,
        label_logit,
        rest[0] if want_weighted else top,
        backend.pmax(order, over="columns") if want_best else labels,
    )
    gradient = None
    if want_gradient:
        gradient = backward_rows(
            backend, logits, labels, weight, bias, top, log_total, factors, None, None, options,
            in_place=in_place, unit_cotangent=True,
        )  # fmt: skip
    return (
        loss,
        top,
        log_total,
        z_loss if options.return_z_loss else None,
        correct if options.return_accuracy else None,
        predicted if options.return_predicted else None,
        gradient,
    )


def backward_rows(
    backend: Backend,
    logits: Array,
    labels: Array,
    weight: Array | None,
    bias: Array | None,
    highest: Array,
    log_total: Array,
    factors: Array,
    dloss: Array | None,
    dz_loss: Array | None,
    options: Options,
    in_place: bool,
    unit_cotangent: bool = False,
    unit_gradient: Array | None = None,
) -> Array:
    """The gradient of a matrix of logits, given the cotangents of its rows, or of their reduction (or that it is 1).

    It overwrites `unit_gradient`, the one for a cotangent of 1, which is then only computed anew for another one.
    """
    parts = backend.size("columns")
    launch = backward_launch(
        *logits.shape,
        backend.dtype(logits),
        backend.dtype(labels),
        backend.strides(logits)[0],
        None if weight is None else backend.dtype(weight),
        None if bias is None else backend.dtype(bias),
        dloss is not None,
        dz_loss is not None,
        options,
        in_place,
        parts,
        unit_cotangent,
        unit_gradient is not None,
    )
    unread = labels
    return backend.launch(
        launch,
        logits,
        labels,
        unread if weight is None else weight,
        unread if bias is None else bias,
        highest,
        log_total,
        factors,
        unread if dloss is None else dloss,
        unread if dz_loss is None else dz_loss,
        unread if parts == 1 else backend.first_column(logits.shape[1]),
        unread if unit_gradient is None else unit_gradient,
    )[0]


def cotangent_rows(backend: Backend, cotangent: Array | None) -> Array | None:
    """A cotangent as the dense fp32 vector that the kernels read."""
    if cotangent is None:
        return None
    return backend.cast(backend.reshape(backend.dense(cotangent), (-1,)), "float32")


def _in_forward(options: Options, needs: Needs) -> bool:
    """Whether the forward pass computes the gradient for a cotangent of 1, from logits that are read once for both.

    It does where one scalar cotangent is all that can come. One that is not 1 takes another sweep in the backward
    pass, over the logits: the gradient is never rounded twice.
    """
    one_cotangent = options.reduction != "none" and not options.return_z_loss
    return any(needs) and one_cotangent and not options.recompute


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    logits, labels, weight = operands
    assert logits is not None and labels is not None
    matrix = backend.matrix(logits)
    weight = None if weight is None else backend.dense(weight)
    flat = backend.reshape(backend.dense(labels), (-1,))
    factors = denominators(backend, flat, weight, matrix.shape[1], options)
    now = _in_forward(options, needs)
    loss, highest, log_total, z_loss, correct, predicted, gradient = forward_rows(
        backend, matrix, flat, weight, None, factors, options, want_gradient=now, in_place=False
    )
    shape = tuple(labels.shape)
    if predicted is not None:
        predicted = backend.reshape(predicted, shape)
    if options.reduction == "none":
        outputs = tuple(None if r is None else backend.reshape(r, shape) for r in (loss, z_loss, correct))
    else:
        outputs = totals(backend, loss, z_loss, correct, factors, options)
    return (*outputs, predicted), (
        None if gradient is None else backend.reshape(gradient, logits.shape),
        backend.reshape(highest, shape),
        backend.reshape(log_total, shape),
        factors,
    )


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    logits, labels, weight = kept["logits"], kept["labels"], kept["weight"]
    unit = kept["grad_logits"]
    assert logits is not None and labels is not None
    matrix = backend.matrix(logits)
    weight = None if weight is None else backend.dense(weight)
    gradient = backward_rows(
        backend,
        matrix,
        backend.reshape(backend.dense(labels), (-1,)),
        weight,
        None,
        backend.reshape(kept["highest"], (-1,)),
        backend.reshape(kept["log_total"], (-1,)),
        kept["denominators"],
        cotangent_rows(backend, cotangents[0]),
        cotangent_rows(backend, cotangents[1]),
        options,
        in_place=False,
        unit_gradient=None if unit is None else backend.matrix(unit),
    )
    return backend.reshape(gradient, logits.shape), None, None


# --------------------------------------------------------------------------------------------------------- op


def check_options(name: str, options: Options) -> None:
    """Raise for option values outside their range."""
    check.one_of(name, "reduction", options.reduction, REDUCTIONS)
    check.in_range(name, "label_smoothing", options.label_smoothing, 0.0, 1.0)
    if options.softcap is not None:
        check.positive(name, "softcap", options.softcap)
    check.in_range(name, "z_loss", options.z_loss, 0.0, sys.float_info.max)
    check.in_range(name, "scale", options.scale, -sys.float_info.max, sys.float_info.max)


def check_labels(
    name: str,
    labels: Spec,
    leading: tuple[int, ...],
    weight: Spec | None,
    n_cols: int,
    weight_name: str = "weight",
) -> None:
    """Raise unless labels fit the rows and class weights the vocabulary."""
    check.dtype(name, "labels", labels, check.LABEL_DTYPES)
    check.shape(name, "labels", labels, leading, "one label per row")
    if weight is not None:
        check.dtype(name, weight_name, weight, check.REFERENCE_FLOATS)
        check.shape(name, weight_name, weight, (n_cols,), "one weight per class")


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    logits, labels, weight = operands
    assert logits is not None and labels is not None
    check.rank_at_least("cross_entropy", "logits", logits, 2, "(..., vocab)")
    check.dtype("cross_entropy", "logits", logits, check.REFERENCE_FLOATS)
    check.not_empty("cross_entropy", "logits", logits, -1, "vocab")
    check_labels("cross_entropy", labels, tuple(logits.shape[:-1]), weight, logits.shape[-1])
    check_options("cross_entropy", options)


def infer_outputs(shape: tuple[int, ...], options: Options) -> tuple[Spec | None, ...]:
    """Specs of (loss, z_loss, accuracy, predicted) for labels of this shape."""
    loss = Spec(shape if options.reduction == "none" else (), "float32")
    return (
        loss,
        loss if options.return_z_loss else None,
        loss if options.return_accuracy else None,
        Spec(shape, "int32") if options.return_predicted else None,
    )


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    logits, labels, _ = operands
    assert logits is not None and labels is not None
    outputs = infer_outputs(labels.shape, options)
    gradient = Spec(logits.shape, logits.dtype) if _in_forward(options, needs) else None
    per_row = Spec(labels.shape, "float32")
    return outputs, (gradient, per_row, per_row, Spec((3,), "float32"))


def reference_outputs(results: Arrays, options: Options) -> Arrays:
    """Those of the reference's results that are asked for."""
    loss, z_loss, accuracy, predicted = results
    return (
        loss,
        z_loss if options.return_z_loss else None,
        accuracy if options.return_accuracy else None,
        predicted if options.return_predicted else None,
    )


def formula_options(options: Options) -> dict[str, object]:
    """The reference's keyword arguments."""
    names = ("ignore_index", "label_smoothing", "z_loss", "softcap", "scale", "reduction", "token_scaling")
    return {name: getattr(options, name) for name in names}


def _reference(operands: Arrays, options: Options, mesh: Mesh = ONE_DEVICE) -> Arrays:
    return reference_outputs(
        reference.cross_entropy(*operands, **formula_options(options), mesh=mesh),  # type: ignore[arg-type]
        options,
    )


def divisible(options: Options, axes: Mapping[str, int]) -> Mapping[str, int]:
    """`Op.columns` of a loss, where a mesh may divide the vocabulary; token scaling would need one number more."""
    return {} if options.token_scaling else axes


OUTPUTS = (
    Output("loss", "rows", axes=0),
    Output("z_loss", "rows", axes=0),
    Output("accuracy", "rows", differentiable=False, axes=0),
    Output("predicted", "rows", differentiable=False, axes=0),
)

CROSS_ENTROPY = Op(
    name="cross_entropy",
    operands=(
        Operand("logits", "rows"),
        Operand("labels", "rows", differentiable=False, axes=0),
        Operand("weight", "shared", differentiable=False, optional=True),
    ),
    outputs=OUTPUTS,
    saved=(
        Output("grad_logits", "rows", differentiable=False),
        Output("highest", "rows", differentiable=False, axes=0),
        Output("log_total", "rows", differentiable=False, axes=0),
        Output("denominators", "shared", differentiable=False),
    ),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=_reference,
    keeps=lambda options, needs: ("logits", "labels", "weight"),
    reuses=lambda options, needs: ("grad_logits",) if _in_forward(options, needs) else (),
    columns=lambda options: divisible(options, {"logits": -1, "grad_logits": -1}),
    reference_on=_reference,
)
