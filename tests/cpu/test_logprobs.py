"""Log-probabilities of tokens: what the field computes in float64, DPO written with them, memory, errors."""

from __future__ import annotations

import itertools
from typing import Any

import checkout  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical

import liger_jax
from benchmarks.peak_memory import PeakMemory
from liger_torch import LogProbs, functional, fused_linear_logprobs, token_logprobs
from liger_triton.logprobs import RESULTS

IDS = torch.tensor([[3, -100, 7], [0, 9, 9]])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def plain(z: torch.Tensor) -> tuple[torch.Tensor, ...]:
    valid = IDS != -100
    distribution = Categorical(logits=z)
    values = distribution.log_prob(IDS.clamp(min=0)), z.logsumexp(-1), distribution.entropy()
    return tuple(torch.where(valid, value, 0) for value in values)


COMBINATIONS = [c for n in (1, 2, 3) for c in itertools.combinations(RESULTS, n)]


@pytest.mark.parametrize("used", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_they_are_those_of_a_categorical_distribution(used: tuple[str, ...], softcap: float | None) -> None:
    """Values, and the gradients of any combination of them."""
    h, head, bias = draw(2, 3, 4), draw(10, 4, seed=1), draw(10, seed=2)
    options: dict[str, Any] = {"temperature": 0.7, "softcap": softcap, "scale": 0.5}
    logits = F.linear(h, head, bias)
    z = 0.5 * logits if softcap is None else softcap * torch.tanh(0.5 * logits / softcap)
    theirs = dict(zip(RESULTS, plain(z / 0.7), strict=True))
    fused = fused_linear_logprobs(h, head, IDS, bias, differentiable=used, **options)
    of_logits = token_logprobs(logits, IDS, **options)
    incoming = [draw(2, 3, seed=5 + i).detach() for i in range(len(used))]
    exact = torch.autograd.grad([theirs[name] for name in used], (h, head, bias), incoming, retain_graph=True)
    for ours in (fused, of_logits):
        for name, value in zip(RESULTS, ours, strict=True):
            torch.testing.assert_close(value, theirs[name], rtol=1e-12, atol=1e-13)
        found = torch.autograd.grad(
            [getattr(ours, name) for name in used], (h, head, bias), incoming, retain_graph=True
        )
        for a, b in zip(found, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for name, value in zip(RESULTS, fused, strict=True):
        assert value.requires_grad == (name in used)


def test_predictions_and_ranks() -> None:
    logits = draw(2, 3, 10)
    results = token_logprobs(logits, IDS, return_predicted=True, return_rank=True)
    assert results.predicted is not None and results.rank is not None
    valid = IDS != -100
    assert torch.equal(results.predicted, torch.where(valid, logits.argmax(-1), -1))
    order = logits.argsort(-1, descending=True)
    rank = (order == IDS[..., None]).int().argmax(-1)
    assert torch.equal(results.rank, torch.where(valid, rank, -1))
    assert results.rank.dtype == results.predicted.dtype == torch.int64
    assert isinstance(results, LogProbs) and len(tuple(results)) == 3


def test_tokens_masked_out_of_the_vocabulary() -> None:
    logits = draw(2, 3, 10).detach()
    logits[..., 4:7] = -torch.inf
    logits.requires_grad_()
    valid = IDS != -100
    ids = torch.where(IDS == 7, 3, IDS)
    results = token_logprobs(logits, ids)
    p = logits.softmax(-1)
    entropy = -torch.special.xlogy(p, p).sum(-1)
    torch.testing.assert_close(results.entropy, torch.where(valid, entropy, 0))
    (found,) = torch.autograd.grad(sum(r.sum() for r in results), logits)
    assert found.isfinite().all()
    assert not found[..., 4:7].any()


def test_dpo_is_that_of_plain_torch() -> None:
    """The example of the docstring, and its JAX twin."""
    hidden, head, reference_head = draw(4, 3, 4), draw(10, 4, seed=1), draw(10, 4, seed=2).detach()
    ids = torch.tensor([[3, -100, 7], [0, 9, 9], [1, 1, 1], [-100, -100, 2]])

    def dpo(logp: Any, beta: float = 0.1) -> torch.Tensor:
        policy, reference = logp(head).sum(-1), logp(reference_head).detach().sum(-1)
        chosen, rejected = (policy - reference).chunk(2)
        return -F.logsigmoid(beta * (chosen - rejected)).mean()

    def gathered(weight: torch.Tensor) -> torch.Tensor:
        log_p = F.linear(hidden, weight).log_softmax(-1)
        return torch.where(ids == -100, 0, log_p.gather(-1, ids.clamp(min=0)[..., None])[..., 0])

    ours = dpo(lambda w: fused_linear_logprobs(hidden, w, ids, differentiable=("logp",)).logp)
    theirs = dpo(gathered)
    torch.testing.assert_close(ours, theirs)
    expected = torch.autograd.grad(theirs, (hidden, head))
    for a, b in zip(torch.autograd.grad(ours, (hidden, head)), expected, strict=True):
        torch.testing.assert_close(a, b)

    def jax_dpo(x: jax.Array, kernel: jax.Array) -> jax.Array:
        logp = lambda w: liger_jax.linear_logprobs(  # noqa: E731
            x, w, jnp.asarray(ids.numpy()), kernel_layout="vh", differentiable=("logp",)
        ).logp.sum(-1)
        policy, reference = logp(kernel), jax.lax.stop_gradient(logp(jnp.asarray(reference_head.numpy())))
        chosen, rejected = (policy - reference).reshape(2, 2)
        return -jax.nn.log_sigmoid(0.1 * (chosen - rejected)).mean()

    with jax.enable_x64(True):
        arrays = [jnp.asarray(t.detach().numpy()) for t in (hidden, head)]
        for a, b in zip(jax.grad(jax_dpo, (0, 1))(*arrays), expected, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-10, atol=1e-12)


# -------------------------------------------------------------------------------------------------- memory


HIDDEN, VOCAB = 4096, 128_256
ONE_HEAD = 2 * HIDDEN * VOCAB / 1e9


def peak_of_a_step(tokens: int, *, frozen: bool = False, **options: Any) -> float:
    """GB beyond the inputs and input's gradient, forward and backward in bf16, on meta tensors."""
    x = torch.empty(tokens, HIDDEN, dtype=torch.bfloat16, device="meta", requires_grad=True)
    head = torch.empty(VOCAB, HIDDEN, dtype=torch.bfloat16, device="meta", requires_grad=not frozen)
    ids = torch.empty(tokens, dtype=torch.int64, device="meta")
    with PeakMemory() as memory:
        fused_linear_logprobs(x, head, ids, **options).logp.sum().backward()
    return (memory.peak - 2 * tokens * HIDDEN) / 1e9


def test_peak_memory_does_not_grow_with_the_tokens() -> None:
    fixed: dict[str, Any] = {"chunk_bytes": 500_000_000, "accum_dtype": torch.bfloat16}
    for keep, limit in ((False, 0.5), (1_000_000_000, 1.5)):
        few, many = (peak_of_a_step(n, keep_logits=keep, **fixed) for n in (16_384, 131_072))
        assert few < ONE_HEAD + limit + 0.1
        assert many < few + 0.1  # a few numbers per token, and chunks rounded to whole tiles


def test_peak_memory_by_default() -> None:
    """Of Llama 3's head at 8192 tokens, whose logits take 2.1 GB in bf16: the weight's gradient, as much for logits."""
    assert peak_of_a_step(8192, keep_logits=False) < ONE_HEAD + 0.6
    assert peak_of_a_step(8192) < 2 * ONE_HEAD + 0.6
    everything = peak_of_a_step(8192, keep_logits=True)
    assert everything < ONE_HEAD + 2 * 8192 * VOCAB / 1e9 + 0.1  # turned into their gradient where they are
    assert (
        peak_of_a_step(8192, frozen=True, differentiable=("logp",)) < 0.7
    )  # one chunk, and x's gradient once more


# -------------------------------------------------------------------------------------------------- errors

X, HEAD = torch.zeros(2, 3, 4), torch.zeros(10, 4)
BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "ids": (ValueError, r"linear_logprobs: ids has shape \(2, 2\)", lambda: fused_linear_logprobs(X, HEAD, IDS[:, :2])),
    "ids' dtype": (TypeError, "ids has dtype float32", lambda: fused_linear_logprobs(X, HEAD, IDS.clamp(min=0).float())),
    "id": (ValueError, "ids holds the label 12", lambda: fused_linear_logprobs(X, HEAD, IDS.abs() + 9)),
    "temperature": (ValueError, "temperature is 0.0; it must be positive", lambda: fused_linear_logprobs(X, HEAD, IDS, temperature=0.0)),
    "softcap": (ValueError, "logprobs: softcap is -1.0; it must be positive", lambda: token_logprobs(X, IDS % 4, softcap=-1.0)),
    "weight": (ValueError, r"weight has shape \(10, 3\)", lambda: fused_linear_logprobs(X, HEAD[:, :3], IDS)),
    "weight's dtype": (TypeError, "weight has dtype bfloat16 but input has float32", lambda: fused_linear_logprobs(X, HEAD.bfloat16(), IDS)),
    "keep": (ValueError, "keep_logits is 'all'; give \"auto\"", lambda: fused_linear_logprobs(X, HEAD, IDS, keep_logits="all")),
    "keep bytes": (ValueError, "keep_logits is -1 bytes", lambda: fused_linear_logprobs(X, HEAD, IDS, keep_logits=-1)),
    "differentiable": (ValueError, "differentiable is 'logp'; give a tuple", lambda: fused_linear_logprobs(X, HEAD, IDS, differentiable="logp")),
    "differentiable name": (ValueError, r"differentiable is \('logits',\)", lambda: fused_linear_logprobs(X, HEAD, IDS, differentiable=("logits",))),
    "jax kernel": (ValueError, r"kernel has shape \(10, 4\)", lambda: liger_jax.linear_logprobs(jnp.ones((2, 4)), jnp.ones((10, 4)), jnp.zeros(2, int))),
    "jax where": (ValueError, r"where is bool\[3\]; expected bool\[2\], the shape of ids", lambda: liger_jax.token_logprobs(jnp.ones((2, 4)), jnp.zeros(2, int), where=jnp.ones(3, bool))),
    "jax scale": (ValueError, "logit_scale is inf", lambda: liger_jax.token_logprobs(jnp.ones((2, 4)), jnp.zeros(2, int), logit_scale=float("inf"))),
    "jax one token": (ValueError, r"ids has shape \(1,\); expected \(\)", lambda: liger_jax.token_logprobs(jnp.ones(4), jnp.zeros(1, int))),
}  # fmt: skip


@pytest.mark.parametrize(("error", "message", "act"), BAD.values(), ids=BAD)
def test_refused(error: type[Exception], message: str, act: Any) -> None:
    with pytest.raises(error, match=message):
        act()


def test_one_token_without_an_axis() -> None:
    logits, kernel = jnp.linspace(-1, 2, 5), jnp.eye(5)
    whole = liger_jax.token_logprobs(logits[None], jnp.array([3]), return_rank=True)
    for one in (
        liger_jax.token_logprobs(logits, 3, return_rank=True),
        liger_jax.linear_logprobs(logits, kernel, 3, return_rank=True),
    ):
        assert jax.tree.map(jnp.shape, one) == liger_jax.LogProbs((), (), (), None, ())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b[0], rtol=1e-6)


def test_exported_once() -> None:
    assert functional.fused_linear_logprobs is fused_linear_logprobs
