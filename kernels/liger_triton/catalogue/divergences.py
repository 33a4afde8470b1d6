"""Divergences, of probabilities and of logits, and fused with two linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from liger.op import Op
from liger.plan import dense
from liger_triton import divergence, linear_jsd
from liger_triton.catalogue.call import BF16, FP32, Call

_OF_LOGITS: dict[str, Any] = {"student_space": divergence.LOGITS, "teacher_space": divergence.LOGITS}
_OF_PROBS: dict[str, Any] = {"student_space": divergence.PROBS, "teacher_space": divergence.PROBS}
_TO_PROBS: dict[str, Any] = {"beta": 0.0, "teacher_space": divergence.PROBS, "eps": 1e-10}


def divergences() -> Iterator[Call]:
    """One loss for all tokens has its gradients in the forward pass, one per token in the backward pass."""

    def call(
        op: Op, name: str, n_rows: int, vocab: int, dtype: str = BF16, teacher_dtype: str | None = None,
        labels: bool = False, needs: tuple[bool, ...] = (True, False, False), **options: Any,
    ) -> Call:  # fmt: skip
        operands = (
            dense((n_rows, vocab), dtype),
            dense((n_rows, vocab), teacher_dtype or dtype),
            dense((n_rows,), "int64") if labels else None,
        )
        return Call(f"{op.name}-{name}", op, divergence.Options(**options), operands, needs)

    kl, jsd, tvd = divergence.KL_DIV, divergence.JSD, divergence.TVD
    both = (True, True, False)
    yield call(kl, "128256-bf16", 4096, 128256, **_TO_PROBS)
    yield call(kl, "128256-none", 4096, 128256, **_TO_PROBS | {"reduction": "elements"})
    yield call(kl, "128256-no-eps", 4096, 128256, needs=both, **_TO_PROBS | {"eps": 0.0})
    yield call(kl, "128257-tokens", 4096, 128257, beta=0.0, reduction="tokens", labels=True)
    yield call(kl, "1000-fp32-both", 4096, 1000, FP32, needs=both, **_TO_PROBS | {"reduction": "tokens"})
    yield call(jsd, "128256-bf16", 4096, 128256, labels=True)
    yield call(jsd, "128256-tokens-both", 4096, 128256, FP32, reduction="tokens", needs=both)
    yield call(jsd, "128257-bf16", 4096, 128257, beta=1.0)
    yield call(jsd, "128256-beyond-2**31", 16_800, 128256)
    yield call(kl, "128256-tokens-beyond-2**31", 16_800, 128256, beta=0.0, reduction="tokens")
    yield call(jsd, "logits-tokens-beyond-2**31", 16_800, 128256, reduction="tokens", **_OF_LOGITS)
    yield call(jsd, "logits-128256-bf16", 4096, 128256, labels=True, temperature=2.0, **_OF_LOGITS)
    yield call(jsd, "logits-128256-fp32", 4096, 128256, FP32, needs=both, **_OF_LOGITS)
    yield call(jsd, "logits-32000-tokens", 4096, 32000, teacher_dtype=FP32, reduction="tokens", **_OF_LOGITS)
    yield call(jsd, "logits-128256-beta-0.3", 4096, 128256, beta=0.3, **_OF_LOGITS)
    yield call(jsd, "logits-128257-kl", 4096, 128257, beta=0.0, **_OF_LOGITS)
    yield call(jsd, "logits-151936-kl-mixed", 4096, 151936, teacher_dtype=FP32, beta=0.0, **_OF_LOGITS)
    yield call(jsd, "logits-256000-kl", 4096, 256000, beta=0.0, needs=both, **_OF_LOGITS)
    yield call(jsd, "logits-128257-reverse-kl", 4096, 128257, beta=1.0, reduction="tokens", **_OF_LOGITS)
    yield call(tvd, "128256-bf16", 4096, 128256, kind="tvd", labels=True, **_OF_PROBS)
    yield call(tvd, "logits-128256-bf16", 4096, 128256, kind="tvd", needs=both, **_OF_LOGITS)


def linear_jsds() -> Iterator[Call]:
    def call(
        name: str, vocab: int, n_rows: int = 8192, dtype: str = BF16, biased: bool = False, hidden: int = 4096,
        teacher_hidden: int = 8192, **options: Any,
    ) -> Call:  # fmt: skip
        operands = (
            dense((n_rows, hidden), dtype),
            dense((vocab, hidden), dtype),
            dense((n_rows, teacher_hidden), BF16),
            dense((vocab, teacher_hidden), BF16),
            dense((n_rows,), "int64"),
            dense((vocab,), dtype) if biased else None,
            dense((vocab,), FP32) if biased else None,
        )
        return Call(f"linear_jsd-{name}", linear_jsd.LINEAR_JSD, linear_jsd.Options(**options), operands)

    distilled: dict[str, Any] = {
        "temperature": 2.0,
        "soft_weight": 0.5,
        "hard_weight": 0.5,
        "return_parts": True,
    }
    yield call("128256-bf16", 128256)
    yield call("128257-bf16", 128257, temperature=2.0)
    yield call("128256-fp32", 128256, dtype=FP32)
    yield call("128256-distillation", 128256, biased=True, **distilled)
    yield call("50257-biased", 50257, biased=True, beta=0.0)
    yield call("128256-tokens", 128256, biased=True, reduction="tokens", **distilled)
    yield call("151936-kl", 151936, hidden=1024, beta=0.0)
    yield call("128256-one-chunk-beyond-2**31", 128256, n_rows=16_800, chunk_bytes=2**33)
