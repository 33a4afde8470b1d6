"""Ours equal what others compute: liger-kernel's kernels in the same interpreter, TRL, optax and Flax.

The extra `peers` installs liger-kernel and TRL, for these tests alone.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from torch_runner import error
from upstream_kernels import upstream

import liger_jax
from liger_torch import functional as f

Function = Callable[..., Any]


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(ours: Function, theirs: Function, *operands: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Results, and gradients of the floating operands; each side gets copies, since theirs write into their inputs."""
    results = []
    for function in (ours, theirs):
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in operands]
        outputs = function(*(t.clone() for t in leaves))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        incoming = [
            draw(*o.shape, seed=9 + i).to(o.dtype) if o.dim() else None for i, o in enumerate(outputs)
        ]
        wanted = [t for t in leaves if t.requires_grad]
        results.append((*outputs, *torch.autograd.grad(outputs, wanted, incoming)))
    for mine, other in zip(*results, strict=True):
        assert mine.shape == other.shape
        assert error(mine, other) <= tolerance


# -------------------------------------------------------------------------------------------- liger-kernel

X, Y, W = draw(6, 40, seed=0), draw(6, 40, seed=8), draw(50, 40, seed=1) * 0.3
V, V2 = draw(40, seed=10), draw(40, seed=11)
LABELS = torch.tensor([3, -100, 7, 0, 39, 2])
LOG_Q, LOG_P = (draw(6, 40, seed=s).log_softmax(-1) for s in (12, 13))
P = draw(6, 40, seed=14).softmax(-1)
Q, K = draw(1, 4, 6, 16, seed=2), draw(1, 2, 6, 16, seed=3)
COS, SIN = (draw(1, 6, 8, seed=s).repeat(1, 1, 2) for s in (4, 5))

UPSTREAM: dict[str, tuple[tuple[torch.Tensor, ...], Function]] = {
    "rms_norm, llama": ((X, V), lambda g, x, v: g.liger_rms_norm(x, v, 1e-6, 0.0, "llama", False)),
    "rms_norm, gemma": ((X, V), lambda g, x, v: g.liger_rms_norm(x, v, 1e-6, 1.0, "gemma", False)),
    "rms_norm, none": ((X, V), lambda g, x, v: g.liger_rms_norm(x, v, 1e-6, 0.0, "none", False)),
    "fused_add_rms_norm": (
        (X, Y, V),
        lambda g, x, y, v: g.liger_fused_add_rms_norm(x, y, v, 1e-6, 0.0, "llama", False),
    ),
    "layer_norm": ((X, V, V2), lambda g, x, v, b: g.liger_layer_norm(x, v, b, 1e-6)),
    "swiglu": ((X, Y), lambda g, x, y: g.liger_swiglu(x, y)),
    "geglu": ((X, Y), lambda g, x, y: g.liger_geglu(x, y)),
    "softmax": ((X,), lambda g, x: g.liger_softmax(x)),
    "sparsemax": ((X,), lambda g, x: g.liger_sparsemax(x)),
    "relu_squared": ((X,), lambda g, x: g.liger_relu_squared(x)),
    "rope": ((Q, K), lambda g, q, k: g.liger_rope(q, k, COS, SIN)),
    "cross_entropy": ((X,), lambda g, x: g.liger_cross_entropy(x, LABELS)),
    "cross_entropy with options": (
        (X,),
        lambda g, x: g.liger_cross_entropy(
            x,
            LABELS.clamp(min=7),
            None,
            ignore_index=7,
            label_smoothing=0.1,
            lse_square_scale=1e-2,
            softcap=3.0,
            reduction="sum",
        ),
    ),
    "kl_div": ((LOG_Q,), lambda g, q: g.liger_kl_div(q, P, reduction="batchmean")),
    "kl_div, log_target": (
        (LOG_Q,),
        lambda g, q: g.liger_kl_div(q, LOG_P, reduction="mean", log_target=True),
    ),
    "jsd": ((LOG_Q,), lambda g, q: g.liger_jsd(q, LOG_P, beta=0.3)),
    "jsd, labels": ((LOG_Q,), lambda g, q: g.liger_jsd(q, LOG_P, LABELS)),
    "jsd, forward KL": ((LOG_Q,), lambda g, q: g.liger_jsd(q, LOG_P, beta=0.0)),
    "jsd, reverse KL": ((LOG_Q,), lambda g, q: g.liger_jsd(q, LOG_P, beta=1.0)),
    "tvd": ((P,), lambda g, p: g.liger_tvd(p, LOG_P.exp(), reduction="batchmean")),
    "linear_jsd": (
        (X, W),
        lambda g, x, w: g.liger_fused_linear_jsd(x, w, Y, W.flip(0), LABELS, jsd_beta=0.3, temperature=2.0),
    ),
    "linear_cross_entropy": ((X, W), lambda g, x, w: g.liger_fused_linear_cross_entropy(x, w, LABELS)),
}


@pytest.mark.parametrize("name", UPSTREAM)
def test_liger_kernel(name: str) -> None:
    pytest.importorskip("liger_kernel", reason="the extra `peers` is not installed")
    operands, function = UPSTREAM[name]
    with upstream() as theirs:
        assert_same(lambda *given: function(f, *given), lambda *given: function(theirs, *given), *operands)


