"""The output layer of a patched model, and one forward pass of the model around it.

While a loss is wanted and logits are not, the output layer keeps the hidden states that it is given and returns
something in the place of the logits. When the model asks for its loss, the output layer is called a second time with
these hidden states and with the labels, and computes both in one. Because that is an ordinary call of the module, FSDP
and ZeRO gather its weight around it. Other hooks on the output layer would run twice and see neither logits nor, the
second time, anything they expect: with them the loss is not fused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from liger_torch.autograd import autocasting
from liger_torch.functional import liger_cross_entropy, liger_fused_linear_cross_entropy
from liger_torch.functional.losses import CrossEntropyOutput
from liger_torch.hf.hooks import gathers, hook_name
from liger_torch.hf.lazy import Family, LazyLogits
from liger_torch.valid_rows import ValidRows, valid_rows

IGNORE_INDEX = -100


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the caller of a model asks for beside the model's own arguments.

    Attributes:
        skip_logits: whether the loss takes the logits' place; None in training only.
        token_accuracy: the share of labels that have the highest logit.
        token_scaling: as in `liger_torch.functional.liger_fused_linear_cross_entropy`.
    """

    skip_logits: bool | None = None
    token_accuracy: bool = False
    token_scaling: bool = False

    @property
    def options(self) -> dict[str, bool]:
        """Those of the cross entropies."""
        return {
            "return_token_accuracy": self.token_accuracy,
            "use_token_scaling": self.token_scaling,
        }


