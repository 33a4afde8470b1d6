"""RMSNorm and LayerNorm of rows that are swept block by block. The formulas, and the launches, are in `norm`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_forward_wide(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    n_rows,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    sum_ptr,
    n_cols: tl.constexpr,
    x_stride: tl.constexpr,
    residual_stride: tl.constexpr,
    eps: tl.constexpr,
    offset: tl.constexpr,
    CENTER: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    # Every lane has a mean, and squares about it, of its own (Welford, 1962): lanes meet once, after the sweep.
    squares = tl.zeros((BLOCK,), tl.float32)
    means = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0, eviction_policy="evict_last").to(
            tl.float32
        )
        if HAS_RESIDUAL:
            x += tl.load(
                residual_ptr + row * residual_stride + col, mask=mask, other=0.0, eviction_policy="evict_last"
            ).to(tl.float32)
            rounded = x.to(sum_ptr.dtype.element_ty)
            tl.store(sum_ptr + row * n_cols + col, rounded, mask=mask)
            x = rounded.to(tl.float32)
        if CENTER:
            step = tl.where(mask, x - means, 0.0)
            means += step * (1.0 / (start // BLOCK + 1))
            squares += step * (x - means)
        else:
            squares += x * x
    if CENTER:
        count = ((n_cols - tl.arange(0, BLOCK) + BLOCK - 1) // BLOCK).to(tl.float32)
        # Of the differences from one of them: rows that are all alike have exactly that mean.
        middle = tl.sum(means, axis=0) / BLOCK
        mean = middle + tl.sum((means - middle) * count, axis=0) / n_cols
        squares += count * (means - mean) * (means - mean)  # Chan, Golub & LeVeque, 1983
        tl.store(mean_ptr + row, mean)
    rstd = tl.rsqrt(tl.sum(squares, axis=0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0, eviction_policy="evict_first").to(
            tl.float32
        )
        if HAS_RESIDUAL:
            x += tl.load(
                residual_ptr + row * residual_stride + col,
                mask=mask,
                other=0.0,
                eviction_policy="evict_first",
            ).to(tl.float32)
            x = x.to(sum_ptr.dtype.element_ty).to(tl.float32)
        if CENTER:
            x -= mean
        y = x * rstd
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + col, mask=mask, other=0.0, eviction_policy="evict_last").to(
                tl.float32
            )
            if ROUND_FIRST:
                y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
            y *= weight + offset
        if HAS_BIAS:
            y += tl.load(bias_ptr + col, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
        tl.store(y_ptr + row * n_cols + col, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def norm_input_gradient_wide(
    dy_ptr,
    ds_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    n_rows,
    dx_ptr,
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    ds_stride: tl.constexpr,
    x_stride: tl.constexpr,
    offset: tl.constexpr,
    CENTER: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_DS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    rstd = tl.load(rstd_ptr + row)
    if CENTER:
        mean = tl.load(mean_ptr + row)
    products = tl.zeros((BLOCK,), tl.float32)
    levels = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        g = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            g *= tl.load(weight_ptr + col, mask=mask, other=0.0).to(tl.float32) + offset
        x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
        if CENTER:
            x -= mean
            levels += g
        products += g * (x * rstd)
    slope = tl.sum(products, axis=0) / n_cols
    if CENTER:
        level = tl.sum(levels, axis=0) / n_cols
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        g = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            g *= tl.load(weight_ptr + col, mask=mask, other=0.0).to(tl.float32) + offset
        x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
        if CENTER:
            x -= mean
            g -= level
        dx = (g - x * rstd * slope) * rstd
        if HAS_DS:
            dx += tl.load(ds_ptr + row * ds_stride + col, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * n_cols + col, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def norm_weight_gradient(
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    n_rows,
    dw_ptr,  # (n_groups, n_cols) float32: partial sums
    db_ptr,  # (n_groups, n_cols) float32: partial sums
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    x_stride: tl.constexpr,
    CENTER: tl.constexpr,
    WANT_DW: tl.constexpr,
    WANT_DB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Axis 0 runs over column blocks, axis 1 over groups of rows dealt out in turn.
    col = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = col < n_cols
    dw = tl.zeros((BLOCK,), tl.float32)
    db = tl.zeros((BLOCK,), tl.float32)
    for row in range(tl.program_id(1).to(tl.int64), n_rows, tl.num_programs(1)):
        dy = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
        if WANT_DW:
            x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
            if CENTER:
                x -= tl.load(mean_ptr + row)
            dw += dy * (x * tl.load(rstd_ptr + row))
        if WANT_DB:
            db += dy
    if WANT_DW:
        tl.store(dw_ptr + tl.program_id(1).to(tl.int64) * n_cols + col, dw, mask=mask)
    if WANT_DB:
        tl.store(db_ptr + tl.program_id(1).to(tl.int64) * n_cols + col, db, mask=mask)
