"""Scale an array in place by a number that only the device knows."""

from __future__ import annotations

import functools
import math

import triton
import triton.language as tl

from liger.backend import Array, Backend
from liger.launch import Launch, Spec, cdiv

BLOCK = 4096


@triton.jit
def scale_by(
    x_ptr,  # (n,)
    factor_ptr,  # (1,) float32
    n_units,
    out_ptr,  # the memory of x_ptr
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    factor = tl.load(factor_ptr)
    if factor != 1.0:  # nothing to do in most training steps, and nothing is moved then
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        n = tl.full((), UNIT, tl.int64) * n_units
        x = tl.load(x_ptr + i, mask=i < n, other=0.0).to(tl.float32)
        tl.store(out_ptr + i, (x * factor).to(out_ptr.dtype.element_ty), mask=i < n)


@functools.lru_cache(4096)
def scale_launch(n: int, dtype: str) -> Launch:
    """x * factor, over x."""
    # n is counted in units so that the compiler sees a multiple of 16 where it is one: wide loads and stores.
    unit = math.gcd(n, 16)
    return Launch(
        kernel=scale_by,
        grid=(cdiv(n, BLOCK),),
        inputs=(Spec((n,), dtype), Spec((1,), "float32", resident=True)),
        integers=(n // unit,),
        outputs=(Spec((n,), dtype),),
        constants=(("UNIT", unit), ("BLOCK", BLOCK)),
        num_warps=8,
        aliases=((0, 0),),
        flops=n,
    )


def scaled(backend: Backend, x: Array, factor: Array) -> Array:
    """x * factor[0]; x may be reused."""
    n = math.prod(x.shape)
    (result,) = backend.launch(scale_launch(n, backend.dtype(x)), backend.reshape(x, (n,)), factor)
    return backend.reshape(result, x.shape)
