"""An `Op` as a differentiable torch function.

- A CPU tensor goes through the op's reference, differentiated by torch; with `TRITON_INTERPRET=1` through the kernel
  in Triton's interpreter.
- A GPU tensor goes through the kernel: by a plain `autograd.Function` in eager mode, which costs the host least, and
  by the operators of `liger_torch.library` under `torch.compile`.
- A meta tensor takes the kernel's path without running it, so that memory can be planned on any machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from liger import check
from liger.backend import Backend
from liger.launch import Spec
from liger.op import Needs, Op, Operand, Output
from liger_torch.backend import INTERPRET, NAMES, Tensors, TorchBackend, backend_for
from liger_torch.replay import Algorithm, NotLaunchesAlone, record


def call(
    op: Op,
    options: Any,
    *operands: torch.Tensor | None,
    names: Mapping[str, str] = MappingProxyType({}),
    swapped: int = 0,
) -> Tensors:
    """Apply an op.

    Args:
        op: what to compute.
        options: the op's options, or a tuple of their values in the declared order, which is found sooner.
        operands: its array arguments in the declared order, None for those that are absent.
        names: what the caller's arguments are called where the op's operand or option has another name, for errors.
        swapped: of how many of the first operands, and outputs, axes 1 and 2 stand in each other's place.

    Returns:
        The outputs in the declared order, None for those that the options do not ask for.

    Raises:
        TypeError, ValueError: an operand or option that the op does not take; nothing has been computed then.
    """
    if torch.compiler.is_compiling():
        return _checked(op, options, operands, names, swapped)
    try:
        plan = _plans.get(_key(op, options, operands, swapped))
    except (AttributeError, TypeError):  # no tensors, or options that have no hash
        plan = None
    if plan is None or (plan.promotes and autocasting(plan.backend.torch_device.type)):
        return _checked(op, options, operands, names, swapped)
    return plan(operands)


def _checked(op: Op, given: Any, operands: Tensors, names: Mapping[str, str], swapped: int) -> Tensors:
    """`call` of what has no plan yet, or needs none."""
    options = op.options(*given) if isinstance(given, tuple) else given
    _require_tensors(op, operands, names)
    first = operands[0]
    assert first is not None
    kind = first.device.type
    if autocasting(kind):
        promoted = _promoted(op, operands)
        if promoted is not operands:
            return call(op, given, *promoted, names=names, swapped=swapped)
    needs = needed(op, operands, names)
    ordered = _swapped(operands, swapped)
    check_operands(op, options, ordered, names)
    if uses_reference(first):
        return _swapped(op.reference(ordered, options), swapped)
    if any(t is not None and t.dtype == torch.float64 for t in operands):
        raise TypeError(
            f"{op.name}: float64 on {kind}: the kernels compute in float32; cast the operands to float32 or move "
            "them to the CPU, where the reference computes in float64."
        )
    if torch.compiler.is_compiling():
        from liger_torch import library

        return _swapped(library.call(op, options, ordered, needs), swapped)
    plan = _Plan(op, options, operands, needs, swapped)
    if not _watched():
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        _plans[_key(op, given, operands, swapped)] = plan
    return plan(operands)


def _swapped(arrays: Tensors, n: int) -> Tensors:
    """With axes 1 and 2 of the first n exchanged."""
    if n == 0:
        return arrays
    return (*(None if t is None else t.transpose(1, 2) for t in arrays[:n]), *arrays[n:])


def uses_reference(tensor: torch.Tensor) -> bool:
    """Whether ops on this tensor run as plain torch, and not as kernels."""
    return tensor.device.type == "cpu" and not INTERPRET


def autocasting(device_type: str) -> bool:
    """Whether autocast is on; there is none for meta tensors."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def needed(op: Op, operands: Tensors, names: Mapping[str, str] = MappingProxyType({})) -> Needs:
    """Which gradients are asked for."""
    if not torch.is_grad_enabled():
        return (False,) * len(operands)
    needs = [t is not None and t.requires_grad for t in operands]
    for operand, need in zip(op.operands, needs, strict=True):
        if need and not operand.differentiable:
            name = names.get(operand.name, operand.name)
            raise ValueError(
                f"{op.name}: {name} requires a gradient, but the op has none for it; pass {name}.detach()."
            )
    return tuple(needs)


Described = tuple[tuple[torch.Size, torch.dtype] | None, ...]