# ----------------------------------------------------------------------------------------------------- TRL


@pytest.fixture(scope="module")
def trl() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("trl.trainer.utils", reason="the extra `peers` is not installed")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_trls_selective_log_softmax(trl: Any, temperature: float) -> None:
    ids = LABELS.clamp(min=0)
    theirs = lambda x: trl.selective_log_softmax(x, ids, temperature)  # noqa: E731
    assert_same(lambda x: f.token_logprobs(x, ids, temperature).logp, theirs, X)
    assert_same(
        lambda x, w: f.fused_linear_logprobs(x, w, ids, temperature=temperature).logp,
        lambda x, w: theirs(x @ w.T),
        X,
        W,
    )


def test_trls_entropy(trl: Any) -> None:
    ids = LABELS.clamp(min=0)
    assert_same(lambda x: f.token_logprobs(x, ids).entropy, trl.entropy_from_logits, X)
    assert_same(
        lambda x, w: f.fused_linear_logprobs(x, w, ids).entropy,
        lambda x, w: trl.entropy_from_logits(x @ w.T),
        X,
        W,
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_trls_generalized_jsd(trl: Any, beta: float, temperature: float) -> None:
    theirs = importlib.import_module("trl.experimental.gkd").GKDTrainer.generalized_jsd_loss
    mine, other = X[None], Y[None]  # (batch, seq, vocab)

    def plain(x: torch.Tensor) -> torch.Tensor:
        return theirs(x, other, LABELS[None], beta=beta, temperature=temperature)

    def ours(x: torch.Tensor) -> torch.Tensor:
        return f.liger_jsd(x, other, LABELS[None], beta, from_logits=True, temperature=temperature)

    assert_same(ours, plain, mine)
    assert_same(
        lambda x: f.liger_fused_linear_jsd(
            x, W, other, W.flip(0), LABELS[None], beta, temperature=temperature
        ),
        lambda x: theirs(x @ W.T, other @ W.flip(0).T, LABELS[None], beta=beta, temperature=temperature),
        mine,
    )


# ----------------------------------------------------------------------------------- optax, Flax, jax.nn

A = jnp.asarray(X.numpy())
IDS = jnp.asarray(LABELS.clamp(min=0).numpy(), jnp.int32)
TARGET = jnp.asarray(P.numpy())
SCALE, BIAS = (jnp.asarray(draw(40, seed=s).numpy()) for s in (6, 7))


def smoothed(logits: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(IDS, 40), 0.1))


def flax_norm(layer: Any, **parameters: jax.Array) -> Function:
    return lambda x: layer.apply({"params": parameters}, x)


def nnx_embedding(table: jax.Array) -> jax.Array:
    layer = nnx.Embed(6, 40, rngs=nnx.Rngs(0))
    layer.embedding[...] = table
    return layer(IDS % 6)


JAX: dict[str, tuple[Function, Function]] = {
    "optax, cross entropy": (
        lambda x: liger_jax.softmax_cross_entropy_with_integer_labels(x, IDS, implementation="triton"),
        lambda x: optax.softmax_cross_entropy_with_integer_labels(x, IDS),
    ),
    "optax, smoothed labels": (
        lambda x: liger_jax.softmax_cross_entropy_with_integer_labels(
            x, IDS, label_smoothing=0.1, implementation="triton"
        ),
        smoothed,
    ),
    "optax, where": (
        lambda x: liger_jax.softmax_cross_entropy_with_integer_labels(
            x, IDS, where=IDS > 2, implementation="triton"
        ),
        lambda x: jnp.where(IDS > 2, optax.softmax_cross_entropy_with_integer_labels(x, IDS), 0),
    ),
    "optax, kl_divergence": (
        lambda x: liger_jax.kl_divergence(jax.nn.log_softmax(x), TARGET, implementation="triton"),
        lambda x: optax.kl_divergence(jax.nn.log_softmax(x), TARGET),
    ),
    "flax, RMSNorm": (
        lambda x: liger_jax.rms_norm(x, SCALE, implementation="triton"),
        flax_norm(linen.RMSNorm(), scale=SCALE),
    ),
    "flax, LayerNorm": (
        lambda x: liger_jax.layer_norm(x, SCALE, BIAS, implementation="triton"),
        flax_norm(linen.LayerNorm(), scale=SCALE, bias=BIAS),
    ),
    "flax, Embed": (lambda t: liger_jax.embedding(t, IDS % 6, implementation="triton"), nnx_embedding),
    "jax.nn, softmax": (lambda x: liger_jax.softmax(x, implementation="triton"), jax.nn.softmax),
    "jax.nn, log_softmax": (
        lambda x: liger_jax.token_logprobs(x, IDS, implementation="triton").logp,
        lambda x: jnp.take_along_axis(jax.nn.log_softmax(x), IDS[:, None], -1)[:, 0],
    ),
}


@pytest.mark.parametrize("name", JAX)
def test_jax_libraries(name: str) -> None:
    results = []
    for function in JAX[name]:
        output, pull = jax.vjp(function, A)
        (gradient,) = pull(jnp.cos(jnp.arange(output.size, dtype=output.dtype)).reshape(output.shape))
        results.append((output, gradient))
    for mine, other in zip(*results, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
