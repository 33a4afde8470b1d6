"""Gated MLPs for Flax Linen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from jax.typing import DTypeLike

from liger_jax import functional


class _GatedMLP(linen.Module):
    """Three `flax.linen.Dense` under Llama's names; `activate` joins gate and up.

    Attributes:
        hidden_features: width of gate and up.
        use_bias: whether the dense layers have biases.
        dtype: dtype of the computation; by default the common one of x and the parameters.
        param_dtype: dtype of the parameters.
        kernel_init: initialises the three kernels.
        implementation: as in `liger_jax.swiglu`.
    """

    hidden_features: int
    use_bias: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Callable[..., Any] = linen.initializers.lecun_normal()
    implementation: str | None = None

    def activate(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """What the down projection is applied to."""
        raise NotImplementedError

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the MLP to x of shape (..., features)."""

        def dense(name: str, features: int) -> linen.Dense:
            return linen.Dense(
                features,
                use_bias=self.use_bias,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                kernel_init=self.kernel_init,
                name=name,
            )

        gate, up = (dense(name, self.hidden_features)(x) for name in ("gate_proj", "up_proj"))
        result: jax.Array = dense("down_proj", x.shape[-1])(self.activate(gate, up))
        return result


class SwiGLU(_GatedMLP):
    """The gated MLP of Llama: down(silu(gate(x)) * up(x)), three `flax.linen.Dense` and `liger_jax.swiglu`.

    Its parameters are gate_proj, up_proj and down_proj, each as in Dense. Shazeer, arXiv:2002.05202.

    >>> import jax, jax.numpy as jnp
    >>> from liger_jax.linen import SwiGLU
    >>> y, variables = SwiGLU(8).init_with_output(jax.random.key(0), jnp.ones((2, 4)))
    >>> y.shape, sorted(variables["params"])
    ((2, 4), ['down_proj', 'gate_proj', 'up_proj'])
    """

    def activate(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """silu(gate) * up."""
        return functional.swiglu(gate, up, implementation=self.implementation)


class GeGLU(_GatedMLP):
    """The gated MLP of Gemma: down(gelu(gate(x)) * up(x)), three `flax.linen.Dense` and `liger_jax.geglu`.

    Its parameters are gate_proj, up_proj and down_proj, each as in Dense. Shazeer, arXiv:2002.05202.

    Attributes:
        approximate: the form of GELU with the tanh, as in `jax.nn.gelu`.

    >>> import jax, jax.numpy as jnp
    >>> from liger_jax.linen import GeGLU
    >>> GeGLU(8).init_with_output(jax.random.key(0), jnp.ones((2, 4)))[0].shape
    (2, 4)
    """

    approximate: bool = True

    def activate(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """gelu(gate) * up."""
        return functional.geglu(gate, up, self.approximate, implementation=self.implementation)
