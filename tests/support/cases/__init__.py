"""What the ops are tested on, one file per family."""

from __future__ import annotations

from cases import (
    activations,
    divergences,
    embedding,
    gates,
    logprobs,
    losses,
    norms,
    position,
    quantised,
)
from cases.case import DTYPES, IGNORED, Case, labels, normal, positive, together
from cases.cover import each_once, representatives, with_tokens

CASES: tuple[Case, ...] = (
    *norms.cases(),
    *position.cases(),
    *gates.cases(),
    *activations.cases(),
    *embedding.cases(),
    *quantised.cases(),
    *losses.cases(),
    *logprobs.cases(),
    *divergences.cases(),
)
REPRESENTATIVES: tuple[Case, ...] = representatives(CASES)
SIGNATURES: tuple[Case, ...] = representatives(CASES, options=False)
EACH_ONCE: tuple[tuple[Case, str], ...] = each_once(CASES, REPRESENTATIVES)

__all__ = [
    "CASES",
    "DTYPES",
    "EACH_ONCE",
    "IGNORED",
    "REPRESENTATIVES",
    "SIGNATURES",
    "Case",
    "labels",
    "normal",
    "positive",
    "together",
    "with_tokens",
]
