"""The square of ReLU, forward and backward.

    y  = max(x, 0)^2
    dx = dy * 2 * max(x, 0)

So et al., arXiv:2109.08668; the activation of Nemotron, arXiv:2402.16819.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import triton
import triton.language as tl

from liger import check
from liger.backend import Array, Backend
from liger.launch import Launch, Spec
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import relu_squared as reference
from liger_triton.tiles import _tile, tiles


@triton.jit
def relu_squared_forward(
    x_ptr,  # (n_rows, n_cols), row stride x_stride
    n_rows,
    y_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    x_stride: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COL_BLOCKS: tl.constexpr,
):
    row, first = _tile(ROWS, BLOCK, COL_BLOCKS)
    col = first + tl.arange(0, BLOCK)[None, :]
    mask = (row < n_rows) & (col < n_cols)
    x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
    x = tl.where(x < 0.0, 0.0, x)  # a NaN stays one
    tl.store(y_ptr + row * n_cols + col, (x * x).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def relu_squared_backward(
    dy_ptr,  # (n_rows, n_cols), row stride dy_stride
    x_ptr,
    n_rows,
    dx_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    x_stride: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COL_BLOCKS: tl.constexpr,
):
    row, first = _tile(ROWS, BLOCK, COL_BLOCKS)
    col = first + tl.arange(0, BLOCK)[None, :]
    mask = (row < n_rows) & (col < n_cols)
    dy = tl.load(dy_ptr + row * dy_stride + col, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
    dx = tl.where(x < 0.0, 0.0, dy * 2.0 * x)
    tl.store(dx_ptr + row * n_cols + col, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """The square of ReLU has no options."""


@functools.lru_cache(4096)
def forward_launch(n_rows: int, n_cols: int, dtype: str, x_stride: int) -> Launch:
    """y."""
    programs, tiling = tiles(n_rows, n_cols)
    matrix = Spec((n_rows, n_cols), dtype)
    return Launch(
        kernel=relu_squared_forward,
        grid=(programs,),
        inputs=(matrix,),
        integers=(n_rows,),
        outputs=(matrix,),
        constants=(("n_cols", n_cols), ("x_stride", x_stride), *tiling),
        num_warps=4,
        flops=2 * n_rows * n_cols,
    )


@functools.lru_cache(4096)
def backward_launch(n_rows: int, n_cols: int, dtype: str, dy_stride: int, x_stride: int) -> Launch:
    """dx."""
    programs, tiling = tiles(n_rows, n_cols)
    matrix = Spec((n_rows, n_cols), dtype)
    return Launch(
        kernel=relu_squared_backward,
        grid=(programs,),
        inputs=(matrix, matrix),
        integers=(n_rows,),
        outputs=(matrix,),
        constants=(("n_cols", n_cols), ("dy_stride", dy_stride), ("x_stride", x_stride), *tiling),
        num_warps=4,
        flops=3 * n_rows * n_cols,
    )


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    (x,) = operands
    assert x is not None
    matrix = backend.matrix(x)
    launch = forward_launch(*matrix.shape, backend.dtype(x), backend.strides(matrix)[0])
    (y,) = backend.launch(launch, matrix)
    return (backend.reshape(y, x.shape),), ()


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    x = kept["x"]
    assert x is not None
    matrix, dy = backend.matrix(x), backend.matrix(cotangents[0])
    launch = backward_launch(
        *matrix.shape, backend.dtype(x), backend.strides(dy)[0], backend.strides(matrix)[0]
    )
    (dx,) = backend.launch(launch, dy, matrix)
    return (backend.reshape(dx, x.shape),)


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    (x,) = operands
    assert x is not None
    check.rank_at_least("relu_squared", "x", x, 1, "its last axis is read in one piece")
    check.not_empty("relu_squared", "x", x, -1, "last")
    check.dtype("relu_squared", "x", x, check.REFERENCE_FLOATS)


RELU_SQUARED = Op(
    name="relu_squared",
    operands=(Operand("x", "rows"),),
    outputs=(Output("y", "rows"),),
    saved=(),
    options=Options,
    check=_check,
    infer=lambda operands, options, needs: (operands, ()),
    forward=_forward,
    backward=_backward,
    reference=lambda operands, options: (reference.relu_squared(*operands),),
    keeps=lambda options, needs: ("x",),
    elementwise=lambda operands: True,
)
