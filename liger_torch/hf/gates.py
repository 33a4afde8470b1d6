"""Recognising the elementwise part of gated linear units, in whatever module it stands."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from liger_torch.functional import liger_geglu, liger_swiglu
from liger_torch.hf import probe
from liger_triton.glu import GEGLU, SWIGLU, Options

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")

RTOL = 1e-7
"""In float64, row by row: an exact GELU and its tanh form differ by 1e-4."""

SCALES = (0.3, 1.0, 3.0, 30.0)
"""Of the rows that are probed: the large ones reach what a gate may be clipped at."""

SEPARATE, HALVES, SWAPPED, INTERLEAVED = "separate", "gate|up", "up|gate", "interleaved"


@dataclasses.dataclass(frozen=True)
class Gate:
    """What `liger_swiglu` and `liger_geglu` compute, with numbers that are read from a module's attributes.

    Attributes:
        activation: one of `ACTIVATIONS`.
        layout: gate and up apart, or packed in one tensor: side by side in either order, or as neighbours.
        gate_multiplier: the attribute's name, None for 1.
        alpha: likewise.
        limit: likewise, None for no limit.
        up_offset: added to up.
    """

    activation: str
    layout: str
    gate_multiplier: str | None = None
    alpha: str | None = None
    limit: str | None = None
    up_offset: float = 0.0

    @property
    def name(self) -> str:
        """How reports call it."""
        base = {"silu": "swiglu", "gelu_tanh": "geglu[tanh]", "gelu": "geglu[exact]"}[self.activation]
        details = [] if self.layout in (SEPARATE, HALVES) else [self.layout]
        details += [
            f"{name} {attribute}"
            for name, attribute in (
                ("gate times", self.gate_multiplier),
                ("alpha", self.alpha),
                ("limit", self.limit),
            )
            if attribute is not None
        ]
        details += [f"up + {self.up_offset:g}"] if self.up_offset else []
        return f"{base}({', '.join(details)})" if details else base

    def options(self, module: Any) -> dict[str, Any]:
        """The options of `liger_swiglu`, as the module has them now."""
        attributes = {"gate_multiplier": self.gate_multiplier, "alpha": self.alpha, "limit": self.limit}
        found: dict[str, Any] = {
            name: getattr(module, attribute)
            for name, attribute in attributes.items()
            if attribute is not None
        }
        if self.up_offset:
            found["up_offset"] = self.up_offset
        if self.layout == INTERLEAVED:
            found["interleaved"] = True
        return found

    def __call__(self, module: Any, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        """The product, by the kernels; b only where gate and up are apart."""
        a, b = self._operands(a, b)
        if self.activation == "silu":
            return liger_swiglu(a, b, **self.options(module))
        return liger_geglu(a, b, approximate="tanh" if self.activation == "gelu_tanh" else "none")

    def reference(self, module: Any, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        """The same, by the op's reference."""
        op = SWIGLU if self.activation == "silu" else GEGLU
        (y,) = op.reference(self._operands(a, b), Options(self.activation, **self.options(module)))
        assert y is not None
        return y

    def _operands(self, a: torch.Tensor, b: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.layout != SWAPPED:
            return a, b
        up, gate = a.chunk(2, -1)
        return gate, up


def candidates(module: nn.Module, layouts: tuple[str, ...]) -> Iterator[Gate]:
    """Every gate that a module with these attributes may compute, the plain ones first."""
    for layout, activation in itertools.product(layouts, ACTIVATIONS):
        yield Gate(activation, layout)
    # Any number among the attributes may be any of the options.
    numbers = [
        name
        for name, value in module.__dict__.items()
        if type(value) in (int, float) and 0 < value <= 100 and not name.startswith("_")
    ]
    fractions = [name for name in numbers if type(module.__dict__[name]) is float]
    for layout, multiplier in itertools.product(layouts, fractions):
        yield Gate("silu", layout, gate_multiplier=multiplier)
    for layout, limit, alpha, offset in itertools.product(layouts, numbers, (None, *fractions), (0.0, 1.0)):
        if alpha != limit:
            yield Gate("silu", layout, alpha=alpha, limit=limit, up_offset=offset)


def closest(
    found: Iterator[Any],
    actual: torch.Tensor,
    compute: Callable[[Any], torch.Tensor],
) -> tuple[Any, float]:
    """The first candidate whose result is `actual`, or the one that comes closest, and how far off it is."""
    best: tuple[Any, float] = (None, float("inf"))
    for candidate in found:
        error = probe.distance(actual, compute(candidate))
        if error <= RTOL:
            return candidate, 0.0
        best = min(best, (candidate, error), key=lambda pair: pair[1])
    return best


def rows(width: int, seed: int = 9) -> torch.Tensor:
    """(scales, 5, width) in float64: rows from small to large."""
    scales = torch.tensor(SCALES, dtype=torch.float64).reshape(-1, 1, 1)
    return probe.random(len(SCALES), 5, width, seed=seed) * scales
