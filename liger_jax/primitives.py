"""Two JAX primitives for every op, `liger_forward` and `liger_backward`. The platform they are lowered for decides:

    cuda, rocm                   the op's algorithm, on its kernels
    cpu, TRITON_INTERPRET=1      the same, on the kernels in Triton's interpreter
    every other                  the op's reference, which XLA compiles; backward, its derivative

Since tracing does not know the platform, `liger_backward` is given what either of the two needs. A program that XLA
divides between devices runs them on each device's own tokens (`liger_jax.meshes`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import config, dispatch
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir
from jax.sharding import ManualAxisType, NamedSharding, PartitionSpec

from liger import interpret
from liger.launch import Spec
from liger.op import Arrays, Needs, Op, Operand, Output, Role
from liger_jax import meshes
from liger_jax.backend import JaxBackend
from liger_jax.meshes import WHOLE, Division, Factors, Split
from liger_jax.planning import Plan, local_device

Specs = tuple[Spec | None, ...]
Mask = tuple[bool, ...]
"""Which of a tuple's places hold an array; a primitive is given only those."""


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One use of an op: all that is static in both primitives.

    Attributes:
        op: the op.
        options: its options.
        operands: shapes and dtypes of its operands, None where one is absent.
        needs: for each operand, whether its gradient is computed.
        plan: the settings around the call.
        split: how a mesh divides the operands, of which this device's part is described here; None where tracing does
            not know.
    """

    op: Op
    options: Any
    operands: Specs
    needs: Needs
    plan: Plan
    split: Split | None = None

    @property
    def mesh(self) -> Split:
        """What the op's algorithm may ask of other devices."""
        return self.split or WHOLE

    @property
    def outputs(self) -> Specs:
        """What the op returns."""
        return _infer(self)[0]

    @property
    def saved(self) -> Specs:
        """What the forward pass keeps."""
        return _infer(self)[1]

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the outputs and saved arrays that the backward pass is given, beside all operands."""
        names = self.op.keeps(self.options, self.needs)
        outputs = zip(self.op.outputs, self.outputs, strict=True)
        saved = zip(self.op.saved, self.saved, strict=True)
        return (
            *(output.name for output, spec in outputs if spec is not None and output.name in names),
            *(output.name for output, spec in saved if spec is not None),
        )

    def spec(self, name: str) -> Spec:
        """Shape and dtype of an output or saved array."""
        spec = (*self.outputs, *self.saved)[self._index(name)]
        assert spec is not None
        return spec

    def declared(self, name: str) -> Output:
        """The declaration of an output or saved array."""
        return (*self.op.outputs, *self.op.saved)[self._index(name)]

    def role(self, name: str) -> Role:
        """Role of an output or saved array."""
        return self.declared(name).role

    def _index(self, name: str) -> int:
        return [o.name for o in (*self.op.outputs, *self.op.saved)].index(name)


@functools.lru_cache(4096)
def _infer(call: Call) -> tuple[Specs, Specs]:
    return call.op.infer(call.operands, call.options, call.needs)


def spec_of(array: Any) -> Spec:
    """Shape and dtype of an array or tracer."""
    return Spec(tuple(array.shape), array.dtype.name)


def present(specs: Sequence[Any]) -> Mask:
    """Which places hold something."""
    return tuple(s is not None for s in specs)


def pack(values: Sequence[Any]) -> list[Any]:
    """Without the empty places."""
    return [v for v in values if v is not None]


def unpack(mask: Mask, values: Sequence[Any]) -> tuple[Any, ...]:
    """With the empty places put back."""
    rest = iter(values)
    result = tuple(next(rest) if here else None for here in mask)
    assert next(rest, None) is None
    return result


def forward(call: Call, operands: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs and saved arrays."""
    results = forward_p.bind(*pack(operands), call=call)
    arrays = unpack(present((*call.outputs, *call.saved)), results)
    return arrays[: len(call.outputs)], arrays[len(call.outputs) :]


