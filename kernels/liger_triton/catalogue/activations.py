"""Softmax and sparsemax."""

from __future__ import annotations

from collections.abc import Iterator

from liger.plan import dense
from liger_triton import softmax
from liger_triton.catalogue.call import BF16, FP32, Call


def softmaxes() -> Iterator[Call]:
    for op in (softmax.SOFTMAX, softmax.SPARSEMAX):

        def call(name: str, n_rows: int, n_cols: int, dtype: str = BF16) -> Call:
            return Call(f"{op.name}-{name}", op, softmax.Options(), (dense((n_rows, n_cols), dtype),))  # noqa: B023

        for n_cols in (8, 128, 1001, 4096, 16384, 32768, 128256):
            yield call(f"{n_cols}-bf16", max(8191, 2**25 // n_cols - 1), n_cols)
        for n_cols in (128, 16384, 128256):
            yield call(f"{n_cols}-fp32", 8191, n_cols, FP32)
        yield call("4096-beyond-2**31", 2**19 + 999, 4096)
        yield call("128256-beyond-2**31", 16_800, 128256)
