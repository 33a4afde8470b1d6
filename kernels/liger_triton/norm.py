"""RMSNorm and LayerNorm on one set of kernels: with and without weight, bias and residual add, forward and backward.

    s = x + residual                          (rounded to x's dtype; s = x without a residual)
    m = mean(s)                               (0 in RMSNorm)
    r = 1 / sqrt(mean((s - m)^2) + eps)
    n = (s - m) * r
    y = n * (offset + weight) + bias

    g  = dy * (offset + weight)
    dx = r * (g - mean(g) - n * mean(g * n)) + ds     (without mean(g) in RMSNorm)
    dw = sum over rows of dy * n
    db = sum over rows of dy

Zhang & Sennrich, arXiv:1910.07467; Ba, Kiros & Hinton, arXiv:1607.06450. Narrow rows stay in registers (`norm_rows`);
wide ones are swept twice (`norm_wide`): as `norm_geometry` says. The ops are in `rms_norm` and `layer_norm`.
"""

from __future__ import annotations

import functools
import sys
from typing import NamedTuple, Protocol

from liger import check
from liger.backend import Array, Backend
from liger.device import Device
from liger.launch import DTYPE_BYTES, Launch, Spec, cdiv, next_power_of_2, promote
from liger_triton import norm_rows, norm_wide
from liger_triton.norm_geometry import (
    MAX_BLOCK,
    Geometry,
    backward_geometry,
    forward_tile,
    is_early,
    is_swept,
    sweep,
)
from liger_triton.reduce import summed

# --------------------------------------------------------------------------------------------------- launches


class Options(Protocol):
    """What the kernels are asked to do beside their arrays: the options of RMSNorm, or of LayerNorm."""

    @property
    def eps(self) -> float:
        """Added to the mean square."""
        ...

    @property
    def offset(self) -> float:
        """Added to the weight."""
        ...

    @property
    def casting(self) -> str:
        """Where the result is rounded to x's dtype: "llama" before the weight, otherwise after it."""
        ...

    @property
    def in_place(self) -> bool:
        """The backward pass may write dx over dy."""
        ...

    @property
    def center(self) -> bool:
        """Whether the mean is subtracted."""
        ...

    def __hash__(self) -> int:
        """Launches are cached by them."""
        ...


@functools.lru_cache(4096)
def forward_launch(
    n_rows: int,
    n_cols: int,
    dtype: str,
    weight_dtype: str | None,
    bias_dtype: str | None,
    x_stride: int,
    residual_stride: int | None,
    options: Options,
    device: Device,
) -> Launch:
    """y, the mean if it is subtracted, rstd and, with a residual, x + residual."""
    has_weight, has_residual = weight_dtype is not None, residual_stride is not None
    matrix = Spec((n_rows, n_cols), dtype)
    out_dtype = promote(dtype, weight_dtype) if weight_dtype and options.casting == "llama" else dtype
    itemsize = DTYPE_BYTES[dtype]
    swept = is_swept(n_cols, itemsize, has_residual, options.center)
    constants: dict[str, int | float | bool] = {
        "n_cols": n_cols,
        "x_stride": x_stride,
        "residual_stride": residual_stride if residual_stride is not None else x_stride,
        "eps": options.eps,
        "offset": options.offset,
        "CENTER": options.center,
        "HAS_WEIGHT": has_weight,
        "HAS_BIAS": bias_dtype is not None,
        "HAS_RESIDUAL": has_residual,
        "ROUND_FIRST": options.casting == "llama",
    }
    if swept:
        block, warps = sweep(n_cols, device)
        constants |= {"BLOCK": block}
        grid = n_rows
    else:
        block = next_power_of_2(n_cols)
        rows, warps = forward_tile(n_cols, itemsize, has_residual, options.center, device)
        widest = max(itemsize, DTYPE_BYTES[weight_dtype or dtype])
        early = has_weight and is_early(block, widest, has_residual, options.center)
        constants |= {"EARLY": early, "ROWS": rows, "BLOCK": block}
        grid = cdiv(n_rows, rows)
    passes = 2 if swept else 1
    return Launch(
        kernel=norm_wide.norm_forward_wide if swept else norm_rows.norm_forward,
        grid=(grid,),
        inputs=(
            Spec((n_rows, n_cols), dtype, passes=passes),
            Spec((n_rows, n_cols), dtype, passes=passes, unread=not has_residual),
            Spec((n_cols,), weight_dtype or dtype, resident=True, unread=not has_weight),
            Spec((n_cols,), bias_dtype or dtype, resident=True, unread=bias_dtype is None),
        ),
        integers=(n_rows,),
        outputs=(
            Spec((n_rows, n_cols), out_dtype),
            Spec((n_rows,) if options.center else (0,), "float32"),
            Spec((n_rows,), "float32"),
            matrix if has_residual else Spec((0,), dtype),
        ),
        constants=tuple(constants.items()),
        num_warps=warps,
        flops=(8 if options.center else 5) * n_rows * n_cols,
    )


