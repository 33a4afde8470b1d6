"""Log-probabilities, on logits and fused with the linear layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from cases.case import Case, labels, normal, together
from liger_triton import linear_logprobs, logprobs

_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ranked": {"return_predicted": True, "return_rank": True},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 5.0, "temperature": 1.3},
    "all": {
        "scale": 1.5,
        "softcap": 6.0,
        "temperature": 0.8,
        "return_predicted": True,
        "return_rank": True,
    },
}


def cases() -> list[Case]:
    vocab, row_bytes = 133, 133 * 2
    cases = []
    for name, options in _OPTIONS.items():
        cases.append(
            Case(
                f"logprobs-{name}",
                logprobs.LOGPROBS,
                logprobs.Options(**options),
                together(normal(4, 3, vocab, scale=3), labels((4, 3), vocab)),
            )
        )
    for name, rows, ignored in (("empty", 0, 0.0), ("one-row", 1, 0.0), ("all-ignored", 4, 1.0)):
        cases += [
            Case(
                f"logprobs-{name}",
                logprobs.LOGPROBS,
                logprobs.Options(),
                together(normal(rows, 50), labels((rows,), 50, ignored)),
            ),
            _linear(name, rows, 50, ignored=ignored, keep_bytes=None),
        ]
    cases += [
        Case(
            "logprobs-wide",
            logprobs.LOGPROBS,
            logprobs.Options(return_predicted=True, return_rank=True),
            together(normal(3, 20_001, scale=2), labels((3,), 20_001, 0.0)),
        ),
        _linear("plain", 12, vocab, chunk_bytes=5 * row_bytes),
        _linear("kept", 12, vocab, keep_bytes=None),
        _linear("partly-kept", 12, vocab, keep_bytes=5 * row_bytes, chunk_bytes=4 * row_bytes),
        _linear(
            "all", 12, vocab, biased=True, weight_layout="hv", chunk_bytes=7 * row_bytes, **_OPTIONS["all"]
        ),
        _linear("frozen-head", 5, 50, frozen=("weight",), chunk_bytes=3 * 50 * 2),
        dataclasses.replace(
            _linear(
                "prepared", 5, 50, biased=True, frozen=("weight", "bias"), softcap=4.0, unit_gradient=True
            ),
            unused=("lse", "entropy"),
        ),
        _linear("prepared-in-vain", 5, 50, frozen=("weight",), unit_gradient=True),
        _linear("frozen-input", 5, 50, biased=True, frozen=("x",), keep_bytes=None),
        _linear("bias-alone", 5, 50, biased=True, frozen=("x", "weight"), softcap=3.0),
    ]
    return cases


def _linear(
    name: str,
    rows: int,
    vocab: int,
    *,
    ignored: float = 0.3,
    biased: bool = False,
    frozen: tuple[str, ...] = (),
    **options: Any,
) -> Case:
    """Logits of magnitude |z| are stored, err by |z| roundings, and enter through an exponential."""
    hv = options.get("weight_layout") == "hv"
    return Case(
        f"linear_logprobs-{name}",
        linear_logprobs.LINEAR_LOGPROBS,
        linear_logprobs.Options(**options),
        together(
            normal(rows, 24),
            normal(*((24, vocab) if hv else (vocab, 24))),
            labels((rows,), vocab, ignored),
            normal(vocab) if biased else None,
            None,
        ),
        frozen=frozen,
        roundings=12**2,
        float16_roundings=24**2,
        kernels_alone=False,
    )
