"""Tiles of elementwise kernels: a matrix cut into pieces of equal size, whatever its width."""

from __future__ import annotations

import triton
import triton.language as tl

from liger.launch import cdiv, next_power_of_2

TILE = 2048
"""Elements of a program's tile: 16 per thread at 4 warps."""

BLOCK = 1024
"""Columns of a tile at most: 2 rows of them are as fast as one of `TILE`, and leave fewer threads idle at the end of a
row, a sixteenth of them and not a third with 2880 columns."""


def tiles(n_rows: int, n_cols: int) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Programs, and the constants that `_tile` needs."""
    block = min(next_power_of_2(n_cols), BLOCK)
    rows = min(TILE // block, 32)
    col_blocks = cdiv(n_cols, block)
    return cdiv(n_rows, rows) * col_blocks, (("ROWS", rows), ("BLOCK", block), ("COL_BLOCKS", col_blocks))


@triton.jit
def _tile(ROWS: tl.constexpr, BLOCK: tl.constexpr, COL_BLOCKS: tl.constexpr):
    """The rows (int64, a column) and the first column of this program's tile."""
    program = tl.program_id(0)
    row = (program // COL_BLOCKS).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    return row, (program % COL_BLOCKS) * BLOCK
