"""What is particular to the kernels of rotary embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_runner import error
from transformers.models.llama4 import modeling_llama4 as llama4

import liger_jax
from liger import traffic
from liger_torch import functional as f
from liger_torch.autograd import call
from liger_triton import qk_norm_rope, rope


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


@pytest.mark.parametrize(("offset", "casting"), [(0.0, "llama"), (1.0, "gemma")])
@pytest.mark.parametrize("rotary_dim", [64, 24])
def test_normalised_heads_are_the_two_ops_in_one_pass(offset: float, casting: str, rotary_dim: int) -> None:
    q, k = (draw(2, n, 16, 64, seed=n, dtype=torch.bfloat16) for n in (4, 2))
    weights = [draw(64, seed=seed, dtype=torch.bfloat16) for seed in (5, 6)]
    cos, sin = (draw(1, 16, rotary_dim, seed=seed, dtype=torch.bfloat16).detach() for seed in (7, 8))
    options = {"offset": offset, "casting_mode": casting}

    def in_two(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, *weights = given
        normed = (f.liger_rms_norm(x, w, **options) for x, w in zip((q, k), weights, strict=True))
        return f.liger_rope(*normed, cos.to(q.dtype), sin.to(q.dtype))

    with traffic.count() as one:
        ours = f.liger_qk_norm_rope(q, k, *weights, cos, sin, **options)
        gradients = torch.autograd.grad([y.sum() for y in ours], (q, k, *weights))
    with traffic.count() as two:
        theirs = in_two(q, k, *weights)
        other_gradients = torch.autograd.grad([y.sum() for y in theirs], (q, k, *weights))
    assert [c.launch.name for c in one.counts] == [
        "qk_norm_rope_forward",
        "qk_norm_rope_backward",
        "sum_partials",
    ]
    assert one.counts[0].moved < 0.55 * sum(c.moved for c in two.counts[:3])
    assert sum(c.moved for c in one.counts) < 0.65 * sum(c.moved for c in two.counts)
    for a, b in zip(ours, theirs, strict=True):
        # The sums of squares are added in another order: now and then the norm is rounded to the number next to it.
        assert (a != b).float().mean() < 2e-3
    wide = [t.detach().double().requires_grad_() for t in (q, k, *weights)]
    by_token = (x.transpose(1, 2) for x in wide[:2])
    exact = qk_norm_rope.QK_NORM_ROPE.reference(
        (*by_token, *wide[2:], cos.double(), sin.double()),
        qk_norm_rope.Options(offset=offset, casting=casting),
    )
    exact_gradients = torch.autograd.grad([y.sum() for y in exact if y is not None], wide)
    for mine, other, truth in zip(gradients, other_gradients, exact_gradients, strict=True):
        assert error(mine, truth) <= 1.02 * error(other, truth)


def test_a_position_out_of_range_gives_nan_in_its_token_alone() -> None:
    """What a GPU does, where such a position cannot be found in time; on a CPU the functional form raises before."""
    q, k = draw(1, 4, 2, 16), draw(1, 4, 1, 16, seed=1)
    table = torch.ones(6, 16)
    rotated, _ = call(
        rope.ROPE_AT_POSITIONS, rope.Options(), q, k, table, table, torch.tensor([[5, 6, -1, 0]])
    )
    assert rotated.isnan().flatten(2).all(-1).tolist() == [[False, True, True, False]]
    assert rotated.isnan().flatten(2).any(-1).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(("q_heads", "k_heads"), [(3, 0), (0, 3)])
def test_a_weight_of_no_heads_has_a_gradient_of_0(q_heads: int, k_heads: int) -> None:
    """And not what happens to lie in the memory of its sums."""
    q, k = draw(2, 5, q_heads, 64), draw(2, 5, k_heads, 64, seed=1)
    weights, tables = [draw(64, seed=i) for i in (2, 3)], [draw(1, 5, 64, seed=i).detach() for i in (4, 5)]
    y = f.liger_qk_norm_rope(q, k, *weights, *tables, unsqueeze_dim=2)
    gradients = torch.autograd.grad(y, (q, k, *weights), [torch.ones_like(t) for t in y])
    sizes = [g.abs().sum().item() for g in gradients]
    assert [size > 0 for size in sizes] == [q_heads > 0, k_heads > 0] * 2
