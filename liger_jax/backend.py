"""The `Backend` protocol on JAX: pure functions, traced inside the lowering of an op."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from liger.device import Device
from liger.launch import Launch
from liger.mesh import Over
from liger_jax import launch as launching
from liger_jax.meshes import WHOLE, Split

ONCE = {"skip-simplify-while-loops_trip-count-one": "true"}
"""The attribute of a loop that XLA does not replace by its body, though it runs once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Transposed:
    """A matrix to be read with its axes exchanged: XLA's products do that without a transposed copy."""

    matrix: jax.Array


@dataclasses.dataclass(frozen=True, slots=True)
class Factor:
    """One side of a product: a matrix, and its axis that is summed over."""

    array: jax.Array
    contracted: int

    @staticmethod
    def of(matrix: jax.Array | Transposed, contracted: int) -> Factor:
        """The factor of a matrix, or of one that is transposed."""
        if isinstance(matrix, Transposed):
            return Factor(matrix.matrix, 1 - contracted)
        return Factor(matrix, contracted)


class JaxBackend:
    """The protocol for the arrays of one device.

    Args:
        device: the device.
        split: the mesh on which it has a part of the arrays.
    """

    def __init__(self, device: Device, split: Split = WHOLE) -> None:
        self.device = device
        self._split = split
        self._since_reuse: list[jax.Array] = []

    def size(self, over: Over) -> int:
        """See `liger.mesh.Mesh`."""
        return self._split.size(over)

    def psum(self, *arrays: jax.Array, over: Over) -> tuple[jax.Array, ...]:
        """See `liger.mesh.Mesh`."""
        return self._split.psum(*arrays, over=over)

    def pmax(self, array: jax.Array, over: Over) -> jax.Array:
        """See `liger.mesh.Mesh`."""
        return self._split.pmax(array, over)

    def first_column(self, width: int) -> Any:
        """See `liger.mesh.Mesh`."""
        return self._split.first_column(width)

    def dtype(self, array: jax.Array) -> str:
        """See `liger.backend.Backend`."""
        return str(array.dtype.name)

    def strides(self, array: jax.Array) -> tuple[int, ...]:
        """See `liger.backend.Backend`."""
        return tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))

    def matrix(self, array: jax.Array) -> jax.Array:
        """See `liger.backend.Backend`."""
        return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])

    def dense(self, array: jax.Array) -> jax.Array:
        """See `liger.backend.Backend`."""
        return array

    def launch(self, launch: Launch, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        """See `liger.backend.Backend`."""
        outputs = launching.run(launch, self.device, *inputs)
        self._note(inputs, outputs)
        return outputs

    def _note(self, inputs: Sequence[jax.Array], outputs: Sequence[jax.Array]) -> None:
        """Note what has been computed; waiting for it means waiting for what it was computed from as well."""
        self._since_reuse = [a for a in self._since_reuse if not any(a is i for i in inputs)] + list(outputs)

    def empty(self, shape: Sequence[int], dtype: str) -> jax.Array:
        """See `liger.backend.Backend`."""
        return lax.empty(tuple(shape), jnp.dtype(dtype))

    def zeros(self, shape: Sequence[int], dtype: str) -> jax.Array:
        """See `liger.backend.Backend`."""
        return jnp.zeros(tuple(shape), dtype)

    def reshape(self, array: jax.Array, shape: Sequence[int]) -> jax.Array:
        """See `liger.backend.Backend`."""
        return array.reshape(tuple(shape))

    def transpose(self, matrix: jax.Array) -> Transposed:
        """See `liger.backend.Backend`."""
        return Transposed(matrix)

    def matmul(
        self,
        a: jax.Array | Transposed,
        b: jax.Array | Transposed,
        *,
        out: jax.Array | None = None,
        add_to: jax.Array | None = None,
        dtype: str | None = None,
    ) -> jax.Array:
        """See `liger.backend.Backend`."""
        left, right = Factor.of(a, contracted=1), Factor.of(b, contracted=0)
        target = jnp.dtype(
            dtype or (add_to if add_to is not None else left.array if out is None else out).dtype
        )
        inputs = (left.array, right.array)
        if out is not None and self._since_reuse:
            # The memory is free once everything before has run. Unless told to wait, XLA computes the products of
            # all chunks beside one another, each in memory of its own.
            array, *_ = lax.optimization_barrier((left.array, *self._since_reuse))
            left = dataclasses.replace(left, array=array)
            self._since_reuse = []
        result = _product(left, right, target) if add_to is None else _add_product(add_to, left, right)
        self._note(inputs, (result,))
        return result

    def slice_rows(self, array: jax.Array, start: int, stop: int) -> jax.Array:
        """See `liger.backend.Backend`."""
        return lax.slice_in_dim(array, start, stop)

    def update_rows(self, array: jax.Array, start: int, rows: jax.Array) -> jax.Array:
        """See `liger.backend.Backend`."""
        return lax.dynamic_update_slice_in_dim(array, rows, start, 0)

    def take_rows(self, array: jax.Array, index: jax.Array) -> jax.Array:
        """See `liger.backend.Backend`."""
        return jnp.take(array, index, axis=0)

    def concat_rows(self, parts: Sequence[jax.Array]) -> jax.Array:
        """See `liger.backend.Backend`."""
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def put_rows(self, array: jax.Array, index: jax.Array, rows: jax.Array) -> jax.Array:
        """See `liger.backend.Backend`."""
        return array.at[index].set(rows)

    def scatter_rows(self, rows: jax.Array, index: jax.Array, n_rows: int, *, fill: int = 0) -> jax.Array:
        """See `liger.backend.Backend`."""
        return jnp.full((n_rows, *rows.shape[1:]), fill, rows.dtype).at[index].set(rows)

    def sort(self, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `liger.backend.Backend`."""
        values, index = lax.sort_key_val(vector, lax.iota(jnp.int32, vector.shape[0]), is_stable=True)
        return values, index

    def cast(self, array: jax.Array, dtype: str) -> jax.Array:
        """See `liger.backend.Backend`."""
        return array.astype(dtype)

    def sum_rows(self, matrix: jax.Array, dtype: str, *, add_to: jax.Array | None = None) -> jax.Array:
        """See `liger.backend.Backend`."""
        total = jnp.sum(matrix, axis=0, dtype=dtype)
        return total if add_to is None else add_to + total


def _product(a: Factor, b: Factor, dtype: jnp.dtype) -> jax.Array:
    # Asked for in its final dtype, XLA emits one product that accumulates in float32 and rounds once.
    dimensions = (((a.contracted,), (b.contracted,)), ((), ()))
    return lax.dot_general(a.array, b.array, dimensions, preferred_element_type=dtype)


def _add_product(total: jax.Array, a: Factor, b: Factor) -> jax.Array:
    """total + a @ b, in place, by one product that adds.

    XLA leaves the addition to the product, its own or the vendor's, where it adds to what its computation is given. In
    a chain of chunks that is another product's result: the addition would be a kernel of its own, and a whole product
    held beside the sum. So it is the body of a loop that runs once, and that XLA is told to keep as a loop.
    """

    def add(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        count, total = state
        # A product in float32 would be held: only one of the sum's dtype is fused. The vendor's rounds the sum alone.
        return count + 1, total + _product(a, b, total.dtype)

    with set_xla_metadata(**ONCE):
        return lax.while_loop(lambda state: state[0] < 1, add, (jnp.int32(0), total))[1]
