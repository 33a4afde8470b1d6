"""From what the property tests draw their examples, one file per family."""

from __future__ import annotations

from strategies import (
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
from strategies.space import Drawn, Example, Space, examples

SPACES: tuple[Space, ...] = (
    *norms.SPACES,
    *position.SPACES,
    *gates.SPACES,
    *activations.SPACES,
    *embedding.SPACES,
    *quantised.SPACES,
    *losses.SPACES,
    *logprobs.SPACES,
    *divergences.SPACES,
)

__all__ = ["SPACES", "Drawn", "Example", "Space", "examples"]
