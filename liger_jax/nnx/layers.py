"""Layers for Flax NNX, and the swap of a built model's layers for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from liger_jax import functional

Rule = type[nnx.Module] | Callable[..., Any]
"""What replaces a module class: a subclass of it, or `function(module, *args, **kwargs)` for its `__call__`."""


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm` on this package's kernel: the same constructor, parameters and numbers.

    Masked, cross-device and other-axis normalisation, which the kernel does not have, is left to Flax.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from liger_jax.nnx import RMSNorm
    >>> layer = RMSNorm(2, rngs=nnx.Rngs(0))
    >>> jnp.round(1000 * layer(jnp.array([3.0, 4.0])))
    Array([ 849., 1131.], dtype=float32)
    """

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalise the last axis of x.

        Args:
            x: (..., num_features), floating.
            mask: as in Flax.

        Returns:
            Of x's shape, in `dtype`, or the common dtype of x and the scale.
        """
        last = (-1, (-1,), x.ndim - 1, (x.ndim - 1,))
        if (
            mask is not None
            or self.axis_name is not None
            or self.reduction_axes not in last
            or self.feature_axes not in last
        ):
            return super().__call__(x, mask)
        scale = None if self.scale is None else self.scale[...]
        x, scale = self.promote_dtype((x, scale), dtype=self.dtype)
        # Flax rounds once, after the multiplication.
        return functional.rms_norm(x, scale, epsilon=self.epsilon, casting="none")


class SwiGLU(nnx.Module):
    """The gated MLP of Llama: down(silu(gate(x)) * up(x)), three `flax.nnx.Linear` and `liger_jax.swiglu`.

    Args:
        in_features: width of x and of the result.
        hidden_features: width of gate and up.
        use_bias: whether the linear layers have biases.
        dtype: dtype of the computation; by default the common one of x and the parameters.
        param_dtype: dtype of the parameters.
        kernel_init: initialises the three kernels.
        implementation: as in `liger_jax.swiglu`.
        rngs: keys for the parameters.

    Shazeer, arXiv:2002.05202.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from liger_jax.nnx import SwiGLU
    >>> SwiGLU(4, 8, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
    (2, 4)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        use_bias: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        kernel_init: Callable[..., Any] = nnx.initializers.lecun_normal(),  # noqa: B008
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        def linear(n_in: int, n_out: int) -> nnx.Linear:
            return nnx.Linear(
                n_in,
                n_out,
                use_bias=use_bias,
                dtype=dtype,
                param_dtype=param_dtype,
                kernel_init=kernel_init,
                rngs=rngs,
            )

        self.gate_proj = linear(in_features, hidden_features)
        self.up_proj = linear(in_features, hidden_features)
        self.down_proj = linear(hidden_features, in_features)
        self.implementation = implementation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the MLP to x of shape (..., in_features)."""
        hidden = functional.swiglu(self.gate_proj(x), self.up_proj(x), implementation=self.implementation)
        return self.down_proj(hidden)


RULES: dict[type, Rule] = {nnx.RMSNorm: RMSNorm}
"""What `apply_liger_kernel` replaces by itself."""


def apply_liger_kernel(model: nnx.Module, rules: Mapping[type, Rule] | None = None) -> int:
    """Let a built model compute with this package's kernels, in place.

    Only the classes of its modules change: parameters, paths, shardings, shared modules and checkpoints stay as they
    are, and `nnx.jit` traces again by itself.

    Args:
        model: the model.
        rules: what replaces modules of exactly this class, beside `flax.nnx.RMSNorm`: a subclass with another
            `__call__`, or a function (module, *args) for a layer of one's own, such as
            `{MyNorm: lambda m, x: liger_jax.rms_norm(x, m.w[...], epsilon=m.eps)}`.

    Returns:
        How many modules were replaced.

    Raises:
        TypeError: a rule that is neither a subclass of what it replaces nor a function.
        ValueError: no module of the model has a rule.

    >>> from flax import nnx
    >>> from liger_jax.nnx import apply_liger_kernel
    >>> model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.RMSNorm(4, rngs=nnx.Rngs(0)))
    >>> apply_liger_kernel(model)
    1
    """
    classes = {old: _replacement(old, rule) for old, rule in {**RULES, **(rules or {})}.items()}
    count = 0
    for _, module in nnx.iter_graph(model):
        if type(module) in classes:
            module.__class__ = classes[type(module)]
            count += 1
    if count == 0:
        known = ", ".join(sorted(f"{old.__module__}.{old.__qualname__}" for old in classes))
        raise ValueError(
            f"{type(model).__name__} has no module that could be replaced (known: {known}); pass rules for its own "
            "classes. A model can be converted once."
        )
    return count


def _replacement(old: type, rule: Rule) -> type:
    if isinstance(rule, type):
        if not issubclass(rule, old):
            raise TypeError(
                f"rules: {rule.__qualname__} is no subclass of {old.__qualname__}, which it replaces."
            )
        return rule
    if not callable(rule):
        raise TypeError(
            f"rules: {old.__qualname__} is mapped to {rule!r}; expected a subclass or a function."
        )

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return rule(self, *args, **kwargs)

    return type(f"Liger{old.__name__}", (old,), {"__call__": call, "__module__": old.__module__})
