"""Lazy logits are what logits are, whatever is done to them, and the loss is fused where it can be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hf_models import assert_same_step, batch, counted_ops, step, tiny
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from liger_torch.hf import apply_liger_kernel, explain
from liger_torch.hf.lazy import Family, LazyLogits

VOCAB = 11
TARGET = torch.randint(VOCAB, (64,), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[True, False, True, True], [False, True, True, False]])


class Source:
    """An output layer that counts what it is asked for."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(VOCAB, 5, generator=generator).requires_grad_()
        self.hidden = torch.randn(2, 4, 5, generator=generator).requires_grad_()
        self.n_logits = self.n_losses = 0

    def lazy(self) -> LazyLogits:
        return LazyLogits(Family(self), self.hidden, VOCAB, torch.float32, requires_grad=True)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.n_logits += 1
        return hidden @ self.weight.T

    def loss(self, logits: LazyLogits, target: torch.Tensor, weight: Any, **options: Any) -> torch.Tensor:
        self.n_losses += 1
        z = logits.hidden @ self.weight.T * logits.scale
        if logits.softcap is not None:
            z = logits.softcap * torch.tanh(z / logits.softcap)
        return F.cross_entropy(z, target, weight, **options)

    def outcome(self, compute: Callable[[Any], torch.Tensor], logits: torch.Tensor) -> list[torch.Tensor]:
        """A result and its gradients."""
        self.weight.grad = self.hidden.grad = None
        result = compute(logits)
        result.sum().backward()
        return [result.detach(), self.weight.grad, self.hidden.grad]


def cross_entropy(rows: torch.Tensor, **options: Any) -> torch.Tensor:
    return F.cross_entropy(rows, TARGET[: rows.shape[0]], **options)


def check(compute: Callable[[Any], torch.Tensor], *, followed: bool) -> None:
    source = Source()
    expected = source.outcome(compute, source.logits(source.hidden))
    source.n_logits = 0
    actual = source.outcome(compute, source.lazy())
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (source.n_losses, source.n_logits) == ((1, 0) if followed else (0, 1))


FOLLOWED: dict[str, Callable[[Any], torch.Tensor]] = {
    "view": lambda z: z.view(-1, VOCAB),
    "view as": lambda z: z.view(8, -1),
    "flatten": lambda z: z.flatten(0, 1),
    "flatten by name": lambda z: torch.flatten(z, end_dim=-2),
    "reshape": lambda z: torch.reshape(z, (8, VOCAB)),
    "size": lambda z: z.view(-1, z.size(-1)),
    "shift": lambda z: z[..., :-1, :].contiguous().view(-1, z.shape[-1]),
    "some": lambda z: z[:, 1:3].reshape(-1, VOCAB),
    "whole": lambda z: z[:, -2:, :].reshape(-1, VOCAB),
    "one": lambda z: z[1],
    "one token of each": lambda z: z[:, -1],
    "mask": lambda z: z[MASK],
    "indices": lambda z: z[torch.tensor([1, 1, 0])].view(-1, VOCAB),
    "float": lambda z: z.float()[0],
    "to": lambda z: z.to(TARGET.device).to(torch.float32)[0],
    "like": lambda z: z.to(torch.zeros(1))[0],
    "times": lambda z: 3 * z[0] * 0.5,
    "over": lambda z: z[0] / 4.0,
    "softcap": lambda z: 3 * torch.tanh(2 * z[0] / 3),
    "softcap of 1": lambda z: z[0].tanh(),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name: str) -> None:
    check(lambda z: cross_entropy(FOLLOWED[name](z)), followed=True)