class Gradients(NamedTuple):
    """Which gradients are computed: of x (and of a residual, the same), of the weight, of the bias."""

    x: bool
    weight: bool
    bias: bool


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
    want: Gradients,
    options: Options,
    device: Device,
    layout: Geometry | None = None,
) -> Launch:
    """dx, and one fp32 row of the weight's and the bias's gradient per program, for rows of at most MAX_BLOCK.

    `layout` None: the measured one, or the rule's.
    """
    itemsize = max(DTYPE_BYTES[dtype], DTYPE_BYTES[dy_dtype])
    layout = layout or backward_geometry(n_cols, itemsize, options.center, device)
    programs = min(cdiv(n_rows, layout.rows), layout.programs * device.multiprocessors)
    has_ds = ds_stride is not None and want.x
    # x, dy, dw and the weight of such a row do not fit NVIDIA's 65,536 registers of a multiprocessor. The weight is
    # read again for every row, from the cache; x and dy also are where the compiler would otherwise spill. (LayerNorm,
    # with one more sum, leaves dw and db to another kernel there.)
    widest = want.x and n_cols > 8192 and device.vendor == "cuda"
    reread = widest and not options.center and (itemsize > 2 or (has_ds and device.arch != 90))
    passes = 2 if reread else 1
    centred = options.center and (want.x or want.weight)
    return Launch(
        kernel=norm_rows.norm_backward,
        grid=(programs,),
        inputs=(
            Spec((n_rows, n_cols), dy_dtype, passes=passes),
            Spec((n_rows, n_cols), dtype, unread=not has_ds),
            Spec((n_rows, n_cols), dtype, passes=passes, unread=not (want.x or want.weight)),
            Spec((n_cols,), weight_dtype or dtype, resident=True, unread=not (weight_dtype and want.x)),
            Spec((n_rows,), "float32", unread=not centred),
            Spec((n_rows,), "float32", unread=not (want.x or want.weight)),
        ),
        integers=(n_rows,),
        outputs=(
            Spec((n_rows, n_cols) if want.x else (0,), dtype),
            Spec((programs, n_cols) if want.weight else (0,), "float32"),
            Spec((programs, n_cols) if want.bias else (0,), "float32"),
        ),
        constants=(
            ("n_cols", n_cols),
            ("dy_stride", dy_stride),
            ("ds_stride", ds_stride if ds_stride is not None else n_cols),
            ("x_stride", x_stride),
            ("offset", options.offset),
            ("CENTER", options.center),
            ("HAS_WEIGHT", weight_dtype is not None and want.x),
            ("HAS_DS", has_ds),
            ("WANT_DX", want.x),
            ("WANT_DW", want.weight),
            ("WANT_DB", want.bias),
            ("REREAD_WEIGHT", widest),
            ("REREAD", reread),
            ("ROWS", layout.rows),
            ("BLOCK", next_power_of_2(n_cols)),
            ("STAGES", layout.stages),
        ),
        num_warps=layout.warps,
        aliases=_in_place(options, want.x, dtype, dy_dtype, dy_stride, n_cols),
        flops=(14 if options.center else 10) * n_rows * n_cols,
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
        kernel=norm_wide.norm_input_gradient_wide,
        grid=(n_rows,),
        inputs=(
            Spec((n_rows, n_cols), dy_dtype, passes=2),
            Spec((n_rows, n_cols), dtype, unread=ds_stride is None),
            Spec((n_rows, n_cols), dtype, passes=2),
            Spec((n_cols,), weight_dtype or dtype, resident=True, unread=weight_dtype is None),
            Spec((n_rows,), "float32", unread=not options.center),
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
            ("CENTER", options.center),
            ("HAS_WEIGHT", weight_dtype is not None),
            ("HAS_DS", ds_stride is not None),
            ("BLOCK", 4096),
        ),
        num_warps=8,
        aliases=_in_place(options, True, dtype, dy_dtype, dy_stride, n_cols),
        flops=(11 if options.center else 8) * n_rows * n_cols,
    )


