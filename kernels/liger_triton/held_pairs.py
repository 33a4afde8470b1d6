"""Pairs of rows that are swept several times: a student's logits and a teacher's, cut as `held` says."""

from __future__ import annotations

import triton
import triton.language as tl

from liger_triton.held import block_columns, held_block, load_block, load_held, load_streamed
from liger_triton.math import widened


@triton.jit
def load_held_pair(
    rows,
    n_cols: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The held blocks of both rows."""
    student_row_ptr, teacher_row_ptr = rows
    return (
        load_held(student_row_ptr, n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED),
        load_held(teacher_row_ptr, n_cols, LANES, WIDTH, STREAMED, HELD, ALIGNED),
    )


@triton.jit
def _tile(
    s,
    t,
    col,
    biases,
    n_cols: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """(columns, student's logits, teacher's) of a block with their biases; none beyond the last column."""
    student_bias_ptr, teacher_bias_ptr = biases
    if HAS_STUDENT_BIAS:
        s += load_block(student_bias_ptr, col, n_cols, PARTIAL).to(tl.float32)
    if HAS_TEACHER_BIAS:
        t += load_block(teacher_bias_ptr, col, n_cols, PARTIAL).to(tl.float32)
    if PARTIAL:
        s = tl.where(col < n_cols, s, float("-inf"))
        t = tl.where(col < n_cols, t, float("-inf"))
    return col, s, t


@triton.jit
def _over_held(
    FOLD: tl.constexpr,
    rows,
    biases,
    held,
    state,
    arguments,
    zero,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    scale: tl.constexpr,
    KIND: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    HARD: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The part of a sweep over the held blocks."""
    student_row_ptr, teacher_row_ptr = rows
    held_s, held_t = held
    columns = block_columns(LANES, WIDTH, ALIGNED)
    for block in tl.static_range(HELD):
        col = (STREAMED + block) * (LANES * WIDTH) + columns
        s = held_block(held_s[block], zero, student_row_ptr.dtype.element_ty, LANES, WIDTH)
        t = held_block(held_t[block], zero, teacher_row_ptr.dtype.element_ty, LANES, WIDTH)
        if (STREAMED + block + 1) * LANES * WIDTH > n_cols:
            tile = _tile(s, t, col, biases, n_cols, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, PARTIAL=True)
            state = FOLD(tile, state, arguments, n_cols, beta, scale, KIND, HARD, PARTIAL=True)
        else:
            tile = _tile(s, t, col, biases, n_cols, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, PARTIAL=False)
            state = FOLD(tile, state, arguments, n_cols, beta, scale, KIND, HARD, PARTIAL=False)
    return state


@triton.jit
def sweep_pair(
    FOLD: tl.constexpr,
    rows,
    biases,
    held,
    state,
    arguments,
    zero,
    n_cols: tl.constexpr,
    beta: tl.constexpr,
    scale: tl.constexpr,
    KIND: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    HARD: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAMED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNED: tl.constexpr,
    UNROLL: tl.constexpr,
    FIRST: tl.constexpr,
    REVERSE: tl.constexpr,
    EVICT: tl.constexpr,
):
    """state = FOLD(columns and logits of a block, state, arguments, constants) with every block of a pair of rows.

    The FIRST sweep begins with the held blocks, which are on their way then, and the others end with them; REVERSE: the
    streamed ones are read from the last one on. Rows are the student's and the teacher's, as biases and held are; state
    and arguments are tuples, too. `zero`: as of `held_block`. (What a second sweep unpacked, a third one may use: to
    unpack it again takes fewer registers and was slower.)
    """
    student_row_ptr, teacher_row_ptr = rows
    columns = block_columns(LANES, WIDTH, ALIGNED)
    if FIRST:
        state = _over_held(
            FOLD, rows, biases, held, state, arguments, zero, n_cols, beta, scale, KIND,
            HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD, LANES, WIDTH, STREAMED, HELD, ALIGNED,
        )  # fmt: skip
    for i in range(STREAMED // UNROLL):
        group = STREAMED // UNROLL - 1 - i if REVERSE else i
        loaded_s = load_streamed(student_row_ptr, group, LANES, WIDTH, UNROLL, ALIGNED, EVICT)
        loaded_t = load_streamed(teacher_row_ptr, group, LANES, WIDTH, UNROLL, ALIGNED, EVICT)
        for j in tl.static_range(UNROLL):
            col = (group * UNROLL + j) * (LANES * WIDTH) + columns
            s, t = widened(loaded_s[j], LANES, WIDTH, ALIGNED), widened(loaded_t[j], LANES, WIDTH, ALIGNED)
            tile = _tile(s, t, col, biases, n_cols, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, PARTIAL=False)
            state = FOLD(tile, state, arguments, n_cols, beta, scale, KIND, HARD, PARTIAL=False)
    if not FIRST:
        state = _over_held(
            FOLD, rows, biases, held, state, arguments, zero, n_cols, beta, scale, KIND,
            HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HARD, LANES, WIDTH, STREAMED, HELD, ALIGNED,
        )  # fmt: skip
    return state