@dataclasses.dataclass
class Call:
    """One forward pass of a patched model whose loss is computed by this package.

    Attributes:
        head: the output layer that returns something else than logits; None where it returns logits.
        wishes: what the caller asks for.
        token_accuracy: that of the last loss.
        n_losses: how many have been computed.
        gradients: whether the model was called with gradients enabled.
    """

    head: Any
    wishes: Wishes
    token_accuracy: torch.Tensor | None = dataclasses.field(default=None, init=False)
    n_losses: int = dataclasses.field(default=0, init=False)
    gradients: bool = dataclasses.field(default_factory=torch.is_grad_enabled, init=False)

    def in_place_of_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the output layer returns."""
        raise NotImplementedError

    def fused_loss(self, hidden: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
        """That of the output layer's logits."""
        options |= {"target": target, **self.wishes.options}
        return self._counted(*self.head(hidden, liger_loss=options))

    def loss_of(self, logits: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
        """That of logits which exist."""
        options |= self.wishes.options
        return self._counted(*_loss_and_accuracy(liger_cross_entropy(logits, target, **options)))

    def _counted(self, loss: torch.Tensor, accuracy: torch.Tensor | None) -> torch.Tensor:
        self.n_losses += 1
        self.token_accuracy = accuracy
        return loss


@dataclasses.dataclass
class LazyCall(Call):
    """The output layer returns logits that are computed if they are used.

    Attributes:
        keep_logits: whether they come back from the model. Their loss is then computed from them.
        family: the lazy logits; None before there are any, and after the model's forward: they hold this call, which
            would otherwise be garbage in a cycle, and the weight with it.
    """

    keep_logits: bool
    family: Family | None = dataclasses.field(default=None, init=False)

    def in_place_of_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Call`."""
        kind, weight = hidden.device.type, self.head.weight
        dtype = torch.get_autocast_dtype(kind) if autocasting(kind) else hidden.dtype
        trained = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
        self.family = self.family or Family(self)
        return LazyLogits(self.family, hidden, weight.shape[0], dtype, trained)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `liger_torch.hf.lazy.Source`."""
        with inside(innermost.model, None):
            logits: torch.Tensor = self.head(hidden)
        return logits

    def loss(
        self, logits: LazyLogits, target: torch.Tensor, weight: torch.Tensor | None, **options: Any
    ) -> torch.Tensor:
        """See `liger_torch.hf.lazy.Source`."""
        if self.keep_logits:
            return self.loss_of(logits.computed(), target, weight=weight, **options)
        options |= {"ce_weight": weight, "scale": logits.scale, "softcap": logits.softcap}
        return self.fused_loss(logits.hidden, target, **options)


@dataclasses.dataclass
class CausalCall(LazyCall):
    """The model asks its `loss_function` for the loss of these labels, which are known before it runs.

    Where lazy logits cannot be, the output layer returns a stub: a tensor one wide and full of NaN, so that any use of
    it beside the loss would be seen. That is so under torch.compile, and with hooks on the output layer, which may hand
    what it returns to an autograd function (DeepSpeed's, torch's own for the backward pass): that sees no lazy logits.

    Attributes:
        lazy: whether the logits may be lazy.
        labels: those that the model is given.
        shift_labels: likewise.
        ignore_index: likewise.
        hidden: what the output layer was given where it returned a stub.
        n_logits: how often it was asked.
    """

    lazy: bool
    labels: torch.Tensor
    shift_labels: torch.Tensor | None
    ignore_index: int
    hidden: torch.Tensor | None = dataclasses.field(default=None, init=False)
    n_logits: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        self._versions = self._version_of(self.labels), self._version_of(self.shift_labels)
        self._target: torch.Tensor | None = None
        self._rows: ValidRows | None = None
        if None not in self._versions:
            self._target = shifted(self.labels, self.shift_labels, self.ignore_index)
            # Started before the model runs: the number of rows has reached the host by the time the loss needs it.
            self._rows = valid_rows(self._target, self.ignore_index)

    @staticmethod
    def _version_of(labels: torch.Tensor | None) -> int | None:
        """Another one where labels have been written to since; None where that cannot be told."""
        if labels is None:
            return 0
        return None if torch.compiler.is_compiling() or labels.is_inference() else labels._version

    def in_place_of_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Call`."""
        self.n_logits += 1
        if self.lazy and not torch.compiler.is_compiling():
            return super().in_place_of_logits(hidden)
        self.hidden = hidden
        return hidden.new_full((*hidden.shape[:-1], 1), math.nan)

    def causal_loss(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        shift_labels: torch.Tensor | None,
        ignore_index: int,
        **options: Any,
    ) -> torch.Tensor:
        """The loss of hidden states."""
        same = (
            labels is self.labels
            and shift_labels is self.shift_labels
            and ignore_index == self.ignore_index
            and self._versions == (self._version_of(labels), self._version_of(shift_labels))
        )
        target, rows = self._target, self._rows
        if target is None or not same or target.device != hidden.device:
            target, rows = shifted(labels, shift_labels, ignore_index).to(hidden.device), None
        return self.fused_loss(hidden, target, ignore_index=ignore_index, valid_rows=rows, **options)


class _Innermost(threading.local):
    """The innermost patched model whose forward this thread is inside of, and its call; None where it has none.

    Each forward puts the one around it back, so that a model may run inside another, or inside itself.
    """

    def __init__(self) -> None:
        # Not attributes of the class: torch.compile does not see that those of a thread have come to hide them.
        self.model: nn.Module | None = None
        self.call: Call | None = None


innermost = _Innermost()


@contextlib.contextmanager
def inside(model: nn.Module | None, call: Call | None) -> Iterator[None]:
    """In here the model is the innermost."""
    outer = innermost.model, innermost.call
    innermost.model, innermost.call = model, call
    try:
        yield
    finally:
        innermost.model, innermost.call = outer


@dataclasses.dataclass(frozen=True)
class HeadRecipe:
    """An output layer that can compute the loss of its logits in their place."""

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """See `liger_torch.hf.swap.Recipe`."""

        @functools.wraps(base.forward)
        def forward(self: Any, input: torch.Tensor, *, liger_loss: dict[str, Any] | None = None) -> Any:
            if liger_loss is not None:
                rows = input.reshape(-1, input.shape[-1])
                return _loss_and_accuracy(
                    liger_fused_linear_cross_entropy(rows, self.weight, bias=self.bias, **liger_loss)
                )
            call = innermost.call
            # Split over GPUs (tensor parallelism) the weight is still a DTensor here; the plain path handles it.
            # In another gradient mode than the model, it is not asked for the logits of the loss.
            if (
                call is None
                or unwrapped(call.head) is not self
                or call.gradients != torch.is_grad_enabled()
                or isinstance(self.weight, DTensor)
            ):
                return base.forward(self, input)
            return call.in_place_of_logits(input)

        return {"forward": forward}


def _loss_and_accuracy(
    found: torch.Tensor | CrossEntropyOutput,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A tuple, because FSDP looks for tensors in what a module returns, and does not know the dataclass."""
    return (found, None) if isinstance(found, torch.Tensor) else (found.loss, found.token_accuracy)


def shifted(labels: torch.Tensor, shift_labels: torch.Tensor | None, ignore_index: int) -> torch.Tensor:
    """Token t predicts label t + 1, unless the labels are shifted already; flat."""
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    return shift_labels.reshape(-1)


def head_of(model: Any) -> Any:
    """The model's output layer, None without one."""
    getter = getattr(model, "get_output_embeddings", None)
    return None if getter is None else getter()


def unwrapped(head: Any) -> Any:
    """The layer inside of FSDP's first kind, which is to be called from outside of it."""
    return head.module if isinstance(head, FullyShardedDataParallel) else head


def allows_lazy_logits(head: Any) -> bool:
    """Whether the model's own code alone sees what an output layer returns, and FSDP, which looks at no value."""
    layer = unwrapped(head)
    if torch.nn.modules.module._has_any_global_hook() or layer._backward_hooks or layer._backward_pre_hooks:
        return False
    hooks = (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
    return all(hook_name(hook).startswith("torch.distributed.") for hook in hooks)


def hooks_reason(head: Any) -> str:
    """Why the hooks on an output layer do not allow it to be called twice; empty where they do."""
    hooks = (*head._forward_pre_hooks.values(), *head._forward_hooks.values())
    foreign = [hook_name(hook) for hook in hooks if not gathers(hook)]
    return f"its output layer has forward hooks ({', '.join(foreign)})" if foreign else ""
