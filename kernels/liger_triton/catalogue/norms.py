"""Normalisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from liger.plan import Planned, dense
from liger_triton import group_norm, layer_norm, rms_norm
from liger_triton.catalogue.call import BF16, FP32, Call


def rms_norms() -> Iterator[Call]:
    # An odd number of rows: the last tile is never full.
    def call(
        name: str, n_rows: int, hidden: int, dtype: str, weight_dtype: str | None = "", **options: Any
    ) -> Call:
        x = dense((n_rows, hidden), dtype)
        weight = None if weight_dtype is None else dense((hidden,), weight_dtype or dtype)
        return Call(f"rms_norm-{name}", rms_norm.RMS_NORM, rms_norm.Options(**options), (x, weight))

    def add(name: str, n_rows: int, hidden: int, dtype: str) -> Call:
        x = dense((n_rows, hidden), dtype)
        operands = (x, x, dense((hidden,), dtype))
        needs = (True, False, True)  # the two summands share one gradient
        return Call(f"add_rms_norm-{name}", rms_norm.ADD_RMS_NORM, rms_norm.Options(), operands, needs)

    for hidden in (
        64,
        128,
        256,
        512,
        1000,
        1001,
        2048,
        2560,
        4096,
        5120,
        7168,
        8192,
        12288,
        16384,
        20000,
        70000,
    ):
        yield call(f"{hidden}-bf16", max(8191, 2**25 // hidden - 1), hidden, BF16)
    for hidden in (128, 256, 512, 4096, 8192, 16384, 70000):
        yield call(f"{hidden}-fp32", max(8191, 2**25 // hidden - 1), hidden, FP32)
    yield call("4096-no-weight", 8191, 4096, BF16, None)
    yield call("4096-fp32-weight", 8191, 4096, BF16, FP32)
    yield call("4096-gemma", 8191, 4096, BF16, casting="gemma", offset=1.0)
    yield call("4096-one-row", 1, 4096, BF16)
    yield dataclasses.replace(call("4096-frozen-weight", 8191, 4096, BF16), needs=(True, False))
    yield dataclasses.replace(call("4096-frozen-input", 8191, 4096, BF16), needs=(False, True))
    yield Call(  # a slice of a wider array
        "rms_norm-4096-strided",
        rms_norm.RMS_NORM,
        rms_norm.Options(),
        (Planned((8191, 4096), BF16, (6144, 1)), dense((4096,), BF16)),
    )
    for hidden in (2560, 4096, 5120, 8192, 16384, 20000):
        yield add(f"{hidden}-bf16", 8191, hidden, BF16)
    yield add("16384-fp32", 8191, 16384, FP32)
    yield add("4096-beyond-2**31", 2**19 + 999, 4096, BF16)
    yield add("20000-beyond-2**31", 107_500, 20000, BF16)


def layer_norms() -> Iterator[Call]:
    def call(name: str, n_rows: int, hidden: int, dtype: str, bias: bool = True) -> Call:
        vector = dense((hidden,), dtype)
        operands = (dense((n_rows, hidden), dtype), vector, vector if bias else None)
        return Call(f"layer_norm-{name}", layer_norm.LAYER_NORM, layer_norm.Options(), operands)

    def add(name: str, n_rows: int, hidden: int, dtype: str) -> Call:
        x, vector = dense((n_rows, hidden), dtype), dense((hidden,), dtype)
        needs = (True, False, True, True)  # the two summands share one gradient
        operands = (x, x, vector, vector)
        return Call(
            f"add_layer_norm-{name}", layer_norm.ADD_LAYER_NORM, layer_norm.Options(), operands, needs
        )

    for hidden in (64, 128, 256, 512, 768, 1001, 1152, 2048, 2560, 3072, 4096, 5120, 8192, 16384, 20000):
        yield call(f"{hidden}-bf16", max(8191, 2**24 // hidden - 1), hidden, BF16)
    for hidden in (768, 8192, 16384):
        yield call(f"{hidden}-fp32", 8191, hidden, FP32)
    yield call("4096-no-bias", 8191, 4096, BF16, bias=False)
    yield dataclasses.replace(call("4096-bias-alone", 8191, 4096, BF16), needs=(False, False, True))
    for hidden in (128, 2560, 4096, 5120, 16384):
        yield add(f"{hidden}-bf16", max(8191, 2**24 // hidden - 1), hidden, BF16)
    yield add("16384-fp32", 8191, 16384, FP32)
    yield add("20000-beyond-2**31", 107_500, 20000, BF16)


def group_norms() -> Iterator[Call]:
    def call(
        name: str, images: int, channels: int, positions: int, groups: int = 32, *, dtype: str = BF16,
        last: bool = False, bias: bool = True, needs: tuple[bool, bool, bool] | None = None,
    ) -> Call:  # fmt: skip
        x = dense((images, positions, channels) if last else (images, channels, positions), dtype)
        vector = dense((channels,), dtype)
        options = group_norm.Options(groups, channels_last=last)
        operands = (x, vector, vector if bias else None)
        return Call(f"group_norm-{name}", group_norm.GROUP_NORM, options, operands, needs)

    # A UNet from its outer to its inner blocks, and a decoder of images.
    yield call("320x64x64", 8, 320, 4096)
    yield call("1280x8x8", 8, 1280, 64)
    yield call("128x512x512", 1, 128, 2**18)
    yield call("96x7x7", 33, 96, 49, 8)
    yield call("2048x11x11", 33, 2048, 121)
    yield call("512x1", 8191, 512, 1)
    yield call("320x64x64-fp32", 8, 320, 4096, dtype=FP32)
    yield call("1280x8x8-fp32", 8, 1280, 64, dtype=FP32)
    yield call("320x64x64-no-bias", 8, 320, 4096, bias=False)
    yield call("1280x8x8-bias-alone", 8, 1280, 64, needs=(False, False, True))
    yield call("320x64x64-bias-alone", 8, 320, 4096, needs=(False, False, True))
    yield call("128x64x64-beyond-2**31", 4100, 128, 4096)
    yield call("512x9x9-beyond-2**31", 52_000, 512, 81)
    yield call("64x64x320-last", 8, 320, 4096, last=True)
    yield call("8x8x1280-last", 8, 1280, 64, last=True)
    yield call("512x512x128-last", 1, 128, 2**18, last=True)
    yield call("64x64x320-last-fp32", 8, 320, 4096, last=True, dtype=FP32)
    yield call("64x64x128-last-beyond-2**31", 4100, 128, 4096, last=True)
