"""What the recognisers share: a copy of a module that can be run anywhere, and how its results are judged.

A module is recognised by running its own code, on a small copy: the same class and attributes, with fresh parameters
on the CPU. The verdict therefore depends neither on where the real parameters are (a GPU, the meta device, sharded,
quantised, behind an adapter) nor on the class's name, and the model is not touched.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from liger_torch.hf.swap import Recipe, original_class


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a module or function was found to be.

    Attributes:
        form: the recognised form's name, or the closest one's.
        recipe: what to swap it for; None where it was not recognised.
        reason: why it was not.
    """

    form: str
    recipe: Recipe | None = None
    reason: str = ""


@contextlib.contextmanager
def probing() -> Iterator[None]:
    """On the CPU in whatever context the caller is (from_pretrained builds under a meta device), without any trace."""
    with (
        torch.no_grad(),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
    ):
        yield


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normally distributed numbers in float64, the same ones at every call."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def small_copy(module: nn.Module, children: Mapping[str, nn.Module], sizes: Mapping[int, int]) -> nn.Module:
    """A module of the same class and attributes with other children, without parameters and hooks.

    `sizes` says which integers among the attributes change, and to what: the widths that the children have.
    """
    cls = original_class(module)
    clone = cls.__new__(cls)
    nn.Module.__init__(clone)
    own = clone.__dict__.keys() | {"forward"}
    for name, value in module.__dict__.items():
        if name not in own:
            resized = sizes.get(value, value) if type(value) is int else value
            clone.__dict__[name] = resized
    for name, buffer in module.named_buffers(recurse=False):
        if not buffer.is_meta:
            clone._buffers[name] = buffer.detach().to("cpu", copy=True)
    for name, parameter in module._parameters.items():
        if parameter is None:  # an option that is switched off, which `forward` still reads
            clone._parameters[name] = None
    for name, child in module.named_children():
        clone.add_module(name, children[name] if name in children else copy.deepcopy(child))
    return clone


def give(module: nn.Module, name: str, values: torch.Tensor) -> None:
    """Give a probed module a parameter.

    Not by `register_parameter`, which accelerate replaces by one that moves to the meta device while a pretrained
    model is built.
    """
    module._parameters[name] = nn.Parameter(values, requires_grad=False)


def fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """Equal for modules of one model that must get the same verdict."""
    plain = (bool, int, float, str, type(None))
    skipped = nn.Module().__dict__.keys()
    attributes = tuple(
        (name, value if isinstance(value, plain) else id(value))
        for name, value in module.__dict__.items()
        if name not in skipped
    )
    parameters = tuple((name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False))
    children = tuple(
        (name, type(child), str(child.extra_repr()), getattr(child, "bias", None) is None)
        for name, child in module.named_children()
    )
    return (original_class(module), attributes, parameters, children)


def parameters_of(function: Any) -> list[inspect.Parameter]:
    """A callable's parameters without `self`; none where it does not tell."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in found if p.name != "self"]


def takes(function: Any, name: str) -> bool:
    """Whether a callable takes a keyword argument of this name, by itself or among any others."""
    return any(p.name == name or p.kind == p.VAR_KEYWORD for p in parameters_of(function))


def n_arguments(cls: type[nn.Module]) -> int | None:
    """How many arguments `forward` takes; None if any number, or some by keyword only."""
    kinds = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY}
    parameters = parameters_of(cls.forward)
    return len(parameters) if all(p.kind in kinds for p in parameters) else None


def distance(actual: Any, expected: torch.Tensor) -> float:
    """The largest error of a row relative to the row's largest magnitude; infinite for another shape or dtype."""
    if (
        not isinstance(actual, torch.Tensor)
        or actual.shape != expected.shape
        or actual.dtype != expected.dtype
    ):
        return math.inf
    error = (actual - expected).abs().amax(-1) / expected.abs().amax(-1).clamp(min=1e-300)
    return float(error.nan_to_num(nan=math.inf).max())
