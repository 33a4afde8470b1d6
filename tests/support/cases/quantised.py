"""Products of quantised matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cases.case import Case, together
from liger_triton import int2_matmul


def int8(*shape: int) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: rng.integers(-128, 128, shape).astype(np.int8)


def packed(*shape: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Any bytes: also those with the number 2 in them, which two bits hold beside -1, 0 and 1."""
    return lambda rng: rng.integers(0, 256, shape).astype(np.uint8)


def cases() -> list[Case]:
    return [
        Case(
            f"int2_matmul-{'x'.join(map(str, rows))}-{k}-{n}",
            int2_matmul.INT2_MATMUL,
            int2_matmul.Options(),
            together(int8(*rows, k), packed(k // 4, n)),
        )
        for rows, k, n in (
            ((1,), 4, 1),
            ((2, 3), 140, 33),
            ((1,), 4096, 70),  # k in parts
            ((17,), 2052, 130),  # parts that end in the middle of a tile
            ((130,), 64, 200),
            ((0,), 8, 16),
        )
    ]
