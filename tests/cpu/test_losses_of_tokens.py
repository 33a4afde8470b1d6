"""Supervised losses and those of distillation: torch's and TRL's own code, and their sums over chunks of logits."""

from __future__ import annotations

import types
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from loss_arrays import TOKENS, draw, needs_trl, recorder, same

from liger import losses


def test_means_and_masks() -> None:
    logp, mask = draw(4, 6, seed=0), torch.ones(4, 6, dtype=torch.bool)
    mask[:, 4:] = False
    mask[3] = False
    logp[:, 5] = float("nan")
    expected = logp[:, :4].mean(1)
    expected[3] = 0
    torch.testing.assert_close(losses.sequence_logp(logp, mask, average=True), expected)
    torch.testing.assert_close(losses.negative_log_likelihood(logp, mask), -logp[:3, :4].mean())
    assert losses.token_mean(logp, torch.zeros_like(mask)) == 0


def test_sft_is_cross_entropy() -> None:
    logits = draw(3, TOKENS, 11, seed=0).requires_grad_()
    labels = torch.randint(0, 11, (3, TOKENS), generator=torch.Generator().manual_seed(1))
    labels[0, :4] = labels[2, 5:] = -100
    mask, weights = labels != -100, draw(3, TOKENS, seed=2).abs()
    logp = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    same(losses.sft(logp, mask), plain, logits)
    logp, lse = (
        logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0],
        logits.logsumexp(-1),
    )
    found = losses.sft(logp, mask, weights=weights, lse=lse, z_loss=1e-2, num_items=torch.tensor(40))
    per_token = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    expected = per_token.view(3, -1) * weights + 1e-2 * logits.logsumexp(-1) ** 2
    same(found, expected[mask].sum() / 40, logits)
    assert losses.sft(logp, torch.zeros_like(mask)) == 0


def test_sft_reads_nothing_outside_the_mask() -> None:
    mask = torch.tensor([[True, False, True]])
    arrays = {name: draw(1, 3, seed=i) for i, name in enumerate(("logp", "lse", "weights"))}

    def results() -> tuple[torch.Tensor, ...]:
        logp, lse = (arrays[name].detach().requires_grad_() for name in ("logp", "lse"))
        loss = losses.sft(logp, mask, loss_type="dft", lse=lse, z_loss=0.1, weights=arrays["weights"])
        return loss, *torch.autograd.grad(loss, (logp, lse))

    expected = results()
    for array in arrays.values():
        array[~mask] = float("inf")
    for a, b in zip(results(), expected, strict=True):
        torch.testing.assert_close(a, b)


@needs_trl
@pytest.mark.parametrize("loss_type", losses.SFT_LOSSES)
@pytest.mark.parametrize("num_items", [None, 12])
def test_sft_equals_trl(loss_type: str, num_items: int | None) -> None:
    from trl.trainer.sft_trainer import SFTTrainer

    logp, mask = -draw(3, TOKENS, seed=0).abs(), torch.arange(TOKENS).expand(3, -1) > 2
    logp.requires_grad_()
    outputs = types.SimpleNamespace(
        log_probs=logp * mask, label_mask=mask, entropy=torch.zeros_like(logp), is_top1=mask, aux_loss=None
    )
    accelerator = recorder()
    accelerator.parallelism_config = None
    stub = types.SimpleNamespace(
        accelerator=accelerator, model=types.SimpleNamespace(training=True), aux_loss_enabled=False,
        compute_loss_func=None, label_smoother=None,
        args=types.SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=False),
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {"labels": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask)}
    theirs = SFTTrainer.compute_loss(stub, lambda **_: outputs, inputs, num_items_in_batch=num_items)
    same(losses.sft(logp, mask, loss_type=loss_type, num_items=num_items), theirs, logp)


