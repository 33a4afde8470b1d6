"""The loss of a causal language model without its logits, through the model's own forward.

The output layer of a patched model returns, while a loss is wanted and logits are not, a tensor that is one wide and
full of NaN, so that whatever else used it would be seen; and it keeps the hidden states. When the model's forward
then asks for its loss, the output layer is called a second time with these hidden states and with the labels, and
computes both in one. Because that is an ordinary call of the module, FSDP and ZeRO gather its weight around it.
Other hooks on the output layer would run twice and see neither logits nor, the second time, anything they expect:
with them the loss is not fused.

Whether that is right for a model is found by running its own forward once, between a backbone and an output layer that
return made-up values, and once more with the NaN in the place of the logits.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss

from liger_torch.functional import liger_cross_entropy, liger_fused_linear_cross_entropy
from liger_torch.hf import probe
from liger_torch.hf.report import warn_once
from liger_torch.hf.swap import original_class, recipe_of
from liger_torch.valid_rows import ValidRows, valid_rows

KIND = "loss"
FUSED = "fused linear cross entropy"
ON_LOGITS = "cross entropy"
IGNORE_INDEX = -100


@dataclasses.dataclass(frozen=True)
class Tail:
    """What a model does between its output layer and its loss: cap * tanh(scale * logits / cap)."""

    scale: float = 1.0
    softcap: float | None = None

    def __str__(self) -> str:
        parts = [f"scale {self.scale:g}"] if self.scale != 1.0 else []
        parts += [f"softcap {self.softcap:g}"] if self.softcap is not None else []
        return f" ({', '.join(parts)})" if parts else ""


class _Call:
    """One forward pass in which the loss is fused."""

    def __init__(
        self, head: nn.Module, labels: torch.Tensor, shift_labels: torch.Tensor | None, ignore_index: int
    ) -> None:
        self.head = head
        self.labels, self.shift_labels, self.ignore_index = labels, shift_labels, ignore_index
        self.target = _target(labels, shift_labels, ignore_index)
        # Started before the model runs: the number of rows has reached the host by the time the loss needs it.
        self.rows: ValidRows | None = valid_rows(self.target, ignore_index)
        self.hidden: torch.Tensor | None = None
        self.losses = 0

    def targets(
        self, labels: torch.Tensor, shift_labels: torch.Tensor | None, ignore_index: int, device: torch.device
    ) -> tuple[torch.Tensor, ValidRows | None]:
        """The labels of the rows, and which of them count."""
        same = (
            labels is self.labels and shift_labels is self.shift_labels and ignore_index == self.ignore_index
        )
        if same and self.target.device == device:
            return self.target, self.rows
        return _target(labels, shift_labels, ignore_index).to(device), None


class _Innermost(threading.local):
    """The innermost patched model whose forward this thread is inside of, and its call; None where it is not fused.

    Each forward puts the one around it back, so that a model may run inside another, or inside itself.
    """

    model: nn.Module | None = None
    call: _Call | None = None


_innermost = _Innermost()


def _target(labels: torch.Tensor, shift_labels: torch.Tensor | None, ignore_index: int) -> torch.Tensor:
    """Token t predicts label t + 1, unless the labels are shifted already; flat."""
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    return shift_labels.reshape(-1)


def _per_item(loss: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss / num_items_in_batch


@dataclasses.dataclass(frozen=True)
class HeadRecipe:
    """An output layer that can compute the loss of its logits in their place."""

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """See `liger_torch.hf.swap.Recipe`."""

        @functools.wraps(base.forward)
        def forward(
            self: Any, input: torch.Tensor, *, liger_loss: dict[str, Any] | None = None
        ) -> torch.Tensor:
            if liger_loss is not None:
                rows = input.reshape(-1, input.shape[-1])
                loss = liger_fused_linear_cross_entropy(rows, self.weight, bias=self.bias, **liger_loss)
                assert isinstance(loss, torch.Tensor)
                return loss
            call = _innermost.call
            # Split over GPUs (tensor parallelism) the weight is still a DTensor here; the plain path handles it.
            if call is None or call.head is not self or isinstance(self.weight, DTensor):
                return base.forward(self, input)
            call.hidden = input
            return input.new_full((*input.shape[:-1], 1), math.nan)

        return {"forward": forward}


@dataclasses.dataclass(frozen=True)
class FusedLossRecipe:
    """A model whose loss is fused with its output layer where logits are not wanted.

    They are wanted in evaluation and not in training, unless `skip_logits` says otherwise. Where the loss cannot be
    fused, `skip_logits=True` warns, once per model, and the logits come back: transformers' Trainer passes it in every
    evaluation with `prediction_loss_only`, which must not fail for it.
    """

    tail: Tail

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """See `liger_torch.hf.swap.Recipe`."""
        tail = self.tail
        names = [p.name for p in probe.parameters_of(base.forward)]
        own_loss = base.loss_function

        def run(self: Any, call: _Call | None, /, *args: Any, **kwargs: Any) -> Any:
            outer = _innermost.model, _innermost.call
            _innermost.model, _innermost.call = self, call
            try:
                return base.forward(self, *args, **kwargs)
            finally:
                _innermost.model, _innermost.call = outer

        @functools.wraps(base.forward)
        def forward(self: Any, *args: Any, skip_logits: bool | None = None, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            labels = given.get("labels")
            if skip_logits and labels is None:
                raise ValueError(
                    f"{type(self).__name__}: skip_logits=True, but labels is None; without labels there is no loss to "
                    "compute in the logits' place."
                )
            wanted = self.training if skip_logits is None else skip_logits
            head = _fused_head(self) if wanted and labels is not None else None
            if head is not None and own_loss.fget(self) is not ForCausalLMLoss:
                head = None
                if skip_logits:
                    _warn_of_logits(self, "its loss is not ForCausalLMLoss")
            if labels is None or head is None:
                return run(self, None, *args, **kwargs)
            return_dict = given.pop("return_dict", None)
            if return_dict is None:
                return_dict = getattr(self.config, "return_dict", True)
            call = _Call(head, labels, given.get("shift_labels"), given.get("ignore_index", IGNORE_INDEX))
            output = run(self, call, **given, return_dict=True)
            if call.hidden is None:
                # The output layer has returned logits, and the loss was computed from them.
                if skip_logits:
                    _warn_of_logits(self, "its output layer is split over devices")
                return output if return_dict else output.to_tuple()
            if call.losses != 1:
                raise RuntimeError(
                    f"{type(self).__name__}: its forward asked for {call.losses} losses where one was expected; pass "
                    "skip_logits=False, or patch it with fused_linear_cross_entropy=False."
                )
            if not return_dict:
                return tuple(None if name == "logits" else value for name, value in output.items())
            return type(output)(**{name: value for name, value in output.items() if name != "logits"})

        def fused_loss(
            self: Any,
            call: _Call,
            logits: torch.Tensor,
            labels: torch.Tensor,
            vocab_size: int | None = None,
            num_items_in_batch: Any = None,
            ignore_index: int = IGNORE_INDEX,
            shift_labels: torch.Tensor | None = None,
            **kwargs: Any,
        ) -> torch.Tensor:
            if call.hidden is None:
                return own_loss.fget(self)(
                    logits=logits,
                    labels=labels,
                    vocab_size=vocab_size,
                    num_items_in_batch=num_items_in_batch,
                    ignore_index=ignore_index,
                    shift_labels=shift_labels,
                    **kwargs,
                )
            call.losses += 1
            target, rows = call.targets(labels, shift_labels, ignore_index, call.hidden.device)
            loss = call.head(
                call.hidden,
                liger_loss={
                    "target": target,
                    "ignore_index": ignore_index,
                    "reduction": "mean" if num_items_in_batch is None else "sum",
                    "scale": tail.scale,
                    "softcap": tail.softcap,
                    "valid_rows": rows,
                },
            )
            return loss if num_items_in_batch is None else _per_item(loss, num_items_in_batch)

        def loss_function(self: Any) -> Any:
            call = _innermost.call
            if call is not None and _innermost.model is self:
                return functools.partial(fused_loss, self, call)
            return own_loss.fget(self)

        return {"forward": forward, "loss_function": property(loss_function, own_loss.fset)}


def _fused_head(model: Any) -> Any:
    """The output layer, looked up at every call: it may have been replaced, wrapped or given hooks since."""
    head = model.get_output_embeddings()
    if head is None or recipe_of(head) != HeadRecipe():
        _warn_of_logits(
            model, "its output layer has been replaced since it was patched; call apply_liger_kernel again"
        )
        return None
    if head._forward_hooks or head._forward_pre_hooks:
        reason = hooks_reason(head)
        if reason:
            _warn_of_logits(model, reason)
            return None
    return head


def _warn_of_logits(model: Any, reason: str) -> None:
    # The record, and not the model: nn.DataParallel's replicas are new at every call, and share it.
    owner = model.__dict__.get("_liger_record", model)
    warn_once(owner, f"{type(model).__name__}: its loss is not fused, logits are computed: {reason}.")


_GATHERING = ("torch.distributed.", "deepspeed.", "accelerate.")
"""Whose hooks are there for every call of a module, whatever it computes."""


def hooks_reason(head: Any) -> str:
    """Why the hooks on an output layer do not allow it to be called twice; empty where they do."""
    hooks = (*head._forward_pre_hooks.values(), *head._forward_hooks.values())
    foreign = [name for name in map(_hook_name, hooks) if not name.startswith(_GATHERING)]
    return f"its output layer has forward hooks ({', '.join(foreign)})" if foreign else ""


def _hook_name(hook: Callable[..., Any]) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    named: Any = hook if hasattr(hook, "__name__") else type(hook)
    return f"{named.__module__}.{named.__name__}"


@dataclasses.dataclass(frozen=True)
class LogitsLossRecipe:
    """A model whose loss is computed from its logits by `liger_cross_entropy`."""

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """See `liger_torch.hf.swap.Recipe`."""
        own_loss = base.loss_function

        def loss_function(self: Any) -> Any:
            own = own_loss.fget(self)
            return causal_lm_loss if own is ForCausalLMLoss else own

        return {"loss_function": property(loss_function, own_loss.fset)}


def causal_lm_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = IGNORE_INDEX,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """transformers' ForCausalLMLoss, without its float32 copy of the logits; over no label it is 0."""
    loss = liger_cross_entropy(
        logits.view(-1, vocab_size),
        _target(labels, shift_labels, ignore_index).to(logits.device),
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
    )
    assert isinstance(loss, torch.Tensor)
    return loss if num_items_in_batch is None else _per_item(loss, num_items_in_batch)


