"""What the ops are tested on: operands in numpy, options, and what stands for the framework's own op.

A case is free of frameworks, so that each property is stated once and run over torch and JAX.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from liger.op import Op

DTYPES = ("float32", "bfloat16", "float16")
Operands = tuple[np.ndarray | None, ...]
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an op.

    Attributes:
        name: for the test's id.
        op: the op.
        options: its options.
        make: draws the operands, floating ones as float32 (or float64 for class weights kept in float32).
        keep_dtype: operands that stay float32 whatever dtype is tested (class weights, tables).
        frozen: operands that get no gradient although they could.
        unused: outputs that no cotangent comes for.
        roundings: roundings to a 16-bit dtype between operands and results; independent ones add like a random walk.
        float16_roundings: the same for float16 where it differs: its small numbers are subnormal.
        kernels_alone: no product of a framework's takes part, so that torch and JAX agree to the bit.
    """

    name: str
    op: Op
    options: Any
    make: Callable[[np.random.Generator], Operands]
    keep_dtype: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    roundings: int = 1
    float16_roundings: int | None = None
    kernels_alone: bool = True

    def operands(self) -> Operands:
        """The operands, the same at every call."""
        return self.make(np.random.default_rng(zlib.crc32(self.name.encode())))

    def needs(self) -> tuple[bool, ...]:
        """Which operands get a gradient."""
        return tuple(
            value is not None and operand.differentiable and operand.name not in self.frozen
            for operand, value in zip(self.op.operands, self.operands(), strict=True)
        )


def normal(*shape: int, scale: float = 1.0) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: (rng.standard_normal(shape) * scale).astype(np.float32)


def labels(
    shape: tuple[int, ...], n_classes: int, ignored: float = 0.3
) -> Callable[[np.random.Generator], np.ndarray]:
    def make(rng: np.random.Generator) -> np.ndarray:
        y = rng.integers(0, n_classes, shape)
        return np.where(rng.random(shape) < ignored, IGNORED, y).astype(np.int32)

    return make


def positive(n: int) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: (rng.random(n) + 0.5).astype(np.float32)


def together(
    *parts: Callable[[np.random.Generator], np.ndarray] | None,
) -> Callable[[np.random.Generator], Operands]:
    return lambda rng: tuple(None if part is None else part(rng) for part in parts)
