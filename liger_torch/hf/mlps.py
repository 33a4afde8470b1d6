"""Recognising gated MLPs and what they are swapped for."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from liger_torch.functional import liger_swiglu
from liger_torch.hf import probe
from liger_torch.hf.probe import Verdict
from liger_torch.hf.swap import original_class
from liger_triton.glu import SWIGLU, Options

KIND = "mlp"

RTOL = 1e-9
"""In float64, where an exact GELU and its tanh form are told apart easily."""


@dataclasses.dataclass(frozen=True)
class SwiGLURecipe:
    """down(silu(gate(x)) * up(x)) by `liger_swiglu`.

    Attributes:
        gate: the name of the gate's projection; of the packed [gate | up] one where `up` is None.
        up: the name of the other projection.
        down: the name of the projection back.
    """

    gate: str
    up: str | None
    down: str

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """See `liger_torch.hf.swap.Recipe`."""
        gate_name, up_name, down_name = self.gate, self.up, self.down

        @functools.wraps(base.forward)
        def forward(self: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
            (x,) = args or kwargs.values()
            gate = getattr(self, gate_name)(x)
            up = None if up_name is None else getattr(self, up_name)(x)
            return getattr(self, down_name)(liger_swiglu(gate, up))

        return {"forward": forward}

    def reference(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The same, by the op's reference."""
        gate = getattr(module, self.gate)(x)
        up = None if self.up is None else getattr(module, self.up)(x)
        (y,) = SWIGLU.reference((gate, up), Options("silu"))
        assert y is not None
        return getattr(module, self.down)(y)


def recognise(module: nn.Module) -> Verdict | None:
    """The verdict on a module; None if it has not the shapes of a gated MLP."""
    linear = {name: child for name, child in module.named_children() if _is_linear(child)}
    others = [child for name, child in module.named_children() if name not in linear]
    if (
        len(linear) not in (2, 3)
        or any(True for _ in module.parameters(recurse=False))
        or any(True for child in others for _ in child.parameters())
        or not probe.takes_one_argument(original_class(module))
    ):
        return None
    sizes = _small_sizes({size for child in linear.values() for size in _sizes(child)})
    small = {name: _small_linear(child, sizes, seed) for seed, (name, child) in enumerate(linear.items())}
    name = "swiglu" if len(linear) == 3 else "swiglu[packed]"
    candidates = list(_recipes(small))
    if not candidates:
        return None
    try:
        clone = probe.small_copy(module, small, sizes)
        x = probe.random(2, 5, small[candidates[0].gate].in_features, seed=9)
        evaluated, trained = clone.eval()(x), clone.train()(x)
    except Exception as error:  # the module's own code, fed with what it may not expect
        return Verdict(name, None, f"could not be probed: {type(error).__name__}: {error}")
    for recipe in candidates:
        expected = recipe.reference(clone, x)
        if probe.is_close(evaluated, expected, RTOL):
            if not probe.is_close(trained, expected, RTOL):
                return Verdict(name, None, "computes something else while training (dropout?)")
            return Verdict(name, recipe)
    return Verdict(name, None, "does not compute down(silu(gate(x)) * up(x))")


def _recipes(linear: Mapping[str, nn.Linear]) -> Iterator[SwiGLURecipe]:
    """Every assignment of roles that the shapes allow."""

    def shape(name: str) -> tuple[int, int]:
        return linear[name].in_features, linear[name].out_features

    for names in itertools.permutations(linear):
        gate, down = names[0], names[-1]
        hidden, inner = shape(gate)
        if len(names) == 3 and shape(names[1]) == (hidden, inner) and shape(down) == (inner, hidden):
            yield SwiGLURecipe(gate, names[1], down)
        if len(names) == 2 and inner % 2 == 0 and shape(down) == (inner // 2, hidden):
            yield SwiGLURecipe(gate, None, down)


def _is_linear(module: nn.Module) -> bool:
    """Also quantised layers, and those that an adapter wraps."""
    return all(isinstance(size, int) for size in _sizes(module))


def _sizes(module: nn.Module) -> tuple[Any, Any]:
    return getattr(module, "in_features", None), getattr(module, "out_features", None)


def _small_sizes(sizes: set[int]) -> dict[int, int]:
    """A small even width for each width, twice as large where it is twice another."""
    small: dict[int, int] = {}
    unused = itertools.count(8, 6)
    for size in sorted(sizes):
        small[size] = 2 * small[size // 2] if size % 2 == 0 and size // 2 in small else next(unused)
    return small


def _small_linear(module: nn.Module, sizes: Mapping[int, int], seed: int) -> nn.Linear:
    n_in, n_out = (sizes[size] for size in _sizes(module))
    has_bias = getattr(module, "bias", None) is not None
    small = nn.Linear(n_in, n_out, bias=has_bias, device="meta")
    probe.give(small, "weight", probe.random(n_out, n_in, seed=2 * seed) * n_in**-0.5)
    if has_bias:
        probe.give(small, "bias", probe.random(n_out, seed=2 * seed + 1))
    return small
