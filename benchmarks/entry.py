"""What is measured of an op: its function, operands of real models, and who else computes the same."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch

from liger.launch import Spec
from liger.op import Op
from liger.plan import least_bytes
from liger_torch.backend import NAMES

Operands = tuple[torch.Tensor | None, ...]
Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One op at one size.

    Attributes:
        name: op and size, for the report.
        op: the op.
        options: its options.
        operands: draws the operands in the op's order, on the GPU, those to differentiate with requires_grad.
        function: the public function of the operands.
        peers: other implementations by name, of the same operands; those not installed are left out.
        products: the vendor's matrix products that the op cannot do without, as a function of the operands. The op is
            then compared with their time, and with a copy of the least bytes otherwise.
        step: measure forward and backward pass as one, as of a loss, and not one by one.
        outputs: names of the outputs that the functions return; None for all that are differentiable.
        moved: least bytes (forward, backward, both as one) where `least_bytes` does not know (look-ups of rows, two
            gradients that are one array).
    """

    name: str
    op: Op
    options: Any
    operands: Callable[[], Operands]
    function: Function
    peers: Mapping[str, Function] = dataclasses.field(default_factory=dict)
    products: Function | None = None
    step: bool = False
    moved: tuple[int, int, int] | None = None
    outputs: tuple[str, ...] | None = None

    def bytes(self, operands: Operands) -> tuple[int, int, int]:
        """Least bytes of the forward pass, the backward pass, and both as one."""
        if self.moved is not None:
            return self.moved
        specs = tuple(None if t is None else Spec(tuple(t.shape), NAMES[t.dtype]) for t in operands)
        needs = tuple(t is not None and t.requires_grad for t in operands)
        return least_bytes(self.op, self.options, specs, needs)


def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A normal tensor on the GPU that wants a gradient."""
    return (torch.randn(shape, device="cuda", dtype=dtype) * scale).requires_grad_()


def peer(package: str, path: str) -> Mapping[str, Function]:
    """{package: the function at `path`}, imported when it is called; nothing where the package is not installed."""
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        return {}
    module, _, name = path.rpartition(".")

    @functools.cache
    def load() -> Function:
        function: Function = getattr(importlib.import_module(module), name)
        return function

    return {package: lambda *arguments, **options: load()(*arguments, **options)}
