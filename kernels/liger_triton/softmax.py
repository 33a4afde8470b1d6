"""Softmax and sparsemax over the last axis, forward and backward.

    softmax     y_i = exp(x_i - max x) / sum_j exp(x_j - max x)
    sparsemax   y_i = max(x_i - tau, 0), with tau such that sum_i y_i = 1     Martins & Astudillo, arXiv:1602.02068

    dx_i = w_i * (dy_i - sum_j w_j dy_j / sum_j w_j)

where w is y for softmax, whose sum is one, and 1 where y > 0 for sparsemax. The backward pass reads y alone.

tau is found without sorting. For any subset B of a row sum_{i in B} (x_i - tau) <= 1, so that

    (sum_{i in B} x_i - 1) / |B| <= tau,   with equality for the support of y.

Newton's method takes for B all that lies above the last bound, until B no longer shrinks. As
f(t) = sum_i max(x_i - t, 0) - 1 is convex, a step from (f, |B|) to (f', |B'|) has f' / f + |B'| / |B| <= 1: it divides
f |B| by four at least. So no numbers need more than about log4(n^2 / rounding) steps, and most need two to ten. What
remains of f at the last bound is subtracted beside tau, not added to it: y errs by its own rounding, not by tau's.
All of it is relative to the row's highest number, so that y has the same digits wherever the row lies.

Rows up to `MAX_BLOCK` wide stay in registers; wider ones are read again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import triton
import triton.language as tl

from liger import check
from liger.backend import Array, Backend
from liger.device import Device
from liger.launch import Launch, Spec, cdiv, next_power_of_2
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import softmax as reference
from liger_triton.held import (
    add_exponentials,
    block_columns,
    fold_row,
    held_block,
    hidden_zero,
    load_held,
    load_streamed,
    read_twice,
    row_total,
    shift_of,
    store_block,
    store_row,
)
from liger_triton.math import exp

MAX_BLOCK = 16384
"""Widest row that a program holds in registers."""

WIDE_BLOCK = 4096
"""Columns that a program reads at a time of wider rows."""

LOWEST_TAU = tl.constexpr(-1.0 - 2.0**-22)
"""Below every row's tau relative to its highest number, which is at least -1, by more than the rounding."""

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _load_row(ptr, n_cols: tl.constexpr, start, BLOCK: tl.constexpr):
    """A block of one row in fp32; -inf beyond its end."""
    col = start + tl.arange(0, BLOCK)
    return tl.load(ptr + col, mask=col < n_cols, other=float("-inf")).to(tl.float32)


@triton.jit
def _above(x, tau):
    """x - tau where that is positive; a NaN stays one, and with the sum makes all of its row NaN."""
    return tl.where(x <= tau, 0.0, x - tau)


@triton.jit
def _projected(x, tau, rest):
    """max(x - tau - rest, 0); a NaN stays one."""
    difference = x - tau
    return tl.where(difference <= rest, 0.0, difference - rest)


