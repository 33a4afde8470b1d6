"""Log-probabilities, on logits and fused with the linear layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from liger.plan import Parts, Planned, dense
from liger_triton import linear_logprobs, logprobs
from liger_triton.catalogue.call import BF16, FP32, Call

_EVERYTHING: dict[str, Any] = {
    "temperature": 0.9,
    "softcap": 30.0,
    "scale": 0.5,
    "return_predicted": True,
    "return_rank": True,
}


def token_logprobs() -> Iterator[Call]:
    def call(name: str, n_rows: int, vocab: int, dtype: str = BF16, **options: Any) -> Call:
        operands = (dense((n_rows, vocab), dtype), dense((n_rows,), "int64"))
        return Call(f"logprobs-{name}", logprobs.LOGPROBS, logprobs.Options(**options), operands)

    for vocab in (32000, 128256, 128257):
        yield call(f"{vocab}-bf16", 4096, vocab)
    yield call("128256-fp32", 4096, 128256, FP32)
    yield call("256000-everything", 4096, 256000, **_EVERYTHING)
    yield call("128256-fp32-everything", 4096, 128256, FP32, **_EVERYTHING)
    yield call("128256-beyond-2**31", 16_800, 128256)
    divided = (dense((4096, 128256 // 8), BF16), dense((4096,), "int32"))
    options = logprobs.Options(softcap=30.0, return_predicted=True)
    yield Call("logprobs-128256-of-8", logprobs.LOGPROBS, options, divided, parts=Parts(2, 8))
    last = Planned((4096, 128256), BF16, (128512, 1))  # logits padded to whole tiles
    yield Call(
        "logprobs-128256-strided", logprobs.LOGPROBS, logprobs.Options(), (last, dense((4096,), "int64"))
    )


def linear_logprobs_calls() -> Iterator[Call]:
    def call(name: str, vocab: int, n_rows: int = 8192, biased: bool = False, **options: Any) -> Call:
        hidden = 4096
        operands = (
            dense((n_rows, hidden), BF16),
            dense((vocab, hidden), BF16),
            dense((n_rows,), "int64"),
            dense((vocab,), BF16) if biased else None,
            None,
        )
        return Call(
            f"linear_logprobs-{name}",
            linear_logprobs.LINEAR_LOGPROBS,
            linear_logprobs.Options(**options),
            operands,
        )

    def frozen(name: str, vocab: int, n_rows: int = 8192) -> Call:
        prepared = call(name, vocab, n_rows, unit_gradient=True)
        return dataclasses.replace(
            prepared, needs=(True, False, False, False, False), constant=("lse", "entropy")
        )

    yield call("128256-partly-kept", 128256, keep_bytes=2**30)
    yield call("128256-kept-beyond-2**31", 128256, n_rows=16_800, keep_bytes=None)
    yield call("128256-everything", 128256, biased=True, **_EVERYTHING)
    yield frozen("128256-frozen-head", 128256)
    yield frozen("32000-frozen-head-beyond-2**31", 32000, 2**19 + 9)