def backward(call: Call, operands: Arrays, kept: Sequence[jax.Array], cotangents: Arrays) -> Arrays:
    """One gradient per operand, None where it is not needed.

    Args:
        call: as in `forward`.
        operands: those of `forward`.
        kept: the arrays of `call.kept`.
        cotangents: one per output, None for zero.
    """
    gradients = backward_p.bind(
        *pack(operands), *kept, *pack(cotangents), call=call, cotangents=present(cotangents)
    )
    return unpack(call.needs, gradients)


def split_backward(call: Call, cotangents: Mask, values: Sequence[Any]) -> tuple[Arrays, list[Any], Arrays]:
    """What `liger_backward` was given, as (operands, kept, cotangents)."""
    n_operands = sum(present(call.operands))
    n_kept = len(call.kept)
    operands = unpack(present(call.operands), values[:n_operands])
    kept = list(values[n_operands : n_operands + n_kept])
    return operands, kept, unpack(cotangents, values[n_operands + n_kept :])


# ------------------------------------------------------------------------------------------------- definitions


def _primitive(name: str) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.lru_cache(4096)
    def compiled(**params: Any) -> Callable[..., Any]:
        return jax.jit(functools.partial(primitive.bind, **params))

    def impl(*args: Any, **params: Any) -> Any:
        # Without jit, what `compiled` holds would come back here.
        with jax.disable_jit(False):
            return compiled(**params)(*args)

    primitive.def_impl(impl)

    def no_jvp(*_: Any, call: Call, **__: Any) -> None:
        raise NotImplementedError(
            f"{call.op.name}: its kernels have a first derivative in reverse mode only (jax.grad or jax.vjp, once), "
            'no jvp and no gradient of a gradient; implementation="xla" has a second derivative in reverse mode.'
        )

    ad.primitive_jvps[primitive] = no_jvp
    return primitive


forward_p = _primitive("liger_forward")
backward_p = _primitive("liger_backward")


def _aval(spec: Spec) -> jax.core.ShapedArray:
    # Without jax_enable_x64, what is int64 in the kernel is int32 outside.
    return jax.core.ShapedArray(spec.shape, jax.dtypes.canonicalize_dtype(jnp.dtype(spec.dtype)))


def varying(avals: Iterable[Any]) -> frozenset[str]:
    """The mesh axes over which values of these types differ, inside `jax.shard_map` with check_vma=True."""
    return frozenset().union(*(aval.manual_axis_type.varying for aval in avals))


def _announced(
    specs: Sequence[Spec], avals: Sequence[Any], same: frozenset[str] = frozenset()
) -> list[jax.core.ShapedArray]:
    """Types of results: they vary over the mesh axes that the arguments vary over, but for those in `same`."""
    if not varying(avals):
        return [_aval(spec) for spec in specs]
    axes = varying(avals) - same
    mesh = avals[0].sharding.mesh
    return [
        _aval(spec).update(
            sharding=NamedSharding(mesh, PartitionSpec(*(None,) * len(spec.shape))),
            manual_axis_type=ManualAxisType(varying=axes),
        )
        for spec in specs
    ]


@forward_p.def_abstract_eval
def _forward_abstract_eval(*avals: Any, call: Call) -> list[jax.core.ShapedArray]:
    outputs = []
    for output, spec in zip(call.op.outputs, call.outputs, strict=True):
        if spec is not None:
            # What is summed over the mesh is the same along its axes.
            reduced = output.role == "rows" and len(spec.shape) <= call.op.features(output, call.operands)
            same = (*call.mesh.names("columns"), *(call.mesh.names("rows") if reduced else ()))
            outputs += _announced([spec], avals, frozenset(same))
    return outputs + _announced(pack(call.saved), avals)


@backward_p.def_abstract_eval
def _backward_abstract_eval(*avals: Any, call: Call, cotangents: Mask) -> list[jax.core.ShapedArray]:
    specs = [spec for spec, need in zip(call.operands, call.needs, strict=True) if need and spec]
    return _announced(specs, avals)


def _typed(specs: Sequence[Spec | None], arrays: Arrays) -> list[jax.Array]:
    """The arrays as the abstract evaluation has announced them."""
    return [
        array.astype(_aval(spec).dtype)
        for spec, array in zip(specs, arrays, strict=True)
        if spec is not None and array is not None
    ]


# --------------------------------------------------------------------------------------------------- lowerings


