"""Log-probabilities, on logits and fused with the linear layer."""

from __future__ import annotations

from typing import Any

from cases import normal
from hypothesis import strategies as st

from liger_triton import linear_logprobs, logprobs
from strategies.losses import labels
from strategies.space import Drawn, Maker, Space

_ROWS: dict[str, st.SearchStrategy[Any]] = {
    "ignore_index": st.sampled_from((-100, -1, 1)),
    "temperature": st.sampled_from((1.0, 0.7)),
    "softcap": st.sampled_from((None, 5.0)),
    "scale": st.sampled_from((1.0, 0.5)),
    "return_predicted": st.booleans(),
    "return_rank": st.booleans(),
}


def _logprobs(drawn: Drawn) -> dict[str, Maker]:
    vocab = drawn["width"]
    return {"logits": normal(*drawn.tokens, vocab, scale=drawn.scale), "ids": labels(drawn, vocab)}


def _linear(drawn: Drawn) -> dict[str, Maker]:
    hidden, vocab = drawn["hidden"], drawn["width"]
    layout = (vocab, hidden) if drawn.options.weight_layout == "vh" else (hidden, vocab)
    return {
        "x": normal(*drawn.tokens, hidden),
        "weight": normal(*layout, scale=hidden**-0.5),
        "ids": labels(drawn, vocab),
        "bias": normal(vocab),
    }


SPACES = (
    Space(logprobs.LOGPROBS, st.builds(logprobs.Options, **_ROWS), _logprobs),
    Space(
        linear_logprobs.LINEAR_LOGPROBS,
        st.builds(
            linear_logprobs.Options,
            **_ROWS,
            weight_layout=st.sampled_from(("vh", "hv")),
            chunk_bytes=st.sampled_from((None, 400)),
            keep_bytes=st.sampled_from((0, 400, None)),
            unit_gradient=st.booleans(),
        ),
        _linear,
        {"width": st.integers(2, 70), "hidden": st.integers(1, 20)},
    ),
)
