"""What is particular to the kernels of rotary embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.llama4 import modeling_llama4 as llama4

import liger_jax
from liger import traffic
from liger_torch import functional as f


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_complex_tables_are_read_as_they_lie(dtype: torch.dtype) -> None:
    q, k = draw(2, 5, 4, 32, dtype=dtype), draw(2, 5, 1, 32, seed=1, dtype=dtype)
    frequencies = torch.polar(torch.ones(1), draw(2, 5, 16, seed=2).detach())
    with traffic.count() as counted:
        ours = f.liger_llama4_text_rotary_pos_emb(q, k, frequencies)
    (forward,) = counted.counts
    assert forward.moved == 2 * q.nbytes + 2 * k.nbytes + frequencies.nbytes
    assert dict(forward.launch.constants)["COL_STRIDE"] == 2
    theirs = llama4.apply_rotary_emb(q, k, frequencies)
    for a, b, x in zip(ours, theirs, (q, k), strict=True):
        assert torch.equal(a, b)
        incoming = draw(*b.shape, seed=9, dtype=dtype).detach()
        assert torch.equal(*(torch.autograd.grad(y, x, incoming, retain_graph=True)[0] for y in (a, b)))


def test_expanded_tables_are_not_copied() -> None:
    """As Hugging Face models expand those of one sequence over a batch."""
    q, k = draw(3, 4, 5, 16), draw(3, 2, 5, 16, seed=1)
    cos, sin = draw(1, 5, 16, seed=2).detach(), draw(1, 5, 16, seed=3).detach()
    expected = f.liger_rope(q, k, cos, sin)
    with traffic.count() as counted:
        ours = f.liger_rope(q, k, cos.expand(3, 5, 16), sin.expand(3, 5, 16))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert counted.counts[0].moved == 2 * q.nbytes + 2 * k.nbytes + 2 * cos.nbytes


def test_tables_that_lie_in_different_ways() -> None:
    q, k = draw(2, 4, 5, 16), draw(2, 2, 5, 16, seed=1)
    cos, sin = draw(2, 5, 16, seed=2).detach(), draw(2, 5, 16, seed=3).detach()
    turned = sin.transpose(1, 2).contiguous().transpose(1, 2)
    for a, b in zip(f.liger_rope(q, k, cos, turned), f.liger_rope(q, k, cos, sin), strict=True):
        assert torch.equal(a, b)


def test_nothing_is_done_for_a_result_that_is_not_used() -> None:
    q, k = draw(2, 4, 5, 16), draw(2, 3, 5, 16, seed=1)
    cos, sin = draw(1, 5, 16, seed=2).detach(), draw(1, 5, 16, seed=3).detach()
    full = torch.autograd.grad([y.sum() for y in f.liger_rope(q, k, cos, sin)], (q, k))
    for pick, x in enumerate((q, k)):
        y = f.liger_rope(q, k, cos, sin)[pick]
        with traffic.count() as counted:
            gradients = torch.autograd.grad(y.sum(), (q, k), allow_unused=True)
        assert torch.equal(gradients[pick], full[pick])
        assert gradients[1 - pick] is None
        (backward,) = counted.counts
        # The incoming gradient is one number, expanded, and copied before.
        assert backward.moved == 2 * x.nbytes + 2 * cos.nbytes
    frozen = f.liger_rope(q, k.detach(), cos, sin)
    with traffic.count() as counted:
        (gradient,) = torch.autograd.grad([y.sum() for y in frozen if y.requires_grad], q)
    assert torch.equal(gradient, full[0])
    assert counted.counts[0].moved == 2 * q.nbytes + 2 * cos.nbytes


def test_a_result_that_is_not_used_has_a_gradient_of_zero_in_jax() -> None:
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((2, 5, n, 16)), jnp.float32) for n in (4, 2))
    cos, sin = (jnp.asarray(rng.standard_normal((5, 16)), jnp.float32) for _ in range(2))

    def loss(q: jax.Array, k: jax.Array, implementation: str) -> jax.Array:
        return jnp.sum(liger_jax.apply_rope(q, k, cos, sin, implementation=implementation)[0] ** 2)

    kernels, plain = (jax.grad(loss, (0, 1))(q, k, name) for name in ("triton", "xla"))
    np.testing.assert_allclose(kernels[0], plain[0], rtol=1e-6, atol=1e-6)
    assert not kernels[1].any() and kernels[1].shape == k.shape


def test_a_position_out_of_range_gives_nan_in_its_token_alone() -> None:
    """What a GPU does, where such a position cannot be found in time; on a CPU the functional form raises before."""
    from liger_torch.autograd import call
    from liger_triton.rope import ROPE_AT_POSITIONS, Options

    q, k = draw(1, 4, 2, 16), draw(1, 4, 1, 16, seed=1)
    table = torch.ones(6, 16)
    rotated, _ = call(ROPE_AT_POSITIONS, Options(), q, k, table, table, torch.tensor([[5, 6, -1, 0]]))
    assert rotated.isnan().flatten(2).all(-1).tolist() == [[False, True, True, False]]
    assert rotated.isnan().flatten(2).any(-1).tolist() == [[False, True, True, False]]