def _backend(call: Call) -> JaxBackend:
    return JaxBackend(call.plan.device or local_device(), call.mesh)


def _forward_kernels(*values: jax.Array, call: Call) -> list[jax.Array]:
    operands = unpack(present(call.operands), values)
    outputs, saved = call.op.forward(_backend(call), operands, call.options, call.needs)
    if call.op.backward_once(call.options, call.needs):
        saved = _handed_over(call, saved)
    return _typed((*call.outputs, *call.saved), (*outputs, *saved))


def _handed_over(call: Call, saved: Arrays) -> Arrays:
    """Saved gradients, which the backward pass hands over, added up over a mesh as in `_sums`."""
    if not call.mesh.sums:
        return saved
    parts = meshes.parts_of_sums(call.op, call.options)
    operands = {name: operand for operand, name in call.op.gradient_like}
    return tuple(
        array
        if array is None or output.name not in operands
        else call.mesh.total(array, parts[operands[output.name]])
        for output, array in zip(call.op.saved, saved, strict=True)
    )


def _forward_reference(*values: jax.Array, call: Call) -> list[jax.Array]:
    outputs = call.op.meaning(unpack(present(call.operands), values), call.options, call.mesh)
    saved = tuple(None if spec is None else jnp.zeros(spec.shape, spec.dtype) for spec in call.saved)
    return _typed((*call.outputs, *call.saved), (*outputs, *saved))


def _backward_kernels(*values: jax.Array, call: Call, cotangents: Mask) -> list[jax.Array]:
    operands, kept, incoming = split_backward(call, cotangents, values)
    names: dict[str, Any] = {o.name: array for o, array in zip(call.op.operands, operands, strict=True)}
    names |= {o.name: None for o in (*call.op.outputs, *call.op.saved)}
    names |= dict(zip(call.kept, kept, strict=True))
    gradients = call.op.backward(_backend(call), names, incoming, call.options, call.needs)
    handed_over = call.op.backward_once(call.options, call.needs)
    return _needed(call, gradients if handed_over else _sums(call, gradients))


def _backward_reference(*values: jax.Array, call: Call, cotangents: Mask) -> list[jax.Array]:
    operands, _, incoming = split_backward(call, cotangents, values)
    gradients = reference_gradients(call.op, call.options, operands, incoming, call.needs, call.mesh)
    return _needed(call, _sums(call, gradients))


def _sums(call: Call, gradients: Arrays) -> Arrays:
    """The operands' gradients, added up over a mesh where this is left to us."""
    if not call.mesh.sums:
        return gradients
    parts = meshes.parts_of_sums(call.op, call.options)
    return tuple(
        None if g is None else call.mesh.total(g, parts[operand.name])
        for operand, g in zip(call.op.operands, gradients, strict=True)
    )


def _needed(call: Call, gradients: Arrays) -> list[jax.Array]:
    specs = tuple(spec if need else None for spec, need in zip(call.operands, call.needs, strict=True))
    filled = tuple(
        jnp.zeros(spec.shape, spec.dtype) if spec is not None and gradient is None else gradient
        for spec, gradient in zip(specs, gradients, strict=True)
    )
    return _typed(specs, filled)


def reference_gradients(
    op: Op, options: Any, operands: Arrays, cotangents: Arrays, needs: Needs, mesh: Split = WHOLE
) -> Arrays:
    """The derivative of an op's reference: one gradient per operand, None where it is not needed."""
    wanted = [i for i, need in enumerate(needs) if need]
    given = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]

    def outputs(*arrays: jax.Array) -> list[jax.Array]:
        full = list(operands)
        for i, array in zip(wanted, arrays, strict=True):
            full[i] = array
        results = op.meaning(tuple(full), options, mesh)
        return pack([results[i] for i in given])

    _, pull_back = jax.vjp(outputs, *(operands[i] for i in wanted))
    return unpack(needs, pull_back([cotangents[i] for i in given]))


def _plain(aval: Any) -> jax.core.ShapedArray:
    return jax.core.ShapedArray(aval.shape, aval.dtype)


