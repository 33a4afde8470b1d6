"""Gated activations."""

from __future__ import annotations

import dataclasses
from typing import Any

from cases.case import Case, normal, together
from liger_triton import glu, relu_squared
from liger_triton.glu import Options

GPT_OSS: dict[str, Any] = {"alpha": 1.702, "limit": 2.0, "up_offset": 1.0}
"""With a limit that a good part of the test's numbers exceed."""


def cases() -> list[Case]:
    def case(name: str, shape: tuple[int, ...], options: Options, packed: bool = False) -> Case:
        op = glu.SWIGLU if options.activation == "silu" else glu.GEGLU
        up = None if packed else normal(*shape, scale=2)
        return Case(f"{op.name}-{name}-{shape}", op, options, together(normal(*shape, scale=3), up))

    return [
        *(case("plain", shape, Options("silu")) for shape in ((1, 1), (3, 5, 33), (7, 2500), (0, 16))),
        *(case("packed", shape, Options("silu"), packed=True) for shape in ((3, 5, 66), (2, 4100))),
        case("multiplied", (5, 40), Options("silu", gate_multiplier=0.3)),
        case("gpt-oss", (5, 40), Options("silu", **GPT_OSS)),
        dataclasses.replace(
            case("gpt-oss-frozen-gate", (5, 40), Options("silu", **GPT_OSS)), frozen=("gate",)
        ),
        *(
            case("gpt-oss-interleaved", shape, Options("silu", **GPT_OSS, interleaved=True), packed=True)
            for shape in ((3, 5, 66), (2, 4100))
        ),
        *(
            case(activation, shape, Options(activation))
            for activation in ("gelu", "gelu_tanh")
            for shape in ((3, 5, 33), (0, 16))
        ),
        *(
            case(f"{activation}-packed", (2, 4100), Options(activation), packed=True)
            for activation in ("gelu", "gelu_tanh")
        ),
        *(
            Case(
                f"relu_squared-{shape}",
                relu_squared.RELU_SQUARED,
                relu_squared.Options(),
                together(normal(*shape)),
            )
            for shape in ((1, 1), (3, 5, 33), (2, 2500), (0, 16))
        ),
    ]
