"""Which kernels an op launches for given shapes, found by running its algorithm on arrays without memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from liger.device import Device
from liger.launch import Launch, Spec
from liger.mesh import OneDevice, Over
from liger.op import Needs, Op


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """An array of which only shape, dtype and strides (in elements) are known."""

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Elements from the first to the last one, gaps included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))


def dense(shape: Sequence[int], dtype: str) -> Planned:
    """A row-major array without gaps."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return Planned(tuple(shape), dtype, tuple(strides))


class Parts(NamedTuple):
    """Among how many devices the tokens, and the vocabulary, are divided."""

    rows: int = 1
    columns: int = 1


WHOLE = Parts()


class Planner(OneDevice):
    """The `liger.backend.Backend` that runs nothing and notes every launch, with the arrays that it was given."""

    def __init__(self, device: Device, parts: Parts = WHOLE) -> None:
        self.device = device
        self._parts = parts
        self.launches: Launches = []

    def size(self, over: Over) -> int:
        """See `liger.mesh.Mesh`."""
        return getattr(self._parts, over)

    def first_column(self, width: int) -> Planned:
        """See `liger.mesh.Mesh`."""
        return dense((1,), "int32")

    def dtype(self, array: Planned) -> str:
        """See `liger.backend.Backend`."""
        return array.dtype

    def strides(self, array: Planned) -> tuple[int, ...]:
        """See `liger.backend.Backend`."""
        return array.strides

    def matrix(self, array: Planned) -> Planned:
        """See `liger.backend.Backend`."""
        shape = (math.prod(array.shape[:-1]), array.shape[-1])
        if len(array.shape) == 2 and array.strides[-1] == 1:
            return array
        return dense(shape, array.dtype)

    def dense(self, array: Planned) -> Planned:
        """See `liger.backend.Backend`."""
        return dense(array.shape, array.dtype)

    def launch(self, launch: Launch, *inputs: Planned) -> tuple[Planned, ...]:
        """See `liger.backend.Backend`."""
        if not launch.is_empty:
            self.launches.append((launch, inputs))
        return tuple(dense(spec.shape, spec.dtype) for spec in launch.outputs)

    def empty(self, shape: Sequence[int], dtype: str) -> Planned:
        """See `liger.backend.Backend`."""
        return dense(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: str) -> Planned:
        """See `liger.backend.Backend`."""
        return dense(shape, dtype)

    def reshape(self, array: Planned, shape: Sequence[int]) -> Planned:
        """See `liger.backend.Backend`."""
        if tuple(shape) == (-1,):
            shape = (math.prod(array.shape),)
        return dense(shape, array.dtype)

    def transpose(self, matrix: Planned) -> Planned:
        """See `liger.backend.Backend`."""
        return Planned(matrix.shape[::-1], matrix.dtype, matrix.strides[::-1])

    def matmul(
        self,
        a: Planned,
        b: Planned,
        *,
        out: Planned | None = None,
        add_to: Planned | None = None,
        dtype: str | None = None,
    ) -> Planned:
        """See `liger.backend.Backend`."""
        target = add_to or out
        if target is not None:
            return target
        return dense((a.shape[0], b.shape[1]), dtype or a.dtype)

    def slice_rows(self, array: Planned, start: int, stop: int) -> Planned:
        """See `liger.backend.Backend`."""
        return dataclasses.replace(array, shape=(stop - start, *array.shape[1:]))

    def update_rows(self, array: Planned, start: int, rows: Planned) -> Planned:
        """See `liger.backend.Backend`."""
        return array

    def concat_rows(self, parts: Sequence[Planned]) -> Planned:
        """See `liger.backend.Backend`."""
        return dense((sum(p.shape[0] for p in parts), *parts[0].shape[1:]), parts[0].dtype)

    def take_rows(self, array: Planned, index: Planned) -> Planned:
        """See `liger.backend.Backend`."""
        return dense((index.shape[0], *array.shape[1:]), array.dtype)

    def put_rows(self, array: Planned, index: Planned, rows: Planned) -> Planned:
        """See `liger.backend.Backend`."""
        return array

    def scatter_rows(self, rows: Planned, index: Planned, n_rows: int, *, fill: int = 0) -> Planned:
        """See `liger.backend.Backend`."""
        return dense((n_rows, *rows.shape[1:]), rows.dtype)

    def sort(self, vector: Planned) -> tuple[Planned, Planned]:
        """See `liger.backend.Backend`."""
        return dense(vector.shape, vector.dtype), dense(vector.shape, "int32")

    def cast(self, array: Planned, dtype: str) -> Planned:
        """See `liger.backend.Backend`."""
        return dataclasses.replace(array, dtype=dtype)

    def sum_rows(self, matrix: Planned, dtype: str, *, add_to: Planned | None = None) -> Planned:
        """See `liger.backend.Backend`."""
        return add_to or dense(matrix.shape[1:], dtype)


