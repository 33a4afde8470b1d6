"""LayerNorm, GroupNorm and their modules: what torch computes, and the parameters they have."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import nn

import liger_torch
from liger_torch import functional as f


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


def same(ours: torch.Tensor, theirs: torch.Tensor, *operands: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    incoming = torch.randn(theirs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for a, b in zip(
        torch.autograd.grad(ours, operands, incoming),
        torch.autograd.grad(theirs, operands, incoming),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_layer_norm_is_torchs() -> None:
    x, w, b = draw(2, 3, 16), draw(16, seed=1), draw(16, seed=2)
    same(f.liger_layer_norm(x, w, b, 1e-5), F.layer_norm(x, (16,), w, b, 1e-5), x, w, b)
    same(f.liger_layer_norm(x, w, None, 1e-5), F.layer_norm(x, (16,), w, None, 1e-5), x, w)
    same(f.liger_layer_norm(x, None, b, 1e-5), F.layer_norm(x, (16,), None, b, 1e-5), x, b)
    same(f.liger_layer_norm(x, None, None, 1e-5), F.layer_norm(x, (16,), None, None, 1e-5), x)
    y, s = f.liger_fused_add_layer_norm(x, x * 2, w, b)
    same(y + s, F.layer_norm(3 * x, (16,), w, b, 1e-6) + 3 * x, x, w, b)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_modules(bias: bool) -> None:
    x = torch.randn(2, 3, 8)
    ours, theirs = liger_torch.LigerLayerNorm(8, bias=bias), nn.LayerNorm(8, eps=1e-6, bias=bias)
    assert {name: p.shape for name, p in ours.named_parameters()} == {
        name: p.shape for name, p in theirs.named_parameters()
    }
    # Upstream's bias starts at random numbers, and exists without being asked for.
    assert torch.equal(ours(x), liger_torch.LigerLayerNorm(8)(x))
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    fused = liger_torch.LigerFusedAddLayerNorm(8, bias=bias)
    fused.load_state_dict(theirs.state_dict())
    y, s = fused(x, x)
    assert torch.equal(s, 2 * x)
    torch.testing.assert_close(y, theirs(2 * x))


def test_layer_norm_without_affine() -> None:
    layer = liger_torch.LigerLayerNorm(8, elementwise_affine=False)
    assert not list(layer.parameters()) and not layer.state_dict()
    assert layer.weight is layer.bias is None
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), F.layer_norm(x, (8,), eps=1e-6))
    assert not liger_torch.LigerLayerNorm(8, init_fn="zeros")(x).any()
    assert str(layer) == "LigerLayerNorm(8, eps=1e-06, bias=False, elementwise_affine=False)"
    with pytest.raises(ValueError, match="LigerLayerNorm: bias is True, but the layer is not to be affine"):
        liger_torch.LigerLayerNorm(8, bias=True, elementwise_affine=False)
    with pytest.raises(ValueError, match="LigerFusedAddLayerNorm: init_fn is 'randn'"):
        liger_torch.LigerFusedAddLayerNorm(8, init_fn="randn")


@pytest.mark.parametrize("shape", [(2, 6), (3, 6, 5), (2, 6, 5, 4), (2, 6, 3, 4, 2)], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_group_norm_is_torchs(shape: tuple[int, ...], last: bool) -> None:
    """Of any rank: upstream wrote beyond the end for images of two axes. And as torch.channels_last."""
    x, w, b = draw(*shape), draw(6, seed=1), draw(6, seed=2)
    x = x if not last else x.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    same(f.liger_group_norm(x, w, b, 6, 3, 1e-5), F.group_norm(x, 3, w, b, 1e-5), x, w, b)
    one, zero = torch.ones_like(w), torch.zeros_like(b)  # torch's gradient fails for a bias without a weight
    same(f.liger_group_norm(x, None, b, 6, 2, 1e-5), F.group_norm(x, 2, one, b, 1e-5), x, b)
    same(f.liger_group_norm(x, w, None, 6, 1, 1e-5), F.group_norm(x, 1, w, zero, 1e-5), x, w)
    same(f.liger_group_norm(x, None, None, 6, 2, 1e-5), F.group_norm(x, 2, eps=1e-5), x)
    assert f.liger_group_norm(x, w, b, 6, 3).stride() == x.stride()


@pytest.mark.parametrize("bias", [True, False])
def test_group_norm_module(bias: bool) -> None:
    x = torch.randn(2, 6, 5, 4)
    ours, theirs = liger_torch.LigerGroupNorm(6, 3, bias=bias), nn.GroupNorm(3, 6, eps=1e-6)
    names = {"weight", "bias"} if bias else {"weight"}
    assert {name: p.shape for name, p in ours.named_parameters()} == dict.fromkeys(names, (6,))
    torch.testing.assert_close(ours(x), theirs(x))
    if bias:
        for p in theirs.parameters():
            nn.init.normal_(p)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x))
    assert str(ours) == f"LigerGroupNorm(6, 3, eps=1e-06, bias={bias}, affine=True)"
    assert not list(liger_torch.LigerGroupNorm(6, 3, affine=False).parameters())


def test_another_size_of_images_does_not_compile_again() -> None:
    """The first size is compiled as it is, the second for any, and once more for another memory format."""
    w = torch.randn(8)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: f.liger_group_norm(x, w, w, 8, 2), fullgraph=True, backend=counter)
    for layout in (torch.contiguous_format, torch.channels_last):
        for n, side in ((2, 5), (3, 6), (4, 9), (6, 10)):
            x = torch.randn(n, 8, side, side + 1).to(memory_format=layout)
            torch.testing.assert_close(compiled(x), f.liger_group_norm(x, w, w, 8, 2))
    assert counter.frame_count <= 3


X, W = torch.zeros(2, 3, 8), torch.zeros(8)


@pytest.mark.parametrize(
    ("error", "message", "act"),
    [
        (ValueError, r"layer_norm: weight has shape \(7,\).*expected \(8,\)", lambda: f.liger_layer_norm(X, W[:7], W)),
        (ValueError, r"layer_norm: bias has shape \(7,\)", lambda: f.liger_layer_norm(X, W, W[:7])),
        (TypeError, "layer_norm: bias has dtype int64", lambda: f.liger_layer_norm(X, None, W.long())),
        (TypeError, "layer_norm: x has dtype int64", lambda: f.liger_layer_norm(X.long(), None, None)),
        (ValueError, "layer_norm: eps is -1.0", lambda: f.liger_layer_norm(X, W, W, -1.0)),
        (ValueError, "layer_norm: x has shape .*last axis must have at least one entry", lambda: f.liger_layer_norm(X[..., :0], None, None)),
        (ValueError, "add_layer_norm: residual has shape", lambda: f.liger_fused_add_layer_norm(X, X[:1], W, W)),
        (TypeError, "add_layer_norm: residual has dtype bfloat16 but x has float32", lambda: f.liger_fused_add_layer_norm(X, X.bfloat16(), W, W)),
        (ValueError, r"group_norm: X has shape \(2, 3, 8\); expected \(N, 4, \*\)", lambda: f.liger_group_norm(X, None, None, 4, 2)),
        (ValueError, r"group_norm: X has shape \(8,\)", lambda: f.liger_group_norm(W, None, None, 8, 2)),
        (ValueError, "group_norm: num_groups is 2, and x has 3 channels", lambda: f.liger_group_norm(X, None, None, 3, 2)),
        (ValueError, "group_norm: num_groups is 0", lambda: f.liger_group_norm(X, None, None, 3, 0)),
        (ValueError, r"group_norm: weight has shape \(8,\); expected \(3,\)", lambda: f.liger_group_norm(X, W, None, 3, 3)),
        (ValueError, "group_norm: eps is -1.0", lambda: f.liger_group_norm(X, None, None, 3, 3, -1.0)),
        (TypeError, "group_norm: x has dtype int64", lambda: f.liger_group_norm(X.long(), None, None, 3, 3)),
        (ValueError, "LigerGroupNorm: num_groups is 8 and num_channels 4; .*the other order", lambda: liger_torch.LigerGroupNorm(4, 8)),
    ],
)  # fmt: skip
def test_refused(error: type[Exception], message: str, act: object) -> None:
    with pytest.raises(error, match=message):
        act()  # type: ignore[operator]
