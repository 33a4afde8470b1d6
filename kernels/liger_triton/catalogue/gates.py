"""Gated activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from liger.plan import dense
from liger_triton import swiglu
from liger_triton.catalogue.call import BF16, FP32, Call


def swiglus() -> Iterator[Call]:
    def call(name: str, n_rows: int, width: int, dtype: str = BF16, packed: bool = False) -> Call:
        gate = dense((n_rows, 2 * width if packed else width), dtype)
        return Call(f"swiglu-{name}", swiglu.SWIGLU, swiglu.Options(), (gate, None if packed else gate))

    for width in (64, 1001, 11008, 14336):
        yield call(f"{width}-bf16", 8191, width)
    yield call("14336-fp32", 8191, 14336, FP32)
    yield call("14336-packed", 8191, 14336, packed=True)
    yield call("1001-packed", 8191, 1001, packed=True)
    yield call("14336-beyond-2**31", 149_900, 14336)
    yield call("14336-packed-beyond-2**31", 149_900, 14336, packed=True)
    yield dataclasses.replace(call("14336-frozen-up", 8191, 14336), needs=(True, False))