Launches = list[tuple[Launch, tuple[Planned, ...]]]
"""Launches, each with the arrays that it is given."""


def launches(
    op: Op,
    options: Any,
    operands: Sequence[Planned | None],
    needs: Needs,
    device: Device,
    constant: Collection[str] = (),
    parts: Parts = WHOLE,
) -> Launches:
    """What `op` launches forward and, if a gradient is needed, backward; see `passes`."""
    forward, backward = passes(op, options, operands, needs, device, constant, parts)
    return forward + backward


def passes(
    op: Op,
    options: Any,
    operands: Sequence[Planned | None],
    needs: Needs,
    device: Device,
    constant: Collection[str] = (),
    parts: Parts = WHOLE,
) -> tuple[Launches, Launches]:
    """What `op` launches in the forward pass and, if a gradient is needed, in the backward pass.

    `constant` names the outputs that no cotangent comes for. With `parts`, on one device of a mesh, for its part of
    the operands.

    Raises:
        TypeError, ValueError: an operand or option that the op does not take.
    """
    specs = tuple(None if a is None else Spec(a.shape, a.dtype) for a in operands)
    op.check_part(specs, options, parts.columns)
    planner = Planner(device, parts)
    outputs, saved = op.forward(planner, tuple(operands), options, needs)
    n_forward = len(planner.launches)
    if any(needs):
        names = [*(o.name for o in op.operands), *(o.name for o in (*op.outputs, *op.saved))]
        arrays: Mapping[str, Planned | None] = dict(zip(names, (*operands, *outputs, *saved), strict=True))
        kept = {name: arrays[name] for name in (*op.keeps(options, needs), *(s.name for s in op.saved))}
        cotangents = tuple(
            None
            if array is None or not declared.differentiable or declared.name in constant
            else dense(array.shape, array.dtype)
            for declared, array in zip(op.outputs, outputs, strict=True)
        )
        op.backward(planner, kept, cotangents, options, needs)
    return planner.launches[:n_forward], planner.launches[n_forward:]


def least_bytes(op: Op, options: Any, operands: Sequence[Spec | None], needs: Needs) -> tuple[int, int, int]:
    """Least bytes that any implementation moves: in the forward pass, in the backward pass, and in both as one.

    Forward, each operand is read and each output is written once. Backward, each operand or output that the op's
    formula reads and each cotangent is read, and each gradient is written once; two operands that share a gradient have
    one. A loss that is given its cotangent beforehand reads its operands once for both passes.

    An operand counts whole also where an op looks up some of its rows alone (embeddings, positions).
    """

    def total(*specs: Spec | None) -> int:
        return sum(spec.nbytes for spec in specs if spec is not None)

    outputs, _ = op.infer(tuple(operands), options, (False,) * len(operands))
    arrays = dict(zip((o.name for o in op.operands), operands, strict=True))
    arrays |= dict(zip((o.name for o in op.outputs), outputs, strict=True))
    computed = op.computed(needs)
    gradients = total(*(spec for spec, need in zip(operands, computed, strict=True) if need))
    read = (arrays[name] for name in op.keeps(options, computed))
    cotangents = (spec for spec, output in zip(outputs, op.outputs, strict=True) if output.differentiable)
    forward = total(*operands, *outputs)
    return forward, total(*read, *cotangents) + gradients, forward + gradients
