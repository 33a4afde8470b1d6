"""Scale an array in place by a number that only the device knows, and the rows of a matrix by numbers of their own."""

from __future__ import annotations

import functools
import math

import triton
import triton.language as tl

from liger.backend import Array, Backend
from liger.launch import Launch, Spec, cdiv, next_power_of_2

BLOCK = 4096


@triton.jit
def scale_by(
    x_ptr,  # (n,)
    factor_ptr,  # (1,) float32
    n_units,
    out_ptr,  # the memory of x_ptr
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    factor = tl.load(factor_ptr)
    if factor != 1.0:  # nothing to do in most training steps, and nothing is moved then
        n = tl.full((), UNIT, tl.int64) * n_units
        first = tl.program_id(0).to(tl.int64) * (BLOCK * BLOCKS)
        for block in range(BLOCKS):
            i = first + block * BLOCK + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + i, mask=i < n, other=0.0).to(tl.float32)
            tl.store(out_ptr + i, (x * factor).to(out_ptr.dtype.element_ty), mask=i < n)


@functools.lru_cache(4096)
def scale_launch(n_rows: int, n_cols: int, dtype: str) -> Launch:
    """x * factor, over x."""
    n, matrix = n_rows * n_cols, Spec((n_rows, n_cols), dtype)
    # n is counted in units so that the compiler sees a multiple of 16 where it is one for any number of rows: wide
    # loads and stores.
    unit = math.gcd(n_cols, 16)
    # Programs that have nothing to do take their time too: a quarter of a million of them, of logits, a tenth of a
    # millisecond. (By the width alone, which a batch of another length does not change.)
    blocks = 16 if n_cols >= 2**14 else 1
    return Launch(
        kernel=scale_by,
        grid=(cdiv(n, BLOCK * blocks),),
        inputs=(matrix, Spec((1,), "float32", resident=True)),
        integers=(n // unit,),
        outputs=(matrix,),
        constants=(("UNIT", unit), ("BLOCK", BLOCK), ("BLOCKS", blocks)),
        num_warps=8,
        aliases=((0, 0),),
        flops=n,
    )


def scaled(backend: Backend, x: Array, factor: Array) -> Array:
    """x * factor[0]; x may be reused."""
    shape = (math.prod(x.shape[:-1]), x.shape[-1])
    (result,) = backend.launch(scale_launch(*shape, backend.dtype(x)), backend.reshape(x, shape), factor)
    return backend.reshape(result, x.shape)


@triton.jit
def scale_rows(
    x_ptr,  # (n_rows, n_cols)
    factors_ptr,  # (n_rows,) float32
    out_ptr,  # (n_rows, n_cols)
    n_cols: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factors_ptr + row)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * n_cols + col, mask=col < n_cols, other=0.0).to(tl.float32)
        tl.store(out_ptr + row * n_cols + col, (x * factor).to(out_ptr.dtype.element_ty), mask=col < n_cols)


@functools.lru_cache(4096)
def scale_rows_launch(n_rows: int, n_cols: int, dtype: str) -> Launch:
    """x[i, j] * factors[i]."""
    block = min(next_power_of_2(n_cols), 4096)
    matrix = Spec((n_rows, n_cols), dtype)
    return Launch(
        kernel=scale_rows,
        grid=(n_rows,),
        inputs=(matrix, Spec((n_rows,), "float32")),
        outputs=(matrix,),
        constants=(("n_cols", n_cols), ("BLOCK", block)),
        num_warps=min(max(block // 1024, 1), 4),
        flops=n_rows * n_cols,
    )


def rows_scaled(backend: Backend, x: Array, factors: Array) -> Array:
    """A matrix with each row multiplied by its factor, in memory of its own."""
    return backend.launch(scale_rows_launch(*x.shape, backend.dtype(x)), x, factors)[0]
