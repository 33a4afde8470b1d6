"""Cross entropy, on logits and fused with the linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from liger.plan import WHOLE, Parts, dense
from liger_triton import cross_entropy, linear_cross_entropy
from liger_triton.catalogue.call import BF16, FP32, Call

_EVERYTHING: dict[str, Any] = {
    "label_smoothing": 0.1,
    "z_loss": 1e-4,
    "softcap": 30.0,
    "scale": 0.5,
    "token_scaling": True,
    "return_accuracy": True,
    "return_predicted": True,
}


# Token scaling is for a vocabulary that one device has whole.
_DIVIDED = {**_EVERYTHING, "token_scaling": False, "return_z_loss": True}


def cross_entropies() -> Iterator[Call]:
    def call(
        name: str, n_rows: int, vocab: int, dtype: str = BF16, labels: str = "int64", weighted: bool = False,
        parts: Parts = WHOLE, **options: Any,
    ) -> Call:  # fmt: skip
        operands = (
            dense((n_rows, vocab // parts.columns), dtype),
            dense((n_rows,), labels),
            dense((vocab,), FP32) if weighted else None,
        )
        chosen = cross_entropy.Options(**options)
        return Call(f"cross_entropy-{name}", cross_entropy.CROSS_ENTROPY, chosen, operands, parts=parts)

    for vocab in (1000, 32000, 128256, 128257, 256000):
        yield call(f"{vocab}-bf16", 4096, vocab)
    yield call("128256-fp32", 4096, 128256, FP32)
    yield call("128256-everything", 4096, 128256, weighted=True, return_z_loss=True, **_EVERYTHING)
    yield call("128256-fp32-everything", 4096, 128256, FP32, weighted=True, **_EVERYTHING)
    yield call("128256-none", 4096, 128256, labels="int32", reduction="none", softcap=30.0)
    yield call("128256-beyond-2**31", 16_800, 128256)
    yield call("128256-of-8", 4096, 128256, labels="int32", parts=Parts(2, 8))
    yield call("50304-of-8-everything", 4096, 50304, weighted=True, parts=Parts(2, 8), **_DIVIDED)
    yield call("128256-of-2-beyond-2**31", 33_600, 128256, labels="int32", parts=Parts(columns=2))


def linear_cross_entropies() -> Iterator[Call]:
    def call(
        name: str, vocab: int, n_rows: int = 8192, dtype: str = BF16, biased: bool = False, hidden: int = 4096,
        parts: Parts = WHOLE, **options: Any,
    ) -> Call:  # fmt: skip
        operands = (
            dense((n_rows, hidden), dtype),
            dense((vocab // parts.columns, hidden), dtype),
            dense((n_rows,), "int64"),
            dense((vocab // parts.columns,), dtype) if biased else None,
            dense((vocab,), FP32) if biased else None,
            None,
            None,
        )
        return Call(
            f"linear_cross_entropy-{name}",
            linear_cross_entropy.LINEAR_CROSS_ENTROPY,
            linear_cross_entropy.Options(**options),
            operands,
            parts=parts,
        )

    for vocab in (32000, 128256, 128257, 256000):
        yield call(f"{vocab}-bf16", vocab)
    yield call("128256-fp32", 128256, dtype=FP32)
    yield call("128256-everything", 128256, biased=True, **_EVERYTHING)
    yield call("128256-none", 128256, reduction="none")
    yield call(
        "128256-none-everything", 128256, biased=True, reduction="none", return_z_loss=True, **_EVERYTHING
    )
    yield call("32000-beyond-2**31", 32000, n_rows=2**19 + 9)
    yield call("128256-one-chunk-beyond-2**31", 128256, n_rows=16_800, chunk_bytes=2**33, reduction="none")
    yield call("128256-of-8", 128256, parts=Parts(columns=8))
    yield call("128256-of-8-everything", 128256, biased=True, parts=Parts(2, 8), **_DIVIDED)
