"""Rotary position embedding."""

from __future__ import annotations

import numpy as np
from cases import normal
from hypothesis import strategies as st

from liger_triton import qk_norm_rope, rms_norm, rope
from strategies.space import Drawn, Maker, Space

_SIZES = {
    "sections": st.sampled_from((3, 6, 12)),
    "unrotated": st.integers(0, 5),
    "q heads": st.integers(1, 4),
    "k heads": st.integers(1, 3),
    "own tables": st.booleans().map(int),
    "positions": st.integers(1, 9),
}
_OPTIONS = st.builds(
    lambda pairs, half_tables: rope.Options(**pairs, half_tables=half_tables),
    st.sampled_from(({}, {"interleaved": True}, {"interleaved": True, "deinterleave": True})),
    st.booleans(),
)


def _heads(drawn: Drawn) -> dict[str, Maker]:
    head_dim = 2 * drawn["sections"] + drawn["unrotated"]
    return {
        "q": normal(*drawn.tokens, drawn["q heads"], head_dim, scale=drawn.scale),
        "k": normal(*drawn.tokens, drawn["k heads"], head_dim),
    }


def _tables(drawn: Drawn, *shape: int) -> dict[str, Maker]:
    columns = drawn["sections"] * (1 if drawn.options.half_tables else 2)
    return dict.fromkeys(("cos", "sin"), normal(*shape, columns))


def _batch(drawn: Drawn) -> int:
    return drawn.tokens[0] if drawn["own tables"] else 1


def _at_positions(drawn: Drawn) -> dict[str, Maker]:
    shape = (_batch(drawn), drawn.tokens[1])
    ids: Maker = lambda rng: rng.integers(0, drawn["positions"], shape).astype(np.int32)  # noqa: E731
    return {**_heads(drawn), **_tables(drawn, drawn["positions"]), "position_ids": ids}


def _normalised(drawn: Drawn) -> dict[str, Maker]:
    head_dim, rotary_dim = 2 * (drawn["pairs"] + drawn["unrotated pairs"]), 2 * drawn["pairs"]
    return {
        "q": normal(*drawn.tokens, drawn["q heads"], head_dim, scale=drawn.scale),
        "k": normal(*drawn.tokens, drawn["k heads"], head_dim),
        **dict.fromkeys(("q_weight", "k_weight"), normal(head_dim)),
        **dict.fromkeys(("cos", "sin"), normal(_batch(drawn), drawn.tokens[1], rotary_dim)),
    }


SPACES = (
    Space(
        rope.ROPE,
        _OPTIONS,
        lambda drawn: {**_heads(drawn), **_tables(drawn, _batch(drawn), drawn.tokens[1])},
        _SIZES,
        token_axes=(2, 2),
    ),
    Space(rope.ROPE_AT_POSITIONS, _OPTIONS, _at_positions, _SIZES, token_axes=(2, 2)),
    Space(
        rope.MROPE,
        st.just(rope.MultimodalOptions((1, 1, 1))),
        lambda drawn: {**_heads(drawn), **_tables(drawn, _batch(drawn), drawn.tokens[1], 3)},
        {**_SIZES, "sections": st.just(3)},
        token_axes=(2, 2),
    ),
    Space(
        qk_norm_rope.QK_NORM_ROPE,
        st.builds(
            qk_norm_rope.Options,
            eps=st.sampled_from((1e-6, 1e-3)),
            offset=st.sampled_from((0.0, 1.0)),
            casting=st.sampled_from(rms_norm.CASTINGS),
            interleaved=st.booleans(),
        ),
        _normalised,
        {
            "pairs": st.sampled_from((4, 5, 12)),
            "unrotated pairs": st.integers(0, 3),
            **{name: _SIZES[name] for name in ("q heads", "k heads", "own tables")},
        },
        token_axes=(2, 2),
    ),
)