def _rule(
    function: Callable[..., list[jax.Array]], divided: Callable[..., Callable[..., Any]] | None
) -> Callable[..., Any]:
    """A lowering by tracing, under the settings that held where the op was called.

    Args:
        function: what one device does.
        divided: (call, other parameters) -> what several devices do between which XLA divides the arrays.
    """

    def traced(*values: jax.Array, call: Call, **params: Any) -> list[jax.Array]:
        with jax.default_matmul_precision(call.plan.precision):
            return function(*values, call=call, **params)

    lowered = mlir.lower_fun(traced, multiple_results=True)

    def rule(ctx: mlir.LoweringRuleContext, *values: Any, call: Call, **params: Any) -> Any:
        if divided and call.split is None and meshes.is_partitionable(ctx.module_context.axis_context):
            return mlir.lower_fun(divided(call, **params), multiple_results=True)(ctx, *values)
        # Here every device is on its own: the types that tell which mesh axes a value varies over have done their work.
        plain_in, plain_out = ([_plain(aval) for aval in avals] for avals in (ctx.avals_in, ctx.avals_out))
        with config._check_vma(False):
            return lowered(ctx.replace(avals_in=plain_in, avals_out=plain_out), *values, call=call, **params)

    return rule


def _local(call: Call, split: Split, shapes: Sequence[tuple[int, ...]]) -> Call:
    """The call on one device's operands, the first of the arguments with these shapes."""
    specs = [Spec(shape, spec.dtype) for spec, shape in zip(pack(call.operands), shapes, strict=False)]
    return dataclasses.replace(call, operands=unpack(present(call.operands), specs), split=split)


class _Divided:
    """How the arrays of one call may be divided."""

    def __init__(self, call: Call) -> None:
        self.call, op = call, call.op
        self._division = Division(op, call.options, call.operands, (*call.outputs, *call.saved))
        self.operands = self._of(op.operands, call.operands)
        self.outputs = self._of((*op.outputs, *op.saved), (*call.outputs, *call.saved))

    def _of(
        self, declared: Sequence[Operand | Output], specs: Specs
    ) -> list[tuple[Factors, tuple[int, ...]]]:
        return [
            (self._division.factors(d, spec), spec.shape)
            for d, spec in zip(declared, specs, strict=True)
            if spec is not None
        ]

    def forward(self) -> Callable[..., Any]:
        def bind(call: Call) -> Callable[..., Any]:
            return functools.partial(forward_p.bind, call=call)

        return meshes.partitioned(
            bind(_whole(self.call)),
            lambda split, shapes: bind(_local(self.call, split, shapes)),
            self.operands,
            [factors for factors, _ in self.outputs],
        )

    def backward(self, *, cotangents: Mask) -> Callable[..., Any]:
        def bind(call: Call) -> Callable[..., Any]:
            return functools.partial(backward_p.bind, call=call, cotangents=cotangents)

        call = self.call
        kept = self._of([call.declared(name) for name in call.kept], tuple(map(call.spec, call.kept)))
        incoming = tuple(spec if here else None for spec, here in zip(call.outputs, cotangents, strict=True))
        needs = [need for need, spec in zip(call.needs, call.operands, strict=True) if spec is not None]
        return meshes.partitioned(
            bind(_whole(call)),
            lambda split, shapes: bind(_local(call, split, shapes)),
            [*self.operands, *kept, *self._of(call.op.outputs, incoming)],
            [factors for (factors, _), need in zip(self.operands, needs, strict=True) if need],
        )


def _whole(call: Call) -> Call:
    return dataclasses.replace(call, split=WHOLE)


for _p, _kernels, _reference, _divided in (
    (forward_p, _forward_kernels, _forward_reference, lambda call: _Divided(call).forward()),
    (backward_p, _backward_kernels, _backward_reference, lambda call, **p: _Divided(call).backward(**p)),
):
    mlir.register_lowering(_p, _rule(_reference, _divided))
    for _platform in ("cuda", "rocm"):
        mlir.register_lowering(_p, _rule(_kernels, _divided), platform=_platform)
    if interpret.enabled():
        mlir.register_lowering(_p, _rule(_kernels, None), platform="cpu")
    # The lowering may hold a custom_partitioning, which has to know the devices.
    dispatch.prim_requires_devices_during_lowering.add(_p)
