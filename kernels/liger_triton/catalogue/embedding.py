"""Embedding tables."""

from __future__ import annotations

from collections.abc import Iterator

from liger.plan import Planned, dense
from liger_triton import embedding
from liger_triton.catalogue.call import BF16, FP32, Call


def embeddings() -> Iterator[Call]:
    def call(
        name: str, vocab: int, width: int, n_tokens: int = 8191, dtype: str = BF16, ids: str = "int64",
        padding_idx: int | None = None, buffer: Planned | None = None,
    ) -> Call:  # fmt: skip
        operands = (dense((n_tokens,), ids), dense((vocab, width), dtype), buffer)
        needs = (False, True, False)
        return Call(f"embedding-{name}", embedding.EMBEDDING, embedding.Options(padding_idx), operands, needs)

    for vocab, width in ((32000, 4096), (128256, 4096), (151936, 896), (1024, 64), (50257, 1001)):
        yield call(f"{vocab}x{width}-bf16", vocab, width)
    yield call("32000x4096-fp32", 32000, 4096, dtype=FP32)
    yield call("32000x4096-int32-padding", 32000, 4096, ids="int32", padding_idx=2)
    for dtype in (BF16, FP32):
        table = dense((32000, 4096), dtype)
        yield call(f"32000x4096-into-{dtype}", 32000, 4096, buffer=table)
    yield call("32000x4096-beyond-2**31", 32000, 4096, n_tokens=2**19 + 999)
    yield call("262208x12288-beyond-2**31", 262208, 12288)
    yield call("262208x12288-into-beyond-2**31", 262208, 12288, buffer=dense((262208, 12288), FP32))
