"""RMSNorm and LayerNorm, with and without a residual."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from cases.case import Case, normal, together
from liger_triton import group_norm, layer_norm, rms_norm

Draw = Callable[[np.random.Generator], np.ndarray]


def cases() -> list[Case]:
    return [*rms_norms(), *layer_norms(), *group_norms()]


def rms_norms() -> list[Case]:
    cases = []
    for shape in ((1, 8), (3, 5, 33), (7, 256), (2, 1000), (0, 16), (2, 0, 16)):
        h = shape[-1]
        cases.append(
            Case(
                f"rms_norm-{shape}",
                rms_norm.RMS_NORM,
                rms_norm.Options(),
                together(normal(*shape), normal(h)),
            )
        )
    wide = 20_001
    for casting, offset in (("llama", 0.0), ("gemma", 1.0), ("none", 0.0)):
        options = rms_norm.Options(eps=1e-5, offset=offset, casting=casting)
        for n, h in ((9, 100), (3, wide)):
            name = f"{casting}-{offset}-{h}"
            cases += [
                Case(f"rms_norm-{name}", rms_norm.RMS_NORM, options, together(normal(n, h), normal(h))),
                Case(
                    f"add_rms_norm-{name}",
                    rms_norm.ADD_RMS_NORM,
                    options,
                    together(normal(n, h), normal(n, h), normal(h)),
                ),
            ]
    cases += [
        Case("rms_norm-no-weight", rms_norm.RMS_NORM, rms_norm.Options(), together(normal(9, 100), None)),
        Case(
            "add_rms_norm-no-weight",
            rms_norm.ADD_RMS_NORM,
            rms_norm.Options(),
            together(normal(9, 100), normal(9, 100), None),
        ),
    ]
    # Before and after the weight, and of x + residual.
    roundings = {"rms_norm": 2, "add_rms_norm": 3}
    return [dataclasses.replace(case, roundings=roundings[case.op.name]) for case in cases]


def layer_norms() -> list[Case]:
    op, add, options = layer_norm.LAYER_NORM, layer_norm.ADD_LAYER_NORM, layer_norm.Options(eps=1e-5)

    def far(*shape: int) -> Draw:
        """Rows whose mean is large beside their deviation, where E[x^2] - E[x]^2 would lose most digits."""
        return lambda rng: (rng.standard_normal(shape) + 8 * rng.standard_normal((shape[0], 1))).astype(
            np.float32
        )

    cases = [
        Case(
            f"layer_norm-{shape}", op, options, together(normal(*shape), normal(shape[-1]), normal(shape[-1]))
        )
        for shape in ((1, 8), (3, 5, 33), (7, 256), (0, 16), (3, 20_001))
    ]
    cases += [
        Case("layer_norm-far-9000", op, options, together(far(3, 9000), normal(9000), normal(9000))),
        Case("layer_norm-no-bias", op, options, together(far(9, 100), normal(100), None)),
        Case("layer_norm-no-weight", op, options, together(far(9, 100), None, normal(100))),
        Case("layer_norm-plain-20001", op, options, together(far(2, 20_001), None, None)),
        Case(
            "layer_norm-bias-alone",
            op,
            options,
            together(normal(9, 100), normal(100), normal(100)),
            frozen=("x", "weight"),
        ),
    ]
    for n, h in ((9, 100), (3, 20_001)):
        operands = together(normal(n, h), normal(n, h), normal(h), normal(h))
        cases.append(Case(f"add_layer_norm-{h}", add, options, operands))
    roundings = {"layer_norm": 1, "add_layer_norm": 2}
    return [dataclasses.replace(case, roundings=roundings[case.op.name]) for case in cases]


def group_norms() -> list[Case]:
    def case(
        name: str,
        images: int,
        channels: int,
        positions: int,
        groups: int,
        *,
        last: bool = False,
        weight: bool = True,
        bias: bool = True,
        frozen: tuple[str, ...] = (),
    ) -> Case:
        def far(rng: np.random.Generator) -> np.ndarray:
            """Images of different means, also from channel to channel."""
            shape = (images, positions, channels) if last else (images, channels, positions)
            means = 4 * rng.standard_normal((images, 1, channels) if last else (images, channels, 1))
            return (rng.standard_normal(shape) + means).astype(np.float32)

        vectors = (normal(channels) if present else None for present in (weight, bias))
        return Case(
            f"group_norm-{name}",
            group_norm.GROUP_NORM,
            group_norm.Options(groups, 1e-5, last),
            together(far, *vectors),
            frozen=frozen,
        )

    return [
        # Held in registers.
        case("held", 3, 6, 35, 2),
        case("held-aligned", 2, 12, 64, 4, bias=False),
        case("held-one-position", 5, 24, 1, 8),
        case("held-channels-last", 2, 32, 9, 2, last=True),
        case("held-no-weight", 2, 6, 35, 3, weight=False),
        case("held-bias-alone", 3, 6, 35, 2, frozen=("x", "weight")),
        # Split over programs.
        case("split", 2, 6, 2049, 1),
        case("split-wide", 1, 6, 4168, 2, weight=False),
        case("split-one-position", 1, 9000, 1, 1),
        case("split-channels-last", 2, 30, 300, 5, last=True),
        case("split-channels-last-bias-alone", 3, 6, 35, 2, last=True, frozen=("x", "weight")),
        case("no-images", 0, 6, 35, 2),
        case("no-positions", 2, 6, 0, 2),
    ]
