"""Losses on a head, through the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint

import liger_torch
from liger import losses
from liger_torch import chunked_loss
from liger_triton import linear_logprobs
from liger_triton.linear_chunks import whole_units


def test_what_the_mask_excludes_never_reaches_a_product() -> None:
    """NaN in the hidden states of padding touches neither loss nor gradients."""
    generator = torch.Generator().manual_seed(0)
    x, ref_x = (torch.randn(4, 5, 8, generator=generator) for _ in range(2))
    weight, ref_weight = (torch.randn(33, 8, generator=generator) for _ in range(2))
    ids = torch.randint(0, 33, (4, 5), generator=generator)
    ids[0, :2], ids[2, 3:] = -100, -100
    x.requires_grad_(), weight.requires_grad_()

    def gradients() -> tuple[torch.Tensor, ...]:
        loss, _ = chunked_loss.LigerFusedLinearDPOLoss()(weight, x, ids, None, ref_x, ref_weight)
        return loss, *torch.autograd.grad(loss, (x, weight))

    expected = gradients()
    with torch.no_grad():
        x[ids == -100], ref_x[ids == -100] = float("nan"), float("nan")
    for a, b in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert not expected[1][ids == -100].any()


def test_dpo_in_both_frontends() -> None:
    pytest.importorskip("jax", reason="needs jax")
    import jax

    from liger_jax import linear_logprobs, losses

    rng = np.random.default_rng(0)
    x, weight = (
        rng.standard_normal((4, 5, 8)).astype(np.float32),
        rng.standard_normal((33, 8)).astype(np.float32),
    )
    ids = rng.integers(0, 33, (4, 5))
    mask = np.arange(5) >= np.arange(4)[:, None] % 3
    reference = -np.abs(rng.standard_normal(4)).astype(np.float32)

    def loss(x: jax.Array, weight: jax.Array) -> jax.Array:
        found = linear_logprobs(x, weight, ids, where=mask, kernel_layout="vh", differentiable=("logp",))
        pairs = losses.pair_logps(found.logp, mask, average=False)
        return losses.dpo(*pairs, *losses.halves(jax.numpy.asarray(reference)), beta=0.3).loss.mean()

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, weight)
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, weight))
    labels = torch.tensor(np.where(mask, ids, -100))
    ours, _ = chunked_loss.LigerFusedLinearDPOLoss(beta=0.3)(
        tw, tx, labels, ref_logps=torch.tensor(reference)
    )
    np.testing.assert_allclose(ours.item(), value, rtol=1e-6)
    for a, b in zip(torch.autograd.grad(ours, (tx, tw)), gradients, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=2e-5, atol=1e-7)


ANSWERS, TOKENS, HIDDEN, VOCAB = 6, 5, 8, 33


class Batch:
    """Answers of several lengths, a head, and losses of them under options of memory."""

    def __init__(self, full: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(ANSWERS, TOKENS, HIDDEN, generator=generator).requires_grad_()
        self.weight = torch.randn(VOCAB, HIDDEN, generator=generator).requires_grad_()
        self.bias = torch.randn(VOCAB, generator=generator).requires_grad_()
        self.ids = torch.randint(0, VOCAB, (ANSWERS, TOKENS), generator=generator)
        if not full:
            self.ids[0, :2], self.ids[1, 4:], self.ids[3, :] = -100, -100, -100
        self.ref_logps = -3 * torch.rand(ANSWERS, generator=generator)
        self.old = -3 * torch.rand(ANSWERS, TOKENS, generator=generator)
        self.advantages = torch.randn(ANSWERS, generator=generator)

    def of(self, loss: str, create_graph: bool = False, **options: Any) -> list[torch.Tensor]:
        """The loss, its gradients, and what there is to log."""
        kind, _, variant = loss.partition(" ")
        head = {"lin_weight": self.weight, "_input": self.x, "target": self.ids, "bias": self.bias}
        if kind == "DPO":
            smoothing = {"label_smoothing": 0.1} if variant in ("exo_pair", "robust") else {}
            made = chunked_loss.LigerFusedLinearDPOLoss(
                loss_type=variant, compute_nll_loss=True, alpha=0.5, **smoothing, **options
            )
            value, rest = made(**head, ref_logps=self.ref_logps)
        elif kind in ("CPO", "SimPO", "ORPO"):
            value, rest = getattr(chunked_loss, f"LigerFusedLinear{kind}Loss")(**options)(**head)
        elif kind == "KTO":
            made = chunked_loss.LigerFusedLinearKTOLoss(use_ref_model=True, **options)
            labels = torch.arange(ANSWERS) % 2 == 0
            value, rest = made(**head, preference_labels=labels, ref_logps=self.ref_logps)
        else:
            level, _, loss_type = variant.partition(" ")
            made = chunked_loss.LigerFusedLinearGRPOLoss(
                loss_type=loss_type, importance_sampling_level=level, beta=0.1, use_ref_model=False,
                max_completion_length=TOKENS, temperature=0.8, entropy_coef=0.01, **options,
            )  # fmt: skip
            mask = self.ids != -100
            value, rest = made(
                self.x, self.weight, self.ids.clamp(min=0), mask, self.advantages, self.bias,
                old_per_token_logps=self.old,
            )  # fmt: skip
        operands = (self.x, self.weight, self.bias)
        return [value, *torch.autograd.grad(value, operands, create_graph=create_graph), *rest]


BY_GROUP = [
    *(f"DPO {name}" for name in losses.DPO_LOSSES if name not in losses.SORTED_LOSSES),
    "CPO",
    "SimPO",
    "ORPO",
    "KTO",
    *(f"GRPO token {name}" for name in losses.POLICY_LOSSES),
    "GRPO sequence grpo",
]


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Logits of 11 rows are kept at most; the number of chunks of every loss that goes group by group."""
    found: list[int] = []
    by_group = linear_logprobs.gradients_by_group

    def spy(backend: Any, operands: Any, options: Any, needs: Any, bounds: Any, cotangents: Any) -> Any:
        found.append(len(bounds))
        return by_group(backend, operands, options, needs, bounds, cotangents)

    monkeypatch.setattr(linear_logprobs, "gradients_by_group", spy)
    monkeypatch.setattr(linear_logprobs, "default_keep_bytes", lambda hidden, vocab, dtype: 11 * 4 * vocab)
    return found


