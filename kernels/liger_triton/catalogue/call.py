"""What an op family contributes to the catalogue: calls of ops, with the launches that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from liger.device import Device
from liger.launch import Launch
from liger.op import Needs, Op
from liger.plan import WHOLE, Parts, Planned, launches

BF16, FP32 = "bfloat16", "float32"


class Entry(NamedTuple):
    """One launch of the catalogue.

    Attributes:
        name: CALL/KERNEL.
        launch: the launch.
        extents: for each input, the elements from its first to its last one, gaps included.
    """

    name: str
    launch: Launch
    extents: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """An op's forward and backward pass, on one device of a mesh that divides tokens and vocabulary into `parts`.

    `needs` None: the gradients of all floating operands. `constant`: outputs that no cotangent comes for.
    """

    name: str
    op: Op
    options: Any
    operands: tuple[Planned | None, ...]
    needs: Needs | None = None
    constant: tuple[str, ...] = ()
    parts: Parts = WHOLE

    @property
    def asked(self) -> Needs:
        """Which gradients the call asks for."""
        return self.needs or tuple(
            array is not None and operand.differentiable
            for operand, array in zip(self.op.operands, self.operands, strict=True)
        )

    def entries(self, device: Device) -> Iterator[Entry]:
        """The launches of the call, planned for the device."""
        for launch, arrays in launches(
            self.op, self.options, self.operands, self.asked, device, self.constant, self.parts
        ):
            yield Entry(f"{self.name}/{launch.name}", launch, tuple(a.extent for a in arrays))
