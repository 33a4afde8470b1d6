"""RMSNorm, with and without weight and residual add, forward and backward.

    s = x + residual                          (rounded to x's dtype; s = x without a residual)
    r = 1 / sqrt(mean(s^2) + eps)
    y = s * r * (offset + weight)

    g  = dy * (offset + weight)
    dx = r * (g - s * r * mean(g * s * r)) + ds
    dw = sum over rows of dy * s * r

Zhang & Sennrich, arXiv:1910.07467. Rows up to `MAX_BLOCK` wide stay in registers; wider ones are swept twice.
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
from liger.launch import DTYPE_BYTES, Launch, Spec, cdiv, next_power_of_2, previous_power_of_2, promote
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import rms_norm as reference
from liger_triton.reduce import sum_partials_launch

MAX_BLOCK = 16384
"""Widest row that a program holds in registers: beyond it the backward pass would spill."""

CASTINGS = ("llama", "gemma", "none")


# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def rms_norm_forward(
    x_ptr,  # (n_rows, n_cols)
    residual_ptr,  # (n_rows, n_cols)
    weight_ptr,  # (n_cols,)
    n_rows,
    y_ptr,  # (n_rows, n_cols)
    rstd_ptr,  # (n_rows,) float32
    sum_ptr,  # (n_rows, n_cols): x + residual
    n_cols: tl.constexpr,
    x_stride: tl.constexpr,
    residual_stride: tl.constexpr,
    eps: tl.constexpr,
    offset: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < n_rows) & (col < n_cols)
    x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row * residual_stride + col, mask=mask, other=0.0).to(tl.float32)
        # The stored sum, rounded, is what is normalised: the model's next layer sees the same numbers.
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * n_cols + col, rounded, mask=mask)
        x = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd, mask=row < n_rows)
    y = x * rstd
    if HAS_WEIGHT:
        if ROUND_FIRST:
            y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
        y *= tl.load(weight_ptr + col, mask=col < n_cols, other=0.0).to(tl.float32) + offset
    tl.store(y_ptr + row * n_cols + col, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def rms_norm_forward_wide(
    x_ptr,
    residual_ptr,
    weight_ptr,
    n_rows,
    y_ptr,
    rstd_ptr,
    sum_ptr,
    n_cols: tl.constexpr,
    x_stride: tl.constexpr,
    residual_stride: tl.constexpr,
    eps: tl.constexpr,
    offset: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            x += tl.load(residual_ptr + row * residual_stride + col, mask=mask, other=0.0).to(tl.float32)
            rounded = x.to(sum_ptr.dtype.element_ty)
            tl.store(sum_ptr + row * n_cols + col, rounded, mask=mask)
            x = rounded.to(tl.float32)
        squares += x * x
    rstd = tl.rsqrt(tl.sum(squares, axis=0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            x += tl.load(residual_ptr + row * residual_stride + col, mask=mask, other=0.0).to(tl.float32)
            x = x.to(sum_ptr.dtype.element_ty).to(tl.float32)
        y = x * rstd
        if HAS_WEIGHT:
            if ROUND_FIRST:
                y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
            y *= tl.load(weight_ptr + col, mask=mask, other=0.0).to(tl.float32) + offset
        tl.store(y_ptr + row * n_cols + col, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def rms_norm_backward(
    dy_ptr,  # (n_rows, n_cols)
    ds_ptr,  # (n_rows, n_cols): the cotangent of x + residual
    x_ptr,  # (n_rows, n_cols): x, or x + residual
    weight_ptr,  # (n_cols,)
    rstd_ptr,  # (n_rows,) float32
    n_rows,
    dx_ptr,  # (n_rows, n_cols)
    partial_ptr,  # (n_programs, n_cols) float32
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    ds_stride: tl.constexpr,
    x_stride: tl.constexpr,
    offset: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_DS: tl.constexpr,
    WANT_DX: tl.constexpr,
    WANT_DW: tl.constexpr,
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
    # Rows are dealt out in turn, always to the same program in the same order: the sums do not depend on timing.
    for start in tl.range(program.to(tl.int64) * ROWS, n_rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)[:, None].to(tl.int64)
        mask = (row < n_rows) & (col < n_cols)
        x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
        x *= rstd
        if REREAD:
            # Nothing is held over the sum but dw. The barrier keeps the compiler from joining the two reads.
            if HAS_WEIGHT:
                dy *= tl.load(weight_ptr + col, mask=col < n_cols, other=0.0).to(tl.float32) + offset
            mean = tl.sum(dy * x, axis=1, keep_dims=True) / n_cols
            tl.debug_barrier()
            x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32) * rstd
            dy = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
        if WANT_DW:
            dw += dy * x
        if WANT_DX:
            if HAS_WEIGHT:
                if REREAD_WEIGHT:
                    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0).to(tl.float32) + offset
                dy *= weight
            if not REREAD:
                mean = tl.sum(dy * x, axis=1, keep_dims=True) / n_cols
            dx = (dy - x * mean) * rstd
            if HAS_DS:
                dx += tl.load(ds_ptr + row * ds_stride + col, mask=mask, other=0.0).to(tl.float32)
            tl.store(dx_ptr + row * n_cols + col, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if WANT_DW:
        total = tl.sum(dw, axis=0)[None, :]
        tl.store(partial_ptr + program * n_cols + col, total, mask=col < n_cols)


@triton.jit
def rms_norm_input_gradient_wide(
    dy_ptr,
    ds_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    n_rows,
    dx_ptr,
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    ds_stride: tl.constexpr,
    x_stride: tl.constexpr,
    offset: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_DS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    rstd = tl.load(rstd_ptr + row)
    products = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        g = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            g *= tl.load(weight_ptr + col, mask=mask, other=0.0).to(tl.float32) + offset
        products += g * (tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32) * rstd)
    mean = tl.sum(products, axis=0) / n_cols
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < n_cols
        g = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            g *= tl.load(weight_ptr + col, mask=mask, other=0.0).to(tl.float32) + offset
        x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32) * rstd
        dx = (g - x * mean) * rstd
        if HAS_DS:
            dx += tl.load(ds_ptr + row * ds_stride + col, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * n_cols + col, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def rms_norm_weight_gradient_wide(
    dy_ptr,
    x_ptr,
    rstd_ptr,
    n_rows,
    partial_ptr,  # (n_groups, n_cols) float32
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    x_stride: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Axis 0 runs over column blocks, axis 1 over groups of rows dealt out in turn.
    col = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = col < n_cols
    dw = tl.zeros((BLOCK,), tl.float32)
    for row in range(tl.program_id(1).to(tl.int64), n_rows, tl.num_programs(1)):
        dy = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
        dw += dy * (x * tl.load(rstd_ptr + row))
    tl.store(partial_ptr + tl.program_id(1).to(tl.int64) * n_cols + col, dw, mask=mask)


# --------------------------------------------------------------------------------------------------- launches


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What RMSNorm is asked to do beside its arrays.

    Attributes:
        eps: added to the mean square.
        offset: added to the weight (1.0 for Gemma).
        casting: where the result is rounded to x's dtype: "llama" before the weight, "gemma" and "none" after it.
        in_place: the backward pass may write dx over dy.
    """

    eps: float = 1e-6
    offset: float = 0.0
    casting: str = "llama"
    in_place: bool = False


