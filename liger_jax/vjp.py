"""An `Op` as a differentiable JAX function."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from liger import check
from liger.op import Arrays, Needs, Op
from liger_jax import batching, implementations, meshes, primitives
from liger_jax.meshes import WHOLE, Division, Split
from liger_jax.planning import Plan, current_plan
from liger_jax.primitives import Call, Specs, pack, present, spec_of, unpack

batching.register()


def apply(
    op: Op,
    options: Any,
    *operands: Any,
    implementation: str | None = None,
    vocab_axis: str | tuple[str, ...] | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Any, ...]:
    """Apply an op.

    Args:
        op: what to compute.
        options: the op's options.
        operands: its array arguments in the declared order, None for those that are absent.
        implementation: "triton", "xla", or None for the better one (`liger_jax.implementations`).
        vocab_axis: inside `jax.shard_map`, the mesh axes that divide the vocabulary.
        names: what the caller's arguments are called where the op's operand or option has another name, for errors.

    Returns:
        The outputs in the declared order, None for those that the options do not ask for.

    Raises:
        TypeError, ValueError: an operand or option that the op does not take; nothing has been computed then.
    """
    for operand, value in zip(op.operands, operands, strict=True):
        if value is None and not operand.optional:
            raise TypeError(
                f"{op.name}: {names.get(operand.name, operand.name)} is None; it must be an array."
            )
    arrays = tuple(None if operand is None else jnp.asarray(operand) for operand in operands)
    specs = tuple(None if array is None else spec_of(array) for array in arrays)
    split = given_split(op, options, vocab_axis)
    try:
        op.check_part(specs, options, (split or WHOLE).size("columns"))
        kernels = implementations.use_kernels(op, specs, implementation)
        if kernels and (axes := meshes.mapped_axes()):
            # What a kernel returns says nothing of an axis that is not the call's own.
            if implementation is not None:
                raise ValueError(
                    f"{op.name}: implementation is {implementation!r} in a jax.vmap over an axis that the mesh divides "
                    f"explicitly ({', '.join(axes)}); leave it out for XLA's, or call the op on the whole batch."
                )
            kernels = False
    except (TypeError, ValueError) as error:
        raise type(error)(check.renamed(str(error), names)) from None
    arguments = tuple(names.get(operand.name, operand.name) for operand in op.operands)
    function = _Function(op, options, specs, kernels, current_plan(), arguments, split)
    if meshes.is_around():  # where JAX does not run the op's own rule of differentiation call by call
        with jax.disable_jit(False):
            results = _compiled(function)(*pack(arrays))
    else:
        results = _results(function, *pack(arrays))
    return unpack(present(_outputs(op, options, specs)), results)


class _Function(NamedTuple):
    """The op as a function of the operands present, given one after the other.

    Attributes:
        op: what it computes.
        options: the op's options.
        specs: of all operands, None for those that are absent.
        kernels: whether kernels compute it.
        plan: under which.
        arguments: what the caller's arguments are called, for errors.
        split: how the arrays are divided over a mesh.
    """

    op: Op
    options: Any
    specs: Specs
    kernels: bool
    plan: Plan
    arguments: tuple[str, ...]
    split: Split | None


@functools.lru_cache(4096)
def _compiled(function: _Function) -> Callable[..., tuple[jax.Array, ...]]:
    return jax.jit(functools.partial(_results, function))


def _results(function: _Function, *values: jax.Array) -> tuple[jax.Array, ...]:
    """The outputs present."""
    op, options, specs = function.op, function.options, function.specs

    def on_device(split: Split | None, values: Sequence[Any]) -> tuple[jax.Array, ...]:
        local = unpack(present(specs), values)
        if function.kernels:
            local = _equally_varying(local)
        found = tuple(None if array is None else spec_of(array) for array in local)
        return _differentiable(function._replace(specs=found, split=split))(*pack(local))

    if function.split is not None or not meshes.explicit_axes():
        return on_device(function.split, values)
    outputs = _outputs(op, options, specs)
    division = Division(op, options, specs, (*outputs, *(None for _ in op.saved)))
    operands = zip(op.operands, unpack(present(specs), values), strict=True)
    given = [(operand, array) for operand, array in operands if array is not None]
    wanted = [(o, spec) for o, spec in zip(op.outputs, outputs, strict=True) if spec is not None]
    return meshes.mapped(on_device, division, given, wanted)


def given_split(op: Op, options: Any, vocab_axis: str | tuple[str, ...] | None) -> Split | None:
    """The division that the caller has made."""
    if vocab_axis is None:
        return None
    names = (vocab_axis,) if isinstance(vocab_axis, str) else tuple(vocab_axis)
    if not op.columns(options):
        raise ValueError(
            f"{op.name}: vocab_axis is {vocab_axis!r}, but with these options the vocabulary cannot be divided."
        )
    try:
        sizes = [int(jax.lax.axis_size(name)) for name in names]
    except NameError:
        raise ValueError(
            f"{op.name}: vocab_axis is {vocab_axis!r}, which is no axis of a jax.shard_map around the call; outside of "
            "one leave it out: the arrays' shardings tell."
        ) from None
    return Split(columns=tuple(zip(names, sizes, strict=True)))


def _equally_varying(arrays: Arrays) -> Arrays:
    """The arrays, all varying over the same mesh axes: the gradient of a replicated one is then summed over them."""
    axes = primitives.varying(map(jax.typeof, pack(arrays)))

    def cast(array: jax.Array) -> jax.Array:
        missing = tuple(axes - primitives.varying([jax.typeof(array)]))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return tuple(None if array is None else cast(array) for array in arrays)


@functools.lru_cache(4096)
def _outputs(op: Op, options: Any, specs: Specs) -> Specs:
    return op.infer(specs, options, (False,) * len(specs))[0]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, slots=True)
class _Static:
    """What the backward rule has to know beside arrays, in a form that JAX carries along."""

    needs: Needs
    call: Call | None


@functools.lru_cache(4096)
def _differentiable(described: _Function) -> Callable[..., tuple[Any, ...]]:
    """The function with its derivative."""
    op, options, specs, kernels, plan, arguments, split = described
    mesh = split or WHOLE
    mask = present(specs)
    nothing = (False,) * len(specs)

    def compute(operands: Arrays, needs: Needs) -> tuple[Arrays, tuple[Any, ...], Call | None]:
        if not kernels:
            return op.meaning(operands, options, mesh), (), None
        call = Call(op, options, specs, op.computed(needs), plan, split)
        outputs, saved = primitives.forward(call, operands)
        arrays = dict(zip((o.name for o in op.outputs), outputs, strict=True))
        arrays |= dict(zip((o.name for o in op.saved), saved, strict=True))
        kept = tuple(checkpoint_name(arrays[name], f"liger_{op.name}_{name}") for name in call.kept)
        return outputs, kept, call

    @jax.custom_vjp
    def function(*values: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(pack(compute(unpack(mask, values), nothing)[0]))

    def forward_rule(*primals: Any) -> tuple[tuple[jax.Array, ...], Any]:
        operands = unpack(mask, [p.value for p in primals])
        needs = _needed(op, arguments, unpack(mask, primals))
        outputs, kept, call = compute(operands, needs)
        return tuple(pack(outputs)), (_Static(needs, call), tuple(pack(operands)), kept)

    def backward_rule(residuals: Any, incoming: tuple[Any, ...]) -> tuple[Any, ...]:
        static, values, kept = residuals
        operands = unpack(mask, values)
        cotangents = tuple(
            None
            if cotangent is None or isinstance(cotangent, SymbolicZero) or not output.differentiable
            else cotangent
            for output, cotangent in zip(
                op.outputs, unpack(present(_outputs(op, options, specs)), incoming), strict=True
            )
        )
        needs = static.needs
        if not any(needs) or not any(present(cotangents)):
            return (None,) * sum(mask)
        columns = mesh.names("columns")
        if columns and not any(meshes.is_varying(value, columns) for value in values):
            # With check_vma=False each device is handed its share of the cotangent of what all of them have.
            cotangents = tuple(None if c is None else jax.lax.psum(c, columns) for c in cotangents)
        if static.call is None:
            gradients = primitives.reference_gradients(op, options, operands, cotangents, needs, mesh)
        else:
            gradients = op.spread(needs, primitives.backward(static.call, operands, kept, cotangents))
        return tuple(gradient for gradient, here in zip(gradients, mask, strict=True) if here)

    function.defvjp(forward_rule, backward_rule, symbolic_zeros=True)
    return function


def _needed(op: Op, arguments: tuple[str, ...], primals: tuple[Any, ...]) -> Needs:
    """Which gradients are asked for: those of operands that are really differentiated."""
    needs = []
    for operand, name, primal in zip(op.operands, arguments, primals, strict=True):
        need = primal is not None and primal.perturbed and jnp.issubdtype(primal.value.dtype, jnp.inexact)
        if need and not operand.differentiable:
            raise ValueError(
                f"{op.name}: {name} is differentiated, but the op has no gradient for it; "
                f"pass jax.lax.stop_gradient({name})."
            )
        needs.append(bool(need))
    return tuple(needs)
