"""Ops on a mesh: every device computes on its own tokens, and on its own part of the vocabulary.

How an op may be divided follows from the roles of its arrays. Token axes stay where they are and as they are
(flattened first, two divided axes would be one, which no sharding can say, and XLA would gather them); the other axes
of a token's arrays are whole on every device, and so are arrays shared by all tokens, whose gradients are summed over
the mesh; the vocabulary may be divided where the op says so (`Op.columns`). What each device then computes is the op
itself, on the local arrays, which asks for what the others have through `Split`.

    inside `jax.shard_map`   the caller has divided the arrays already
    Explicit axes            `jax.shard_map` over the specs in the arrays' types (`mapped`)
    Auto axes                `custom_partitioning` in the lowering, with a Shardy rule (`partitioned`)

In a `jax.vmap` over an axis that Explicit axes divide, XLA's implementation computes.

JAX crashes on a Python callback inside `custom_partitioning` (jax#23620): in Triton's interpreter, programs on Auto
axes are not divided, and XLA gathers the arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src.core import get_axis_env
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from liger.launch import Spec
from liger.mesh import Over
from liger.op import Op, Operand, Output

Axes = tuple[tuple[str, int], ...]
"""Mesh axes by name, with their sizes."""

Factors = tuple[str, ...]
"""For each axis of an array what it runs along: "t0", "t1", ... a token axis, "v" the vocabulary, "" if it is whole."""

VOCAB = "v"


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """The mesh axes that divide one call's tokens, and its vocabulary; a `liger.mesh.Mesh` on this device.

    With `sums` the gradients of what several devices have are to be added up over them; elsewhere JAX does it.
    """

    rows: Axes = ()
    columns: Axes = ()
    sums: bool = False

    def names(self, over: Over) -> tuple[str, ...]:
        """The mesh axes, without their sizes."""
        return tuple(name for name, _ in (self.rows if over == "rows" else self.columns))

    def size(self, over: Over) -> int:
        """See `liger.mesh.Mesh`."""
        return math.prod(size for _, size in (self.rows if over == "rows" else self.columns))

    def psum(self, *arrays: jax.Array, over: Over) -> tuple[jax.Array, ...]:
        """See `liger.mesh.Mesh`."""
        names = self.names(over)
        return tuple(_psum(names, array) for array in arrays) if names else arrays

    def total(self, array: jax.Array, parts: Sequence[Over]) -> jax.Array:
        """The sum over the devices of the mesh, or over those that hold other rows, or other columns."""
        names = tuple(itertools.chain(*map(self.names, parts)))
        return lax.psum(array, names) if names else array

    def pmax(self, array: jax.Array, over: Over) -> jax.Array:
        """See `liger.mesh.Mesh`."""
        names = self.names(over)
        return lax.pmax(lax.stop_gradient(array), names) if names else array

    def first_column(self, width: int) -> Any:
        """See `liger.mesh.Mesh`."""
        names = self.names("columns")
        return (lax.axis_index(names) * width).astype(jnp.int32).reshape(1) if names else 0


WHOLE = Split()


def is_varying(array: Any, names: Sequence[str]) -> bool:
    """Whether the array's type tells that it differs along these mesh axes (in `jax.shard_map` with check_vma=True)."""
    return set(names) <= jax.typeof(array).manual_axis_type.varying


def _psum(names: tuple[str, ...], array: jax.Array) -> jax.Array:
    # Where types tell what varies JAX knows the derivative; elsewhere it would add up cotangents that are one.
    return lax.psum(array, names) if is_varying(array, names) else _psum_of_untyped(names, array)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _psum_of_untyped(names: tuple[str, ...], array: jax.Array) -> jax.Array:
    return lax.psum(array, names)


_psum_of_untyped.defvjp(
    lambda names, array: (_psum_of_untyped(names, array), None), lambda names, _, cotangent: (cotangent,)
)


# ----------------------------------------------------------------------------------------------------- division


def parts_of_sums(op: Op, options: Any) -> dict[str, tuple[Over, ...]]:
    """For each operand, over what its gradient here is a part of a sum: over the devices that have the same operand."""
    columns = op.columns(options)
    return {
        operand.name: (
            *(("rows",) if operand.role == "shared" else ()),
            *(("columns",) if columns and operand.name not in columns else ()),
        )
        for operand in op.operands
    }


