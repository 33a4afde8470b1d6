"""How an op runs on its kernels in eager mode: what a call of one layout found out, kept for the next one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from liger.backend import Backend
from liger.op import Needs, Op, Operand, Output
from liger_torch.backend import Tensors, TorchBackend, backend_for
from liger_torch.first_order import refusal, refuse_transforms
from liger_torch.replay import Algorithm, NotLaunchesAlone, at, record


class Plan:
    """How an op runs on its kernels for operands of one layout: what a call need not find out again.

    Arrays are known by their place among (*operands, *outputs, *saved).
    """

    def __init__(self, op: Op, options: Any, operands: Tensors, needs: Needs, swapped: int) -> None:
        assert operands[0] is not None
        self.op, self.options, self.needs, self.swapped = op, options, needs, swapped
        self.backend = backend_for(operands[0].device)
        self.todo = op.computed(needs)
        self.promotes = False
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
            at([places[n] for n in some]) for some in (saved, used_up, buffers)
        )
        self.n_once = len(used_up)
        self.kept = (*saved, *used_up, *buffers)
        first = len(op.operands)
        swapped_places = {*range(swapped), *range(first, first + swapped)}
        self.kept_swapped = [name for name in self.kept if places[name] in swapped_places]
        self.unsaved_too = bool(used_up or buffers)
        self.handed_over = op.backward_once(options, self.todo)
        self.constant = at([i for i, o in enumerate(op.outputs) if not o.differentiable])
        self.forward = _replayed(self.backend, self._forward, operands)
        self.backwards: dict[Any, Callable[[Tensors], Tensors]] = {}

    def __call__(self, operands: Tensors) -> Tensors:
        """The outputs."""
        transforms = torch._C._are_functorch_transforms_active()
        if transforms or forward_ad._current_level >= 0:
            refuse_transforms(self.op.name, operands)
        if self.differentiable:
            apply = _Function.apply if transforms else _apply
            outputs: Tensors = apply(self, *operands)
            return outputs
        return self.forward(operands)[: self.n_outputs]

    def _forward(self, backend: Backend, operands: Tensors) -> Tensors:
        outputs, saved = self.op.forward(backend, swap(operands, self.swapped), self.options, self.todo)
        return (*swap(outputs, self.swapped), *saved)

    def _backward(self, backend: Backend, arrays: Tensors) -> Tensors:
        n = len(self.kept)
        kept = dict(zip(self.kept, arrays[:n], strict=True))
        for name in self.kept_swapped:
            kept[name] = swap((kept[name],), 1)[0]
        cotangents = swap(arrays[n:], self.swapped)
        if all(c is None for c in cotangents):
            return (None,) * (1 + len(self.needs))
        gradients = self.op.backward(backend, kept, cotangents, self.options, self.todo)
        # None for the plan, which is the function's first argument.
        return (None, *swap(self.op.spread(self.needs, gradients), self.swapped))

    def backward(self, key: Any, arrays: Tensors) -> Callable[[Tensors], Tensors]:
        """What computes the gradients, where it has not been found before; `arrays` are those kept and cotangents."""
        found = _replayed(self.backend, self._backward, arrays)
        if not watched():
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
        return (*(once or [None] * self.n_once), *ctx.buffers)


def swap(arrays: Tensors, n: int) -> Tensors:
    """With axes 1 and 2 of the first n exchanged."""
    if n == 0:
        return arrays
    return (*(None if t is None else t.transpose(1, 2) for t in arrays[:n]), *arrays[n:])


def autocasting(device_type: str) -> bool:
    """Whether autocast is on; there is none for meta tensors."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def watched() -> bool:
    """Whether a mode wants to see what torch does, or to put other tensors in the place of some."""
    return torch._C._len_torch_dispatch_stack() > 0


def _replayed(backend: TorchBackend, algorithm: Algorithm, arrays: Tensors) -> Callable[[Tensors], Tensors]:
    """The algorithm for arrays of these layouts: a recording of its launches, or itself if it does more."""
    if not watched():
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
    def forward(ctx: Any, plan: Plan, *operands: torch.Tensor | None) -> Tensors:
        results = plan.forward(operands)
        arrays = operands + results
        ctx.plan = plan
        ctx.save_for_backward(*plan.saved(arrays))
        ctx.set_materialize_grads(False)
        if plan.unsaved_too:
            ctx.once = plan.once(arrays)
            ctx.buffers = plan.buffers(arrays)
        if constant := [t for t in plan.constant(results) if t is not None]:
            ctx.mark_non_differentiable(*constant)
        return results[: plan.n_outputs]

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Tensors:
        if torch.is_grad_enabled():
            raise refusal(ctx.plan.op.name)
        plan: Plan = ctx.plan
        arrays: Tensors = ctx.saved_tensors
        if plan.unsaved_too:
            arrays += plan.unsaved(ctx)
        arrays += cotangents
        # Shapes and dtypes are the plan's: autograd sees to it that cotangents have those of the outputs. But hooks of
        # saved tensors may lay these out anew.
        key = tuple([None if t is None else t.stride() for t in arrays])
        return (plan.backwards.get(key) or plan.backward(key, arrays))(arrays)


_apply = super(torch.autograd.Function, _Function).apply
"""What `Function.apply` comes to without a transform of torch.func, which it refuses."""
