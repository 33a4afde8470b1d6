"""Embedding tables."""

from __future__ import annotations

import numpy as np
from cases import normal
from hypothesis import strategies as st

from liger_triton import embedding
from strategies.space import Drawn, Maker, Space


def _operands(drawn: Drawn) -> dict[str, Maker]:
    vocab = drawn["vocab"]
    return {
        "ids": lambda rng: (rng.zipf(1.5, drawn.tokens) % vocab).astype(np.int64),
        "weight": normal(vocab, drawn["width"], scale=drawn.scale),
    }


SPACES = (
    Space(
        embedding.EMBEDDING,
        st.builds(embedding.Options, padding_idx=st.sampled_from((None, 0, 1))),
        _operands,
        {"vocab": st.integers(2, 40), "width": st.integers(1, 70)},
    ),
)
