"""Every op as operators of `torch.library`, which `torch.compile` traces without a graph break.

`liger::<op>` takes the operands, the options one by one and which gradients are needed, and returns the outputs and
what the backward pass keeps; `liger::<op>_backward` returns one gradient per operand. Both are functional: no
argument is modified and nothing returned shares memory with an argument. A result that is absent (an output not
asked for, a gradient not needed) is an empty tensor.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import torch
from torch.autograd import forward_ad

from liger.launch import Spec
from liger.op import Needs, Op
from liger_torch.backend import DTYPES, NAMES, Tensors, backend_for
from liger_torch.first_order import forward_refusal, refusal
from liger_triton.ops import OPS

_library = torch.library.Library("liger", "DEF")
Results = torch.Tensor | tuple[torch.Tensor, ...]
"""What an operator returns: torch wants a lone tensor bare."""
_SCHEMA_TYPES: dict[Any, str] = {
    float: "float",
    int: "int",
    bool: "bool",
    str: "str",
    tuple[int, ...]: "int[]",
}


def call(op: Op, options: Any, operands: Tensors, needs: Needs) -> Tensors:
    """Apply an op through its operator."""
    # Permissions to write over memory, which a functional operator has no use for.
    for name, without in (("in_place", False), ("keep_bytes", 0)):
        if getattr(options, name, without) != without:
            options = dataclasses.replace(options, **{name: without})
    for operand, tensor in zip(op.operands, operands, strict=True):
        if operand.buffer and tensor is not None:
            raise ValueError(
                f"{op.name}: {operand.name} is written to in the backward pass, which torch.compile cannot trace; "
                "leave it out, or exclude the call from compilation with torch.compiler.disable."
            )
    results = _tuple(getattr(torch.ops.liger, op.name)(*operands, *_values(options), list(needs)))
    present = _present(op, operands, options, needs)
    return tuple(t if p else None for t, p in zip(results, present, strict=False))


def _values(options: Any) -> tuple[Any, ...]:
    return tuple(getattr(options, f.name) for f in dataclasses.fields(options))


def _present(op: Op, operands: Tensors, options: Any, needs: Needs) -> tuple[bool, ...]:
    outputs, _ = op.infer(_specs(operands), options, op.computed(needs))
    return tuple(spec is not None for spec in outputs)


def _specs(operands: Tensors) -> tuple[Spec | None, ...]:
    return tuple(None if t is None else Spec(tuple(t.shape), NAMES[t.dtype]) for t in operands)


def _schema_type(annotation: Any) -> str:
    """The schema's spelling of a field's type: float, or `float | None` as float?."""
    members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    (base,) = (m for m in members if m is not type(None))
    return _SCHEMA_TYPES[base] + ("?" if type(None) in members else "")


def _option_schema(op: Op) -> str:
    hints = typing.get_type_hints(op.options)
    return ", ".join(f"{_schema_type(hints[f.name])} {f.name}" for f in dataclasses.fields(op.options))


def _filled(tensors: Tensors, device: torch.device) -> list[torch.Tensor]:
    return [torch.empty(0, device=device) if t is None else t for t in tensors]


def _tuple(results: Results) -> tuple[torch.Tensor, ...]:
    return (results,) if isinstance(results, torch.Tensor) else results


def _results(tensors: list[torch.Tensor]) -> Results:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _register(op: Op) -> None:
    n_operands = len(op.operands)
    n_options = len(dataclasses.fields(op.options))
    kept_names = [*(o.name for o in op.operands), *(o.name for o in (*op.outputs, *op.saved))]
    options_schema = "".join(f", {part}" for part in [_option_schema(op)] if part)

    def split(arguments: tuple[Any, ...], n_tensors: int) -> tuple[Tensors, Any, Needs]:
        tensors = arguments[:n_tensors]
        values = arguments[n_tensors : n_tensors + n_options]
        options = op.options(*(tuple(v) if isinstance(v, (list, tuple)) else v for v in values))
        return tensors, options, tuple(arguments[-1])

    # ---- forward

    operands_schema = ", ".join(f"Tensor{'?' if o.optional else ''} {o.name}" for o in op.operands)
    results_schema = ", ".join("Tensor" for _ in (*op.outputs, *op.saved))
    _library.define(f"{op.name}({operands_schema}{options_schema}, bool[] needs) -> ({results_schema})")

    def forward(*arguments: Any) -> Results:
        operands, options, needs = split(arguments, n_operands)
        device = operands[0].device  # type: ignore[union-attr]
        op.check(_specs(operands), options)
        if forward_ad._current_level >= 0:  # which of the operands has a tangent cannot be seen from here
            raise forward_refusal(op.name)
        outputs, saved = op.forward(backend_for(device), operands, options, op.computed(needs))
        return _results(_filled((*outputs, *saved), device))

    def forward_fake(*arguments: Any) -> Results:
        operands, options, needs = split(arguments, n_operands)
        device = operands[0].device  # type: ignore[union-attr]
        specs = _specs(operands)
        op.check_part(specs, options, 1)
        outputs, saved = op.infer(specs, options, op.computed(needs))
        return _results([_empty(spec, device) for spec in (*outputs, *saved)])

    # ---- backward

    # The prefix keeps an output apart from an option of the same name.
    kept_schema = ", ".join(f"Tensor? kept_{name}" for name in kept_names)
    cotangents_schema = ", ".join(f"Tensor? grad_{o.name}" for o in op.outputs)
    gradients_schema = ", ".join("Tensor" for _ in op.operands)
    _library.define(
        f"{op.name}_backward({kept_schema}, {cotangents_schema}{options_schema}, bool[] needs)"
        f" -> ({gradients_schema})"
    )
    n_kept = len(kept_names)
    n_tensors = n_kept + len(op.outputs)

    def backward(*arguments: Any) -> Results:
        tensors, options, needs = split(arguments, n_tensors)
        kept = dict(zip(kept_names, tensors[:n_kept], strict=True))
        device = next(t.device for t in tensors if t is not None)
        for name in op.used_up(options, needs):
            array = kept[name]
            if array is not None:
                kept[name] = array.clone()
        gradients = op.backward(backend_for(device), kept, tensors[n_kept:], options, needs)
        gradients = tuple(
            g.clone() if any(g is t for t in tensors) and g is not None else g for g in gradients
        )
        return _results(_filled(gradients, device))

    def backward_fake(*arguments: Any) -> Results:
        tensors, _, needs = split(arguments, n_tensors)
        device = next(t.device for t in tensors if t is not None)
        given = dict(
            zip((*kept_names, *(f"grad_{o.name}" for o in op.outputs)), _specs(tensors), strict=True)
        )
        like = dict(op.gradient_like)
        specs = [
            given[o.name] or given[like[o.name]] if n else None
            for o, n in zip(op.operands, needs, strict=True)
        ]
        return _results([_empty(spec, device) for spec in specs])

    for name, real, fake in (
        (op.name, forward, forward_fake),
        (f"{op.name}_backward", backward, backward_fake),
    ):
        _library.impl(name, real, "CompositeExplicitAutograd")
        torch.library.register_fake(f"liger::{name}", fake, lib=_library)

    # ---- autograd

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
        output = _tuple(output)
        operands, ctx.options, ctx.needs = split(inputs, n_operands)
        todo = op.computed(ctx.needs)
        outputs, saved = op.infer(_specs(operands), ctx.options, todo)
        present = dict(
            zip(
                kept_names,
                (*(t is not None for t in operands), *(s is not None for s in (*outputs, *saved))),
                strict=True,
            )
        )
        names = {*op.keeps(ctx.options, todo), *(s.name for s in op.saved)}
        available = dict(zip(kept_names, (*operands, *output), strict=True))
        ctx.kept = [name for name in kept_names if name in names and present[name]]
        ctx.save_for_backward(*(available[name] for name in ctx.kept))
        ctx.outputs_present = [s is not None for s in outputs]
        # Not what is saved: by a gradient that it may be, a second derivative is noticed.
        results = zip(output, op.outputs, strict=False)
        ctx.mark_non_differentiable(*(t for t, o in results if not o.differentiable))
        ctx.set_materialize_grads(False)  # an output that is not used costs no work on zeros

    def autograd(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        todo = op.computed(ctx.needs)
        nothing = (None,) * (n_operands + n_options + 1)
        given = [
            c if present and o.differentiable else None
            for c, o, present in zip(cotangents, op.outputs, ctx.outputs_present, strict=False)
        ]
        if not any(todo) or all(c is None for c in given):
            return nothing
        kept = dict(zip(ctx.kept, ctx.saved_tensors, strict=True))
        backward_op = getattr(torch.ops.liger, f"{op.name}_backward")
        gradients = _tuple(
            backward_op(*(kept.get(name) for name in kept_names), *given, *_values(ctx.options), list(todo))
        )
        wanted = tuple(g if need else None for g, need in zip(gradients, todo, strict=True))
        return (*op.spread(ctx.needs, wanted), *nothing[n_operands:])

    def refuse(ctx: Any, *cotangents: torch.Tensor | None) -> None:
        raise refusal(op.name)

    torch.library.register_autograd(f"liger::{op.name}", autograd, setup_context=setup_context, lib=_library)
    torch.library.register_autograd(f"liger::{op.name}_backward", refuse, lib=_library)


def _empty(spec: Spec | None, device: torch.device) -> torch.Tensor:
    if spec is None:
        return torch.empty(0, device=device)
    return torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device=device)


for _op in OPS:
    _register(_op)
