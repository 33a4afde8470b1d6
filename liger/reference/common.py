"""What several references share."""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

from array_api_compat import array_namespace, is_jax_array

NAMESPACES: dict[type, Any] = {}
"""Array types whose namespace is known: torch.compile cannot trace the search for it, only the look-up."""


def namespace(array: Any) -> Any:
    """The array API functions for this array."""
    found = NAMESPACES.get(type(array))
    return array_namespace(array) if found is None else found


def compute_dtype(array: Any) -> Any:
    """float64 for a float64 array, float32 for every other."""
    xp = namespace(array)
    return xp.float64 if str(array.dtype).endswith("float64") else xp.float32


def along_last(vector: Any, array: Any) -> Any:
    """The vector with axes of length one in front, as many as `array` has: ranks that differ need not be promoted."""
    return namespace(vector).reshape(vector, (1,) * (array.ndim - 1) + tuple(vector.shape))


def take_last(array: Any, index: Any) -> Any:
    """array[..., index[...]], one entry of the last axis for each of the leading ones."""
    if hasattr(array, "gather"):  # torch: its take_along_dim would be compiled anew for every length
        return array.gather(-1, index[..., None])[..., 0]
    return namespace(array).take_along_axis(array, index[..., None], axis=-1)[..., 0]


def stop_gradient(array: Any) -> Any:
    """The same values, constant for differentiation; the array API has no word for it."""
    if hasattr(array, "detach"):
        return array.detach()
    if is_jax_array(array):
        return importlib.import_module("jax").lax.stop_gradient(array)
    return array


def erf(array: Any) -> Any:
    """The error function, which the array API does not have."""
    if hasattr(array, "erf"):
        return array.erf()
    return _jax_erf()(array)


@functools.cache
def _jax_erf() -> Any:
    """JAX's error function with the derivative 2 / sqrt(pi) * exp(-t^2).

    Its own derivative in JAX 0.12.0 evaluates polynomials, whose constants shard_map refuses (check_vma): they do not
    vary over the mesh as t does.
    """
    jax = importlib.import_module("jax")
    function = jax.custom_jvp(jax.lax.erf)

    @function.defjvp
    def derivative(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
        (t,), (tangent,) = primals, tangents
        return function(t), 2 / math.sqrt(math.pi) * jax.numpy.exp(-t * t) * tangent

    return function