def _warps(elements: int, device: Device) -> int:
    """Threads so that each holds about 16 elements of a vector: few registers, 16-byte loads."""
    return min(max(elements // (16 * device.warp_size), 1), 1024 // device.warp_size, 16)


def _block_rows(n_cols: int, tile_elements: int) -> int:
    """Rows of a tile, for rows so narrow that one alone would leave a program idle."""
    return min(max(previous_power_of_2(tile_elements // next_power_of_2(n_cols)), 1), 32)


@functools.lru_cache(4096)
def forward_launch(
    n_rows: int,
    n_cols: int,
    dtype: str,
    weight_dtype: str | None,
    x_stride: int,
    residual_stride: int | None,
    options: Options,
    device: Device,
) -> Launch:
    """y, rstd and, with a residual, x + residual."""
    has_weight, has_residual = weight_dtype is not None, residual_stride is not None
    matrix = Spec((n_rows, n_cols), dtype)
    out_dtype = promote(dtype, weight_dtype) if weight_dtype and options.casting == "llama" else dtype
    wide = n_cols > MAX_BLOCK
    constants: dict[str, int | float | bool] = {
        "n_cols": n_cols,
        "x_stride": x_stride,
        "residual_stride": residual_stride if residual_stride is not None else x_stride,
        "eps": options.eps,
        "offset": options.offset,
        "HAS_WEIGHT": has_weight,
        "HAS_RESIDUAL": has_residual,
        "ROUND_FIRST": options.casting == "llama",
    }
    if wide:
        constants |= {"BLOCK": 4096}
        grid, warps = n_rows, 8
    else:
        rows, block = _block_rows(n_cols, 2048), next_power_of_2(n_cols)
        constants |= {"ROWS": rows, "BLOCK": block}
        grid, warps = cdiv(n_rows, rows), _warps(rows * block, device)
    passes = 2 if wide else 1
    return Launch(
        kernel=rms_norm_forward_wide if wide else rms_norm_forward,
        grid=(grid,),
        inputs=(
            Spec((n_rows, n_cols), dtype, passes=passes),
            Spec((n_rows, n_cols), dtype, passes=passes, unread=not has_residual),
            Spec((n_cols,), weight_dtype or dtype, resident=True, unread=not has_weight),
        ),
        integers=(n_rows,),
        outputs=(
            Spec((n_rows, n_cols), out_dtype),
            Spec((n_rows,), "float32"),
            matrix if has_residual else Spec((0,), dtype),
        ),
        constants=tuple(constants.items()),
        num_warps=warps,
        flops=5 * n_rows * n_cols,
    )


def _backward_geometry(n_cols: int, itemsize: int, device: Device) -> tuple[int, int, int, int]:
    """(rows per tile, programs per multiprocessor, warps, pipeline stages), by sweeps on an H200.

    The aim is 32 to 48 KiB of loads in flight per multiprocessor before the first sum is waited for.
    """
    block = next_power_of_2(n_cols)
    warps = min(_warps(2 * block, device), 8)
    if block <= 256:
        rows = min(2048 // block, 16)
        return rows, 8, min(max(rows * block // (8 * device.warp_size), 1), 4), 1
    if block <= 512:
        return 16 // itemsize, 4, 4, 3
    if block <= 1024:
        return 4, 2, 4, 3
    if block <= 2048:
        return 2, 2, 4, 3
    if block <= 4096:
        return 1, 2, 4, 3
    if block <= 8192:
        return 1, 1, max(warps, 8), 3
    return 1, 1, 16 if itemsize == 2 or device.warp_size == 64 else 32, 1


@functools.lru_cache(4096)
def backward_launch(
    n_rows: int,
    n_cols: int,
    dtype: str,
    dy_dtype: str,
    weight_dtype: str | None,
    x_stride: int,
    dy_stride: int,
    ds_stride: int | None,
    want_dx: bool,
    want_dw: bool,
    options: Options,
    device: Device,
) -> Launch:
    """dx, and one fp32 row of the weight gradient per program, for rows of at most MAX_BLOCK."""
    itemsize = max(DTYPE_BYTES[dtype], DTYPE_BYTES[dy_dtype])
    rows, per_multiprocessor, warps, stages = _backward_geometry(n_cols, itemsize, device)
    programs = min(cdiv(n_rows, rows), per_multiprocessor * device.multiprocessors)
    has_ds = ds_stride is not None and want_dx
    # x, dy, dw and the weight of such a row do not fit NVIDIA's 65,536 registers of a multiprocessor. The weight is
    # read again for every row, from the cache; x and dy also are where the compiler would otherwise spill.
    widest = want_dx and n_cols > 8192 and device.vendor == "cuda"
    reread = widest and (itemsize > 2 or (has_ds and device.arch != 90))
    passes = 2 if reread else 1
    return Launch(
        kernel=rms_norm_backward,
        grid=(programs,),
        inputs=(
            Spec((n_rows, n_cols), dy_dtype, passes=passes),
            Spec((n_rows, n_cols), dtype, unread=not has_ds),
            Spec((n_rows, n_cols), dtype, passes=passes),
            Spec((n_cols,), weight_dtype or dtype, resident=True, unread=not (weight_dtype and want_dx)),
            Spec((n_rows,), "float32"),
        ),
        integers=(n_rows,),
        outputs=(
            Spec((n_rows, n_cols) if want_dx else (0,), dtype),
            Spec((programs, n_cols) if want_dw else (0,), "float32"),
        ),
        constants=(
            ("n_cols", n_cols),
            ("dy_stride", dy_stride),
            ("ds_stride", ds_stride if ds_stride is not None else n_cols),
            ("x_stride", x_stride),
            ("offset", options.offset),
            ("HAS_WEIGHT", weight_dtype is not None and want_dx),
            ("HAS_DS", has_ds),
            ("WANT_DX", want_dx),
            ("WANT_DW", want_dw),
            ("REREAD_WEIGHT", widest),
            ("REREAD", reread),
            ("ROWS", rows),
            ("BLOCK", next_power_of_2(n_cols)),
            ("STAGES", stages),
        ),
        num_warps=warps,
        aliases=_in_place(options, want_dx, dtype, dy_dtype, dy_stride, n_cols),
        flops=10 * n_rows * n_cols,
    )


def _in_place(
    options: Options, want_dx: bool, dtype: str, dy_dtype: str, dy_stride: int, n_cols: int
) -> tuple[tuple[int, int], ...]:
    """dx over dy, where that was asked for and the two have one layout."""
    return ((0, 0),) if options.in_place and want_dx and dtype == dy_dtype and dy_stride == n_cols else ()


@functools.lru_cache(4096)
def input_gradient_wide_launch(
    n_rows: int,
    n_cols: int,
    dtype: str,
    dy_dtype: str,
    weight_dtype: str | None,
    x_stride: int,
    dy_stride: int,
    ds_stride: int | None,
    options: Options,
) -> Launch:
    """dx of rows wider than MAX_BLOCK."""
    return Launch(
        kernel=rms_norm_input_gradient_wide,
        grid=(n_rows,),
        inputs=(
            Spec((n_rows, n_cols), dy_dtype, passes=2),
            Spec((n_rows, n_cols), dtype, unread=ds_stride is None),
            Spec((n_rows, n_cols), dtype, passes=2),
            Spec((n_cols,), weight_dtype or dtype, resident=True, unread=weight_dtype is None),
            Spec((n_rows,), "float32"),
        ),
        integers=(n_rows,),
        outputs=(Spec((n_rows, n_cols), dtype),),
        constants=(
            ("n_cols", n_cols),
            ("dy_stride", dy_stride),
            ("ds_stride", ds_stride if ds_stride is not None else n_cols),
            ("x_stride", x_stride),
            ("offset", options.offset),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("HAS_DS", ds_stride is not None),
            ("BLOCK", 4096),
        ),
        num_warps=8,
        aliases=_in_place(options, True, dtype, dy_dtype, dy_stride, n_cols),
        flops=8 * n_rows * n_cols,
    )


@functools.lru_cache(4096)
def weight_gradient_wide_launch(
    n_rows: int, n_cols: int, dtype: str, dy_dtype: str, x_stride: int, dy_stride: int, device: Device
) -> Launch:
    """Partial weight gradients of rows wider than MAX_BLOCK."""
    block = 1024
    groups = min(n_rows, max(4 * device.multiprocessors // cdiv(n_cols, block), 1))
    return Launch(
        kernel=rms_norm_weight_gradient_wide,
        grid=(cdiv(n_cols, block), groups),
        inputs=(
            Spec((n_rows, n_cols), dy_dtype),
            Spec((n_rows, n_cols), dtype),
            Spec((n_rows,), "float32", resident=True),
        ),
        integers=(n_rows,),
        outputs=(Spec((groups, n_cols), "float32"),),
        constants=(("n_cols", n_cols), ("dy_stride", dy_stride), ("x_stride", x_stride), ("BLOCK", block)),
        num_warps=block // (8 * device.warp_size),
        flops=3 * n_rows * n_cols,
    )


# ------------------------------------------------------------------------------------------------- algorithms


def _forward(
    backend: Backend, x: Array, residual: Array | None, weight: Array | None, options: Options
) -> tuple[Array, Array, Array | None]:
    matrix = backend.matrix(x)
    other = None if residual is None else backend.matrix(residual)
    weight = None if weight is None else backend.dense(weight)
    n_rows, n_cols = matrix.shape
    launch = forward_launch(
        n_rows,
        n_cols,
        backend.dtype(x),
        None if weight is None else backend.dtype(weight),
        backend.strides(matrix)[0],
        None if other is None else backend.strides(other)[0],
        options,
        backend.device,
    )
    y, rstd, total = backend.launch(
        launch, matrix, matrix if other is None else other, matrix if weight is None else weight
    )
    shape = x.shape
    return (
        backend.reshape(y, shape),
        backend.reshape(rstd, shape[:-1]),
        None if residual is None else backend.reshape(total, shape),
    )


def _backward(
    backend: Backend,
    dy: Array,
    ds: Array | None,
    x: Array,
    weight: Array | None,
    rstd: Array,
    options: Options,
    want_dx: bool,
    want_dw: bool,
) -> tuple[Array | None, Array | None]:
    x_matrix, dy_matrix = backend.matrix(x), backend.matrix(dy)
    ds_matrix = None if ds is None else backend.matrix(ds)
    weight = None if weight is None else backend.dense(weight)
    n_rows, n_cols = x_matrix.shape
    dtype, dy_dtype = backend.dtype(x), backend.dtype(dy)
    weight_dtype = None if weight is None else backend.dtype(weight)
    x_stride, dy_stride = backend.strides(x_matrix)[0], backend.strides(dy_matrix)[0]
    ds_stride = None if ds_matrix is None else backend.strides(ds_matrix)[0]
    rstd = backend.reshape(rstd, (n_rows,))
    # Pointers of arrays that are absent are never read; any valid one will do.
    ds_operand = x_matrix if ds_matrix is None else ds_matrix
    weight_operand = x_matrix if weight is None else weight
    dx = partials = None
    if n_cols <= MAX_BLOCK:
        launch = backward_launch(
            n_rows, n_cols, dtype, dy_dtype, weight_dtype, x_stride, dy_stride, ds_stride, want_dx, want_dw,
            options, backend.device,
        )  # fmt: skip
        dx, partials = backend.launch(launch, dy_matrix, ds_operand, x_matrix, weight_operand, rstd)
    else:
        if want_dw:  # first, since dx may be written over dy
            launch = weight_gradient_wide_launch(
                n_rows, n_cols, dtype, dy_dtype, x_stride, dy_stride, backend.device
            )
            (partials,) = backend.launch(launch, dy_matrix, x_matrix, rstd)
        if want_dx:
            launch = input_gradient_wide_launch(
                n_rows, n_cols, dtype, dy_dtype, weight_dtype, x_stride, dy_stride, ds_stride, options
            )
            (dx,) = backend.launch(launch, dy_matrix, ds_operand, x_matrix, weight_operand, rstd)
    dw = None
    if want_dw:
        assert partials is not None and weight_dtype is not None
        (dw,) = backend.launch(sum_partials_launch(partials.shape[0], n_cols, weight_dtype), partials)
    return (backend.reshape(dx, x.shape) if want_dx else None), dw


def _rms_norm_forward(
    backend: Backend, operands: Arrays, options: Options, needs: Needs
) -> tuple[Arrays, Arrays]:
    x, weight = operands
    y, rstd, _ = _forward(backend, x, None, weight, options)
    return (y,), (rstd,)


def _rms_norm_backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    (dy,) = cotangents
    return _backward(backend, dy, None, kept["x"], kept["weight"], kept["rstd"], options, *needs)


def _add_rms_norm_forward(
    backend: Backend, operands: Arrays, options: Options, needs: Needs
) -> tuple[Arrays, Arrays]:
    x, residual, weight = operands
    y, rstd, total = _forward(backend, x, residual, weight, options)
    return (y, total), (rstd,)


def _add_rms_norm_backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    dy, ds = cotangents
    want_dx, _, want_dw = needs
    weight, total = kept["weight"], kept["sum"]
    if dy is None:
        dw = backend.zeros(weight.shape, backend.dtype(weight)) if want_dw and weight is not None else None
        return ds if want_dx else None, None, dw
    dx, dw = _backward(backend, dy, ds, total, weight, kept["rstd"], options, want_dx, want_dw)
    return dx, None, dw


# -------------------------------------------------------------------------------------------------------- ops


def _check(name: str, x: Spec, weight: Spec | None, options: Options) -> None:
    check.rank_at_least(name, "x", x, 1, "the last axis is normalised")
    check.not_empty(name, "x", x, -1, "last")
    check.dtype(name, "x", x, check.REFERENCE_FLOATS)
    if weight is not None:
        check.dtype(name, "weight", weight, check.REFERENCE_FLOATS)
        check.shape(name, "weight", weight, (x.shape[-1],), "the last axis of x")
    check.one_of(name, "casting", options.casting, CASTINGS)
    check.in_range(name, "eps", options.eps, 0.0, sys.float_info.max)


def _check_rms_norm(operands: tuple[Spec | None, ...], options: Options) -> None:
    x, weight = operands
    assert x is not None
    _check("rms_norm", x, weight, options)


def _check_add_rms_norm(operands: tuple[Spec | None, ...], options: Options) -> None:
    x, residual, weight = operands
    assert x is not None and residual is not None
    _check("add_rms_norm", x, weight, options)
    check.shape("add_rms_norm", "residual", residual, x.shape, "the shape of x")
    check.same_dtype("add_rms_norm", "residual", residual, "x", x)


def _infer(x: Spec, weight: Spec | None, options: Options) -> tuple[Spec, Spec]:
    out_dtype = (
        promote(x.dtype, weight.dtype) if weight is not None and options.casting == "llama" else x.dtype
    )
    return Spec(x.shape, out_dtype), Spec(x.shape[:-1], "float32")


def _infer_rms_norm(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    x, weight = operands
    assert x is not None
    y, rstd = _infer(x, weight, options)
    return (y,), (rstd,)


def _infer_add_rms_norm(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    x, _, weight = operands
    assert x is not None
    y, rstd = _infer(x, weight, options)
    return (y, Spec(x.shape, x.dtype)), (rstd,)


def _reference(operands: Arrays, options: Options) -> Arrays:
    x, weight = operands
    return (reference.rms_norm(x, weight, eps=options.eps, offset=options.offset, casting=options.casting),)


def _add_reference(operands: Arrays, options: Options) -> Arrays:
    x, residual, weight = operands
    return reference.add_rms_norm(
        x, residual, weight, eps=options.eps, offset=options.offset, casting=options.casting
    )


RMS_NORM = Op(
    name="rms_norm",
    operands=(Operand("x", "rows"), Operand("weight", "shared", optional=True)),
    outputs=(Output("y", "rows"),),
    saved=(Output("rstd", "rows", differentiable=False, axes=0),),
    options=Options,
    check=_check_rms_norm,
    infer=_infer_rms_norm,
    forward=_rms_norm_forward,
    backward=_rms_norm_backward,
    reference=_reference,
    keeps=lambda options, needs: ("x", "weight"),
)

ADD_RMS_NORM = Op(
    name="add_rms_norm",
    operands=(Operand("x", "rows"), Operand("residual", "rows"), Operand("weight", "shared", optional=True)),
    outputs=(Output("y", "rows"), Output("sum", "rows")),
    saved=(Output("rstd", "rows", differentiable=False, axes=0),),
    options=Options,
    check=_check_add_rms_norm,
    infer=_infer_add_rms_norm,
    forward=_add_rms_norm_forward,
    backward=_add_rms_norm_backward,
    reference=_add_reference,
    keeps=lambda options, needs: ("sum", "weight"),
    gradient_like=(("x", "sum"),),
    same_gradient=(("residual", "x"),),
)
