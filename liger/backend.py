"""All that an op's algorithm may ask of a framework.

An algorithm written over this protocol runs on torch (views, in-place products on a reused workspace) and on JAX
(pure functions). It therefore uses the *returned* array and never relies on an argument having been changed, and
never uses an array again after handing it to a method that says it may reuse it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from liger.device import Device
from liger.launch import Launch
from liger.mesh import Mesh

Array = Any
"""A torch.Tensor or a jax.Array (or tracer); the protocol keeps both apart from the algorithms."""


class Backend(Mesh, Protocol):
    """The operations of one framework on one device, and what it may ask of the others of a mesh."""

    device: Device

    def dtype(self, array: Array) -> str:
        """Numpy's name of the array's dtype."""
        ...

    def strides(self, array: Array) -> tuple[int, ...]:
        """Strides in elements. Always dense on JAX."""
        ...

    def matrix(self, array: Array) -> Array:
        """The array as (rows, last axis), last axis contiguous: leading axes flattened, copied only if no view can."""
        ...

    def dense(self, array: Array) -> Array:
        """The array in row-major order without gaps, copied only if it is not."""
        ...

    def launch(self, launch: Launch, *inputs: Array) -> tuple[Array, ...]:
        """Run a kernel. Inputs that the launch aliases to outputs may be reused and must not be used again."""
        ...

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """An array whose contents will be overwritten before they are read."""
        ...

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        """An array of zeros."""
        ...

    def reshape(self, array: Array, shape: Sequence[int]) -> Array:
        """The same elements in another shape."""
        ...

    def transpose(self, matrix: Array) -> Array:
        """The matrix transposed, as a view where the framework has views."""
        ...

    def matmul(
        self,
        a: Array,
        b: Array,
        *,
        out: Array | None = None,
        add_to: Array | None = None,
        dtype: str | None = None,
    ) -> Array:
        """The product a @ b of two matrices, by the vendor's library, accumulated in fp32.

        Args:
            a: (m, k)
            b: (k, n)
            out: an array that may be reused for the result.
            add_to: an array whose values are added to the product and which may be reused for the result. The sum
                is formed in fp32 and rounded to this array's dtype; the product may be rounded to it before.
            dtype: dtype of the result; that of `out`, `add_to` or `a` by default.
        """
        ...

    def slice_rows(self, array: Array, start: int, stop: int) -> Array:
        """Rows start to stop, as a view where the framework has views."""
        ...

    def update_rows(self, array: Array, start: int, rows: Array) -> Array:
        """The array with `rows` written from row `start` on; `array` may be reused."""
        ...

    def concat_rows(self, parts: Sequence[Array]) -> Array:
        """The parts, at least one, below one another."""
        ...

    def take_rows(self, array: Array, index: Array) -> Array:
        """The rows that the integer vector `index` names, in its order."""
        ...

    def put_rows(self, array: Array, index: Array, rows: Array) -> Array:
        """The array with `rows` at the places in `index` (each at most once); `array` may be reused."""
        ...

    def scatter_rows(self, rows: Array, index: Array, n_rows: int, *, fill: int = 0) -> Array:
        """An array of `n_rows` rows, all `fill` but for `rows` at the places in `index` (each at most once)."""
        ...

    def sort(self, vector: Array) -> tuple[Array, Array]:
        """An integer vector in ascending order, and where each entry was (int32); equal ones keep their order."""
        ...

    def cast(self, array: Array, dtype: str) -> Array:
        """The array in another dtype; itself if it has it."""
        ...

    def sum_rows(self, matrix: Array, dtype: str, *, add_to: Array | None = None) -> Array:
        """Sum over the rows, accumulated and returned in `dtype`; `add_to` is added and may be reused."""
        ...