@needs_trl
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_top_k_divergence_equals_trl(beta: float, tail: bool) -> None:
    from trl.experimental.server_distillation import server_distillation_trainer as theirs

    logits, teacher = draw(6, 11, seed=0).requires_grad_(), draw(6, 11, seed=1).log_softmax(-1)
    top = teacher.topk(3)
    q, p = (logits / 0.7).log_softmax(-1).gather(-1, top.indices), top.values
    support = torch.ones_like(p, dtype=torch.bool)
    if tail:
        q, _ = theirs._add_tail_bucket(q, support)
        p, support = theirs._add_tail_bucket(p, support)
    expected = theirs._jsd_divergence(q, p, beta, support).sum()
    found = losses.top_k_divergence(logits, top.indices, top.values, beta=beta, temperature=0.7, tail=tail)
    assert found.shape == (6,)
    same(found.sum(), expected, logits, tolerance=1e-9)


def test_top_k_divergence_of_all_words_is_the_whole() -> None:
    logits, teacher = draw(6, 11, seed=0), draw(6, 11, seed=1).log_softmax(-1)
    top = teacher.topk(11)
    expected = torch.nn.functional.kl_div(
        logits.log_softmax(-1), teacher, reduction="none", log_target=True
    ).sum(-1)
    for tail in (False, True):
        found = losses.top_k_divergence(logits, top.indices, top.values, tail=tail)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"top_k_divergence: ids have shape \(6, 11\), teacher_logp \(6, 3\)"
    ):
        losses.top_k_divergence(logits, top.indices, top.values[:, :3])


def test_cosine_distance() -> None:
    student, teacher = draw(5, 7, seed=0).requires_grad_(), draw(5, 7, seed=1)
    expected = 1 - torch.nn.functional.cosine_similarity(student, teacher, dim=-1)
    same(losses.cosine_distance(student, teacher).sum(), expected.sum(), student)
    zeros = torch.zeros(2, 7, requires_grad=True)
    value = losses.cosine_distance(zeros, teacher[:2])
    assert (value == 1).all()
    assert torch.isfinite(torch.autograd.grad(value.sum(), zeros)[0]).all()


@pytest.mark.parametrize("layout", ["hv", "vh"])
def test_map_logits_in_jax(layout: str) -> None:
    jax = pytest.importorskip("jax", reason="needs jax")
    from liger_jax import map_logits

    rng = np.random.default_rng(0)
    x, kernel = (
        rng.standard_normal((2, 5, 4)).astype(np.float32),
        rng.standard_normal((4, 9)).astype(np.float32),
    )
    bias, teacher = (
        rng.standard_normal(9).astype(np.float32),
        rng.standard_normal((2, 5, 9)).astype(np.float32),
    )
    ids = np.argsort(teacher, -1)[..., :3]
    teacher_logp = np.take_along_axis(np.asarray(jax.nn.log_softmax(teacher)), ids, -1)

    def function(logits: Any, ids: Any, logp: Any) -> Any:
        return losses.top_k_divergence(logits, ids, logp, beta=0.3)

    def chunked(x: Any, kernel: Any, bias: Any) -> Any:
        kernel = kernel if layout == "hv" else kernel.T
        found = map_logits(
            function, x, kernel, ids, teacher_logp, bias=bias, kernel_layout=layout, chunk_bytes=4 * 9 * 3
        )
        assert found.shape == (2, 5)
        return found.sum()

    def whole(x: Any, kernel: Any, bias: Any) -> Any:
        return function(x @ kernel + bias, ids, teacher_logp).sum()

    value, gradients = jax.jit(jax.value_and_grad(chunked, (0, 1, 2)))(x, kernel, bias)
    expected, others = jax.value_and_grad(whole, (0, 1, 2))(x, kernel, bias)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(gradients, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="map_logits: kernel_layout is 'hh'"):
        map_logits(function, x, kernel, kernel_layout="hh")
    with pytest.raises(
        ValueError, match=r"map_logits: arrays\[0\] has shape \(2, 4, 3\); its leading axes must be \(2, 5\)"
    ):
        map_logits(function, x, kernel, ids[:, :4])
