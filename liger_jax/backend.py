"""The `Backend` protocol on JAX: pure functions, traced inside the lowering of an op."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from liger.device import Device
from liger.launch import Launch, cdiv
from liger.mesh import Over
from liger_jax import launch as launching
from liger_jax.meshes import WHOLE, Split

PART_BYTES = 128 << 20
"""Largest part of a product that is held while it is added to an array."""


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

    def part(self, start: jax.Array, size: int) -> Factor:
        """The factor of a part of the result's rows or columns."""
        return Factor(lax.dynamic_slice_in_dim(self.array, start, size, 1 - self.contracted), self.contracted)


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
    """total + a @ b, in place and part by part: XLA would hold the whole product, or those of all chunks, beside it."""
    axis = 0 if total.shape[0] <= total.shape[1] else 1
    length = total.shape[axis]
    parts = max(min(cdiv(4 * total.size, PART_BYTES), length), 1)
    while length % parts:
        parts += 1
    step = length // parts

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        start = i * step
        left, right = (a.part(start, step), b) if axis == 0 else (a, b.part(start, step))
        old = lax.dynamic_slice_in_dim(total, start, step, axis).astype(jnp.float32)
        new = (old + _product(left, right, jnp.dtype(jnp.float32))).astype(total.dtype)
        return lax.dynamic_update_slice_in_dim(total, new, start, axis)

    return lax.fori_loop(0, parts, add, total) if parts > 1 else add(jnp.int32(0), total)
