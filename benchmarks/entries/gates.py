"""Gated activations."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.entry import BACKWARD, FORWARD, Entry, Operands, draw
from benchmarks.providers import EAGER, LIGER, Function, liger
from liger_torch import functional as f
from liger_triton import glu, relu_squared

GPT_OSS: dict[str, Any] = {"alpha": 1.702, "limit": 7.0, "up_offset": 1.0, "interleaved": True}

GATE = {FORWARD: 0.95, BACKWARD: 0.90}


def _pair(n: int, width: int) -> Operands:
    return draw(n, width), draw(n, width)


def _single(n: int, width: int) -> Operands:
    return (draw(n, width),)


def _packed(n: int, width: int) -> Operands:
    return draw(n, 2 * width), None


def _plain_gpt_oss(packed: torch.Tensor, _: None) -> torch.Tensor:
    """As GPT-OSS has it in Hugging Face's transformers."""
    gate, up = packed[..., ::2], packed[..., 1::2]
    gate, up = gate.clamp(max=GPT_OSS["limit"]), up.clamp(-GPT_OSS["limit"], GPT_OSS["limit"])
    return (up + 1) * (gate * torch.sigmoid(gate * GPT_OSS["alpha"]))


def _plain_packed(packed: torch.Tensor, _: None) -> torch.Tensor:
    gate, up = packed.chunk(2, -1)
    return F.silu(gate) * up


def _geglu(approximate: str) -> Function:
    return lambda gate, up: F.gelu(gate, approximate=approximate) * up


def entries() -> Iterator[Entry]:
    """The MLPs of Llama-3-8B, Gemma-2-9B, GPT-OSS and Nemotron-4-15B."""
    swiglu, geglu, squared = liger("liger_swiglu"), liger("liger_geglu"), liger("liger_relu_squared")
    for n in (8192, 1024):
        yield Entry(
            f"swiglu {n}x14336",
            glu.SWIGLU,
            glu.Options("silu"),
            functools.partial(_pair, n, 14_336),
            f.liger_swiglu,
            {EAGER: lambda gate, up: F.silu(gate) * up, LIGER: swiglu},
            target=GATE if n > 1024 else {},
        )
    yield Entry(
        "swiglu packed 8192x14336",
        glu.SWIGLU,
        glu.Options("silu"),
        functools.partial(_packed, 8192, 14_336),
        f.liger_swiglu,
        {EAGER: _plain_packed},
        target=GATE,
    )
    yield Entry(
        "swiglu gpt-oss 32768x2880",
        glu.SWIGLU,
        glu.Options("silu", **GPT_OSS),
        functools.partial(_packed, 32_768, 2880),
        functools.partial(f.liger_swiglu, **GPT_OSS),
        {EAGER: _plain_gpt_oss},
        target=GATE,
    )
    yield Entry(
        "geglu tanh 8192x14336",
        glu.GEGLU,
        glu.Options("gelu_tanh"),
        functools.partial(_pair, 8192, 14_336),
        f.liger_geglu,
        {EAGER: _geglu("tanh"), LIGER: geglu},
        target=GATE,
    )
    yield Entry(
        "geglu exact 8192x14336",
        glu.GEGLU,
        glu.Options("gelu"),
        functools.partial(_pair, 8192, 14_336),
        functools.partial(f.liger_geglu, approximate="none"),
        {EAGER: _geglu("none")},
        target=GATE,
    )
    yield Entry(
        "relu_squared 8192x24576",
        relu_squared.RELU_SQUARED,
        relu_squared.Options(),
        functools.partial(_single, 8192, 24_576),
        f.liger_relu_squared,
        {EAGER: lambda x: F.relu(x).square(), LIGER: squared},
    )