@functools.lru_cache(4096)
def weight_gradient_launch(
    n_rows: int,
    n_cols: int,
    dtype: str,
    dy_dtype: str,
    x_stride: int,
    dy_stride: int,
    want: Gradients,
    options: Options,
    device: Device,
) -> Launch:
    """Partial gradients of the weight and the bias alone, for rows of any width."""
    block = 1024
    groups = min(n_rows, max(4 * device.multiprocessors // cdiv(n_cols, block), 1))
    return Launch(
        kernel=norm_wide.norm_weight_gradient,
        grid=(cdiv(n_cols, block), groups),
        inputs=(
            Spec((n_rows, n_cols), dy_dtype),
            Spec((n_rows, n_cols), dtype, unread=not want.weight),
            Spec((n_rows,), "float32", resident=True, unread=not (want.weight and options.center)),
            Spec((n_rows,), "float32", resident=True, unread=not want.weight),
        ),
        integers=(n_rows,),
        outputs=(
            Spec((groups, n_cols) if want.weight else (0,), "float32"),
            Spec((groups, n_cols) if want.bias else (0,), "float32"),
        ),
        constants=(
            ("n_cols", n_cols),
            ("dy_stride", dy_stride),
            ("x_stride", x_stride),
            ("CENTER", options.center),
            ("WANT_DW", want.weight),
            ("WANT_DB", want.bias),
            ("BLOCK", block),
        ),
        num_warps=block // (8 * device.warp_size),
        flops=3 * n_rows * n_cols,
    )


# ------------------------------------------------------------------------------------------------- algorithms


class Forward(NamedTuple):
    """y, its statistics (the mean if it is subtracted), and x + residual if there is one."""

    y: Array
    mean: Array | None
    rstd: Array
    sum: Array | None


def forward(
    backend: Backend,
    x: Array,
    residual: Array | None,
    weight: Array | None,
    bias: Array | None,
    options: Options,
) -> Forward:
    """The forward pass of every op."""
    matrix = backend.matrix(x)
    other = None if residual is None else backend.matrix(residual)
    weight, bias = (None if vector is None else backend.dense(vector) for vector in (weight, bias))
    n_rows, n_cols = matrix.shape
    launch = forward_launch(
        n_rows,
        n_cols,
        backend.dtype(x),
        None if weight is None else backend.dtype(weight),
        None if bias is None else backend.dtype(bias),
        backend.strides(matrix)[0],
        None if other is None else backend.strides(other)[0],
        options,
        backend.device,
    )
    # Pointers of arrays that are absent are never read; any valid one will do.
    y, mean, rstd, total = backend.launch(
        launch, matrix, *(matrix if array is None else array for array in (other, weight, bias))
    )
    shape = x.shape
    return Forward(
        backend.reshape(y, shape),
        backend.reshape(mean, shape[:-1]) if options.center else None,
        backend.reshape(rstd, shape[:-1]),
        None if residual is None else backend.reshape(total, shape),
    )


def backward(
    backend: Backend,
    dy: Array | None,
    ds: Array | None,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    rstd: Array,
    options: Options,
    want: Gradients,
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients of x, weight and bias; `x` is x + residual where there is one, and `ds` its cotangent."""
    if dy is None:
        return (
            ds if want.x else None,
            _zeros_like(backend, weight) if want.weight else None,
            _zeros_like(backend, bias) if want.bias else None,
        )
    x_matrix, dy_matrix = backend.matrix(x), backend.matrix(dy)
    ds_matrix = None if ds is None else backend.matrix(ds)
    weight = None if weight is None else backend.dense(weight)
    n_rows, n_cols = x_matrix.shape
    dtype, dy_dtype = backend.dtype(x), backend.dtype(dy)
    weight_dtype = None if weight is None else backend.dtype(weight)
    x_stride, dy_stride = backend.strides(x_matrix)[0], backend.strides(dy_matrix)[0]
    ds_stride = None if ds_matrix is None else backend.strides(ds_matrix)[0]
    rstd = backend.reshape(rstd, (n_rows,))
    statistics = (rstd if mean is None else backend.reshape(mean, (n_rows,)), rstd)
    # Pointers of arrays that are absent are never read; any valid one will do.
    ds_operand = x_matrix if ds_matrix is None else ds_matrix
    weight_operand = x_matrix if weight is None else weight
    dx = dw = db = None
    todo = want
    if (want.weight or want.bias) and _apart(n_cols, options, backend.device):
        # First, since dx may be written over dy.
        launch = weight_gradient_launch(
            n_rows, n_cols, dtype, dy_dtype, x_stride, dy_stride, want, options, backend.device
        )
        dw, db = backend.launch(launch, dy_matrix, x_matrix, *statistics)
        todo = Gradients(want.x, False, False)
    if any(todo) and n_cols <= MAX_BLOCK:
        launch = backward_launch(
            n_rows, n_cols, dtype, dy_dtype, weight_dtype, x_stride, dy_stride, ds_stride, todo, options,
            backend.device,
        )  # fmt: skip
        dx, *sums = backend.launch(launch, dy_matrix, ds_operand, x_matrix, weight_operand, *statistics)
        if todo is want:
            dw, db = sums
    elif todo.x:
        launch = input_gradient_wide_launch(
            n_rows, n_cols, dtype, dy_dtype, weight_dtype, x_stride, dy_stride, ds_stride, options
        )
        (dx,) = backend.launch(launch, dy_matrix, ds_operand, x_matrix, weight_operand, *statistics)
    dw, db = summed(backend, (dw if want.weight else None, db if want.bias else None), (weight, bias))
    return backend.reshape(dx, x.shape) if want.x else None, dw, db


def _apart(n_cols: int, options: Options, device: Device) -> bool:
    """Whether a row and its part of the sums over rows do not fit into registers together."""
    half = options.center and device.vendor == "cuda"
    return n_cols > (MAX_BLOCK // 2 if half else MAX_BLOCK)


def _zeros_like(backend: Backend, vector: Array) -> Array:
    return backend.zeros(vector.shape, backend.dtype(vector))


# ------------------------------------------------------------------------------------------------------ checks


def check_operands(
    op: str, x: Spec, residual: Spec | None, weight: Spec | None, bias: Spec | None, options: Options
) -> None:
    """Raise for operands that no norm takes."""
    check.rank_at_least(op, "x", x, 1, "the last axis is normalised")
    check.not_empty(op, "x", x, -1, "last")
    check.dtype(op, "x", x, check.REFERENCE_FLOATS)
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check.dtype(op, name, vector, check.REFERENCE_FLOATS)
            check.shape(op, name, vector, (x.shape[-1],), "the last axis of x")
    if residual is not None:
        check.shape(op, "residual", residual, x.shape, "the shape of x")
        check.same_dtype(op, "residual", residual, "x", x)
    check.in_range(op, "eps", options.eps, 0.0, sys.float_info.max)
