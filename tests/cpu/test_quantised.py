"""Two-bit weights: their layout, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from liger_jax import experimental as jax_experimental
from liger_torch import experimental

A = torch.zeros(3, 8, dtype=torch.int8)
PACKED = torch.zeros(2, 5, dtype=torch.uint8)
WEIGHTS = torch.zeros(8, 5, dtype=torch.int8)


@pytest.mark.parametrize("shape", [(8,), (12, 5), (4, 2, 3), (0, 3), (8, 0)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_layout(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Upstream's: byte i holds the weights i, i + k/4, i + 2k/4 and i + 3k/4, lowest bits first, each plus 1."""
    weights = torch.randint(-1, 3, shape, dtype=dtype)
    before = weights.clone()
    packed = experimental.pack_weights(weights)
    assert torch.equal(weights, before)
    assert packed.shape == (shape[0] // 4, *shape[1:])
    assert packed.dtype == torch.uint8
    rows = shape[0] // 4
    for i in range(4):
        assert torch.equal((packed.int() // 4**i) % 4 - 1, weights[i * rows : (i + 1) * rows].int())
    assert torch.equal(experimental.unpack_weights(packed), weights.int())
    theirs = jax_experimental.pack_weights(jnp.asarray(weights.numpy(), jnp.int8))
    np.testing.assert_array_equal(np.asarray(theirs), packed.numpy())
    np.testing.assert_array_equal(np.asarray(jax_experimental.unpack_weights(theirs)), weights.numpy())


def test_packs_under_jit_and_compile() -> None:
    weights = torch.randint(-1, 2, (8, 5), dtype=torch.int8)
    packed = experimental.pack_weights(weights)
    compiled = torch.compile(experimental.pack_weights, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(weights), packed)
    theirs = jax.jit(jax_experimental.pack_weights)(jnp.asarray(weights.numpy()))
    np.testing.assert_array_equal(np.asarray(theirs), packed.numpy())


@pytest.mark.parametrize("implementation", ["triton", "xla", None])
def test_product_without_kernels(implementation: str | None) -> None:
    a, packed = torch.randint(-128, 128, (2, 3, 8), dtype=torch.int8), torch.randint(0, 256, (2, 5)).byte()
    expected = a.int().reshape(6, 8) @ experimental.unpack_weights(packed)
    assert torch.equal(experimental.matmul(a, packed), expected.reshape(2, 3, 5))
    assert torch.equal(experimental.matmul(a[0, 0], packed), expected[0])
    ours = jax.jit(lambda a, p: jax_experimental.int2_matmul(a, p, implementation=implementation))
    np.testing.assert_array_equal(np.asarray(ours(a.numpy(), packed.numpy())), expected.reshape(2, 3, 5))


def test_other_arguments_are_differentiated_past_it() -> None:
    a, packed = jnp.ones((2, 8), jnp.int8), jnp.full((2, 5), 0b10101010, jnp.uint8)
    loss = lambda scale: jnp.sum(scale * jax_experimental.int2_matmul(a, packed))  # noqa: E731
    assert jax.grad(loss)(0.5) == 2 * 5 * 8


@pytest.mark.parametrize(
    ("error", "message", "act"),
    [
        (TypeError, "int2_matmul: a has dtype float32; cast it to one of int8", lambda: experimental.matmul(A.float(), PACKED)),
        (ValueError, "a requires a gradient, but the op has none", lambda: experimental.matmul(A.float().requires_grad_(), PACKED)),
        (TypeError, "b has dtype int8; cast it to one of uint8", lambda: experimental.matmul(A, PACKED.to(torch.int8))),
        (ValueError, r"b has shape \(2, 5\); expected \(k / 4, n\) with k 12", lambda: experimental.matmul(A.new_zeros(3, 12), PACKED)),
        (ValueError, r"b has shape \(8, 5\).*Pack the weights", lambda: experimental.matmul(A, WEIGHTS.byte())),
        (ValueError, r"sums of 2\*\*23 products or more", lambda: experimental.matmul(A.new_zeros(1, 2**23), PACKED.new_zeros(2**21, 1))),
        (TypeError, "intweights has dtype torch.float32; round", lambda: experimental.pack_weights(WEIGHTS.float())),
        (ValueError, r"intweights has shape \(6, 5\); its first axis must be a multiple of 4", lambda: experimental.pack_weights(WEIGHTS[:6])),
        (ValueError, "intweights holds 3; two bits hold", lambda: experimental.pack_weights(WEIGHTS + 3)),
        (ValueError, "intweights holds -2; two bits hold", lambda: experimental.pack_weights(WEIGHTS - 2)),
        (ValueError, "bits is 4; only 2", lambda: experimental.pack_weights(WEIGHTS, 4)),
        (TypeError, "packed has dtype torch.int8", lambda: experimental.unpack_weights(WEIGHTS)),
        (TypeError, "weights has dtype float32", lambda: jax_experimental.pack_weights(jnp.ones((8, 5)))),
        (ValueError, r"weights has shape \(6, 5\)", lambda: jax_experimental.pack_weights(jnp.ones((6, 5), int))),
        (ValueError, "weights holds 7", lambda: jax_experimental.pack_weights(jnp.full((8, 5), 7))),
        (TypeError, "packed has dtype int32", lambda: jax_experimental.unpack_weights(jnp.ones((8, 5), int))),
    ],
)  # fmt: skip
def test_refused(error: type[Exception], message: str, act: Any) -> None:
    with pytest.raises(error, match=message):
        act()
