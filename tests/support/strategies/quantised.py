"""Products of quantised matrices."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from liger_triton import int2_matmul
from strategies.space import Drawn, Maker, Space


def _operands(drawn: Drawn) -> dict[str, Maker]:
    rows, columns = drawn["packed rows"], drawn["columns"]
    return {
        "a": lambda rng: rng.integers(-128, 128, (*drawn.tokens, 4 * rows)).astype(np.int8),
        "packed": lambda rng: rng.integers(0, 256, (rows, columns)).astype(np.uint8),
    }


SPACES = (
    Space(
        int2_matmul.INT2_MATMUL,
        st.builds(int2_matmul.Options),
        _operands,
        {"packed rows": st.integers(1, 20), "columns": st.integers(1, 70)},
    ),
)
