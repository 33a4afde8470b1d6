"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from liger.plan import Planned, dense
from liger_triton import rope
from liger_triton.catalogue.call import BF16, FP32, Call


def ropes() -> Iterator[Call]:
    def call(
        name: str,
        head_dim: int,
        rotary_dim: int,
        dtype: str = BF16,
        batch: int = 4,
        seq: int = 4096,
        **options: Any,
    ) -> Call:
        q, k = (dense((batch, seq, heads, head_dim), dtype) for heads in (32, 8))
        table = dense((1, seq, rotary_dim), dtype)
        return Call(f"rope-{name}", rope.ROPE, rope.Options(**options), (q, k, table, table))

    for head_dim in (64, 128):
        yield call(f"{head_dim}", head_dim, head_dim)
        yield call(f"{head_dim}-interleaved", head_dim, head_dim, interleaved=True)
    yield call("128-fp32", 128, 128, FP32)
    yield call("128-partial-64", 128, 64)
    yield call("128-partial-64-interleaved", 128, 64, interleaved=True)
    yield call("80-partial-32", 80, 32)
    yield call("128-beyond-2**31", 128, 128, batch=3, seq=2**19 // 3 + 9)
    packed = 48 * 128  # q, k and v side by side, as one projection gives them
    strides = (4096 * packed, packed, 128, 1)
    table = dense((4, 4096, 128), FP32)
    yield Call(
        "rope-128-packed",
        rope.ROPE,
        rope.Options(),
        (Planned((4, 4096, 32, 128), BF16, strides), Planned((4, 4096, 8, 128), BF16, strides), table, table),
    )
    # (batch, heads, seq, head_dim) transposed, as Hugging Face models hand it over.
    for name, batch, seq in (("transposed", 4, 4096), ("transposed-beyond-2**31", 1, 600_000)):
        q, k = (Planned((batch, seq, n, 128), BF16, (n * seq * 128, 128, seq * 128, 1)) for n in (32, 8))
        table = dense((batch, seq, 128), FP32)
        yield Call(f"rope-128-{name}", rope.ROPE, rope.Options(), (q, k, table, table))
