"""Gated activations."""

from __future__ import annotations

from cases import normal
from hypothesis import strategies as st

from liger_triton import glu, relu_squared
from strategies.space import Drawn, Maker, Space


def _gated(drawn: Drawn) -> dict[str, Maker]:
    packed = drawn.options.interleaved or "up" not in drawn.present
    gate = normal(*drawn.tokens, drawn["width"] * (2 if packed else 1), scale=drawn.scale)
    return {"gate": gate} if packed else {"gate": gate, "up": normal(*drawn.tokens, drawn["width"])}


_SWIGLU = st.builds(
    glu.Options,
    activation=st.just("silu"),
    gate_multiplier=st.sampled_from((1.0, 0.3)),
    alpha=st.sampled_from((1.0, 1.702)),
    limit=st.sampled_from((None, 2.0)),
    up_offset=st.sampled_from((0.0, 1.0)),
    interleaved=st.booleans(),
)
_GEGLU = st.builds(
    glu.Options,
    activation=st.sampled_from(("gelu", "gelu_tanh")),
    gate_multiplier=st.sampled_from((1.0, 0.3)),
    interleaved=st.booleans(),
)

SPACES = (
    Space(glu.SWIGLU, _SWIGLU, _gated),
    Space(glu.GEGLU, _GEGLU, _gated),
    Space(
        relu_squared.RELU_SQUARED,
        st.builds(relu_squared.Options),
        lambda drawn: {"x": normal(*drawn.tokens, drawn["width"], scale=drawn.scale)},
    ),
)
