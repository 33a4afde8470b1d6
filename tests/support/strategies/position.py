"""Rotary position embedding."""

from __future__ import annotations

import numpy as np
from cases import normal
from hypothesis import strategies as st

from liger_triton import rope
from strategies.space import Drawn, Maker, Space

_SIZES = {
    "sections": st.sampled_from((3, 6, 12)),
    "unrotated": st.integers(0, 5),
    "q heads": st.integers(1, 4),
    "k heads": st.integers(1, 3),
    "own tables": st.booleans().map(int),
    "positions": st.integers(1, 9),
}
_OPTIONS = st.builds(rope.Options, interleaved=st.booleans(), half_tables=st.booleans())


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
)
