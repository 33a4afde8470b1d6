"""What is measured of an op: its function, operands of real models, who else computes it, and what is aimed at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.providers import Function
from benchmarks.rows import BACKWARD as BACKWARD
from benchmarks.rows import BOTH as BOTH
from benchmarks.rows import FORWARD as FORWARD
from benchmarks.rows import PASSES as PASSES
from liger.launch import Spec
from liger.op import Op
from liger.plan import least_bytes
from liger_torch.backend import NAMES

Operands = tuple[torch.Tensor | None, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One op at one size.

    Attributes:
        name: op and size, for the report.
        op: the op; None for a loss that is made of several, which has `reference` and `few`.
        options: its options.
        operands: draws the operands in the op's order, on torch's default device, those to differentiate with
            requires_grad. See `draw`.
        function: the public function of the operands.
        peers: other implementations by name, of the same operands: those of `benchmarks.providers`, and variants of
            ours as "ours: VARIANT".
        products: the vendor's matrix products that the op cannot do without, as a function of the operands. The op is
            then compared with their time, and with a copy of the least bytes otherwise.
        step: measure forward and backward pass as one, as of a loss, and not one by one.
        outputs: names of the outputs that the functions return; None for all that are differentiable.
        moved: least bytes (forward, backward, both as one) of the operands, where `least_bytes` does not know them
            (look-ups of rows).
        reference: the outputs in float64, where there is no op.
        few: the operands of a problem that is small enough to be checked, where there is no op.
        compiled: measure torch eager under torch.compile as well.
        target: the share of the ceiling on the device that is aimed at, by pass.
        ahead: how many times faster than a peer is aimed at, by peer and pass.
        within_mb: the peak memory that is aimed at.
        lean: the share of a peer's peak memory that is aimed at, by peer.
        memory: whether its peak memory is measured by `python -m benchmarks memory`.
    """

    name: str
    op: Op | None
    options: Any
    operands: Callable[[], Operands]
    function: Function
    peers: Mapping[str, Function] = dataclasses.field(default_factory=dict)
    products: Function | None = None
    step: bool = False
    moved: Callable[[Operands], tuple[int, int, int]] | None = None
    outputs: tuple[str, ...] | None = None
    reference: Function | None = None
    few: Callable[[Operands], Operands] | None = None
    compiled: bool = True
    target: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ahead: Mapping[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    within_mb: float | None = None
    lean: Mapping[str, float] = dataclasses.field(default_factory=dict)
    memory: bool = False

    def draw(self, device: str) -> Operands:
        """Operands on a device; on "meta", shapes alone."""
        with torch.device(device):
            return self.operands()

    def bytes(self, operands: Operands) -> tuple[int, int, int]:
        """Least bytes of the forward pass, the backward pass, and both as one; none known of what is no op."""
        if self.moved is not None:
            return self.moved(operands)
        if self.op is None:
            return (0, 0, 0)
        specs = tuple(None if t is None else Spec(tuple(t.shape), NAMES[t.dtype]) for t in operands)
        needs = tuple(t is not None and t.requires_grad for t in operands)
        return least_bytes(self.op, self.options, specs, needs)


def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A normal tensor that wants a gradient."""
    return (torch.randn(shape, dtype=dtype) * scale).requires_grad_()
