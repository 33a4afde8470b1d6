"""What is measured of an op on JAX: its function, operands of real models, and who else computes the same."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.providers import XLA, Function
from liger.launch import Spec
from liger.op import Op
from liger.plan import least_bytes
from liger_jax import implementations

Draw = Callable[[jax.Array], jax.Array]
"""Draws an operand, from a key."""

Operands = tuple[jax.Array | None, ...]
Specs = tuple[jax.ShapeDtypeStruct | None, ...]
OURS, PLAIN = "ours", XLA


@dataclasses.dataclass(frozen=True)
class Entry:
    """One op at one size.

    Attributes:
        name: op and size, for the report.
        op: the op.
        options: its options.
        draws: the operands in the op's order, None for those that are absent.
        wanted: places of the operands to differentiate.
        function: the public function, of the operands and `implementation`.
        plain: what a user writes without it, compiled by XLA.
        peers: other implementations by name: those of `benchmarks.providers`, and "XLA: FORMULA", "ours: VARIANT".
        products: the matrix products that the op cannot do without, as a function of the operands that is compiled by
            XLA. The op is then compared with their time, and with a copy of the least bytes otherwise.
        step: measure forward and backward pass as one only, as of a loss.
        outputs: names of the outputs that the functions return; None for all that are differentiable.
        moved: least bytes (forward, backward) where `least_bytes` does not know them (look-ups of rows).
    """

    name: str
    op: Op
    options: Any
    draws: tuple[Draw | None, ...]
    wanted: tuple[int, ...]
    function: Function
    plain: Function
    peers: Mapping[str, Function] = dataclasses.field(default_factory=dict)
    products: Function | None = None
    step: bool = False
    outputs: tuple[str, ...] | None = None
    moved: tuple[int, int] | None = None

    def operands(self, seed: int = 0) -> Operands:
        """A draw of all operands."""
        places = range(len(self.draws) * seed, len(self.draws) * (seed + 1))
        return tuple(None if d is None else d(key_of(i)) for d, i in zip(self.draws, places, strict=True))

    def specs(self) -> Specs:
        """Shapes and dtypes of the operands."""
        specs: Specs = jax.eval_shape(self.operands)
        return specs

    def bytes(self) -> tuple[int, int, int]:
        """Least bytes of the forward pass, of the backward pass, and of both.

        Of a step, both are one but for the cotangents; otherwise what both passes read is read twice.
        """
        if self.moved is not None:
            return *self.moved, sum(self.moved)
        needs = tuple(i in self.wanted for i in range(len(self.draws)))
        forward, backward, both = least_bytes(self.op, self.options, self._described(), needs)
        return forward, backward, both if self.step else forward + backward

    def _described(self) -> tuple[Spec | None, ...]:
        return tuple(None if s is None else Spec(s.shape, s.dtype.name) for s in self.specs())

    def providers(self) -> dict[str, Function]:
        """Every implementation. "ours" is the default one, beside which the other one is measured as well."""
        kernels = implementations.use_kernels(self.op, self._described(), None)
        names = (implementations.TRITON, implementations.XLA)
        default, other = names if kernels else names[::-1]
        return {
            PLAIN: self.plain,
            OURS: functools.partial(self.function, implementation=default),
            f"{OURS}: {other}": functools.partial(self.function, implementation=other),
            **self.peers,
        }


def outputs_of(result: Any) -> tuple[jax.Array, ...]:
    """The arrays of a function's result that a gradient can start from; all of them where there is none."""
    leaves = jax.tree.leaves(result)
    return tuple(a for a in leaves if jnp.issubdtype(a.dtype, jnp.floating)) or tuple(leaves)


def active(function: Function, wanted: Sequence[int], operands: Operands) -> tuple[Function, list[Any]]:
    """The function of the operands to differentiate alone, and these."""

    def call(*values: jax.Array) -> tuple[jax.Array, ...]:
        full = list(operands)
        for i, value in zip(wanted, values, strict=True):
            full[i] = value
        return outputs_of(function(*full))

    return call, [operands[i] for i in wanted]


def step_of(function: Function, wanted: Sequence[int]) -> Function:
    """(operands, cotangents) -> (outputs, gradients); a scalar's cotangent is 1, and left out of the cotangents.

    The other cotangents are there when the outputs are: in a model they come of the layers in between. Without the
    barrier, XLA would make one kernel of a gate's two passes, which no model has next to each other.
    """

    def run(operands: Operands, cotangents: tuple[jax.Array, ...]) -> Any:
        call, values = active(function, wanted, operands)
        if not values:
            return call(), ()
        outputs, pull = jax.vjp(call, *values)
        if cotangents:
            outputs, cotangents = jax.lax.optimization_barrier((outputs, cotangents))
        given = iter(cotangents)
        return outputs, pull(tuple(next(given) if o.ndim else jnp.ones_like(o) for o in outputs))

    return run


def cotangents_for(outputs: Sequence[Any]) -> tuple[jax.Array, ...]:
    """Normal cotangents for the outputs that are no scalars, which bfloat16 holds exactly."""
    return tuple(
        normal(*o.shape)(key_of(1000 + i)).astype(o.dtype) for i, o in enumerate(outputs) if len(o.shape)
    )


# ------------------------------------------------------------------------------------------------------- draws


def key_of(seed: int) -> jax.Array:
    """A key of the generator that compiles and runs fastest."""
    return jax.random.key(seed, impl="unsafe_rbg")


@functools.cache
def normal(*shape: int, scale: float = 1.0, dtype: Any = jnp.bfloat16) -> Draw:
    """A normal array."""

    @jax.jit
    def draw(key: jax.Array) -> jax.Array:
        return (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return draw


def below(bound: int, *shape: int) -> Draw:
    """Random int32 below a bound, as labels."""
    return jax.jit(lambda key: jax.random.randint(key, shape, 0, bound, jnp.int32))


def constant(make: Callable[[], np.ndarray]) -> Draw:
    """An array that is made on the host."""
    return lambda key: jnp.asarray(make())
