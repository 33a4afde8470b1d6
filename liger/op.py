"""An op, written once: its meaning, its algorithm and what its operands are.

Each op family makes one or more `Op` values in `liger_triton`; both frontends turn them into functions with
gradients, a CPU path, transforms and tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from liger import check
from liger.backend import Array, Backend
from liger.launch import Spec
from liger.mesh import ONE_DEVICE, Mesh

Role = Literal["rows", "shared"]
"""How an array relates to the tokens of a batch.

"rows": every axis but those the op works along runs over tokens (batch, sequence); a mesh may shard them, vmap may
fold another one in. "shared": the same for all tokens (a weight); its gradient is a sum over tokens.
"""

Arrays = tuple[Array | None, ...]
Needs = tuple[bool, ...]
"""For each operand, whether its gradient is asked for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """One array argument of an op.

    Attributes:
        name: of the argument.
        role: how it relates to tokens.
        differentiable: whether the op has a gradient for it.
        optional: whether it may be absent.
        axes: of an array along rows, how many axes at the end the op works along (features; heads and head_dim); those
            before are token axes, which a mesh may shard.
        buffer: whether the backward pass adds to it, at the caller's wish. It is referred to and not saved: others
            may add to it, or empty it, between the two passes.
    """

    name: str
    role: Role
    differentiable: bool = True
    optional: bool = False
    axes: int = 1
    buffer: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """One result of an op. `differentiable` outputs receive cotangents; `axes` is as in `Operand`."""

    name: str
    role: Role
    differentiable: bool = True
    axes: int = 1


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Op:
    """A differentiable op.

    Operands, outputs and residuals travel as tuples in the declared order, `None` where one is absent.

    Attributes:
        name: also the name under which torch.library knows it.
        operands: the array arguments.
        outputs: the results.
        saved: further arrays that the forward pass keeps for the backward pass.
        options: the frozen dataclass of everything that is no array.
        check: raises, naming the argument, for operands or options that the op does not take. It sees shapes and
            dtypes only, so it costs no synchronisation.
        infer: shapes and dtypes of (outputs, saved), from those of the operands. Arithmetic on shapes is symbolic
            under torch.compile, so it may not branch on them.
        forward: (backend, operands, options, needs) -> (outputs, saved).
        backward: (backend, kept, cotangents, options, needs) -> one gradient per operand, None where it is not
            needed or is zero. `kept` maps names of operands, outputs and saved arrays to arrays; a cotangent may be
            None for zero.
        reference: (operands, options) -> outputs, on the Python array API; the meaning of the op, and its CPU path.
        keeps: (options, needs) -> names of the operands and outputs that `backward` reads, beside what is saved.
        gradient_like: pairs (operand, array): for an operand that `backward` does not read, a kept array or a
            cotangent ("grad_<output>") that has the shape and dtype of its gradient.
        same_gradient: pairs (operand, other operand): the first one's gradient is the second one's, and `backward`
            computes the second if either is needed.
        backward_once: whether the forward pass with these (options, needs) leaves gradients that the backward pass
            hands over, so that it can be run only once.
        reuses: (options, needs) -> names of the saved arrays that the backward pass overwrites. If it is run again it
            gets None in their place, and computes them anew.
        columns: (options) -> the operands and saved arrays whose vocabulary a mesh may divide, with the axis that runs
            along it; a saved gradient is like its operand. Where one is divided all are, and `forward` and `backward`
            ask the backend for what the other devices have.
        elementwise: (operands) -> whether the op works on every element by itself, so that a mesh may divide the
            features, too.
        reference_on: `reference` on a mesh: (operands, options, mesh) -> outputs, for an op that reduces over tokens
            or has `columns`. None for an op whose tokens have nothing to do with one another.
    """

    name: str
    operands: tuple[Operand, ...]
    outputs: tuple[Output, ...]
    saved: tuple[Output, ...]
    options: type[Any]
    check: Callable[[tuple[Spec | None, ...], Any], None]
    infer: Callable[
        [tuple[Spec | None, ...], Any, Needs], tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]
    ]
    forward: Callable[[Backend, Arrays, Any, Needs], tuple[Arrays, Arrays]]
    backward: Callable[[Backend, Mapping[str, Array | None], Arrays, Any, Needs], Arrays]
    reference: Callable[[Arrays, Any], Arrays]
    keeps: Callable[[Any, Needs], tuple[str, ...]]
    gradient_like: tuple[tuple[str, str], ...] = ()
    same_gradient: tuple[tuple[str, str], ...] = ()
    backward_once: Callable[[Any, Needs], bool] = lambda options, needs: False
    reuses: Callable[[Any, Needs], tuple[str, ...]] = lambda options, needs: ()
    columns: Callable[[Any], Mapping[str, int]] = lambda options: {}
    elementwise: Callable[[tuple[Spec | None, ...]], bool] = lambda operands: False
    reference_on: Callable[[Arrays, Any, Mesh], Arrays] | None = None

    def meaning(self, operands: Arrays, options: Any, mesh: Mesh = ONE_DEVICE) -> Arrays:
        """What the reference makes of this device's operands."""
        if self.reference_on is None:
            return self.reference(operands, options)
        return self.reference_on(operands, options, mesh)

    def features(self, array: Operand | Output, operands: tuple[Spec | None, ...]) -> int:
        """Of how many axes, at the end of an array along rows, the op needs every element at once."""
        return 0 if self.elementwise(operands) else array.axes

    def check_part(self, operands: tuple[Spec | None, ...], options: Any, parts: int) -> None:
        """Raise, as `check` does, for operands that hold one of the `parts` of a vocabulary; and for options of a
        kind that is not the one declared.
        """
        check.options(self.name, options)
        axes = self.columns(options) if parts > 1 else {}

        def whole(operand: Operand, spec: Spec | None) -> Spec | None:
            axis = axes.get(operand.name)
            if spec is None or axis is None or not -len(spec.shape) <= axis < len(spec.shape):
                return spec
            shape = list(spec.shape)
            shape[axis] *= parts
            return Spec(tuple(shape), spec.dtype)

        self.check(tuple(whole(o, spec) for o, spec in zip(self.operands, operands, strict=True)), options)

    def index(self, operand: str) -> int:
        """Position of an operand by name."""
        return next(i for i, o in enumerate(self.operands) if o.name == operand)

    def used_up(self, options: Any, needs: Needs) -> tuple[str, ...]:
        """Names of the saved arrays that one backward pass hands over or overwrites."""
        if self.backward_once(options, needs):
            return tuple(output.name for output in self.saved)
        return self.reuses(options, needs)

    def computed(self, needs: Needs) -> Needs:
        """Which gradients `backward` has to compute: where two operands share one, one stands for both."""
        result = list(needs)
        for name, source in self.same_gradient:
            result[self.index(source)] |= result[self.index(name)]
            result[self.index(name)] = False
        return tuple(result)

    def spread(self, needs: Needs, gradients: Arrays) -> Arrays:
        """Give every operand its gradient, also those that share one."""
        result = list(gradients)
        for name, source in self.same_gradient:
            i, j = self.index(name), self.index(source)
            result[i] = gradients[j] if needs[i] else None
            result[j] = gradients[j] if needs[j] else None
        return tuple(result)
