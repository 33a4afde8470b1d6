"""An `Op` as a differentiable torch function.

- A CPU tensor goes through the op's reference, differentiated by torch; with `TRITON_INTERPRET=1` through the kernel
  in Triton's interpreter.
- A GPU tensor goes through the kernel: by a plain `autograd.Function` in eager mode, which costs the host least, and
  by the operators of `liger_torch.library` under `torch.compile`.
- A meta tensor takes the kernel's path without running it, so that memory can be planned on any machine.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from liger import check
from liger.launch import Spec
from liger.op import Needs, Op, Operand
from liger_torch.backend import INTERPRET, NAMES, Tensors, backend_for


def call(
    op: Op,
    options: Any,
    *operands: torch.Tensor | None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Tensors:
    """Apply an op.

    Args:
        op: what to compute.
        options: the op's options.
        operands: its array arguments in the declared order, None for those that are absent.
        names: what the caller's arguments are called where the op's operand or option has another name, for errors.

    Returns:
        The outputs in the declared order, None for those that the options do not ask for.

    Raises:
        TypeError, ValueError: an operand or option that the op does not take; nothing has been computed then.
    """
    _require_tensors(op, operands, names)
    first = operands[0]
    assert first is not None
    kind = first.device.type
    if autocasting(kind):
        operands = _promoted(op, operands)
    needs = needed(op, operands, names)
    check_operands(op, options, operands, names)
    if uses_reference(first):
        return op.reference(operands, options)
    if any(t is not None and t.dtype == torch.float64 for t in operands):
        raise TypeError(
            f"{op.name}: float64 on {kind}: the kernels compute in float32; cast the operands to float32 or move "
            "them to the CPU, where the reference computes in float64."
        )
    if torch.compiler.is_compiling():
        from liger_torch import library

        return library.call(op, options, operands, needs)
    if autocasting(kind):
        with torch.autocast(kind, enabled=False):
            return _run(op, options, needs, operands)
    return _run(op, options, needs, operands)


def uses_reference(tensor: torch.Tensor) -> bool:
    """Whether ops on this tensor run as plain torch, and not as kernels."""
    return tensor.device.type == "cpu" and not INTERPRET


def autocasting(device_type: str) -> bool:
    """Whether autocast is on; there is none for meta tensors."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def _run(op: Op, options: Any, needs: Needs, operands: Tensors) -> Tensors:
    if True in needs:
        return _Function.apply(op, options, needs, *operands)
    assert operands[0] is not None
    return op.forward(backend_for(operands[0].device), operands, options, needs)[0]


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


class _Function(torch.autograd.Function):
    """Any op with kernels, in eager mode."""

    @staticmethod
    def forward(ctx: Any, op: Op, options: Any, needs: Needs, *operands: torch.Tensor | None) -> Tensors:
        assert operands[0] is not None
        backend = backend_for(operands[0].device)
        needs = ctx.needs = tuple(needs)
        todo = op.computed(needs)
        outputs, saved = op.forward(backend, operands, options, todo)
        ctx.op, ctx.options, ctx.backend = op, options, backend
        names = op.keeps(options, todo)
        available = {o.name: t for o, t in zip(op.operands, operands, strict=True)}
        available |= {o.name: t for o, t in zip(op.outputs, outputs, strict=True)}
        available |= {s.name: t for s, t in zip(op.saved, saved, strict=True)}
        # What the backward pass hands over or overwrites is kept where nothing else holds on to it.
        used_up = op.used_up(options, todo)
        ctx.once = {name: available[name] for name in used_up}
        ctx.buffers = {o.name: available[o.name] for o in op.operands if o.buffer and o.name in names}
        kept = (*names, *(s.name for s in op.saved))
        ctx.names = tuple(name for name in kept if name not in used_up and name not in ctx.buffers)
        ctx.save_for_backward(*(available[name] for name in ctx.names))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(t for o, t in zip(op.outputs, outputs, strict=True) if t is not None and not o.differentiable)
        )
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Tensors:
        op: Op = ctx.op
        kept = dict(zip(ctx.names, ctx.saved_tensors, strict=True)) | ctx.buffers
        todo = op.computed(ctx.needs)
        if ctx.once is None and op.backward_once(ctx.options, todo):
            raise RuntimeError(
                f"{op.name}: a second backward pass. Its gradients were computed in the forward pass and handed "
                'over by the first one; call it with reduction="none" and reduce outside to go back twice.'
            )
        kept |= ctx.once or dict.fromkeys(op.reuses(ctx.options, todo))
        ctx.once = None
        if all(c is None for c in cotangents):
            return (None,) * (3 + len(op.operands))
        kind = ctx.backend.torch_device.type
        if autocasting(kind):
            with torch.autocast(kind, enabled=False):
                gradients = op.backward(ctx.backend, kept, cotangents, ctx.options, todo)
        else:
            gradients = op.backward(ctx.backend, kept, cotangents, ctx.options, todo)
        return (None, None, None, *op.spread(ctx.needs, gradients))
