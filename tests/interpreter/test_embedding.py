"""What is particular to the embedding's kernels: repeats without number, buffers, ids out of range, tiles of rows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_runner import error

import liger_jax
from liger.device import DEFAULT
from liger_torch import autograd, experimental
from liger_torch import functional as f
from liger_torch.autograd import call
from liger_torch.backend import backend_for
from liger_triton import embedding

CPU = torch.device("cpu")


def table(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


def incoming(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_thousands_of_repeats_are_rounded_once(dtype: torch.dtype) -> None:
    """Added one after the other in 16 bits, as by atomics in the table's dtype, a row stops growing after some hundreds."""
    ids = torch.cat([torch.full((3000,), 2), torch.arange(5).repeat(10), torch.full((1500,), 4)])
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(2))]
    weight, dy = table(5, 16, dtype=dtype), (1 + 0.1 * incoming(len(ids), 16)).to(dtype)
    exact = torch.zeros(5, 16, dtype=torch.float64).index_add_(0, ids, dy.double())
    (ours,) = torch.autograd.grad(f.liger_embedding(weight, ids), weight, dy)
    one_by_one = torch.zeros(5, 16, dtype=dtype)
    for i, row in zip(ids.tolist(), dy, strict=True):
        one_by_one[i] += row
    rounded = error(exact.to(dtype), exact)
    assert error(ours, exact) <= 1.02 * rounded
    assert error(one_by_one, exact) > 20 * rounded


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_one_long_row_and_many_short_ones_are_summed_in_a_fixed_order(
    padding_idx: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order depends on the ids alone: not on the geometry, that is on the GPU."""
    ids = torch.from_numpy(np.random.default_rng(0).zipf(1.2, 700) % 60)
    dy = incoming(700, 24)
    weight = table(60, 24)
    backend = backend_for(CPU)
    results = []
    for multiprocessors in (DEFAULT.multiprocessors, 2, 1):
        device = dataclasses.replace(DEFAULT, multiprocessors=multiprocessors)
        monkeypatch.setattr(backend, "device", device)
        monkeypatch.setattr(autograd, "_plans", {})
        rows = dict(
            embedding.backward_launch(
                700, 60, 24, "float32", 24, None, embedding.Options(padding_idx), device
            ).constants
        )["ROWS"]
        y = f.liger_embedding(weight, ids, padding_idx)
        results.append((rows, torch.autograd.grad(y, weight, dy)[0]))
    assert [rows for rows, _ in results] == [1, 2, 4]
    exact = torch.zeros(60, 24, dtype=torch.float64).index_add_(0, ids, dy.double())
    if padding_idx is not None:
        exact[padding_idx] = 0
    for _, gradient in results:
        assert torch.equal(gradient, results[0][1])
        assert error(gradient, exact) < 2e-7


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_ids_out_of_range_give_nan_and_no_gradient(ids_dtype: torch.dtype) -> None:
    """As on a GPU, where looking for them would stall it: on a CPU the function refuses them."""
    weight = table(6, 8)
    wraps = (
        2**16 + 1 if ids_dtype == torch.int32 else 2**32 + 1
    )  # to 1, in the narrow integers that are sorted
    ids = torch.tensor([[1, -1, 5, wraps], [6, 1, 2**31 - 1, 0]], dtype=ids_dtype)
    valid = torch.tensor([[True, False, True, False], [False, True, False, True]])
    (y,) = call(embedding.EMBEDDING, embedding.Options(), ids, weight, None)
    assert torch.equal(y.isnan().any(-1), ~valid)
    assert torch.equal(y[valid], weight[ids[valid].long()])
    dy = incoming(2, 4, 8)
    (gradient,) = torch.autograd.grad(y, weight, dy)
    assert torch.allclose(gradient, torch.zeros(6, 8).index_add_(0, ids[valid].long(), dy[valid]))
    with pytest.raises(IndexError, match=r"embedding: indices holds -1; indices must lie in \[0, 6\)"):
        f.liger_embedding(weight, ids)
    if ids_dtype == torch.int32:  # JAX has no others
        ours = liger_jax.embedding(jnp.asarray(weight.detach().numpy()), jnp.asarray(ids.numpy()))
        np.testing.assert_array_equal(np.asarray(ours), y.detach().numpy())


def test_one_id_without_an_axis() -> None:
    weight = table(6, 8)
    y = f.liger_embedding(weight, torch.tensor(4))
    assert torch.equal(y, weight[4])
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    assert torch.equal(gradient, torch.eye(6)[4][:, None].expand(6, 8))
    array = jnp.asarray(weight.detach().numpy())
    ours = jax.grad(lambda table: liger_jax.embedding(table, jnp.int32(4), implementation="triton").sum())
    np.testing.assert_array_equal(np.asarray(ours(array)), gradient.numpy())


def test_strided_tables_ids_and_gradients() -> None:
    wide = table(6, 20)
    ids = torch.tensor([[0, 5, 5], [3, 0, 1]]).t()
    y = f.liger_embedding(wide[:, 4:12], ids)
    assert torch.equal(y, F.embedding(ids, wide[:, 4:12]))
    for dy in (
        incoming(3, 2, 16)[..., ::2],
        torch.ones(()).expand(3, 2, 8),
        incoming(8, 2, 3).permute(2, 1, 0),
    ):
        (ours,) = torch.autograd.grad(y, wide, dy, retain_graph=True)
        (theirs,) = torch.autograd.grad(F.embedding(ids, wide[:, 4:12]), wide, dy)
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("buffer_dtype", [torch.float32, torch.bfloat16])
def test_tied_weights_gather_one_gradient(buffer_dtype: torch.dtype) -> None:
    """The head's gradient and the embedding's in one buffer; rows that no id names keep the head's."""
    weight = table(12, 16, dtype=torch.bfloat16)
    ids, labels = torch.tensor([3, 3, 7, 0]), torch.tensor([1, 3, -100, 11])

    def loss(weight: torch.Tensor, buffer: torch.Tensor | None) -> torch.Tensor:
        hidden = f.liger_embedding(weight, ids, padding_idx=0, weight_grad=buffer)
        return f.liger_fused_linear_cross_entropy(hidden, weight, labels, weight_grad=buffer)

    buffer = torch.zeros(12, 16, dtype=buffer_dtype)
    loss(weight, buffer).backward()
    assert weight.grad is None
    wide = weight.detach().double().requires_grad_()
    F.cross_entropy(F.linear(F.embedding(ids, wide, padding_idx=0), wide), labels).backward()
    assert error(buffer, wide.grad) < 0.01
    separate = torch.autograd.grad(loss(weight, None), weight)[0]
    assert error(separate, wide.grad) < 0.01


def test_buffer_rows_must_be_contiguous() -> None:
    weight, ids = table(6, 8), torch.tensor([1, 1])
    with pytest.raises(ValueError, match=r"weight_grad has strides \(1, 6\); its rows must be contiguous"):
        f.liger_embedding(weight, ids, weight_grad=torch.zeros(8, 6).t())
    gaps = torch.ones(6, 12)
    f.liger_embedding(weight, ids, weight_grad=gaps[:, :8]).sum().backward()
    assert torch.equal(gaps[1], torch.tensor([3.0] * 8 + [1.0] * 4))
    assert torch.equal(gaps[[0, 2, 3, 4, 5]], torch.ones(5, 12))


def test_frozen_table_and_module() -> None:
    layer = experimental.LigerEmbedding(9, 8, padding_idx=-2)
    plain = torch.nn.Embedding(9, 8, padding_idx=-2)
    plain.load_state_dict(layer.state_dict())
    ids = torch.tensor([[7, 1, 1], [8, 7, 0]])
    for module in (layer, plain):
        module(ids).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    layer.weight.requires_grad_(False)
    assert not layer(ids).requires_grad
