"""Gated activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from liger.plan import dense
from liger_triton import glu, relu_squared
from liger_triton.catalogue.call import BF16, FP32, Call
from liger_triton.glu import Options


def _call(
    name: str, n_rows: int, width: int, options: Options, dtype: str = BF16, packed: bool = False
) -> Call:
    op = glu.SWIGLU if options.activation == "silu" else glu.GEGLU
    gate = dense((n_rows, 2 * width if packed else width), dtype)
    return Call(f"{op.name}-{name}", op, options, (gate, None if packed else gate))


def swiglus() -> Iterator[Call]:
    silu = Options("silu")
    for width in (64, 1001, 11008, 14336):
        yield _call(f"{width}-bf16", 8191, width, silu)
    yield _call("14336-fp32", 8191, 14336, silu, FP32)
    yield _call("14336-packed", 8191, 14336, silu, packed=True)
    yield _call("1001-packed", 8191, 1001, silu, packed=True)
    yield _call("14336-beyond-2**31", 149_900, 14336, silu)
    yield _call("14336-packed-beyond-2**31", 149_900, 14336, silu, packed=True)
    yield dataclasses.replace(_call("14336-frozen-up", 8191, 14336, silu), needs=(True, False))
    yield _call("falcon-h1-5504", 8191, 5504, Options("silu", gate_multiplier=0.8838834764831844))
    gpt_oss = Options("silu", alpha=1.702, limit=7.0, up_offset=1.0, interleaved=True)
    for width in (64, 1001, 2880):
        yield _call(f"gpt-oss-{width}-bf16", 8191, width, gpt_oss, packed=True)
    yield _call("gpt-oss-2880-fp32", 8191, 2880, gpt_oss, FP32, packed=True)
    yield _call("gpt-oss-2880-beyond-2**31", 745_000, 2880, gpt_oss, packed=True)
    separate = dataclasses.replace(gpt_oss, interleaved=False)
    yield _call("limit-2880", 8191, 2880, separate)
    yield dataclasses.replace(_call("limit-2880-frozen-gate", 8191, 2880, separate), needs=(False, True))


def geglus() -> Iterator[Call]:
    for activation in ("gelu", "gelu_tanh"):
        options = Options(activation)
        for width in (1001, 16384, 24576):
            yield _call(f"{activation}-{width}-bf16", 8191, width, options)
        yield _call(f"{activation}-16384-fp32", 8191, 16384, options, FP32)
        yield _call(f"{activation}-16384-packed", 8191, 16384, options, packed=True)
    yield _call("gelu_tanh-16384-beyond-2**31", 131_100, 16384, Options("gelu_tanh"))


def relu_squareds() -> Iterator[Call]:
    def call(name: str, n_rows: int, width: int, dtype: str = BF16) -> Call:
        x = dense((n_rows, width), dtype)
        return Call(f"relu_squared-{name}", relu_squared.RELU_SQUARED, relu_squared.Options(), (x,))

    for width in (64, 1001, 24576):
        yield call(f"{width}-bf16", 8191, width)
    yield call("24576-fp32", 8191, 24576, FP32)
    yield call("24576-beyond-2**31", 87_400, 24576)