def _require_tensors(op: Op, operands: Tensors, names: Mapping[str, str]) -> None:
    if all([isinstance(value, torch.Tensor) for value in operands]):  # nearly always, and quickly known
        return
    for operand, value in zip(op.operands, operands, strict=True):
        if not isinstance(value, torch.Tensor) and not (value is None and operand.optional):
            received = "None" if value is None else f"a {type(value).__name__}"
            name = names.get(operand.name, operand.name)
            raise TypeError(f"{op.name}: {name} is {received}; it must be a torch.Tensor.")


def check_operands(op: Op, options: Any, operands: Tensors, names: Mapping[str, str]) -> None:
    """Raise for operands or options that the op does not take."""
    described = tuple([None if t is None else (t.shape, t.dtype) for t in operands])
    try:
        # Symbolic shapes have no hash; and what is traced is traced once, with options of the kinds of a schema.
        if torch.compiler.is_compiling():
            op.check(_specs(described), options)
        else:
            _check(op, options, described)
        _check_devices(op, operands)
    except (TypeError, ValueError) as error:
        raise type(error)(check.renamed(str(error), names)) from None


@functools.lru_cache(4096)
def _check(op: Op, options: Any, described: Described) -> None:
    op.check_part(_specs(described), options, 1)


def _specs(described: Described) -> tuple[Spec | None, ...]:
    return tuple([None if d is None else Spec(tuple(d[0]), NAMES.get(d[1], str(d[1]))) for d in described])


def _promoted(op: Op, operands: Tensors) -> Tensors:
    """Under autocast: differentiable operands that run along rows (x and residual, q and k) in their common dtype."""

    def promotes(operand: Operand, tensor: torch.Tensor | None) -> bool:
        return tensor is not None and operand.role == "rows" and operand.differentiable

    pairs = list(zip(op.operands, operands, strict=True))
    dtypes = {t.dtype for o, t in pairs if t is not None and promotes(o, t)}
    if len(dtypes) < 2:
        return operands
    common = functools.reduce(torch.promote_types, dtypes)
    return tuple(t.to(common) if t is not None and promotes(o, t) else t for o, t in pairs)


def _check_devices(op: Op, operands: Tensors) -> None:
    assert operands[0] is not None
    device = operands[0].device
    for operand, tensor in zip(op.operands, operands, strict=True):
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{op.name}: {operand.name} is on {tensor.device}, {op.operands[0].name} on {device}; "
                "move both to one device."
            )


# -------------------------------------------------------------------------------------------------------- plans


class _Plan:
    """How an op runs on its kernels for operands of one layout: what a call need not find out again.

    Arrays are known by their place among (*operands, *outputs, *saved).
    """

    def __init__(self, op: Op, options: Any, operands: Tensors, needs: Needs, swapped: int) -> None:
        assert operands[0] is not None
        self.op, self.options, self.needs, self.swapped = op, options, needs, swapped
        self.backend = backend_for(operands[0].device)
        self.todo = op.computed(needs)
        self.promotes = _promoted(op, operands) is not operands
        self.n_outputs = len(op.outputs)
        self.differentiable = True in needs
        names = op.keeps(options, self.todo)
        # What the backward pass hands over or overwrites is kept where nothing else holds on to it.
        used_up = op.used_up(options, self.todo)
        buffers = tuple(o.name for o in op.operands if o.buffer and o.name in names)
        kept = (*names, *(s.name for s in op.saved))
        saved = tuple(name for name in kept if name not in used_up and name not in buffers)
        arrays: tuple[Operand | Output, ...] = (*op.operands, *op.outputs, *op.saved)
        places = {array.name: i for i, array in enumerate(arrays)}
        self.saved, self.once, self.buffers = (
            [places[n] for n in some] for some in (saved, used_up, buffers)
        )
        self.kept = (*saved, *used_up, *buffers)
        first = len(op.operands)
        swapped_places = {*range(swapped), *range(first, first + swapped)}
        self.kept_swapped = [name for name in self.kept if places[name] in swapped_places]
        self.unsaved_too = bool(used_up or buffers)
        self.handed_over = op.backward_once(options, self.todo)
        self.constant = tuple(i for i, o in enumerate(op.outputs) if not o.differentiable)
        self.forward = _replayed(self.backend, self._forward, operands)
        self.backwards: dict[Any, Callable[[Tensors], Tensors]] = {}

    def __call__(self, operands: Tensors) -> Tensors:
        if self.differentiable:
            apply = _Function.apply if torch._C._are_functorch_transforms_active() else _apply
            outputs: Tensors = apply(self, *operands)
            return outputs
        return self.forward(operands)[: self.n_outputs]

    def _forward(self, backend: Backend, operands: Tensors) -> Tensors:
        outputs, saved = self.op.forward(backend, _swapped(operands, self.swapped), self.options, self.todo)
        return (*_swapped(outputs, self.swapped), *saved)

    def _backward(self, backend: Backend, arrays: Tensors) -> Tensors:
        n = len(self.kept)
        kept = dict(zip(self.kept, arrays[:n], strict=True))
        for name in self.kept_swapped:
            kept[name] = _swapped((kept[name],), 1)[0]
        cotangents = _swapped(arrays[n:], self.swapped)
        if all(c is None for c in cotangents):
            return (None,) * (1 + len(self.needs))
        gradients = self.op.backward(backend, kept, cotangents, self.options, self.todo)
        # None for the plan, which is the function's first argument.
        return (None, *_swapped(self.op.spread(self.needs, gradients), self.swapped))

    def backward(self, key: Any, arrays: Tensors) -> Callable[[Tensors], Tensors]:
        """What computes the gradients, where it has not been found before; `arrays` are those kept and cotangents."""
        found = _replayed(self.backend, self._backward, arrays)
        if not _watched():
            self.backwards[key] = found
        return found

    def unsaved(self, ctx: Any) -> Tensors:
        """What was kept beside the saved tensors. What the backward pass uses up it gets once."""
        once, ctx.once = ctx.once, None
        if once is None and self.handed_over:
            raise RuntimeError(
                f"{self.op.name}: a second backward pass. Its gradients were computed in the forward pass and handed "
                'over by the first one; call it with reduction="none" and reduce outside to go back twice.'
            )
        return (*(once or [None] * len(self.once)), *ctx.buffers)


