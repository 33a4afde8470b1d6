"""Gated activations."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from benchmarks.entry import Entry, Operands, draw, peer
from liger_torch import functional as f
from liger_triton import glu, relu_squared

GPT_OSS: dict[str, Any] = {"alpha": 1.702, "limit": 7.0, "up_offset": 1.0, "interleaved": True}


def _pair(n: int, width: int) -> Operands:
    return draw(n, width), draw(n, width)


def _single(n: int, width: int) -> Operands:
    return (draw(n, width),)


def _packed(n: int, width: int) -> Operands:
    return draw(n, 2 * width), None


def entries() -> Iterator[Entry]:
    """The MLPs of Llama-3-8B, Gemma-2-9B, GPT-OSS and Nemotron-4-15B."""
    functions = "liger_kernel.transformers.functional"
    yield Entry(
        "swiglu 8192x14336",
        glu.SWIGLU,
        glu.Options("silu"),
        functools.partial(_pair, 8192, 14_336),
        f.liger_swiglu,
        peer("liger-kernel", f"{functions}.liger_swiglu"),
    )
    yield Entry(
        "swiglu packed 8192x14336",
        glu.SWIGLU,
        glu.Options("silu"),
        functools.partial(_packed, 8192, 14_336),
        f.liger_swiglu,
    )
    yield Entry(
        "swiglu gpt-oss 32768x2880",
        glu.SWIGLU,
        glu.Options("silu", **GPT_OSS),
        functools.partial(_packed, 32_768, 2880),
        functools.partial(f.liger_swiglu, **GPT_OSS),
    )
    yield Entry(
        "geglu tanh 8192x14336",
        glu.GEGLU,
        glu.Options("gelu_tanh"),
        functools.partial(_pair, 8192, 14_336),
        f.liger_geglu,
        peer("liger-kernel", f"{functions}.liger_geglu"),
    )
    yield Entry(
        "geglu exact 8192x14336",
        glu.GEGLU,
        glu.Options("gelu"),
        functools.partial(_pair, 8192, 14_336),
        functools.partial(f.liger_geglu, approximate="none"),
    )
    yield Entry(
        "relu_squared 8192x24576",
        relu_squared.RELU_SQUARED,
        relu_squared.Options(),
        functools.partial(_single, 8192, 24_576),
        f.liger_relu_squared,
        peer("liger-kernel", f"{functions}.liger_relu_squared"),
    )
