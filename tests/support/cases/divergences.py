"""Divergences, of probabilities and of logits, and fused with two linear layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from cases.case import Case, labels, normal, together
from liger.op import Op
from liger_triton import divergence, linear_jsd

Draw = Callable[[np.random.Generator], np.ndarray]


def probs(*shape: int) -> Draw:
    def make(rng: np.random.Generator) -> np.ndarray:
        e = np.exp(rng.standard_normal(shape))
        return (e / e.sum(-1, keepdims=True)).astype(np.float32)

    return make


def log_probs(*shape: int) -> Draw:
    return lambda rng: np.log(probs(*shape)(rng))


_MAKERS = {divergence.LOGITS: normal, divergence.LOG_PROBS: log_probs, divergence.PROBS: probs}
_OF_LOGITS: dict[str, Any] = {"student_space": divergence.LOGITS, "teacher_space": divergence.LOGITS}
_OF_PROBS: dict[str, Any] = {
    "kind": "tvd",
    "student_space": divergence.PROBS,
    "teacher_space": divergence.PROBS,
}
_TO_PROBS: dict[str, Any] = {"beta": 0.0, "teacher_space": divergence.PROBS, "eps": 1e-10}


def _case(
    op: Op,
    name: str,
    shape: tuple[int, ...] = (4, 3, 133),
    y: Draw | None = None,
    frozen: tuple[str, ...] = (),
    **options: Any,
) -> Case:
    chosen = divergence.Options(**options)
    tokens = chosen.reduction in ("elements", "tokens")
    return Case(
        f"{op.name}-{name}",
        op,
        chosen,
        together(_MAKERS[chosen.student_space](*shape), _MAKERS[chosen.teacher_space](*shape), y),
        frozen=frozen,
        # Gradients of a scalar are rounded before and after they are multiplied by its cotangent.
        roundings=1 if tokens else 2,
        float16_roundings=1 if tokens else 24**2,
    )


def _linear(
    name: str, rows: tuple[int, ...] = (4, 3), biased: bool = False, ignored: float | None = 0.3,
    frozen: tuple[str, ...] = (), **options: Any,
) -> Case:  # fmt: skip
    vocab = 133
    chosen = linear_jsd.Options(chunk_bytes=3000, **options)
    vh = chosen.weight_layout == "vh"
    return Case(
        f"linear_jsd-{name}",
        linear_jsd.LINEAR_JSD,
        chosen,
        together(
            normal(*rows, 24),
            normal(*((vocab, 24) if vh else (24, vocab)), scale=0.3),
            normal(*rows, 40),
            normal(*((vocab, 40) if vh else (40, vocab)), scale=0.25),
            None if ignored is None else labels(rows, vocab, ignored),
            normal(vocab) if biased else None,
            normal(vocab) if biased else None,
        ),
        frozen=frozen,
        # Logits of magnitude |z| are stored, err by |z| roundings, and enter through an exponential.
        roundings=12**2,
        float16_roundings=24**2,
        kernels_alone=False,
    )


def cases() -> list[Case]:
    kl, jsd, tvd = divergence.KL_DIV, divergence.JSD, divergence.TVD
    some = labels((4, 3), 133)
    distilled = {"hard_weight": 0.6, "soft_weight": 0.4, "temperature": 2.0, "return_parts": True}
    return [
        _case(kl, "mean", reduction="mean_elements", **_TO_PROBS),
        _case(kl, "none", reduction="elements", **_TO_PROBS),
        _case(kl, "log-target", beta=0.0, reduction="mean_batch"),
        _case(kl, "tokens", y=some, reduction="tokens", **_TO_PROBS),
        _case(jsd, "mean", y=some),
        _case(jsd, "none", reduction="elements", beta=0.9),
        _case(jsd, "tokens", y=some, reduction="tokens", beta=0.1),
        _case(jsd, "reverse", beta=1.0, reduction="sum", frozen=("teacher",)),
        _case(jsd, "wide", (2, 9001)),
        _case(jsd, "empty", (0, 50)),
        _case(jsd, "one-row", (1, 50), frozen=("teacher",)),
        _case(jsd, "all-ignored", (4, 50), labels((4,), 50, 1.0)),
        _case(jsd, "logits-mean", y=some, temperature=2.0, **_OF_LOGITS),
        _case(jsd, "logits-tokens", y=some, reduction="tokens", beta=0.2, **_OF_LOGITS),
        _case(jsd, "logits-forward", reduction="tokens", beta=0.0, temperature=0.5, **_OF_LOGITS),
        _case(jsd, "logits-reverse", (2, 9001), beta=1.0, **_OF_LOGITS),
        # In float16 most gradients of 9000 words are subnormal.
        dataclasses.replace(
            _case(jsd, "logits-wide", (2, 9000), reduction="tokens", beta=0.3, **_OF_LOGITS),
            float16_roundings=4,
        ),
        _case(jsd, "logits-widest", (1, 67_000), beta=0.0, **_OF_LOGITS),
        _case(jsd, "logits-all-ignored", (4, 50), labels((4,), 50, 1.0), reduction="tokens", **_OF_LOGITS),
        _case(tvd, "mean", y=some, reduction="mean_elements", **_OF_PROBS),
        _case(tvd, "none", y=some, reduction="elements", **_OF_PROBS),
        _case(tvd, "logits", (5, 5000), kind="tvd", **_OF_LOGITS),
        _case(tvd, "logits-tokens", y=some, kind="tvd", reduction="tokens", **_OF_LOGITS),
        _linear("mean", ignored=None),
        _linear("distillation", biased=True, weight_layout="hv", **distilled),
        _linear("tokens", biased=True, reduction="tokens", beta=0.1, **distilled),
        _linear("forward", beta=0.0, reduction="sum", temperature=3.0),
        _linear("empty", (0,), **distilled),
        _linear("empty-tokens", (0,), reduction="tokens", **distilled),
        _linear("all-ignored", ignored=1.0, **distilled),
        _linear("frozen-head", frozen=("student_weight",), beta=1.0),
    ]
