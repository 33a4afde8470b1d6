"""RMSNorm and LayerNorm of rows that stay in registers. The formulas, and the launches, are in `norm`."""

from __future__ import annotations

import triton
import triton.language as tl

from liger_triton.math import widened


@triton.jit
def norm_forward(
    x_ptr,  # (n_rows, n_cols)
    residual_ptr,  # (n_rows, n_cols)
    weight_ptr,  # (n_cols,)
    bias_ptr,  # (n_cols,)
    n_rows,
    y_ptr,  # (n_rows, n_cols)
    mean_ptr,  # (n_rows,) float32
    rstd_ptr,  # (n_rows,) float32
    sum_ptr,  # (n_rows, n_cols): x + residual
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
    EARLY: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < n_rows) & (col < n_cols)
    # Only LayerNorm without a residual is bound by its instructions.
    PAIRED: tl.constexpr = CENTER and not HAS_RESIDUAL and n_cols % 8 == 0 and x_stride % 8 == 0
    x = widened(tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0), ROWS, BLOCK, PAIRED)
    if EARLY:
        # The weight is on its way while x is waited for and summed. The compiler loads it behind the wait without the
        # barrier.
        weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
        tl.debug_barrier()
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row * residual_stride + col, mask=mask, other=0.0).to(tl.float32)
        # The stored sum, rounded, is what is normalised: the model's next layer sees the same numbers.
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * n_cols + col, rounded, mask=mask)
        x = rounded.to(tl.float32)
    if CENTER:
        mean = tl.sum(x, axis=1, keep_dims=True) / n_cols
        tl.store(mean_ptr + row, mean, mask=row < n_rows)
        # The variance of what is centred: E[x^2] - E[x]^2 would cancel where the mean is large.
        x = tl.where(mask, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd, mask=row < n_rows)
    y = x * rstd
    if HAS_WEIGHT:
        if ROUND_FIRST:
            y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
        if not EARLY:
            weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
        y *= widened(weight, 1, BLOCK, PAIRED) + offset
    if HAS_BIAS:
        y += widened(tl.load(bias_ptr + col, mask=col < n_cols, other=0.0), 1, BLOCK, PAIRED)
    tl.store(y_ptr + row * n_cols + col, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _row_means(dy, x, n_cols: tl.constexpr, CENTER: tl.constexpr, BLOCK: tl.constexpr):
    """The means of dy * x and, under CENTER, of dy, (ROWS, 1) each."""
    if CENTER and BLOCK >= 4096:
        # One exchange between threads for both: measured to gain at 4096 and 8192 columns, not at 1024.
        slope, level = tl.split(tl.sum(tl.join(dy * x, dy), axis=1, keep_dims=True))
        level /= n_cols
    else:
        slope = tl.sum(dy * x, axis=1, keep_dims=True)
        level = 0.0
        if CENTER:
            level = tl.sum(dy, axis=1, keep_dims=True) / n_cols
    return slope / n_cols, level


@triton.jit
def norm_backward(
    dy_ptr,  # (n_rows, n_cols)
    ds_ptr,  # (n_rows, n_cols): the cotangent of x + residual
    x_ptr,  # (n_rows, n_cols): x, or x + residual
    weight_ptr,  # (n_cols,)
    mean_ptr,  # (n_rows,) float32
    rstd_ptr,  # (n_rows,) float32
    n_rows,
    dx_ptr,  # (n_rows, n_cols)
    dw_ptr,  # (n_programs, n_cols) float32: partial sums
    db_ptr,  # (n_programs, n_cols) float32: partial sums
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    ds_stride: tl.constexpr,
    x_stride: tl.constexpr,
    offset: tl.constexpr,
    CENTER: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_DS: tl.constexpr,
    WANT_DX: tl.constexpr,
    WANT_DW: tl.constexpr,
    WANT_DB: tl.constexpr,
    REREAD_WEIGHT: tl.constexpr,
    REREAD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    program = tl.program_id(0)
    col = tl.arange(0, BLOCK)[None, :]
    if HAS_WEIGHT and not REREAD_WEIGHT:
        weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0).to(tl.float32) + offset
    dw = tl.zeros((ROWS, BLOCK), tl.float32)
    db = tl.zeros((ROWS, BLOCK), tl.float32)
    # Rows are dealt out in turn, always to the same program in the same order: the sums do not depend on timing.
    for start in tl.range(program.to(tl.int64) * ROWS, n_rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)[:, None].to(tl.int64)
        mask = (row < n_rows) & (col < n_cols)
        # Where the mask is off, dy is 0, and x does not matter.
        if WANT_DX or WANT_DW:
            x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
        if WANT_DX or WANT_DW:
            rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
            if CENTER:
                mean = tl.load(mean_ptr + row, mask=row < n_rows, other=0.0)
                x -= mean
            x *= rstd
        if REREAD:
            # Nothing is held over the sums but dw and db. The barrier keeps the compiler from joining the two reads.
            if HAS_WEIGHT:
                dy *= tl.load(weight_ptr + col, mask=col < n_cols, other=0.0).to(tl.float32) + offset
            slope, level = _row_means(dy, x, n_cols, CENTER, BLOCK)
            tl.debug_barrier()
            x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
            if CENTER:
                x -= mean
            x *= rstd
            dy = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
        if WANT_DW:
            dw += dy * x
        if WANT_DB:
            db += dy
        if WANT_DX:
            if HAS_WEIGHT:
                if REREAD_WEIGHT:
                    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0).to(tl.float32) + offset
                dy *= weight
            if not REREAD:
                slope, level = _row_means(dy, x, n_cols, CENTER, BLOCK)
            if CENTER:
                dy -= level
            dx = (dy - x * slope) * rstd
            if HAS_DS:
                dx += tl.load(ds_ptr + row * ds_stride + col, mask=mask, other=0.0).to(tl.float32)
            tl.store(dx_ptr + row * n_cols + col, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if WANT_DW:
        total = tl.sum(dw, axis=0)[None, :]
        tl.store(dw_ptr + program * n_cols + col, total, mask=col < n_cols)
    if WANT_DB:
        total = tl.sum(db, axis=0)[None, :]
        tl.store(db_ptr + program * n_cols + col, total, mask=col < n_cols)