# ---- recognising


def has_head(model: nn.Module) -> bool:
    """Whether the model turns hidden states into logits at all."""
    return head_of(model) is not None


def head_of(model: Any) -> nn.Module | None:
    """The model's output layer."""
    getter = getattr(model, "get_output_embeddings", None)
    return None if getter is None else getter()


def has_own_loss(model: nn.Module) -> bool:
    """Whether the model has a property `loss_function`, as those of transformers do."""
    return isinstance(getattr(original_class(model), "loss_function", None), property)


def own_loss_reason(model: Any) -> str:
    """Why the model's loss cannot be replaced; empty where it can."""
    if not has_own_loss(model):
        return "the model has no loss function of its own"
    cls: Any = original_class(model)
    function = cls.loss_function.fget(model)
    if function is not ForCausalLMLoss:
        return f"its loss is {getattr(function, '__qualname__', function)}, not ForCausalLMLoss"
    return ""


def fusable(model: nn.Module) -> Tail | str:
    """What the model does between output layer and loss, or why the two cannot be fused."""
    reason = own_loss_reason(model)
    if reason:
        return reason
    head = head_of(model)
    assert head is not None
    name = next((name for name, child in model.named_children() if child is head), None)
    if name is None:
        return "its output layer is not a direct child"
    if original_class(head).forward is not nn.Linear.forward:
        return f"its output layer is a {type(head).__name__}, not a plain Linear"
    if "forward" in head.__dict__ or "forward" in model.__dict__:
        return "an instance attribute `forward` (a hook of another library) hides the class's"
    if not head.weight.is_floating_point():  # type: ignore[operator]
        return "its output layer is quantised"
    return hooks_reason(head) or _tail(model, name)