@pytest.mark.parametrize(
    ("loss", "full"),
    [*((loss, False) for loss in BY_GROUP), ("DPO sigmoid", True), ("GRPO token dapo", True)],
)
def test_gradients_by_group_are_those_of_the_whole_batch(
    loss: str, full: bool, little_memory: list[int]
) -> None:
    batch = Batch(full)
    expected = batch.of(loss, keep_logits=True)
    assert not little_memory
    found = batch.of(loss, chunk_bytes=8 * 4 * VOCAB)
    assert len(little_memory) == 1 and little_memory[0] > 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("loss", ["DPO aot", "DPO aot_unpaired"])
def test_losses_of_the_whole_batch_do_not_go_by_group(loss: str, little_memory: list[int]) -> None:
    batch = Batch()
    expected = batch.of(loss, keep_logits=True)
    for a, b in zip(batch.of(loss, chunk_bytes=8 * 4 * VOCAB), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
    assert not little_memory


def test_a_second_backward_pass_by_group_is_refused(little_memory: list[int]) -> None:
    batch = Batch()
    loss, _ = chunked_loss.LigerFusedLinearCPOLoss(chunk_bytes=8 * 4 * VOCAB)(
        batch.weight, batch.x, batch.ids, batch.bias
    )
    (2 * loss).backward(retain_graph=True)
    assert little_memory == [3]
    first = batch.weight.grad
    assert first is not None
    torch.testing.assert_close(first, 2 * batch.of("CPO", keep_logits=True)[2], rtol=2e-5, atol=2e-6)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


@pytest.mark.parametrize("loss", BY_GROUP)
def test_a_second_derivative_by_group_is_refused(loss: str, little_memory: list[int]) -> None:
    """Its incoming gradient is 1 and has none: torch would take the gradients for constants."""
    batch = Batch()
    with pytest.raises(
        RuntimeError, match=r"a loss on a head: create_graph=True, but its gradients have none"
    ):
        batch.of(loss, create_graph=True, **SMALL)
    assert len(little_memory) == 1


SMALL: dict[str, Any] = {"chunk_bytes": 8 * 4 * VOCAB}


def test_answers_without_tokens_between_long_ones(little_memory: list[int]) -> None:
    """What a mask of truncated completions leaves: no chunk is made of empty answers alone."""
    batch = Batch(full=True)
    batch.ids[1], batch.ids[4] = -100, -100
    expected = batch.of("GRPO token grpo", keep_logits=True)
    found = batch.of("GRPO token grpo", chunk_bytes=3 * 4 * VOCAB)
    assert little_memory == [4]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


def test_no_chunk_has_no_rows() -> None:
    assert whole_units([10, 0, 100], 11) == [range(1), range(2, 3)]
    assert whole_units([0, 0, 6, 0, 6, 0], 4) == [range(2, 3), range(4, 6)]
    assert whole_units([3, 0, 1], 1) == [range(3)]


@pytest.mark.parametrize("frozen", [("x",), ("bias",), ("x", "bias")], ids="-".join)
def test_by_group_with_frozen_operands(frozen: tuple[str, ...], little_memory: list[int]) -> None:
    batch = Batch()
    for name in frozen:
        getattr(batch, name).requires_grad_(False)
    trained = [t for t in (batch.x, batch.weight, batch.bias) if t.requires_grad]
    pairs = [
        torch.autograd.grad(
            chunked_loss.LigerFusedLinearCPOLoss(**options)(batch.weight, batch.x, batch.ids, batch.bias)[0],
            trained,
        )
        for options in (SMALL, {"keep_logits": True})
    ]
    assert little_memory == [3]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


def test_valid_rows_by_group(little_memory: list[int]) -> None:
    """Those of flattened ids do not tell how long each answer is; those of other ids are refused."""
    batch = Batch()

    def gradient(rows: Any) -> torch.Tensor:
        cpo = chunked_loss.LigerFusedLinearCPOLoss(**SMALL)
        value, _ = cpo(batch.weight, batch.x, batch.ids, batch.bias, valid_rows=rows)
        return torch.autograd.grad(value, batch.weight)[0]

    expected = gradient(liger_torch.valid_rows(batch.ids))
    assert little_memory == [3]
    torch.testing.assert_close(
        gradient(liger_torch.valid_rows(batch.ids.flatten())), expected, rtol=2e-5, atol=2e-6
    )
    assert little_memory == [3]
    with pytest.raises(ValueError, match="valid_rows was made for ignore_index 0, the loss has -100"):
        gradient(liger_torch.valid_rows(batch.ids, 0))
    with pytest.raises(ValueError, match="valid_rows was made for 24 labels, ids has 30"):
        gradient(liger_torch.valid_rows(batch.ids[:, 1:]))


def test_what_by_group_does_not_take_is_refused_as_elsewhere(little_memory: list[int]) -> None:
    batch = Batch()
    cpo = chunked_loss.LigerFusedLinearCPOLoss(**SMALL)
    with pytest.raises(TypeError, match="float64 on cpu: the kernels compute in float32"):
        cpo(batch.weight.double(), batch.x.double(), batch.ids)
    batch.ids[0, 3] = VOCAB + 3
    with pytest.raises(ValueError, match="ids holds the label 36"):
        cpo(batch.weight, batch.x, batch.ids)
    assert not little_memory


def test_by_group_whatever_the_default_dtype(little_memory: list[int]) -> None:
    batch = Batch()
    expected = batch.of("CPO", **SMALL)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = batch.of("CPO", **SMALL)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert little_memory == [3, 3]


def test_by_group_calls_no_hooks_of_the_backward_pass(little_memory: list[int]) -> None:
    """A checkpoint is computed once, not once more for each chunk; what is offloaded is the model's."""
    batch = Batch()
    calls: list[str] = []

    def loss(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        calls.append("loss")
        return chunked_loss.LigerFusedLinearCPOLoss(**SMALL)(weight, x, batch.ids, batch.bias)[0]

    def hook(tensor: torch.Tensor) -> torch.Tensor:
        calls.append("hook")
        return tensor

    operands = (batch.x, batch.weight)
    expected = torch.autograd.grad(loss(*operands), operands)
    value = torch.utils.checkpoint.checkpoint(loss, *operands, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(value, operands), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with torch.autograd.graph.saved_tensors_hooks(hook, hook):
        loss(*operands)
    assert calls == 3 * ["loss"]