class Division:
    """How a call's arrays may be divided.

    Args:
        op: the op.
        options: its options.
        operands: its operands' shapes.
        results: the outputs' and saved arrays' shapes. If one along rows lacks the token axes, which a loss reduced
            over tokens does, the op has to know of the mesh, or no token axis is divided.
    """

    def __init__(
        self, op: Op, options: Any, operands: Sequence[Spec | None], results: Sequence[Spec | None]
    ) -> None:
        self.op = op
        self.operands = tuple(operands)
        self.columns: Mapping[str, int] = op.columns(options)
        declared: list[tuple[Operand | Output, Spec | None]] = [
            *zip(op.operands, operands, strict=True),
            *zip((*op.outputs, *op.saved), results, strict=True),
        ]
        along = [
            (d, self._token_shape(d, spec)) for d, spec in declared if spec is not None and d.role == "rows"
        ]
        self.tokens: tuple[int, ...] = max((shape for _, shape in along), key=len, default=())
        if not all(self._fits(d, shape) for d, shape in along):
            self.tokens = ()

    def _token_shape(self, declared: Operand | Output, spec: Spec) -> tuple[int, ...]:
        return spec.shape[: max(len(spec.shape) - self.op.features(declared, self.operands), 0)]

    def _fits(self, declared: Operand | Output, shape: tuple[int, ...]) -> bool:
        if isinstance(declared, Output):
            return shape == self.tokens or (shape == () and self.op.reference_on is not None)
        # A table with one row for all sequences can stay as it is.
        return all(
            n in (1, m) for n, m in zip(shape, self.tokens[len(self.tokens) - len(shape) :], strict=True)
        )

    def factors(self, declared: Operand | Output, spec: Spec) -> Factors:
        """What an operand's, an output's or a saved array's axes run along."""
        factors = [""] * len(spec.shape)
        if declared.role == "rows" and self.tokens:
            shape = self._token_shape(declared, spec)
            skipped = len(self.tokens) - len(shape)
            for axis, n in enumerate(shape):
                if n == self.tokens[skipped + axis]:
                    factors[axis] = f"t{skipped + axis}"
        # A saved gradient is divided as its operand is.
        name = declared.name
        if isinstance(declared, Output):
            gradients = {saved: operand for operand, saved in self.op.gradient_like}
            name = gradients.get(name, name) if declared in self.op.saved else ""
        if name in self.columns:
            factors[self.columns[name]] = VOCAB
        return tuple(factors)


def _chosen(
    arrays: Sequence[tuple[Factors, tuple[int, ...]]],
    specs: Sequence[PartitionSpec],
    sizes: Mapping[str, int],
) -> dict[str, tuple[str, ...]]:
    """The mesh axes that divide each factor: those of the first array that has any, each for one factor alone."""
    chosen: dict[str, tuple[str, ...]] = {}
    axes = [
        (factor, n, entry)
        for (factors, shape), spec in zip(arrays, specs, strict=True)
        for factor, n, entry in zip(factors, shape, (*spec, *(None,) * len(shape)), strict=False)
        if factor and entry is not None
    ]
    for factor, n, entry in sorted(axes, key=lambda axis: axis[0] == VOCAB):  # tokens come first
        taken = set(itertools.chain(*chosen.values()))
        names = (entry,) if isinstance(entry, str) else tuple(entry)
        names = tuple(name for name in names if name in sizes and name not in taken)
        # XLA would pad what cannot be divided evenly.
        if names and factor not in chosen and n % math.prod(sizes[name] for name in names) == 0:
            chosen[factor] = names
    return chosen


def _split(chosen: Mapping[str, tuple[str, ...]], sizes: Mapping[str, int], sums: bool) -> Split:
    rows = itertools.chain(*(names for factor, names in sorted(chosen.items()) if factor != VOCAB))
    columns = chosen.get(VOCAB, ())
    return Split(tuple((n, sizes[n]) for n in rows), tuple((n, sizes[n]) for n in columns), sums)


def _spec(factors: Factors, chosen: Mapping[str, tuple[str, ...]]) -> PartitionSpec:
    return PartitionSpec(*(chosen.get(factor) for factor in factors))


# ----------------------------------------------------------------------------------------------------- Explicit


def is_around() -> bool:
    """Whether the call is on a mesh with Explicit axes, or on one device's part of a mesh, in `jax.shard_map`."""
    kinds = jax.sharding.get_abstract_mesh().axis_types
    return AxisType.Explicit in kinds or AxisType.Manual in kinds


