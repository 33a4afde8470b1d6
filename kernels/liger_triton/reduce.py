"""Second stage of the deterministic reductions: partial sums, one row per program, added in a fixed order."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import triton
import triton.language as tl

from liger.backend import Array, Backend
from liger.launch import Launch, Spec, cdiv, next_power_of_2

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _store_column_sums(
    partial_ptr, n_partials, out_ptr, n_cols: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    # Rows meet in registers; threads exchange their sums once, at the end.
    total = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, n_partials, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        mask = (row < n_partials) & (cols < n_cols)[None, :]
        total += tl.load(partial_ptr + row * n_cols + cols[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + cols, tl.sum(total, axis=0).to(out_ptr.dtype.element_ty), mask=cols < n_cols)


@triton.jit
def sum_partials(
    first_ptr,  # (n_partials, n_cols) float32
    second_ptr,  # likewise
    n_partials,
    first_out_ptr,  # (n_cols,)
    second_out_ptr,
    n_cols: tl.constexpr,
    TWO: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    # Axis 1 of the grid runs over the arrays.
    if tl.program_id(1) == 0:
        _store_column_sums(first_ptr, n_partials, first_out_ptr, n_cols, ROWS, COLS)
    if TWO:
        if tl.program_id(1) == 1:
            _store_column_sums(second_ptr, n_partials, second_out_ptr, n_cols, ROWS, COLS)


# --------------------------------------------------------------------------------------------------- launches


def _tile(n_cols: int) -> tuple[int, int, int]:
    """(rows, columns, warps): many loads in flight, and programs on all multiprocessors, whatever the width."""
    if n_cols <= 1024:
        return 512, min(8, next_power_of_2(n_cols)), 8
    return (256, 16, 4) if n_cols <= 8192 else (64, 32, 4)


@functools.lru_cache(4096)
def sum_partials_launch(n_partials: int, n_cols: int, dtypes: tuple[str, ...]) -> Launch:
    """out[c] = sum over p of partial[p, c] of one or two arrays, accumulated in fp32, rounded once to their dtypes."""
    rows, cols, warps = _tile(n_cols)
    partial, two = Spec((n_partials, n_cols), "float32"), len(dtypes) == 2
    return Launch(
        kernel=sum_partials,
        grid=(cdiv(n_cols, cols), len(dtypes)),
        inputs=(partial, partial if two else Spec(partial.shape, "float32", unread=True)),
        integers=(n_partials,),
        outputs=(Spec((n_cols,), dtypes[0]), Spec((n_cols,) if two else (0,), dtypes[-1])),
        constants=(("n_cols", n_cols), ("TWO", two), ("ROWS", rows), ("COLS", cols)),
        num_warps=warps,
        flops=len(dtypes) * n_partials * n_cols,
    )


def summed(
    backend: Backend, partials: Sequence[Array | None], vectors: Sequence[Array | None]
) -> tuple[Array | None, ...]:
    """The gradients of at most two vectors, in their dtypes: the sums of their partial ones, (n_partials, n_cols).

    None where there are none.
    """
    found: list[Array | None] = [None] * len(partials)
    wanted = [(i, partial) for i, partial in enumerate(partials) if partial is not None]
    if wanted:
        first, second = wanted[0][1], wanted[-1][1]
        launch = sum_partials_launch(*first.shape, tuple(backend.dtype(vectors[i]) for i, _ in wanted))
        for (i, _), total in zip(wanted, backend.launch(launch, first, second), strict=False):
            found[i] = total
    return tuple(found)