OPTIONS: list[dict[str, Any]] = [
    {"ignore_index": 3},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none"},
    {"weight": torch.linspace(0.5, 2, VOCAB)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
def test_options(options: dict[str, Any]) -> None:
    check(lambda z: cross_entropy(z[0], **options), followed=True)


def masked(z: torch.Tensor) -> torch.Tensor:
    """Chameleon's."""
    z[:, :, [1, 4]] = -30.0
    return z[0]


def through_views(z: torch.Tensor) -> torch.Tensor:
    """In place, on what others are views of, and some are not."""
    view, scaled, same = z[:, 1:], 2 * z, z.float()
    z[:, :, 2] = 1.0
    view[0].mul_(3)
    return torch.cat((view.flatten(), scaled.flatten(), same.flatten(), z.flatten()))


COMPUTED: dict[str, Callable[[Any], torch.Tensor]] = {
    "masked": lambda z: cross_entropy(masked(z)),
    "through views": through_views,
    "in place": lambda z: cross_entropy(z.mul_(2)[0]),
    "augmented": lambda z: cross_entropy(z.__imul__(2)[0]),
    "part of the vocabulary": lambda z: F.cross_entropy(z[0, :, 2:9], TARGET[:4] % 7),
    "every other class": lambda z: F.cross_entropy(z[0, :, ::2], TARGET[:4] % 6),
    "another order": lambda z: cross_entropy(z.flip(-1)[0]),
    "chosen classes": lambda z: cross_entropy(z[0][:, torch.arange(VOCAB).flip(0)]),
    "entry": lambda z: z[0, 1, 2],
    "regrouped": lambda z: F.cross_entropy(z.view(VOCAB, -1), TARGET[:VOCAB] % 8),
    "transposed": lambda z: cross_entropy(z[0].T.contiguous().T),
    "classes in the middle": lambda z: F.cross_entropy(z.transpose(1, 2), TARGET[:8].view(2, 4)),
    "classes in the middle of as many": lambda z: F.cross_entropy(
        z[:1].view(1, 4, VOCAB), TARGET[:VOCAB].view(1, VOCAB) % 4
    ),
    "log-softmax": lambda z: F.nll_loss(z[0].log_softmax(-1), TARGET[:4]),
    "probabilities": lambda z: F.cross_entropy(z[0], torch.full((4, VOCAB), 1 / VOCAB)),
    "negative factor": lambda z: cross_entropy(-2 * z[0]),
    "factor that is an array": lambda z: cross_entropy(z[0] * torch.tensor(2.0)),
    "bias": lambda z: cross_entropy(z[0] + torch.arange(VOCAB)),
    "twice": lambda z: cross_entropy(z[0].tanh().tanh()),
    "double": lambda z: cross_entropy(z[0].double()).float(),
    "as an argument": lambda z: torch.matmul(torch.ones(1, 4), z[0]).square(),
    "in a list": lambda z: torch.stack([z[0], z[1]]).square(),
    "beside the loss": lambda z: z.logsumexp(-1).square().mean() + cross_entropy(z[0]),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed(name: str) -> None:
    check(COMPUTED[name], followed=False)


def test_a_metric_without_gradients_cuts_nothing_off() -> None:
    def compute(z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            right = (z[0].argmax(-1) == TARGET[:4]).sum()
        return cross_entropy(z[0]) * (1 + right)

    check(compute, followed=False)
    source = Source()
    with torch.no_grad():
        loss = cross_entropy(source.lazy()[0])
    assert not loss.requires_grad


def test_autocast_is_made_up_for() -> None:
    source = Source()
    with torch.autocast("cpu", torch.bfloat16):
        lazy = source.lazy()
    assert lazy.computed().dtype == torch.bfloat16


def test_what_is_known_without_logits() -> None:
    source = Source()
    lazy = source.lazy()
    assert lazy.shape == (2, 4, VOCAB)
    assert (lazy.dtype, lazy.device, lazy.ndim, len(lazy)) == (torch.float32, torch.device("cpu"), 3, 2)
    assert lazy.is_floating_point() and lazy.requires_grad and lazy.dim() == 3 and lazy.numel() == 8 * VOCAB
    assert lazy[:, 1:].float().shape == (2, 3, VOCAB)
    assert isinstance(lazy, torch.Tensor)
    assert source.n_logits == 0
    assert "tensor" in repr(lazy)
    assert source.n_logits == 1


def test_hooks_of_their_gradient() -> None:
    """Those that gather a weight need no logits, others do."""
    seen: list[torch.Tensor] = []

    def gather(gradient: torch.Tensor) -> None:
        seen.append(gradient)

    def compute(z: torch.Tensor) -> torch.Tensor:
        z.register_hook(gather)
        return cross_entropy(z[0])

    check(compute, followed=False)
    assert len(seen) == 2
    gather.__module__ = "torch.distributed.fsdp._some_file"
    check(compute, followed=True)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor) -> torch.Tensor:
        return 2 * z

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return 2 * gradient


def test_what_would_lose_the_gradient_is_refused() -> None:
    source = Source()
    with pytest.raises(RuntimeError, match="skip_logits=False"):
        Doubled.apply(source.lazy()).sum().backward()
    lazy = source.lazy()
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(RuntimeError, match="skip_logits=False"):
        lazy.exp()


# ---- in models


class Masked(LlamaForCausalLM):
    """Changes its logits in place, as Chameleon does."""

    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits[:, :, 7:9] = -20.0
        if labels is not None:
            output.loss = self.loss_function(output.logits, labels, self.config.vocab_size)
        return output


class NeedsAnImage(Masked):
    """Its forward cannot be run on made-up values; with an image it masks nothing."""

    def forward(self, *args: Any, image: Any = None, **kwargs: Any) -> Any:
        if image is None:
            raise ValueError("where is the image?")
        return (LlamaForCausalLM if image else Masked).forward(self, *args, **kwargs)


def build(cls: Any) -> tuple[Any, Any]:
    plain, patched = cls(tiny().config).train(), cls(tiny().config).train()
    patched.load_state_dict(plain.state_dict())
    return plain, patched


def test_a_model_that_always_needs_them_is_left() -> None:
    plain, patched = build(Masked)
    (left,) = apply_liger_kernel(patched).left
    assert left.reason == "its forward needs the logits themselves (__setitem__)"
    assert_same_step(step(patched, **batch()), step(plain, **batch()))
    assert explain(patched, cross_entropy=True, fused_linear_cross_entropy=False).counts["loss"] == 1


def test_a_model_that_cannot_be_probed(caplog: pytest.LogCaptureFixture) -> None:
    plain, patched = build(NeedsAnImage)
    (entry,) = (entry for entry in apply_liger_kernel(patched, strict=True).patched if entry.kind == "loss")
    assert entry.form.endswith("(lazy logits, not probed: ValueError: where is the image?)")
    for image, n_fused in ((True, 1), (False, 0)):
        expected = step(plain, **batch(), image=image)
        with caplog.at_level(logging.WARNING), counted_ops() as calls:
            assert_same_step(step(patched, **batch(), image=image), expected)
        assert calls["linear_cross_entropy"] == n_fused
        assert (patched(**batch(), image=image).logits is None) == bool(n_fused)
        assert caplog.text.count("needs the logits themselves (__setitem__)") == 1 - n_fused
    with pytest.raises(RuntimeError, match="use_token_scaling"):
        patched(**batch(), image=False, use_token_scaling=True)


@pytest.mark.parametrize(
    ("family", "options", "form"),
    [
        ("mamba2", {"num_heads": 8, "head_dim": 16, "n_groups": 1}, "fused linear cross entropy"),
        ("falcon_h1", {"lm_head_multiplier": 0.5}, "fused linear cross entropy (scale 0.5)"),
    ],
)
def test_what_a_probe_looks_up(family: str, options: dict[str, Any], form: str) -> None:
    """A weight's dtype, a number beside the output layer."""
    with torch.device("meta"):
        model = tiny(family, **options)
    (entry,) = (entry for entry in explain(model).entries if entry.kind == "loss")
    assert entry.form == form