@triton.jit
def softmax_forward(
    x_ptr,  # (n_rows, n_cols), row stride x_stride
    n_rows,
    y_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    x_stride: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < n_rows) & (col < n_cols)
    x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
    x = tl.where(col < n_cols, x, float("-inf"))
    y = tl.exp(x - tl.max(x, axis=1, keep_dims=True))
    y /= tl.sum(y, axis=1, keep_dims=True)
    tl.store(y_ptr + row * n_cols + col, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _folded(x, col, sums, arguments, PARTIAL: tl.constexpr):
    """Every lane's sums with its columns of one more block."""
    highest, total = sums
    (n_cols,) = arguments
    if PARTIAL:
        x = tl.where(col < n_cols, x, float("-inf"))
    return add_exponentials(x, highest, total)


@triton.jit
def _shifted(x, col, arguments, PARTIAL: tl.constexpr):
    """y of one more block."""
    top, inverse = arguments
    return exp(x - top) * inverse


@triton.jit
def softmax_forward_wide(
    x_ptr,
    n_rows,
    y_ptr,
    n_cols: tl.constexpr,
    x_stride: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    y_ptr += row * n_cols
    held = load_held(x_ptr, n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED)
    nothing = (tl.full((LANES,), float("-inf"), tl.float32), tl.zeros((LANES,), tl.float32))
    highest, total = fold_row(
        _folded, x_ptr, held, nothing, (n_cols,),
        n_cols, "evict_last", LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL,
    )  # fmt: skip
    top, row_sum = row_total(highest, total)
    store_row(
        _shifted, x_ptr, held, y_ptr, (top, 1.0 / row_sum),
        n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED, UNROLL,
    )  # fmt: skip


@triton.jit
def sparsemax_forward(
    x_ptr,
    n_rows,
    y_ptr,
    n_cols: tl.constexpr,
    x_stride: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < n_rows) & (col < n_cols)
    x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
    x = tl.where(col < n_cols, x, float("-inf"))
    x -= tl.max(x, axis=1, keep_dims=True)
    tau = tl.full((ROWS, 1), LOWEST_TAU, tl.float32)
    rest = tl.zeros((ROWS, 1), tl.float32)
    size = tl.full((ROWS, 1), n_cols + 1, tl.int32)
    searching = 1
    while searching > 0:
        new_size = tl.sum((x > tau).to(tl.int32), axis=1, keep_dims=True)
        rest = (tl.sum(_above(x, tau), axis=1, keep_dims=True) - 1.0) / new_size.to(tl.float32)
        shrunk = new_size < size
        tau = tl.where(shrunk, tau + rest, tau)
        size = tl.minimum(size, new_size)
        searching = tl.max(tl.max(shrunk.to(tl.int32), axis=1), axis=0)
    y = _projected(x, tau, rest)
    tl.store(y_ptr + row * n_cols + col, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def sparsemax_forward_wide(
    x_ptr,
    n_rows,
    y_ptr,
    n_cols: tl.constexpr,
    x_stride: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    # A first bound: the best of one step on every block, a subset as any other. It is relative to the highest so far.
    highest = float("-inf")
    tau = LOWEST_TAU
    for block in range(BLOCKS):
        x = _load_row(x_ptr, n_cols, block * BLOCK, BLOCK)
        top = tl.maximum(highest, tl.max(x, axis=0))
        moved = tl.where(highest == float("-inf"), 0.0, highest - top)
        bound = tl.maximum(tau + moved, LOWEST_TAU)
        highest = top
        x -= shift_of(top)  # of blocks of -inf alone
        n_above = tl.sum((x > bound).to(tl.int32), axis=0)
        excess = tl.sum(_above(x, bound), axis=0) - 1.0
        tau = tl.where(excess > 0.0, bound + excess / tl.maximum(n_above, 1).to(tl.float32), bound)
    rest = 0.0
    size = n_cols + 1
    searching = 1
    while searching > 0:
        above = tl.zeros((BLOCK,), tl.float32)
        counts = tl.zeros((BLOCK,), tl.int32)
        for block in range(BLOCKS):
            x = _load_row(x_ptr, n_cols, block * BLOCK, BLOCK) - highest
            above += _above(x, tau)
            counts += (x > tau).to(tl.int32)
        new_size = tl.sum(counts, axis=0)
        rest = (tl.sum(above, axis=0) - 1.0) / new_size.to(tl.float32)
        searching = (new_size < size).to(tl.int32)
        tau = tl.where(searching > 0, tau + rest, tau)
        size = tl.minimum(size, new_size)
    for block in range(BLOCKS):
        start = (BLOCKS - 1 - block) * BLOCK
        col = start + tl.arange(0, BLOCK)
        y = _projected(_load_row(x_ptr, n_cols, start, BLOCK) - highest, tau, rest)
        tl.store(y_ptr + row * n_cols + col, y.to(y_ptr.dtype.element_ty), mask=col < n_cols)


@triton.jit
def _weight(y, SPARSE: tl.constexpr):
    """w; see the top of the file."""
    if SPARSE:
        y = tl.where(y > 0.0, 1.0, 0.0)
    return y


@triton.jit
def softmax_backward(
    dy_ptr,  # (n_rows, n_cols), row stride dy_stride
    y_ptr,  # (n_rows, n_cols), row stride y_stride
    n_rows,
    dx_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    y_stride: tl.constexpr,
    SPARSE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < n_rows) & (col < n_cols)
    w = _weight(tl.load(y_ptr + row * y_stride + col, mask=mask, other=0.0).to(tl.float32), SPARSE)
    dy = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(w * dy, axis=1, keep_dims=True)
    if SPARSE:  # of nothing but in rows beyond the last one, and in those of NaN
        mean /= tl.sum(w, axis=1, keep_dims=True)
    tl.store(dx_ptr + row * n_cols + col, (w * (dy - mean)).to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def softmax_backward_wide(
    dy_ptr,
    y_ptr,
    n_rows,
    dx_ptr,
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    y_stride: tl.constexpr,
    SPARSE: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    y_ptr += row * y_stride
    dy_ptr += row * dy_stride
    dx_ptr += row * n_cols
    columns = block_columns(LANES, WIDTH, ALIGNED)
    held_y = load_held(y_ptr, n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED)
    held_dy = load_held(dy_ptr, n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED)
    products = tl.zeros((LANES,), tl.float32)
    weights = tl.zeros((LANES,), tl.float32)
    for block in tl.static_range(HELD):  # 0 beyond the row's end
        w = _weight(held_block(held_y[block], 0, y_ptr.dtype.element_ty, LANES, WIDTH), SPARSE)
        products += tl.sum(w * held_block(held_dy[block], 0, dy_ptr.dtype.element_ty, LANES, WIDTH), axis=1)
        weights += tl.sum(w, axis=1)
    for group in range(STREAMED // UNROLL):
        y_blocks = load_streamed(y_ptr, group, LANES, WIDTH, UNROLL, ALIGNED, "evict_last")
        dy_blocks = load_streamed(dy_ptr, group, LANES, WIDTH, UNROLL, ALIGNED, "evict_last")
        for i in tl.static_range(UNROLL):
            w_block = _weight(y_blocks[i].to(tl.float32), SPARSE)
            products += tl.sum(w_block * dy_blocks[i].to(tl.float32), axis=1)
            weights += tl.sum(w_block, axis=1)
    mean = tl.sum(products, axis=0)
    if SPARSE:
        mean /= tl.sum(weights, axis=0)
    for group_back in range(STREAMED // UNROLL):
        # Backwards: what was read last is still in the cache.
        group = STREAMED // UNROLL - 1 - group_back
        y_blocks = load_streamed(y_ptr, group, LANES, WIDTH, UNROLL, ALIGNED, "evict_first")
        dy_blocks = load_streamed(dy_ptr, group, LANES, WIDTH, UNROLL, ALIGNED, "evict_first")
        for i in tl.static_range(UNROLL):
            dx_block = _weight(y_blocks[i].to(tl.float32), SPARSE) * (dy_blocks[i].to(tl.float32) - mean)
            store_block(
                dx_ptr, (group * UNROLL + i) * (LANES * WIDTH) + columns, dx_block, n_cols, PARTIAL=False
            )
    zero = hidden_zero()
    for block in tl.static_range(HELD):
        col = (STREAMED + block) * (LANES * WIDTH) + columns
        w = _weight(held_block(held_y[block], zero, y_ptr.dtype.element_ty, LANES, WIDTH), SPARSE)
        dy = held_block(held_dy[block], zero, dy_ptr.dtype.element_ty, LANES, WIDTH)
        store_block(
            dx_ptr, col, w * (dy - mean), n_cols, PARTIAL=(STREAMED + block + 1) * LANES * WIDTH > n_cols
        )


# --------------------------------------------------------------------------------------------------- launches


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Softmax and sparsemax have no options: frontends bring the axis to the end."""


def _geometry(
    n_rows: int, n_cols: int, device: Device
) -> tuple[int, tuple[tuple[str, int | bool], ...], int]:
    """Programs, the constants of the tiling, and warps."""
    if n_cols > MAX_BLOCK:
        tiling = (("BLOCK", WIDE_BLOCK), ("BLOCKS", cdiv(n_cols, WIDE_BLOCK)))
        return n_rows, tiling, WIDE_BLOCK // (8 * device.warp_size)
    block = next_power_of_2(n_cols)
    rows = min(max(2048 // block, 1), 256)
    # 16 elements of a tile in each thread.
    warps = min(max(rows * block // (16 * device.warp_size), 1), 1024 // device.warp_size, 16)
    return cdiv(n_rows, rows), (("ROWS", rows), ("BLOCK", block)), warps


@functools.lru_cache(4096)
def forward_launch(
    n_rows: int, n_cols: int, dtype: str, x_stride: int, sparse: bool, device: Device
) -> Launch:
    """y. How often sparsemax reads a wide row depends on its numbers; four times at least."""
    programs, tiling, warps = _geometry(n_rows, n_cols, device)
    wide = n_cols > MAX_BLOCK
    passes: float = 4 if sparse and wide else 1
    if wide and not sparse:
        row = read_twice(n_cols, dtype, (x_stride,), device)
        tiling, warps, passes = row.constants, row.lanes // device.warp_size, row.passes
    kernels = (softmax_forward, softmax_forward_wide), (sparsemax_forward, sparsemax_forward_wide)
    return Launch(
        kernel=kernels[sparse][wide],
        grid=(programs,),
        inputs=(Spec((n_rows, n_cols), dtype, passes=passes),),
        integers=(n_rows,),
        outputs=(Spec((n_rows, n_cols), dtype),),
        constants=(("n_cols", n_cols), ("x_stride", x_stride), *tiling),
        num_warps=warps,
        flops=(30 if sparse else 5) * n_rows * n_cols,
    )


@functools.lru_cache(4096)
def backward_launch(
    n_rows: int, n_cols: int, dtype: str, dy_stride: int, y_stride: int, sparse: bool, device: Device
) -> Launch:
    """dx."""
    programs, tiling, warps = _geometry(n_rows, n_cols, device)
    wide = n_cols > MAX_BLOCK
    passes = 1.0
    if wide:
        held = 3 if device.arch == 90 else 2  # blocks of both; elsewhere the third spills
        row = read_twice(n_cols, dtype, (dy_stride, y_stride), device, held, unroll=1)
        tiling, warps, passes = row.constants, row.lanes // device.warp_size, row.passes
    read = Spec((n_rows, n_cols), dtype, passes=passes)
    return Launch(
        kernel=softmax_backward_wide if wide else softmax_backward,
        grid=(programs,),
        inputs=(read, read),
        integers=(n_rows,),
        outputs=(Spec((n_rows, n_cols), dtype),),
        constants=(
            ("n_cols", n_cols),
            ("dy_stride", dy_stride),
            ("y_stride", y_stride),
            ("SPARSE", sparse),
            *tiling,
        ),
        num_warps=warps,
        flops=4 * n_rows * n_cols,
    )


# ------------------------------------------------------------------------------------------------- algorithms


def _op(name: str, sparse: bool, meaning: Callable[[Any], Any]) -> Op:
    def forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
        (x,) = operands
        assert x is not None
        matrix = backend.matrix(x)
        launch = forward_launch(
            *matrix.shape, backend.dtype(x), backend.strides(matrix)[0], sparse, backend.device
        )
        (y,) = backend.launch(launch, matrix)
        return (backend.reshape(y, x.shape),), ()

    def backward(
        backend: Backend,
        kept: Mapping[str, Array | None],
        cotangents: Arrays,
        options: Options,
        needs: Needs,
    ) -> Arrays:
        y, dy = backend.matrix(kept["y"]), backend.matrix(cotangents[0])
        launch = backward_launch(
            *y.shape, backend.dtype(y), backend.strides(dy)[0], backend.strides(y)[0], sparse, backend.device
        )
        (dx,) = backend.launch(launch, dy, y)
        assert cotangents[0] is not None
        return (backend.reshape(dx, cotangents[0].shape),)

    def check_operands(operands: tuple[Spec | None, ...], options: Options) -> None:
        (x,) = operands
        assert x is not None
        check.rank_at_least(name, "x", x, 1, "it works along one of them")
        check.not_empty(name, "x", x, -1, "normalised")
        check.dtype(name, "x", x, check.REFERENCE_FLOATS)

    return Op(
        name=name,
        operands=(Operand("x", "rows"),),
        outputs=(Output("y", "rows"),),
        saved=(),
        options=Options,
        check=check_operands,
        infer=lambda operands, options, needs: (operands, ()),
        forward=forward,
        backward=backward,
        reference=lambda operands, options: (meaning(operands[0]),),
        keeps=lambda options, needs: ("y",),
        gradient_like=(("x", "y"),),
    )


SOFTMAX = _op("softmax", False, reference.softmax)
SPARSEMAX = _op("sparsemax", True, reference.sparsemax)
