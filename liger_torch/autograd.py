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

from liger import check
from liger.launch import Spec
from liger.op import Needs, Op
from liger_torch.backend import INTERPRET, NAMES, Tensors
from liger_torch.first_order import refuse_transforms
from liger_torch.plans import Plan, swap, watched
from liger_torch.plans import autocasting as autocasting


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
    ordered = swap(operands, swapped)
    check_operands(op, options, ordered, names)
    if uses_reference(first):
        results = zip(op.reference(ordered, options), op.outputs, strict=True)
        return swap(tuple(t if t is None or o.differentiable else t.detach() for t, o in results), swapped)
    if any(t is not None and t.dtype == torch.float64 for t in operands):
        raise TypeError(
            f"{op.name}: float64 on {kind}: the kernels compute in float32; cast the operands to float32 or move "
            "them to the CPU, where the reference computes in float64."
        )
    if torch.compiler.is_compiling():
        from liger_torch import library

        return swap(library.call(op, options, ordered, needs), swapped)
    refuse_transforms(op.name, operands)
    plan = Plan(op, options, operands, needs, swapped)
    plan.promotes = bool(_differing(op, operands))
    if not watched():
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        _plans[_key(op, given, operands, swapped)] = plan
    return plan(operands)


def uses_reference(tensor: torch.Tensor) -> bool:
    """Whether ops on this tensor run as plain torch, and not as kernels."""
    return tensor.device.type == "cpu" and not INTERPRET


def as_autocast(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The operands of a linear layer as autocast casts them, where it is on."""
    kind = input.device.type
    if not autocasting(kind):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


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


def _differing(op: Op, operands: Tensors) -> dict[int, torch.Tensor]:
    """Differentiable operands that run along rows (x and residual, q and k), by place, if their dtypes differ."""
    pairs = zip(op.operands, operands, strict=True)
    found = {
        i: t for i, (o, t) in enumerate(pairs) if t is not None and o.role == "rows" and o.differentiable
    }
    return found if len({t.dtype for t in found.values()}) > 1 else {}


def _promoted(op: Op, operands: Tensors) -> Tensors:
    """Under autocast: those that differ, in their common dtype."""
    differing = _differing(op, operands)
    if not differing:
        return operands
    common = functools.reduce(torch.promote_types, (t.dtype for t in differing.values()))
    return tuple(differing[i].to(common) if i in differing else t for i, t in enumerate(operands))


def _check_devices(op: Op, operands: Tensors) -> None:
    assert operands[0] is not None
    device = operands[0].device
    for operand, tensor in zip(op.operands, operands, strict=True):
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{op.name}: {operand.name} is on {tensor.device}, {op.operands[0].name} on {device}; "
                "move both to one device."
            )


_plans: dict[Any, Plan] = {}
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
