"""Two JAX primitives for every op, `liger_forward` and `liger_backward`. The platform they are lowered for decides:

    cuda, rocm                   the op's algorithm, on its kernels
    cpu, TRITON_INTERPRET=1      the same, on the kernels in Triton's interpreter
    every other                  the op's reference, which XLA compiles; backward, its derivative

Since tracing does not know the platform, `liger_backward` is given what either of the two needs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir
from jax.sharding import ManualAxisType, NamedSharding, PartitionSpec

from liger import interpret
from liger.launch import Spec
from liger.op import Arrays, Needs, Op, Role
from liger_jax.backend import JaxBackend
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
    """

    op: Op
    options: Any
    operands: Specs
    needs: Needs
    plan: Plan

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

    def role(self, name: str) -> Role:
        """Role of an output or saved array."""
        return (*self.op.outputs, *self.op.saved)[self._index(name)].role

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


def _announced(specs: Sequence[Spec], avals: Sequence[Any]) -> list[jax.core.ShapedArray]:
    """Types of results: they vary over the mesh axes that the arguments vary over."""
    axes = varying(avals)
    if not axes:
        return [_aval(spec) for spec in specs]
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
    return _announced(pack((*call.outputs, *call.saved)), avals)


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
    return JaxBackend(call.plan.device or local_device())


def _forward_kernels(*values: jax.Array, call: Call) -> list[jax.Array]:
    operands = unpack(present(call.operands), values)
    outputs, saved = call.op.forward(_backend(call), operands, call.options, call.needs)
    return _typed((*call.outputs, *call.saved), (*outputs, *saved))


def _forward_reference(*values: jax.Array, call: Call) -> list[jax.Array]:
    outputs = call.op.reference(unpack(present(call.operands), values), call.options)
    saved = tuple(None if spec is None else jnp.zeros(spec.shape, spec.dtype) for spec in call.saved)
    return _typed((*call.outputs, *call.saved), (*outputs, *saved))


def _backward_kernels(*values: jax.Array, call: Call, cotangents: Mask) -> list[jax.Array]:
    operands, kept, incoming = split_backward(call, cotangents, values)
    names: dict[str, Any] = {o.name: array for o, array in zip(call.op.operands, operands, strict=True)}
    names |= {o.name: None for o in (*call.op.outputs, *call.op.saved)}
    names |= dict(zip(call.kept, kept, strict=True))
    gradients = call.op.backward(_backend(call), names, incoming, call.options, call.needs)
    return _needed(call, gradients)


def _backward_reference(*values: jax.Array, call: Call, cotangents: Mask) -> list[jax.Array]:
    operands, _, incoming = split_backward(call, cotangents, values)
    return _needed(call, reference_gradients(call.op, call.options, operands, incoming, call.needs))


def _needed(call: Call, gradients: Arrays) -> list[jax.Array]:
    specs = tuple(spec if need else None for spec, need in zip(call.operands, call.needs, strict=True))
    filled = tuple(
        jnp.zeros(spec.shape, spec.dtype) if spec is not None and gradient is None else gradient
        for spec, gradient in zip(specs, gradients, strict=True)
    )
    return _typed(specs, filled)


def reference_gradients(op: Op, options: Any, operands: Arrays, cotangents: Arrays, needs: Needs) -> Arrays:
    """The derivative of an op's reference: one gradient per operand, None where it is not needed."""
    wanted = [i for i, need in enumerate(needs) if need]
    given = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]

    def outputs(*arrays: jax.Array) -> list[jax.Array]:
        full = list(operands)
        for i, array in zip(wanted, arrays, strict=True):
            full[i] = array
        results = op.reference(tuple(full), options)
        return pack([results[i] for i in given])

    _, pull_back = jax.vjp(outputs, *(operands[i] for i in wanted))
    return unpack(needs, pull_back([cotangents[i] for i in given]))


def _plain(aval: Any) -> jax.core.ShapedArray:
    return jax.core.ShapedArray(aval.shape, aval.dtype)


def _rule(function: Callable[..., list[jax.Array]]) -> Callable[..., Any]:
    """A lowering by tracing, under the settings that held where the op was called."""

    def traced(*values: jax.Array, call: Call, **params: Any) -> list[jax.Array]:
        with jax.default_matmul_precision(call.plan.precision):
            return function(*values, call=call, **params)

    lowered = mlir.lower_fun(traced, multiple_results=True)

    def rule(ctx: mlir.LoweringRuleContext, *values: Any, **params: Any) -> Any:
        # Here every device is on its own: the types that tell which mesh axes a value varies over have done their work.
        plain_in, plain_out = ([_plain(aval) for aval in avals] for avals in (ctx.avals_in, ctx.avals_out))
        return lowered(ctx.replace(avals_in=plain_in, avals_out=plain_out), *values, **params)

    return rule


for _p, _kernels, _reference in (
    (forward_p, _forward_kernels, _forward_reference),
    (backward_p, _backward_kernels, _backward_reference),
):
    mlir.register_lowering(_p, _rule(_reference))
    for _platform in ("cuda", "rocm", *(("cpu",) if interpret.enabled() else ())):
        mlir.register_lowering(_p, _rule(_kernels), platform=_platform)
