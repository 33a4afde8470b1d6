"""Functions of numbers that kernels of several families use."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp(x):
    """e^x, without results below 2**-126, which take twice the instructions."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def tanh(x):
    # Near 0 the quotient would lose the digits that its terms share; the odd series has them (2e-9 at 1/4).
    square = x * x
    series = x * (1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    return tl.where(tl.abs(x) < 0.25, series, 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0)


@triton.jit
def capped(x, scale: tl.constexpr, softcap: tl.constexpr):
    """The logit scale * x, capped as c * tanh(z / c) where a softcap is given."""
    z = x * scale
    if softcap > 0.0:
        z = softcap * tanh(z / softcap)
    return z


@triton.jit
def packed(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of 16-bit numbers as (ROWS, COLUMNS / 2) words; of two neighbours in a row the first is the lower half."""
    low, high = tl.split(tl.reshape(x.to(tl.int16, bitcast=True).to(tl.int32), (ROWS, COLUMNS // 2, 2)))
    return (low & 0xFFFF) | (high << 16)


@triton.jit
def unpacked(word, zero, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The float16 or bfloat16 numbers of `packed` in fp32; `zero` is 0, known to the compiler or not."""
    if DTYPE.is_bf16():
        low = (word << (16 + zero)).to(tl.float32, bitcast=True)
        high = (word & (-65536 ^ zero)).to(tl.float32, bitcast=True)
        return tl.reshape(tl.join(low, high), (ROWS, COLUMNS))
    else:
        low = (word << zero).to(tl.int16).to(tl.float16, bitcast=True)
        high = (word >> (16 + zero)).to(tl.int16).to(tl.float16, bitcast=True)
        return tl.reshape(tl.join(low, high), (ROWS, COLUMNS)).to(tl.float32)


@triton.jit
def widened(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PAIRED: tl.constexpr):
    """A tile in fp32; `PAIRED`: neighbours in a row come in one register.

    Of bfloat16 they are taken apart by a shift and a mask then, where the compiler has three instructions.
    """
    if PAIRED and x.dtype.is_bf16():
        return unpacked(packed(x, ROWS, COLUMNS), 0, x.dtype, ROWS, COLUMNS)
    else:
        return x.to(tl.float32)
