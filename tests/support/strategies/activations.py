"""Softmax and sparsemax."""

from __future__ import annotations

from cases import normal
from hypothesis import strategies as st

from liger_triton import softmax
from strategies.space import Space

SPACES = tuple(
    Space(
        op,
        st.builds(softmax.Options),
        lambda drawn: {"x": normal(*drawn.tokens, drawn["width"], scale=drawn.scale)},
        roundings=2,
    )
    for op in (softmax.SOFTMAX, softmax.SPARSEMAX)
)