_plans: dict[Any, _Plan] = {}
MAX_PLANS = 4096


def _key(op: Op, options: Any, operands: Tensors, swapped: int) -> tuple[Any, ...]:
    """All that a plan depends on."""
    return (
        op,
        options,
        swapped,
        torch.is_grad_enabled(),
        *[None if t is None else (t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in operands],
    )


def _watched() -> bool:
    """Whether a mode wants to see what torch does, or to put other tensors in the place of some."""
    return torch._C._len_torch_dispatch_stack() > 0


def _replayed(backend: TorchBackend, algorithm: Algorithm, arrays: Tensors) -> Callable[[Tensors], Tensors]:
    """The algorithm for arrays of these layouts: a recording of its launches, or itself if it does more."""
    if not _watched():
        try:
            return record(backend, algorithm, arrays)
        except NotLaunchesAlone:
            pass
    return functools.partial(_without_autocast, backend, algorithm)


def _without_autocast(backend: TorchBackend, algorithm: Algorithm, arrays: Tensors) -> Tensors:
    kind = backend.torch_device.type
    if autocasting(kind):
        with torch.autocast(kind, enabled=False):
            return algorithm(backend, arrays)
    return algorithm(backend, arrays)


class _Function(torch.autograd.Function):
    """Any op with kernels, in eager mode."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *operands: torch.Tensor | None) -> Tensors:
        results = plan.forward(operands)
        arrays = operands + results
        ctx.plan = plan
        ctx.save_for_backward(*[arrays[i] for i in plan.saved])
        ctx.set_materialize_grads(False)
        if plan.unsaved_too:
            ctx.once = [arrays[i] for i in plan.once]
            ctx.buffers = [arrays[i] for i in plan.buffers]
        outputs = results[: plan.n_outputs]
        if plan.constant:
            ctx.mark_non_differentiable(*[outputs[i] for i in plan.constant if outputs[i] is not None])
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Tensors:
        if torch.is_grad_enabled():
            return _to_be_differentiated(ctx, *cotangents)
        plan: _Plan = ctx.plan
        arrays: Tensors = ctx.saved_tensors
        if plan.unsaved_too:
            arrays += plan.unsaved(ctx)
        arrays += cotangents
        key = tuple([None if t is None else (t.shape, t.stride(), t.dtype) for t in arrays])
        return (plan.backwards.get(key) or plan.backward(key, arrays))(arrays)


_apply = super(torch.autograd.Function, _Function).apply
"""What `Function.apply` comes to without a transform of torch.func, which it refuses."""

_to_be_differentiated = once_differentiable(_Function.backward)
"""The backward pass without gradients of its own, whose results say so if they are differentiated."""
