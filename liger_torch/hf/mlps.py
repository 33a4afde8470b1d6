"""Recognising gated MLPs and what they are swapped for."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from liger_torch.hf import gates, probe
from liger_torch.hf.gates import Gate
from liger_torch.hf.probe import Verdict
from liger_torch.hf.swap import original_class

KIND = "mlp"


@dataclasses.dataclass(frozen=True)
class GatedMLPRecipe:
    """down(act(gate(x)) * up(x)), times an attribute if there is one.

    Attributes:
        gate: the name of the gate's projection; of the packed one where `up` is None.
        up: the name of the other projection.
        down: the name of the projection back.
        product: what lies between them.
        multiplier: the attribute that the result is multiplied by.
    """

    gate: str
    up: str | None
    down: str
    product: Gate
    multiplier: str | None = None

    @property
    def name(self) -> str:
        """How reports call it."""
        packed = "[packed]" if self.up is None else ""
        times = f" times {self.multiplier}" if self.multiplier else ""
        return f"{self.product.name}{packed}{times}"

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """See `liger_torch.hf.swap.Recipe`."""

        @functools.wraps(base.forward)
        def forward(module: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
            (x,) = args or kwargs.values()
            return self._compute(module, x, self.product)

        return {"forward": forward}

    def reference(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The same, by the op's reference."""
        return self._compute(module, x, self.product.reference)

    def _compute(self, module: Any, x: torch.Tensor, product: Any) -> torch.Tensor:
        gate = getattr(module, self.gate)(x)
        up = None if self.up is None else getattr(module, self.up)(x)
        y = getattr(module, self.down)(product(module, gate, up))
        return y if self.multiplier is None else y * getattr(module, self.multiplier)


def recognise(module: nn.Module) -> Verdict | None:
    """The verdict on a module; None if it has not the shapes of a gated MLP."""
    linear = {name: child for name, child in module.named_children() if _is_linear(child)}
    others = [child for name, child in module.named_children() if name not in linear]
    if (
        len(linear) not in (2, 3)
        or any(True for _ in module.parameters(recurse=False))
        or any(True for child in others for _ in child.parameters())
        or probe.n_arguments(original_class(module)) != 1
    ):
        return None
    sizes = _small_sizes({size for child in linear.values() for size in _sizes(child)})
    small = {name: _small_linear(child, sizes, seed) for seed, (name, child) in enumerate(linear.items())}
    if not list(_roles(small)):
        return None
    form = "swiglu" if len(linear) == 3 else "swiglu[packed]"
    width = next(iter(_roles(small)))[0].in_features
    try:
        clone = probe.small_copy(module, small, sizes)
        x = gates.rows(width)
        evaluated, trained = clone.eval()(x), clone.train()(x)
    except Exception as error:  # the module's own code, fed with what it may not expect
        widths = {child.in_features for child in small.values()} - {width}
        if any(_takes(module, small, sizes, other) for other in widths):
            return None  # the layers follow one another in another order
        return Verdict(form, None, f"could not be probed: {type(error).__name__}: {error}")
    recipe, off = gates.closest(
        _recipes(module, small), evaluated, lambda candidate: candidate.reference(clone, x)
    )
    if off > 0:
        return Verdict(recipe.name, None, f"closest to {recipe.name}, but {off:.1g} off in float64")
    if probe.distance(trained, recipe.reference(clone, x)) > gates.RTOL:
        return Verdict(recipe.name, None, "computes something else while training (dropout?)")
    return Verdict(recipe.name, recipe)


def _takes(module: nn.Module, small: Mapping[str, nn.Linear], sizes: Mapping[int, int], width: int) -> bool:
    """Whether the module runs on rows of this width."""
    try:
        probe.small_copy(module, small, sizes).eval()(gates.rows(width))
    except Exception:  # as above
        return False
    return True


def _recipes(module: nn.Module, small: Mapping[str, nn.Linear]) -> Iterator[GatedMLPRecipe]:
    """What the module may compute, the simplest first."""
    names = {child: name for name, child in small.items()}
    roles = [
        (names[gate], None if up is None else names[up], names[down]) for gate, up, down in _roles(small)
    ]
    layouts = (gates.SEPARATE,) if len(small) == 3 else (gates.HALVES, gates.SWAPPED, gates.INTERLEAVED)
    multipliers = [name for name, value in module.__dict__.items() if type(value) is float]
    for multiplier in (None, *multipliers):
        for product in gates.candidates(module, layouts):
            for gate, up, down in roles:
                yield GatedMLPRecipe(gate, up, down, product, multiplier)


def _roles(linear: Mapping[str, nn.Linear]) -> Iterator[tuple[nn.Linear, nn.Linear | None, nn.Linear]]:
    """Every assignment of roles (gate, up, down) that the shapes allow."""
    for children in itertools.permutations(linear.values()):
        gate, down = children[0], children[-1]
        hidden, inner = gate.in_features, gate.out_features
        if len(children) == 3 and _sizes(children[1]) == (hidden, inner) and _sizes(down) == (inner, hidden):
            yield gate, children[1], down
        if len(children) == 2 and inner % 2 == 0 and _sizes(down) == (inner // 2, hidden):
            yield gate, None, down


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