class _Hidden:
    """What a backbone returns: hidden states, and None under every other name."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self._hidden = hidden

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._hidden if name in ("last_hidden_state", "hidden_state") else None

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return (self._hidden,)[index]
        return self._hidden if index in (0, "last_hidden_state") else None


class _Returns(nn.Module):
    """A module that returns a value whatever it is given."""

    def __init__(self, value: Any, config: Any) -> None:
        super().__init__()
        self.value, self.config, self.calls = value, config, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.value


_TINY, _HUGE = 2.0**-20, 2.0**20
_BETWEEN = (-30.0, -3.0, -0.5, 0.0, 0.5, 1.0, 3.0, 30.0)


def _tail(model: nn.Module, head_name: str) -> Tail | str:
    """Run the model's forward, with logits from tiny to huge, and see what its loss gets; then without logits."""
    labels = torch.tensor([[1, 2, 3, 4]])
    hidden = torch.zeros(1, labels.shape[1], 8, dtype=torch.float64)
    made_up = torch.tensor((_TINY, _HUGE, *_BETWEEN), dtype=torch.float64).repeat(1, labels.shape[1], 1)
    seen: list[tuple[Any, Any]] = []

    def loss(logits: Any, labels: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((logits, labels))
        return torch.zeros((), dtype=torch.float64)

    head = _Returns(made_up, None)
    try:
        _run_between(model, head_name, head, hidden, labels, loss)
    except Exception as error:  # the model's own code, fed with what it may not expect
        return f"its forward could not be probed: {type(error).__name__}: {error}"
    if len(seen) != 1 or head.calls != 1:
        return f"its forward asks for {len(seen)} losses and {head.calls} times for logits"
    logits, passed = seen[0]
    if passed is not labels:
        return "its forward changes the labels"
    if not isinstance(logits, torch.Tensor) or logits.shape != made_up.shape:
        return "its forward reshapes the logits"
    at_tiny, at_huge = (logits[0, 0, i].item() for i in (0, 1))
    scale = at_tiny / _TINY
    # Below the cap's rounding error: tanh is not quite the identity at the tiny logit.
    scale = 1.0 if math.isclose(scale, 1.0, rel_tol=1e-6) else scale
    tails = [Tail(scale), Tail(scale, at_huge)] if scale > 0 and at_huge > 0 else []
    for tail in tails:
        expected = made_up * tail.scale
        if tail.softcap is not None:
            expected = tail.softcap * torch.tanh(expected / tail.softcap)
        if torch.allclose(logits.double(), expected, rtol=1e-5, atol=0):
            break
    else:
        return "its forward changes the logits in a way that is neither a scale nor a softcap"
    stub = _Returns(made_up.new_full((*made_up.shape[:-1], 1), math.nan), None)
    try:
        output = _run_between(model, head_name, stub, hidden, labels, loss)
        finite = math.isfinite(output["loss"] if isinstance(output, dict) else output[0])
    except Exception:  # it has looked at the logits, and found something else
        finite = False
    return tail if finite else "its forward uses the logits beside the loss"


def _run_between(
    model: nn.Module,
    head_name: str,
    head: nn.Module,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    loss: Callable[..., torch.Tensor],
) -> Any:
    """What the model's own forward returns between a backbone that returns `hidden`, `head`, and `loss`."""
    cls = original_class(model)
    namespace = {"__module__": cls.__module__, "loss_function": staticmethod(loss)}
    metaclass: Any = type(cls)
    clone: Any = cls.__new__(metaclass(cls.__name__, (cls,), namespace))
    nn.Module.__init__(clone)
    own = clone.__dict__.keys() | {"forward"}
    clone.__dict__.update((name, value) for name, value in model.__dict__.items() if name not in own)
    config = copy.copy(getattr(model, "config", None))
    for name, _ in model.named_children():
        clone.add_module(name, head if name == head_name else _Returns(_Hidden(hidden), config))
    options = {"return_dict": True} if "return_dict" in inspect.signature(cls.forward).parameters else {}
    return clone.train()(input_ids=labels.clone(), labels=labels, **options)