def explicit_axes() -> dict[str, int]:
    """The Explicit axes of the mesh around the call, with their sizes, but for those that divide a `jax.vmap`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    taken = mapped_axes()
    return {name: size for name, size, kind in kinds if kind == AxisType.Explicit and name not in taken}


def mapped_axes() -> tuple[str, ...]:
    """The Explicit axes that divide the axis of a `jax.vmap` around the call."""
    return tuple(sorted(getattr(get_axis_env(), "explicit_mesh_axis_names", ())))


def mapped(
    function: Callable[[Split, tuple[Any, ...]], tuple[Any, ...]],
    division: Division,
    operands: Sequence[tuple[Operand, jax.Array]],
    outputs: Sequence[tuple[Output, Spec]],
) -> tuple[jax.Array, ...]:
    """Apply `function` to each device's own part of the operands, divided as their types say.

    Args:
        function: (split, local operands) -> local outputs.
        division: how the operands may be divided.
        operands: those present.
        outputs: those present, with their shapes on the whole mesh.
    """
    sizes = explicit_axes()
    arrays = [array for _, array in operands]
    factors = [division.factors(operand, Spec(a.shape, a.dtype.name)) for operand, a in operands]
    given = [jax.typeof(array).sharding.spec for array in arrays]
    chosen = _chosen([(f, array.shape) for f, array in zip(factors, arrays, strict=True)], given, sizes)
    specs = tuple(_spec(f, chosen) for f in factors)
    split = _split(chosen, sizes, sums=False)
    return jax.shard_map(
        lambda *local: function(split, local),
        in_specs=specs,
        out_specs=tuple(_spec(division.factors(output, spec), chosen) for output, spec in outputs),
        axis_names=set(sizes),
    )(*itertools.starmap(_resharded, zip(arrays, specs, strict=True)))


def _resharded(array: jax.Array, spec: PartitionSpec) -> jax.Array:
    """One made before there was a mesh is whole on it, and cannot be told so in a `jax.vmap`."""
    is_whole = jax.typeof(array).sharding.mesh.empty and not any(spec)
    return array if is_whole else jax.sharding.reshard(array, spec)


# --------------------------------------------------------------------------------------------------------- Auto


def is_partitionable(axis_context: Any) -> bool:
    """Whether a lowering is for several devices that XLA divides the arrays between; inside shard_map it is not."""
    return not getattr(axis_context, "manual_axes", ()) and getattr(axis_context, "num_devices", 1) > 1


def partitioned(
    whole: Callable[..., Any],
    local: Callable[[Split, list[tuple[int, ...]]], Callable[..., Any]],
    arguments: Sequence[tuple[Factors, tuple[int, ...]]],
    results: Sequence[Factors],
) -> Callable[..., Any]:
    """A function that XLA may divide between its devices.

    Args:
        whole: the function of whole arrays.
        local: (split, shapes of the arguments on one device) -> the function of these.
        arguments: how each argument may be divided, and its whole shape.
        results: how each result is.
    """
    factors = [f for f, _ in arguments]

    def chosen_from(mesh: Any, given: Sequence[Any]) -> tuple[Any, dict[str, tuple[str, ...]]]:
        specs = [array.sharding.spec for array in given if isinstance(array.sharding, NamedSharding)]
        if mesh.empty or len(specs) < len(given):  # divided by other means than a mesh
            devices = set().union(*(array.sharding.device_set for array in given))
            ordered = np.array(sorted(devices, key=lambda device: device.id))
            return jax.sharding.Mesh(ordered, ("all",)), {}
        return mesh, _chosen(arguments, specs, dict(mesh.shape))

    def shardings(mesh: Any, which: Sequence[Factors], chosen: Any) -> tuple[NamedSharding, ...]:
        return tuple(NamedSharding(mesh, _spec(f, chosen)) for f in which)

    def infer(mesh: Any, given: Any, _: Any) -> Any:
        mesh, chosen = chosen_from(mesh, given)
        return shardings(mesh, results, chosen)

    def partition(mesh: Any, given: Any, _: Any) -> Any:
        mesh, chosen = chosen_from(mesh, given)
        inside = shardings(mesh, factors, chosen)
        shapes = [s.shard_shape(shape) for s, (_, shape) in zip(inside, arguments, strict=True)]
        on_device = local(_split(chosen, dict(mesh.shape), sums=True), shapes)
        return mesh, lambda *values: tuple(on_device(*values)), shardings(mesh, results, chosen), inside

    undivided = itertools.count()
    sides = [tuple(_mapping(f, undivided) for f in side) for side in (factors, results)]
    function = custom_partitioning(lambda *values: tuple(whole(*values)))
    function.def_partition(
        partition=partition,
        infer_sharding_from_operands=infer,
        sharding_rule=SdyShardingRule(
            *sides, need_replication_factors=tuple(f"w{i}" for i in range(next(undivided)))
        ),
    )
    return function


def _mapping(factors: Factors, undivided: Iterator[int]) -> ArrayMapping:
    """One array of a Shardy rule, where every axis that is not divided is a factor of its own."""
    return ArrayMapping(*(factor or f"w{next(undivided)}" for factor in factors))
