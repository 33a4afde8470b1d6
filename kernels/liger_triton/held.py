"""Rows that are read twice: as much of one as fits is held in a program's registers in between.

Two sweeps over a row that neither registers nor cache hold move it three times, where it is read and written once. So
a program holds the end of its row, 16-bit numbers two to a register, and reads again only what comes before:

    |<------ STREAMED blocks, read again ------>|<------ HELD blocks ------>|
    0                                                                     n_cols

A block is LANES x WIDTH columns, one row of it per thread, so that sums over a row of the block need no other thread.
The streamed blocks are whole; the last one that is held may end beyond the row.
"""

from __future__ import annotations

import dataclasses

import triton
import triton.language as tl

from liger.device import Device
from liger.launch import DTYPE_BYTES, cdiv, next_power_of_2
from liger_triton.math import exp, packed, unpacked, widened

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def block_columns(LANES: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """The columns of a block, relative to its first one: 16 bytes side by side in a thread if rows are `ALIGNED`."""
    if ALIGNED:
        return tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    else:
        return tl.arange(0, LANES)[:, None] + tl.arange(0, WIDTH)[None, :] * LANES


@triton.jit
def load_block(ptr, col, n_cols: tl.constexpr, PARTIAL: tl.constexpr):
    """A block of a row or of a vector of the row's width; 0 beyond its end, which a `PARTIAL` one may cross."""
    if PARTIAL:
        return tl.load(ptr + col, mask=col < n_cols, other=0.0)
    else:
        return tl.load(ptr + col)


@triton.jit
def load_held(
    row_ptr,
    n_cols: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The held blocks as they stay in registers; `held_block` makes numbers of them."""
    PACKED: tl.constexpr = row_ptr.dtype.element_ty.primitive_bitwidth == 16
    columns = block_columns(LANES, WIDTH, ALIGNED)
    held = ()
    for block in tl.static_range(STREAMED, STREAMED + HELD):
        col = block * (LANES * WIDTH) + columns
        if (block + 1) * LANES * WIDTH > n_cols:
            x = tl.load(row_ptr + col, mask=col < n_cols, other=0.0, eviction_policy="evict_first")
        else:
            x = tl.load(row_ptr + col, eviction_policy="evict_first")
        if PACKED:
            x = packed(x, LANES, WIDTH)
        held = held + (x,)  # type: ignore[assignment]  # noqa: RUF005 (Triton takes no starred tuple)
    return held


@triton.jit
def load_streamed(
    row_ptr,
    group,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
    ALIGNED: tl.constexpr,
    EVICT: tl.constexpr,
):
    """UNROLL streamed blocks, on their way together."""
    columns = block_columns(LANES, WIDTH, ALIGNED)
    blocks = ()
    for i in tl.static_range(UNROLL):
        col = (group * UNROLL + i) * (LANES * WIDTH) + columns
        blocks = blocks + (tl.load(row_ptr + col, eviction_policy=EVICT),)  # type: ignore[assignment]  # noqa: RUF005
    return blocks


@triton.jit
def held_block(x, zero, DTYPE: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """A held block in fp32.

    With `zero` a number that is zero for reasons that the compiler does not know, it cannot keep the fp32 numbers of
    an earlier call, which take twice the registers: `hidden_zero` of a launch with one axis.
    """
    if DTYPE.primitive_bitwidth == 32:
        return x
    else:
        return unpacked(x, zero, DTYPE, LANES, WIDTH)


@triton.jit
def shift_of(highest):
    """What exponentials are relative to: numbers of -inf alone have nothing to be shifted by."""
    return tl.where(highest == float("-inf"), 0.0, highest)


@triton.jit
def add_exponentials(z, highest, total):
    """Every lane's highest number and sum_j exp(z_j - highest) with one more block.

    A lane's sums are relative to its own highest number until the row's end (`row_total`): no block waits for a
    reduction, and an element takes one exponential.
    """
    new_highest = tl.maximum(highest, tl.max(z, axis=1))
    shift = shift_of(new_highest)
    return new_highest, total * exp(highest - shift) + tl.sum(exp(z - shift[:, None]), axis=1)


@triton.jit
def row_total(highest, total):
    """The highest number of a row and the sum of its exponentials relative to it, from those of its lanes."""
    top = tl.max(highest, axis=0)
    return top, tl.sum(total * exp(highest - shift_of(top)), axis=0)


@triton.jit
def store_block(ptr, col, value, n_cols: tl.constexpr, PARTIAL: tl.constexpr):
    """Store a block of a row, in the row's dtype."""
    value = value.to(ptr.dtype.element_ty)
    if PARTIAL:
        tl.store(ptr + col, value, mask=col < n_cols, eviction_policy="evict_first")
    else:
        tl.store(ptr + col, value, eviction_policy="evict_first")


@triton.jit
def fold_row(
    FOLD: tl.constexpr,
    row_ptr,
    held,
    state,
    arguments,
    n_cols: tl.constexpr,
    EVICT: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """A first sweep: state = FOLD(block, its columns, state, arguments, PARTIAL) with the held blocks, then the others.

    State and arguments are tuples; constants among the arguments become numbers, which the compiler folds.
    """
    columns = block_columns(LANES, WIDTH, ALIGNED)
    for block in tl.static_range(HELD):
        state = FOLD(
            held_block(held[block], 0, row_ptr.dtype.element_ty, LANES, WIDTH),
            (STREAMED + block) * (LANES * WIDTH) + columns,
            state,
            arguments,
            PARTIAL=(STREAMED + block + 1) * LANES * WIDTH > n_cols,
        )
    for group in range(STREAMED // UNROLL):
        loaded = load_streamed(row_ptr, group, LANES, WIDTH, UNROLL, ALIGNED, EVICT)
        for i in tl.static_range(UNROLL):
            state = FOLD(
                widened(loaded[i], LANES, WIDTH, ALIGNED),
                (group * UNROLL + i) * (LANES * WIDTH) + columns,
                state,
                arguments,
                PARTIAL=False,
            )
    return state


@triton.jit
def store_row(
    MAP: tl.constexpr,
    row_ptr,
    held,
    out_row_ptr,
    arguments,
    n_cols: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """A second sweep: store MAP(block, its columns, arguments, PARTIAL) of the streamed blocks, then of those held.

    In the memory of the row, if that is wanted. For launches with one axis.
    """
    columns = block_columns(LANES, WIDTH, ALIGNED)
    # Backwards: what was read last may still be in the cache.
    for group_back in range(STREAMED // UNROLL):
        group = STREAMED // UNROLL - 1 - group_back
        loaded = load_streamed(row_ptr, group, LANES, WIDTH, UNROLL, ALIGNED, "evict_first")
        for i in tl.static_range(UNROLL):
            col = (group * UNROLL + i) * (LANES * WIDTH) + columns
            out = MAP(widened(loaded[i], LANES, WIDTH, ALIGNED), col, arguments, PARTIAL=False)
            store_block(out_row_ptr, col, out, n_cols, PARTIAL=False)
    zero = hidden_zero()
    for block in tl.static_range(HELD):
        col = (STREAMED + block) * (LANES * WIDTH) + columns
        x = held_block(held[block], zero, row_ptr.dtype.element_ty, LANES, WIDTH)
        out = MAP(x, col, arguments, PARTIAL=(STREAMED + block + 1) * LANES * WIDTH > n_cols)
        store_block(out_row_ptr, col, out, n_cols, PARTIAL=(STREAMED + block + 1) * LANES * WIDTH > n_cols)


@triton.jit
def store_zeros(row_ptr, n_cols: tl.constexpr, BLOCK: tl.constexpr):
    """Of a row that counts for nothing."""
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        tl.store(row_ptr + col, tl.zeros((BLOCK,), row_ptr.dtype.element_ty), mask=col < n_cols)


@triton.jit
def hidden_zero():
    """0, of which the compiler does not know that it is one; for launches with one axis."""
    return tl.program_id(1)


# --------------------------------------------------------------------------------------------------- launches


@dataclasses.dataclass(frozen=True, slots=True)
class Blocks:
    """How a program goes through a row; see the top of the file.

    Attributes:
        n_cols: columns of the row.
        lanes: threads of the program.
        width: columns of a block per thread.
        streamed: blocks that are read in either sweep.
        held: blocks that stay in registers; one at least.
        aligned: whether rows are whole multiples of 16 bytes.
        unroll: streamed blocks that are on their way from memory together.
    """

    n_cols: int
    lanes: int
    width: int
    streamed: int
    held: int
    aligned: bool
    unroll: int

    @property
    def constants(self) -> tuple[tuple[str, int | bool], ...]:
        """The kernel's constants."""
        return (
            ("LANES", self.lanes),
            ("WIDTH", self.width),
            ("STREAMED", self.streamed),
            ("HELD", self.held),
            ("ALIGNED", self.aligned),
            ("UNROLL", self.unroll),
        )

    @property
    def reread(self) -> float:
        """How much of a row a further sweep reads again."""
        return self.streamed * self.lanes * self.width / max(self.n_cols, 1)

    @property
    def passes(self) -> float:
        """How often two sweeps read a row."""
        return 1 + self.reread


WIDE_BYTES = 128 << 10
"""Wider rows are one program's of 1024 threads, all that a multiprocessor has registers for; others a fourth of that.

Several programs take turns in reading, computing and writing, which one cannot; but with several wide rows at a time
the cache no longer holds what is to be read again.
"""


def read_twice(
    n_cols: int, dtype: str, strides: tuple[int, ...], device: Device, held: int = 8, unroll: int = 4
) -> Blocks:
    """For two sweeps over rows of n_cols elements at these distances.

    A program holds at most so many blocks, and loads `unroll` streamed ones together, which are no more.
    """
    wide = n_cols * DTYPE_BYTES[dtype] > WIDE_BYTES
    return blocks(n_cols, dtype, strides, device, 1024 if wide else 256, held, unroll)


def read_once(
    n_cols: int, dtype: str, strides: tuple[int, ...], device: Device, held: int = 8, unroll: int = 4
) -> Blocks:
    """For one sweep, where the held blocks are those that are on their way before it begins."""
    return blocks(n_cols, dtype, strides, device, 256, held, unroll)


def blocks(
    n_cols: int, dtype: str, strides: tuple[int, ...], device: Device, lanes: int, held: int, unroll: int
) -> Blocks:
    """Of at most so many lanes, of which at most so many are held, no fewer than are loaded together."""
    size = DTYPE_BYTES[dtype]
    width = 16 // size
    aligned = all(n * size % 16 == 0 for n in (n_cols, *strides))
    if not aligned:  # every number is a load of its own, with a register for it
        held, unroll = min(held, 2), min(unroll, 2)
    lanes = min(max(next_power_of_2(cdiv(n_cols, held * width)), device.warp_size), lanes)
    n_blocks = max(cdiv(n_cols, lanes * width), 1)
    streamed = cdiv(max(n_blocks - held, 0), unroll) * unroll
    return Blocks(n_cols, lanes, width, streamed, n_blocks - streamed, aligned, unroll)
