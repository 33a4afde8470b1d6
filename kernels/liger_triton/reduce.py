"""Second stage of the deterministic reductions: partial sums, one row per program, added in a fixed order."""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from liger.backend import Array, Backend
from liger.launch import Launch, Spec, cdiv, next_power_of_2


@triton.jit
def sum_partials(
    partial_ptr,  # (n_partials, n_cols) float32
    n_partials,
    out_ptr,  # (n_cols,)
    n_cols: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    rows = tl.arange(0, ROWS)
    total = tl.zeros((COLS,), tl.float32)
    for start in range(0, n_partials, ROWS):
        row = (start + rows).to(tl.int64)[:, None]
        mask = (row < n_partials) & (cols < n_cols)[None, :]
        total += tl.sum(tl.load(partial_ptr + row * n_cols + cols[None, :], mask=mask, other=0.0), axis=0)
    tl.store(out_ptr + cols, total.to(out_ptr.dtype.element_ty), mask=cols < n_cols)


@functools.lru_cache(4096)
def sum_partials_launch(n_partials: int, n_cols: int, dtype: str) -> Launch:
    """out[c] = sum over p of partial[p, c], accumulated in fp32, rounded once to `dtype`."""
    # Narrow tiles spread the columns of a usual width over all multiprocessors; wider rows have enough of them.
    cols = min(32 if n_cols <= 8192 else 128, next_power_of_2(n_cols))
    return Launch(
        kernel=sum_partials,
        grid=(cdiv(n_cols, cols),),
        inputs=(Spec((n_partials, n_cols), "float32"),),
        integers=(n_partials,),
        outputs=(Spec((n_cols,), dtype),),
        constants=(("n_cols", n_cols), ("ROWS", 32), ("COLS", cols)),
        num_warps=4,
        flops=n_partials * n_cols,
    )


def summed(backend: Backend, partials: Array, vector: Array) -> Array:
    """The gradient of a vector: the sum of its partial ones, (n_partials, n_cols), in the vector's dtype."""
    launch = sum_partials_launch(partials.shape[0], partials.shape[1], backend.dtype(vector))
    return backend.launch(launch, partials)[0]
