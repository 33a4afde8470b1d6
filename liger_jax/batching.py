"""vmap of the two primitives, by the roles of their arrays.

A batch axis of arrays that run along tokens is one more token axis: the call is made once, on folded arrays. Where
that is not the same thing (a batched weight, a weight's gradient per example, a loss reduced over tokens) the
examples are run one after the other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching

from liger.launch import Spec
from liger.op import Arrays, Role
from liger_jax.primitives import (
    Call,
    Mask,
    backward_p,
    forward_p,
    pack,
    present,
    spec_of,
    split_backward,
    unpack,
)


def _fold(array: jax.Array, batched: bool, size: int, rows: int | None) -> jax.Array:
    """An array with its batch axis (the first one; of the given size if it has none yet) among the token axes.

    Args:
        array: the array.
        batched: whether it has a batch axis.
        size: length of the batch axis.
        rows: merge the batch axis with the next one, broadcast to this length; None leaves it an axis of its own.
    """
    if not batched:
        array = array[None]
    if rows is None:
        return jnp.broadcast_to(array, (size, *array.shape[1:]))
    return jnp.broadcast_to(array, (size, rows, *array.shape[2:])).reshape(size * rows, *array.shape[2:])


def _folded_operands(call: Call, operands: Arrays, batched: Mask, size: int) -> Iterator[Arrays]:
    """The ways to fold the operands: the batch axis in front; or, for an op of fixed rank, in the first axis."""
    roles = [operand.role for operand in call.op.operands]
    if any(here and role == "shared" for here, role in zip(batched, roles, strict=True)):
        return
    shapes = [spec.shape for spec, role in zip(call.operands, roles, strict=True) if spec and role == "rows"]
    rows = max((shape[0] for shape in shapes if shape), default=1)
    # A table with one row for all sequences can stay as it is.
    single = tuple(
        i
        for i, spec in enumerate(call.operands)
        if spec is not None and not batched[i] and not call.needs[i] and spec.shape[:1] == (1,)
    )

    def folded(rows: int | None, as_is: tuple[int, ...]) -> Arrays:
        return tuple(
            array
            if array is None or roles[i] == "shared" or i in as_is
            else _fold(array, batched[i], size, rows)
            for i, array in enumerate(operands)
        )

    yield folded(None, ())
    if all(shape and shape[0] in (1, rows) for shape in shapes):
        yield folded(rows, single)
        yield folded(rows, ())


def _fold_call(call: Call, operands: Arrays, batched: Mask, size: int) -> tuple[Arrays, Call] | None:
    """The operands folded so that the op computes, by its own account, what it computed for every example."""
    for folded in _folded_operands(call, operands, batched, size):
        specs = tuple(None if array is None else spec_of(array) for array in folded)
        new = dataclasses.replace(call, operands=specs)
        try:
            call.op.check_part(specs, call.options, call.mesh.size("columns"))
        except (TypeError, ValueError):
            continue
        if all(
            _is_fold_of(spec, new_spec, role, size)
            for (spec, role), (new_spec, _) in zip(_results(call), _results(new), strict=True)
        ):
            return folded, new
    return None


def _results(call: Call) -> list[tuple[Spec, Role]]:
    """Outputs and saved arrays that there are, with their roles."""
    declared = (*call.op.outputs, *call.op.saved)
    specs = (*call.outputs, *call.saved)
    return [(spec, output.role) for output, spec in zip(declared, specs, strict=True) if spec is not None]


def _is_fold_of(spec: Spec, folded: Spec, role: Role, size: int) -> bool:
    # Token axes come first and in order, so that arrays along tokens differ in shape alone.
    return folded.size == size * spec.size if role == "rows" else folded.shape == spec.shape


def _batch_first(args: Sequence[Any], dims: Sequence[Any]) -> tuple[list[Any], list[bool], int]:
    batched = [dim is not None for dim in dims]
    arrays = [
        jnp.moveaxis(array, dim, 0) if here else array
        for array, dim, here in zip(args, dims, batched, strict=True)
    ]
    return arrays, batched, next(a.shape[0] for a, here in zip(arrays, batched, strict=True) if here)


def _one_by_one(
    primitive: Primitive, arrays: Sequence[Any], batched: Sequence[bool], **params: Any
) -> tuple[list[jax.Array], list[int | None]]:
    results = _loop(primitive, tuple(batched), tuple(params.items()))(*arrays)
    return results, [0] * len(results)


@functools.lru_cache(4096)
def _loop(
    primitive: Primitive, batched: Mask, params: tuple[tuple[str, Any], ...]
) -> Callable[..., list[jax.Array]]:
    """One function for one loop, or JAX would compile it anew at every call."""

    @jax.jit
    def loop(*arrays: jax.Array) -> list[jax.Array]:
        def one(mapped: list[jax.Array]) -> list[jax.Array]:
            rest = iter(mapped)
            given = (next(rest) if b else a for a, b in zip(arrays, batched, strict=True))
            return list(primitive.bind(*given, **dict(params)))

        return jax.lax.map(one, [a for a, b in zip(arrays, batched, strict=True) if b])

    return loop


def _batch_forward(
    args: Sequence[Any], dims: Sequence[Any], *, call: Call
) -> tuple[list[jax.Array], list[int | None]]:
    arrays, batched, size = _batch_first(args, dims)
    mask = present(call.operands)
    flags = tuple(bool(flag) for flag in unpack(mask, batched))
    fold = _fold_call(call, unpack(mask, arrays), flags, size)
    if fold is None:
        return _one_by_one(forward_p, arrays, batched, call=call)
    folded, new = fold
    results: list[jax.Array] = []
    out_dims: list[int | None] = []
    for array, (spec, role) in zip(forward_p.bind(*pack(folded), call=new), _results(call), strict=True):
        results.append(array.reshape(size, *spec.shape) if role == "rows" else array)
        out_dims.append(0 if role == "rows" else None)
    return results, out_dims


def _batch_backward(
    args: Sequence[Any], dims: Sequence[Any], *, call: Call, cotangents: Mask
) -> tuple[list[jax.Array], list[int | None]]:
    arrays, batched, size = _batch_first(args, dims)
    operands, kept, incoming = split_backward(call, cotangents, arrays)
    flags, kept_flags, incoming_flags = split_backward(call, cotangents, batched)
    summed = any(need and o.role == "shared" for o, need in zip(call.op.operands, call.needs, strict=True))
    lone = any(flag and call.role(name) == "shared" for name, flag in zip(call.kept, kept_flags, strict=True))
    fold = None if summed or lone else _fold_call(call, operands, tuple(map(bool, flags)), size)
    if fold is None:
        return _one_by_one(backward_p, arrays, batched, call=call, cotangents=cotangents)
    folded, new = fold

    def like(array: jax.Array, flag: bool, shape: tuple[int, ...]) -> jax.Array:
        return _fold(array, flag, size, None).reshape(shape)

    new_kept = [
        like(array, flag, new.spec(name).shape) if call.role(name) == "rows" else array
        for name, array, flag in zip(call.kept, kept, kept_flags, strict=True)
    ]
    new_incoming = [
        like(array, bool(flag), spec.shape)
        for array, flag, spec in zip(incoming, incoming_flags, new.outputs, strict=True)
        if array is not None and spec is not None
    ]
    gradients = backward_p.bind(*pack(folded), *new_kept, *new_incoming, call=new, cotangents=cotangents)
    specs = [spec for spec, need in zip(call.operands, call.needs, strict=True) if spec is not None and need]
    return [g.reshape(size, *spec.shape) for g, spec in zip(gradients, specs, strict=True)], [0] * len(specs)


def register() -> None:
    """Give the primitives their batching rules."""
    batching.primitive_batchers[forward_p] = _batch_forward
    batching.primitive_batchers[backward_p] = _batch_backward
