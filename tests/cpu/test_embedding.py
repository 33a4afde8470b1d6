"""The embedding where no kernel runs, and the layers of both frontends beside those of torch and Flax."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import liger_jax
from liger_jax import linen as liger_linen
from liger_jax import nnx as liger_nnx
from liger_torch import experimental
from liger_torch import functional as f

IDS = torch.tensor([[0, 4, 4], [2, 4, 1]])


@pytest.mark.parametrize("padding_idx", [None, 4, -1, 0])
def test_function_is_torchs(padding_idx: int | None) -> None:
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 3, 3, dtype=torch.float64)
    ours, theirs = f.liger_embedding(weight, IDS, padding_idx), F.embedding(IDS, weight, padding_idx)
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(y, weight, dy)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-15)


def test_module_is_torchs() -> None:
    torch.manual_seed(3)
    ours = experimental.LigerEmbedding(5, 3, padding_idx=-1, dtype=torch.float64)
    torch.manual_seed(3)
    theirs = torch.nn.Embedding(5, 3, padding_idx=-1, dtype=torch.float64)
    assert ours.padding_idx == theirs.padding_idx == 4
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours(IDS), theirs(IDS))
    assert repr(ours) == "LigerEmbedding(5, 3, padding_idx=4)"
    assert experimental.LigerEmbedding(5, 3, device="meta")(IDS.to("meta")).shape == (2, 3, 3)


def test_gradient_in_bfloat16_is_rounded_once() -> None:
    weight = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    f.liger_embedding(weight, torch.ones(1000, dtype=torch.int64)).sum().backward()
    assert torch.equal(weight.grad, torch.tensor([0.0, 1000.0]).bfloat16()[:, None].expand(2, 4))


def test_buffer() -> None:
    weight, buffer = torch.randn(5, 3, requires_grad=True), torch.ones(5, 3)
    f.liger_embedding(weight, IDS, padding_idx=2, weight_grad=buffer).sum().backward()
    assert weight.grad is None
    assert torch.equal(buffer[:, 0], torch.tensor([2.0, 2, 1, 1, 4]))
    with pytest.raises(
        RuntimeError, match=r"embedding: create_graph=True.*weight_grad has no graph: leave it out"
    ):
        f.liger_embedding(weight, IDS, weight_grad=buffer).sum().backward(create_graph=True)


@pytest.mark.parametrize(
    ("error", "message", "act"),
    [
        (ValueError, r"embedding: embeddings has shape \(5,\); expected \(vocab, features\)", lambda: f.liger_embedding(torch.ones(5), IDS)),
        (ValueError, r"embeddings has shape \(0, 3\); its vocab axis", lambda: f.liger_embedding(torch.ones(0, 3), IDS[:0])),
        (TypeError, "indices has dtype float32", lambda: f.liger_embedding(torch.ones(5, 3), IDS.float())),
        (TypeError, "embeddings has dtype int64", lambda: f.liger_embedding(torch.ones(5, 3).long(), IDS)),
        (IndexError, r"indices holds 4; indices must lie in \[0, 4\)", lambda: f.liger_embedding(torch.ones(4, 3), IDS)),
        (ValueError, "padding_idx is 5; it must lie between 0 and 4", lambda: f.liger_embedding(torch.ones(5, 3), IDS, 5)),
        (ValueError, "padding_idx is -6", lambda: f.liger_embedding(torch.ones(5, 3), IDS, -6)),
        (ValueError, "LigerEmbedding: padding_idx is 5", lambda: experimental.LigerEmbedding(5, 3, 5)),
        (ValueError, r"weight_grad has shape \(4, 3\)", lambda: f.liger_embedding(torch.ones(5, 3), IDS, weight_grad=torch.ones(4, 3))),
        (TypeError, "weight_grad has dtype float16", lambda: f.liger_embedding(torch.ones(5, 3), IDS, weight_grad=torch.ones(5, 3).half())),
        (ValueError, r"embedding: table has shape \(5,\)", lambda: liger_jax.embedding(jnp.ones(5), jnp.zeros(2, int))),
        (ValueError, "padding_idx is 7", lambda: liger_jax.embedding(jnp.ones((5, 3)), jnp.zeros(2, int), padding_idx=7)),
    ],
)  # fmt: skip
def test_refused(error: type[Exception], message: str, act: Any) -> None:
    with pytest.raises(error, match=message):
        act()


# ------------------------------------------------------------------------------------------------------ Flax


@pytest.mark.parametrize("implementation", ["triton", "xla"])
def test_padding_row_gets_no_gradient(implementation: str) -> None:
    table, ids = jax.random.normal(jax.random.key(0), (5, 3)), jnp.asarray(IDS.numpy(), jnp.int32)

    def loss(table: jax.Array, padding_idx: int | None) -> jax.Array:
        rows = liger_jax.embedding(table, ids, padding_idx=padding_idx, implementation=implementation)
        return jnp.sum(rows**2)

    full = jax.grad(lambda t: jnp.sum(jnp.take(t, ids, axis=0) ** 2))(table)
    for padding_idx in (4, -1):
        np.testing.assert_allclose(jax.grad(loss)(table, padding_idx), full.at[4].set(0), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(table, None), full, rtol=1e-6)


def layers(frontend: str, n: int, **options: Any) -> tuple[Any, Any, Any]:
    """Ours, Flax's, and the table, as functions of ids."""
    if frontend == "nnx":
        ours, flax = (m.Embed(n, 4, **options, rngs=nnx.Rngs(0)) for m in (liger_nnx, nnx))
        return ours, flax, ours.embedding[...]
    ours, flax = (m.Embed(n, 4, **options) for m in (liger_linen, nn))
    params = ours.init(jax.random.key(0), jnp.zeros(1, jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, params, flax.init(jax.random.key(0), jnp.zeros(1, jnp.int32)))
    bound = ours.bind(params), flax.bind(params)
    return *bound, params["params"]["embedding"]


@pytest.mark.parametrize("frontend", ["nnx", "linen"])
@pytest.mark.parametrize(
    "options", [{}, {"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}, {"dtype": jnp.float16}]
)
def test_layer_is_flaxs(frontend: str, options: dict[str, Any]) -> None:
    ours, flax, _ = layers(frontend, 5, **options)
    for ids in (
        jnp.array([[0, 4, -1], [2, -5, 3]]),
        jnp.array([7, -6, 0]),  # out of range
        jnp.array([3, 250], jnp.uint8),
        jnp.array([-1, 4], jnp.int8),
        jnp.array([1, 2**32 - 1], jnp.uint32),
        jnp.int32(3),
        jnp.zeros((2, 0), jnp.int32),
    ):
        mine, theirs = ours(ids), flax(ids)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(mine, np.float32), np.asarray(theirs, np.float32))
    query = jax.random.normal(jax.random.key(1), (2, 4))
    np.testing.assert_array_equal(
        np.asarray(ours.attend(query), np.float32), np.asarray(flax.attend(query), np.float32)
    )
    with pytest.raises(ValueError, match="Input type must be an integer"):
        ours(jnp.ones(3))


@pytest.mark.parametrize("frontend", ["nnx", "linen"])
def test_table_of_one_row_is_flaxs(frontend: str) -> None:
    ours, flax, _ = layers(frontend, 1)
    ids = jnp.array([0, 3])
    np.testing.assert_array_equal(ours(ids), flax(ids))


def test_gradients_of_the_layers() -> None:
    ids = jnp.array([[0, 4, -1], [2, 4, 0]])
    ours, flax = (m.Embed(5, 4, rngs=nnx.Rngs(0)) for m in (liger_nnx, nnx))
    gradients = [nnx.grad(lambda m: jnp.sum(m(ids) ** 3))(m)["embedding"][...] for m in (ours, flax)]
    np.testing.assert_allclose(*gradients, rtol=1e-6)
    mine, theirs = liger_linen.Embed(5, 4), nn.Embed(5, 4)
    params = theirs.init(jax.random.key(0), ids)
    found = [jax.grad(lambda p, m=m: jnp.sum(m.apply(p, ids) ** 3))(params) for m in (mine, theirs)]
    np.testing.assert_allclose(*(g["params"]["embedding"] for g in found), rtol=1e-6)


def test_swapped_in_a_built_model() -> None:
    model = nnx.Sequential(nnx.Embed(5, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    ids = jnp.array([[0, 4, -1]])
    before = model(ids)
    assert liger_nnx.apply_liger_kernel(model) == 1
    assert type(model.layers[0]) is liger_nnx.Embed
    np.testing.assert_allclose(model(ids), before, rtol=1e-6)
    assert "liger_forward" in str(jax.make_jaxpr(lambda ids: model(ids))(ids))
