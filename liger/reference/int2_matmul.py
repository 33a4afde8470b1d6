"""Matrices of two-bit integers."""

from __future__ import annotations

from typing import Any

from liger.reference.common import namespace

PER_BYTE = 4
"""Weights in a byte."""


def pack(weights: Any) -> Any:
    """Four integers w in [-1, 2] in a byte: the weights (k, ...) as uint8 (k / 4, ...).

    Byte i holds w[i], w[i + k/4], w[i + 2k/4] and w[i + 3k/4], lowest bits first, each as w + 1. (The layout of
    liger_kernel.ops.experimental.mm_int8int2, whose packed weights can be used as they are.)
    """
    xp = namespace(weights)
    rows = weights.shape[0] // PER_BYTE
    codes = xp.astype(weights + 1, xp.uint8)
    packed = codes[:rows]
    for i in range(1, PER_BYTE):
        packed = packed | (codes[i * rows : (i + 1) * rows] << 2 * i)
    return packed


def unpack(packed: Any) -> Any:
    """The weights of `pack`, int32."""
    xp = namespace(packed)
    return xp.concat([xp.astype((packed >> 2 * i) & 3, xp.int32) - 1 for i in range(PER_BYTE)], axis=0)


def int2_matmul(a: Any, packed: Any) -> Any:
    """c = a @ unpack(packed), int32 and exact, for int8 a (..., k) and packed weights (k / 4, n)."""
    xp = namespace(a)
    rows = xp.reshape(xp.astype(a, xp.int32), (-1, a.shape[-1])) if a.ndim != 2 else xp.astype(a, xp.int32)
    return xp.reshape(rows @ unpack(packed), (*a.shape[:-1], packed.shape[1]))
