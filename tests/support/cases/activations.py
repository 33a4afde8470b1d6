"""Softmax and sparsemax."""

from __future__ import annotations

import numpy as np

from cases.case import Case, Operands, normal, together
from liger_triton import softmax

WIDE = 20_001


def equal_and_masked(rng: np.random.Generator) -> Operands:
    """Rows of one number, with one entry that counts, of two numbers, with entries of -inf, narrow and far from 0."""
    x = rng.standard_normal((6, 40)).astype(np.float32)
    x[0] = 3.0
    x[1, 7] = 50.0
    x[2, :20], x[2, 20:] = 0.0, -0.04
    x[3, ::2] = -np.inf
    x[4] *= 1e-3
    x[5] += 500.0
    return (x,)


def sparsemax_by_sorting(z: np.ndarray) -> np.ndarray:
    """Algorithm 1 of arXiv:1602.02068 in float64, for one row."""
    z = z.astype(np.float64)
    ordered = np.sort(z)[::-1]
    sums = np.cumsum(ordered)
    k = np.arange(1, z.size + 1)
    size = k[1 + k * ordered > sums][-1]
    return np.maximum(z - (sums[size - 1] - 1) / size, 0)


def cases() -> list[Case]:
    return [
        *(
            Case(f"softmax-{shape}", softmax.SOFTMAX, softmax.Options(), together(normal(*shape, scale=3)))
            for shape in ((1, 1), (3, 5, 33), (7, 1000), (3, WIDE), (0, 16))
        ),
        *(
            Case(
                f"sparsemax-{shape}",
                softmax.SPARSEMAX,
                softmax.Options(),
                together(normal(*shape, scale=scale)),
            )
            for shape, scale in (
                ((1, 1), 1),
                ((3, 5, 33), 1),
                ((7, 1000), 0.1),
                ((3, WIDE), 0.1),
                ((0, 16), 1),
            )
        ),
        *(
            Case(f"{op.name}-equal-and-masked", op, softmax.Options(), equal_and_masked)
            for op in (softmax.SOFTMAX, softmax.SPARSEMAX)
        ),
    ]
