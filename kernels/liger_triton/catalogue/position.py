"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from liger.plan import Planned, dense
from liger_triton import qk_norm_rope, rope
from liger_triton.catalogue.call import BF16, FP32, Call


def ropes() -> Iterator[Call]:
    def call(
        name: str,
        head_dim: int,
        rotary_dim: int,
        dtype: str = BF16,
        batch: int = 4,
        seq: int = 4096,
        heads: tuple[int, int] = (32, 8),
        **options: Any,
    ) -> Call:
        q, k = (dense((batch, seq, n, head_dim), dtype) for n in heads)
        table = dense((1, seq, rotary_dim), dtype)
        return Call(f"rope-{name}", rope.ROPE, rope.Options(**options), (q, k, table, table))

    for head_dim in (64, 128):
        yield call(f"{head_dim}", head_dim, head_dim)
        yield call(f"{head_dim}-interleaved", head_dim, head_dim, interleaved=True)
    yield call("128-fp32", 128, 128, FP32)
    yield call("128-partial-64", 128, 64)
    yield call("128-partial-64-interleaved", 128, 64, interleaved=True)
    yield call("128-qwen2.5-14b", 128, 128, heads=(40, 8))
    yield call("64-smollm2", 64, 64, heads=(15, 5))
    yield call("80-partial-32", 80, 32)
    yield call("96-partial-24-neox", 96, 24, heads=(64, 64))
    yield call("64-partial-16-fp32", 64, 16, FP32)
    yield call("64-partial-16-pythia", 64, 16, heads=(16, 16))
    yield call("256-partial-64", 256, 64)
    yield from _deepseek()
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
    # The two parts of complex numbers, as Llama 4 has them.
    q, k = (dense((4, 4096, heads, 128), BF16) for heads in (40, 8))
    table = Planned((1, 4096, 64), FP32, (4096 * 128, 128, 2))
    yield Call(
        "rope-128-complex", rope.ROPE, rope.Options(interleaved=True, half_tables=True), (q, k, table, table)
    )


def _deepseek() -> Iterator[Call]:
    """64 rotated entries of each query, behind 128 that are not, and one key for all heads."""
    q = Planned((4, 4096, 128, 64), BF16, (4096 * 128 * 192, 192, 4096 * 192, 1))
    k = Planned((4, 4096, 1, 64), BF16, (4096 * 576, 576, 576, 1))
    table = Planned((1, 4096, 32), FP32, (4096 * 64, 64, 1))
    options = rope.Options(interleaved=True, half_tables=True, deinterleave=True)
    yield Call("rope-64-deepseek", rope.ROPE, options, (q, k, table, table))


def ropes_at_positions() -> Iterator[Call]:
    def call(
        name: str,
        batch: int,
        seq: int,
        index: str = "int64",
        table_dtype: str = FP32,
        head_dim: int = 128,
        rotary_dim: int = 128,
        dtype: str = BF16,
    ) -> Call:
        q, k = (dense((batch, seq, heads, head_dim), dtype) for heads in (32, 8))
        table = dense((32_768, rotary_dim), table_dtype)
        operands = (q, k, table, table, dense((batch, seq), index))
        return Call(f"rope_at_positions-{name}", rope.ROPE_AT_POSITIONS, rope.Options(), operands)

    yield call("128", 4, 4095)
    yield call("128-int32-bf16-table", 1, 16_384, "int32", BF16)
    yield call("128-beyond-2**31", 3, 2**19 // 3 + 9)
    for dtype in (BF16, FP32):
        yield call(f"64-partial-16-{dtype}", 4, 4095, head_dim=64, rotary_dim=16, dtype=dtype)
        yield call(f"256-partial-64-{dtype}", 4, 4095, head_dim=256, rotary_dim=64, dtype=dtype)


def mropes() -> Iterator[Call]:
    for dtype in (BF16, FP32):
        q, k = (Planned((4, 4096, n, 128), BF16, (n * 4096 * 128, 128, 4096 * 128, 1)) for n in (28, 4))
        table = Planned((4, 4096, 3, 128), dtype, (4096 * 128, 128, 4 * 4096 * 128, 1))  # the planes first
        options = rope.MultimodalOptions((16, 24, 24))
        yield Call(f"mrope-128-{dtype}-tables", rope.MROPE, options, (q, k, table, table))


def qk_norm_ropes() -> Iterator[Call]:
    def call(
        name: str,
        head_dim: int,
        rotary_dim: int,
        heads: tuple[int, int] = (32, 8),
        dtype: str = BF16,
        batch: int = 4,
        seq: int = 4095,
        weight_dtype: str | None = None,
        needs: tuple[bool, ...] | None = None,
        **options: Any,
    ) -> Call:
        # Laid out by token, as q_norm and k_norm are given them.
        q, k = (dense((batch, seq, n, head_dim), dtype) for n in heads)
        weight, table = dense((head_dim,), weight_dtype or dtype), dense((1, seq, rotary_dim), dtype)
        operands = (q, k, weight, weight, table, table)
        return Call(
            f"qk_norm_rope-{name}",
            qk_norm_rope.QK_NORM_ROPE,
            qk_norm_rope.Options(**options),
            operands,
            needs,
        )

    yield call("qwen3", 128, 128)
    yield call("qwen3-14b", 128, 128, (40, 8))
    yield call("qwen3-moe", 128, 128, (64, 4))
    yield call("qwen3-fp32", 128, 128, dtype=FP32)
    yield call("qwen3-fp32-weights", 128, 128, weight_dtype=FP32)
    yield call("qwen3-frozen-weights", 128, 128, needs=(True, True, False, False, False, False))
    yield call("qwen3-k-alone", 128, 128, needs=(False, True, False, True, False, False))
    yield call("gemma3", 256, 256, (8, 4), offset=1.0, casting="gemma")
    yield call("glm4-moe", 128, 64, (96, 8))
    yield call("qwen3-next", 256, 64, (16, 2), offset=1.0, casting="gemma")
    yield call("64-interleaved", 64, 64, interleaved=True)
    yield call("34-partial-10", 34, 10, (6, 3))
    yield call("80-partial-32", 80, 32)
    yield from _deepseek()
    # Dense, forward alone: to the last of so many tiles the backward pass takes long in the interpreter.
    yield call("beyond-2**31", 128, 128, batch=3, seq=2**19 // 3 + 9, needs=(False,) * 6)
    stride = 2**17  # q and k as parts of very wide rows
    q, k = (Planned((1, 18_000, n, 128), BF16, (18_000 * stride, stride, 128, 1)) for n in (32, 8))
    weight, table = dense((128,), BF16), dense((1, 18_000, 128), BF16)
    yield Call(
        "qk_norm_rope-strided-beyond-2**31",
        qk_norm_rope.QK_NORM_ROPE,
        qk_norm_rope.Options(),
        (q, k, weight, weight, table, table),
    )
