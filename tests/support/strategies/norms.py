"""Normalisation."""

from __future__ import annotations

from cases import normal
from hypothesis import strategies as st

from liger_triton import group_norm, layer_norm, rms_norm
from strategies.space import Drawn, Maker, Space

_EPS = st.sampled_from((1e-6, 1e-3))
_RMS = st.builds(
    rms_norm.Options,
    eps=_EPS,
    offset=st.sampled_from((0.0, 1.0)),
    casting=st.sampled_from(rms_norm.CASTINGS),
)

_LAYER = st.builds(layer_norm.Options, eps=_EPS)
# Of two or three numbers so little is left beside their mean that the gradients are mostly rounding.
_SIZES = {"width": st.integers(8, 70)}


def _operands(drawn: Drawn) -> dict[str, Maker]:
    stream = normal(*drawn.tokens, drawn["width"], scale=drawn.scale)
    return {"x": stream, "residual": stream, "weight": normal(drawn["width"]), "bias": normal(drawn["width"])}


def _images(drawn: Drawn) -> dict[str, Maker]:
    channels, positions = drawn.options.num_groups * drawn["channels of a group"], drawn["positions"]
    image = (positions, channels) if drawn.options.channels_last else (channels, positions)
    return {
        "x": normal(*drawn.tokens, *image, scale=drawn.scale),
        "weight": normal(channels),
        "bias": normal(channels),
    }


SPACES = (
    Space(rms_norm.RMS_NORM, _RMS, _operands, _SIZES),
    Space(rms_norm.ADD_RMS_NORM, _RMS, _operands, _SIZES),
    Space(layer_norm.LAYER_NORM, _LAYER, _operands, _SIZES),
    Space(layer_norm.ADD_LAYER_NORM, _LAYER, _operands, _SIZES),
    Space(
        group_norm.GROUP_NORM,
        st.builds(group_norm.Options, num_groups=st.integers(1, 4), eps=_EPS, channels_last=st.booleans()),
        _images,
        {"channels of a group": st.integers(1, 6), "positions": st.integers(8, 70)},
        token_axes=(1, 1),
    ),
)
