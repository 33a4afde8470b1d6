"""Cross entropy, on logits and fused with the linear layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases import normal, positive
from hypothesis import strategies as st

from liger_triton import cross_entropy, linear_cross_entropy
from strategies.space import Drawn, Maker, Space

_LOSS: dict[str, st.SearchStrategy[Any]] = {
    "ignore_index": st.sampled_from((-100, -1, 1)),
    "label_smoothing": st.sampled_from((0.0, 0.1, 1.0)),
    "z_loss": st.sampled_from((0.0, 1e-2)),
    "softcap": st.sampled_from((None, 5.0)),
    "scale": st.sampled_from((1.0, 0.5)),
    "reduction": st.sampled_from(cross_entropy.REDUCTIONS),
    "token_scaling": st.booleans(),
    "return_z_loss": st.booleans(),
    "return_accuracy": st.booleans(),
    "return_predicted": st.booleans(),
}


def labels(drawn: Drawn, n_classes: int) -> Maker:
    """Class indices, a third of them ignored."""

    def make(rng: np.random.Generator) -> np.ndarray:
        chosen = rng.integers(0, n_classes, drawn.tokens)
        return np.where(rng.random(drawn.tokens) < 0.3, drawn.options.ignore_index, chosen).astype(np.int32)

    return make


def _cross_entropy(drawn: Drawn) -> dict[str, Maker]:
    vocab = drawn["width"]
    return {
        "logits": normal(*drawn.tokens, vocab, scale=drawn.scale),
        "labels": labels(drawn, vocab),
        "weight": positive(vocab),
    }


def _linear(drawn: Drawn) -> dict[str, Maker]:
    hidden, vocab = drawn["hidden"], drawn["width"]
    layout = (vocab, hidden) if drawn.options.weight_layout == "vh" else (hidden, vocab)
    return {
        "x": normal(*drawn.tokens, hidden),
        "weight": normal(*layout, scale=hidden**-0.5),
        "labels": labels(drawn, vocab),
        "bias": normal(vocab),
        "class_weight": positive(vocab),
    }


SPACES = (
    Space(
        cross_entropy.CROSS_ENTROPY,
        st.builds(cross_entropy.Options, **_LOSS),
        _cross_entropy,
        keep_dtype=("weight",),
    ),
    Space(
        linear_cross_entropy.LINEAR_CROSS_ENTROPY,
        st.builds(
            linear_cross_entropy.Options,
            **_LOSS,
            weight_layout=st.sampled_from(linear_cross_entropy.LAYOUTS),
            chunk_bytes=st.sampled_from((None, 400)),
            recompute=st.booleans(),
        ),
        _linear,
        {"width": st.integers(2, 70), "hidden": st.integers(1, 20)},
        keep_dtype=("class_weight",),
    ),
)
