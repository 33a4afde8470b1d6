"""What is run of an implementation on PyTorch: forward pass, backward pass, or both as a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks.entry import BACKWARD, BOTH, FORWARD, Entry, Operands
from benchmarks.providers import Function
from benchmarks.turns import Calls


def tensors_of(result: Any) -> list[torch.Tensor]:
    """The tensors of a function's result."""
    found = result if isinstance(result, (tuple, list)) else (result,)
    return [t for t in found if isinstance(t, torch.Tensor)]


def outputs_of(result: Any) -> list[torch.Tensor]:
    """What a gradient can start from."""
    return [t for t in tensors_of(result) if t.requires_grad]


def differentiated(operands: Iterable[torch.Tensor | None]) -> list[torch.Tensor]:
    """The operands whose gradients are wanted."""
    return [t for t in operands if t is not None and t.requires_grad]


def constants_of(operands: Operands) -> Operands:
    """Without gradients."""
    return tuple(None if t is None else t.detach() for t in operands)


def step(function: Function, operands: Operands) -> list[torch.Tensor]:
    """Outputs, and gradients where one is wanted, all of them alive at the end."""
    result = function(*operands)
    wanted, outputs = differentiated(operands), outputs_of(result)
    if not (wanted and outputs):
        return tensors_of(result)
    return [
        *tensors_of(result),
        *torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs]),
    ]


def passes(entry: Entry, function: Function, sets: list[Operands]) -> dict[str, Calls]:
    """What is timed of one implementation: one call per set of operands."""

    def forward(operands: Operands) -> Callable[[], object]:
        constants = constants_of(operands)
        return lambda: function(*constants)

    def backward(operands: Operands) -> Callable[[], object]:
        outputs = outputs_of(function(*operands))
        incoming = [torch.randn_like(o) for o in outputs]
        return lambda: torch.autograd.grad(outputs, differentiated(operands), incoming, retain_graph=True)

    if entry.step:
        return {BOTH: [lambda o=o: step(function, o) for o in sets]}  # type: ignore[misc]
    found: dict[str, Calls] = {FORWARD: [forward(o) for o in sets]}
    if any(map(differentiated, sets)) and outputs_of(function(*sets[0])):
        found[BACKWARD] = [backward(o) for o in sets]
    return found
