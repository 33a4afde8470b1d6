"""Gated MLPs for Flax NNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from liger_jax import functional


class _GatedMLP(nnx.Module):
    """Three `flax.nnx.Linear` under Llama's names; what joins gate and up is the subclass's."""

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


class SwiGLU(_GatedMLP):
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

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the MLP to x of shape (..., in_features)."""
        hidden = functional.swiglu(self.gate_proj(x), self.up_proj(x), implementation=self.implementation)
        return self.down_proj(hidden)


class GeGLU(_GatedMLP):
    """The gated MLP of Gemma: down(gelu(gate(x)) * up(x)), three `flax.nnx.Linear` and `liger_jax.geglu`.

    Args:
        in_features: width of x and of the result.
        hidden_features: width of gate and up.
        approximate: the form of GELU with the tanh, as in `jax.nn.gelu`.
        **kwargs: as in `SwiGLU`.

    Shazeer, arXiv:2002.05202.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from liger_jax.nnx import GeGLU
    >>> GeGLU(4, 8, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
    (2, 4)
    """

    def __init__(
        self, in_features: int, hidden_features: int, *, approximate: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(in_features, hidden_features, **kwargs)
        self.approximate = approximate

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the MLP to x of shape (..., in_features)."""
        hidden = functional.geglu(
            self.gate_proj(x), self.up_proj(x), self.approximate, implementation=self.implementation
        )
        return self.down_proj(hidden)
