"""The loss of a causal language model without its logits, through the model's own forward.

Two ways lead there, found by running the model's own forward once between made-up values (`tail`):

- The model asks its `loss_function`, which is transformers' ForCausalLMLoss, for the loss of its logits times a factor
  and capped, and uses them for nothing else. The loss function is replaced for this model, and the output layer returns
  lazy logits (`lazy`), by which whatever this very call does to them is seen. Under torch.compile, and with hooks on
  the output layer, it returns a stub (`head.CausalCall`), an ordinary tensor; there it is believed that the forward
  does what it did when it was run on made-up values.
- The model computes a cross entropy in any other way. The output layer then returns lazy logits (`head.LazyCall`), and
  the cross entropy is computed in their place. Under torch.compile the logits are computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_utils import ForCausalLMLoss

from liger_torch.hf import outputs, probe, tail
from liger_torch.hf.head import (
    IGNORE_INDEX,
    Call,
    CausalCall,
    HeadRecipe,
    LazyCall,
    Wishes,
    allows_lazy_logits,
    head_of,
    hooks_reason,
    innermost,
    inside,
    shifted,
    unwrapped,
)
from liger_torch.hf.lazy import LazyLogits
from liger_torch.hf.probe import Verdict
from liger_torch.hf.report import warn_once
from liger_torch.hf.swap import hides_forward, original_class, recipe_of
from liger_torch.hf.tail import Tail

KIND = "loss"
FUSED = "fused linear cross entropy"
ON_LOGITS = "cross entropy"


@dataclasses.dataclass(frozen=True)
class LossRecipe:
    """A model whose loss this package computes.

    Attributes:
        fused: with the output layer where logits are not wanted; otherwise always from the logits. They are wanted in
            evaluation and not in training, unless `skip_logits` says otherwise.
        tail: what lies between the output layer and the loss function; None where lazy logits have to find out.

    Where the loss cannot be fused, `skip_logits=True` warns, once per model (not under torch.compile), and the logits
    come back: transformers' Trainer passes it in every evaluation with `prediction_loss_only`, which must not fail for
    it.
    """

    fused: bool
    tail: Tail | None

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """See `liger_torch.hf.swap.Recipe`."""
        recipe = self
        names = [p.name for p in probe.parameters_of(base.forward)]
        takes_return_dict = probe.takes(base.forward, "return_dict")
        own_loss: Any = getattr(base, "loss_function", None)

        @functools.wraps(base.forward)
        def forward(
            self: Any,
            *args: Any,
            skip_logits: bool | None = None,
            return_token_accuracy: bool = False,
            use_token_scaling: bool = False,
            **kwargs: Any,
        ) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if given.get("labels") is None:
                if skip_logits:
                    raise ValueError(
                        f"{type(self).__name__}: skip_logits=True, but labels is None; without labels there is no loss "
                        "to compute in the logits' place."
                    )
                with inside(self, None):
                    return base.forward(self, *args, **kwargs)
            wishes = Wishes(skip_logits, return_token_accuracy, use_token_scaling)
            call = recipe.start(self, own_loss, given, wishes)
            if call is None or (call.head is None and not return_token_accuracy):
                with inside(self, call):
                    output = base.forward(self, *args, **kwargs)
                _check(self, wishes, call)
                return output
            as_tuple = False
            if takes_return_dict:
                return_dict = given.pop("return_dict", None)
                as_tuple = not (
                    getattr(self.config, "return_dict", True) if return_dict is None else return_dict
                )
                given["return_dict"] = True
            try:
                with inside(self, call):
                    output = base.forward(self, **given)
                output = _finished(self, call, output)
            finally:
                if isinstance(call, LazyCall):
                    call.family = None
            return outputs.as_tuple(output) if as_tuple else output

        between = self.tail
        if between is None:
            return {"forward": forward}

        def loss_function(self: Any) -> Any:
            call = innermost.call
            if call is not None and innermost.model is self:
                return functools.partial(_causal_loss, between, call, own_loss.fget(self))
            return own_loss.fget(self)

        return {"forward": forward, "loss_function": property(loss_function, own_loss.fset)}

    def start(self, model: Any, own_loss: Any, given: dict[str, Any], wishes: Wishes) -> Call | None:
        """The call by which this forward pass computes its loss; None where the model's own code does."""
        skip = self.fused and (model.training if wishes.skip_logits is None else wishes.skip_logits)
        if wishes.skip_logits and not self.fused:
            _warn_of_logits(model, "it is patched with cross_entropy=True")
        on_logits = not self.fused or wishes.token_scaling or wishes.token_accuracy
        if not skip and not on_logits:
            return None
        if self.tail is None:
            head = None if torch.compiler.is_compiling() else _head(model)
            if head is not None and not allows_lazy_logits(head):
                _warn_of_logits(model, "hooks see what its output layer returns")
                head = None
            return None if head is None else LazyCall(head, wishes, keep_logits=not skip)
        if own_loss.fget(model) is not ForCausalLMLoss:
            if wishes.skip_logits:
                _warn_of_logits(model, "its loss is not ForCausalLMLoss")
            return None
        head = _head(model) if skip else None
        if head is not None:
            return CausalCall(
                head,
                wishes,
                keep_logits=False,
                lazy=not torch.compiler.is_compiling() and allows_lazy_logits(head),
                labels=given["labels"],
                shift_labels=given.get("shift_labels"),
                ignore_index=given.get("ignore_index", IGNORE_INDEX),
            )
        return Call(None, wishes) if on_logits else None


def _finished(model: Any, call: Call, output: Any) -> Any:
    """What the model returns, from what its own forward has returned."""
    wishes = call.wishes
    if isinstance(call, CausalCall) and call.hidden is not None:
        if call.n_losses != 1 or call.n_logits != 1:
            raise RuntimeError(
                f"{type(model).__name__}: its forward asked for {call.n_losses} losses and {call.n_logits} times for "
                "logits where one of each was expected; pass skip_logits=False, or patch it with "
                "fused_linear_cross_entropy=False."
            )
        output = outputs.without_logits(output)
    elif isinstance(call, CausalCall) and not call.n_logits:
        _warn_of_logits(model, "its output layer is split over devices, or runs without gradients")
    elif isinstance(call, LazyCall):
        if call.family is not None and call.family.used_by and not call.keep_logits:
            _warn_of_logits(model, tail.needs(call.family))
        output = outputs.settled(output, keep_logits=call.keep_logits)
    _check(model, wishes, call)
    return outputs.with_token_accuracy(output, call.token_accuracy) if wishes.token_accuracy else output


def _check(model: Any, wishes: Wishes, call: Call | None) -> None:
    """Whether the wishes have been fulfilled."""
    if call is not None and call.n_losses:
        return
    if wishes.token_scaling:
        raise RuntimeError(
            f"{type(model).__name__}: use_token_scaling=True, but its loss was computed by its own code; see the "
            "warnings and liger_torch.hf.explain(model)."
        )
    if call is not None or wishes.token_accuracy:
        lacking = ", and there is no token accuracy" if wishes.token_accuracy else ""
        _warn(model, f"its loss was computed by its own code{lacking}")


def _causal_loss(
    between: Tail,
    call: Call,
    own: Any,
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: Any = None,
    num_items_in_batch: Any = None,
    ignore_index: int = IGNORE_INDEX,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """transformers' ForCausalLMLoss, without its float32 copy of the logits; over no label it is 0."""
    options: dict[str, Any] = {"reduction": "mean" if num_items_in_batch is None else "sum"}
    if isinstance(call, CausalCall) and isinstance(logits, LazyLogits) and logits.may_be_followed:
        options |= {"scale": logits.scale, "softcap": logits.softcap}
        loss = call.causal_loss(logits.hidden, labels, shift_labels, ignore_index, **options)
    elif isinstance(call, CausalCall) and call.hidden is not None:
        options |= {"scale": between.scale, "softcap": between.softcap}
        loss = call.causal_loss(call.hidden, labels, shift_labels, ignore_index, **options)
    elif isinstance(call, CausalCall) and not any(call.wishes.options.values()):
        return own(
            logits=logits,
            labels=labels,
            vocab_size=vocab_size,
            num_items_in_batch=num_items_in_batch,
            ignore_index=ignore_index,
            shift_labels=shift_labels,
            **kwargs,
        )
    else:
        target = shifted(labels, shift_labels, ignore_index).to(logits.device)
        loss = call.loss_of(
            logits.reshape(-1, logits.shape[-1]), target, ignore_index=ignore_index, **options
        )
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def _head(model: Any) -> Any:
    """The output layer, looked up at every call: it may have been replaced, wrapped or given hooks since."""
    head = head_of(model)
    layer = unwrapped(head)
    if layer is None or recipe_of(layer) != HeadRecipe():
        _warn_of_logits(
            model, "its output layer has been replaced since it was patched; call apply_liger_kernel again"
        )
        return None
    if layer._forward_hooks or layer._forward_pre_hooks:
        reason = hooks_reason(layer)
        if reason:
            _warn_of_logits(model, reason)
            return None
    return head


def _warn_of_logits(model: Any, reason: str) -> None:
    _warn(model, f"its loss is not fused, logits are computed: {reason}")


def _warn(model: Any, message: str) -> None:
    # The record, and not the model: nn.DataParallel's replicas are new at every call, and share it.
    owner = model.__dict__.get("_liger_record", model)
    warn_once(owner, f"{type(model).__name__}: {message}.")


# ---- recognising


def has_own_loss(model: nn.Module) -> bool:
    """Whether the model has a property `loss_function`, as those of transformers do."""
    return isinstance(getattr(original_class(model), "loss_function", None), property)


def recognise(model: Any, *, fused: bool) -> tuple[Verdict, nn.Module | None]:
    """The verdict on a model with an output layer, and the latter where it is to be swapped as well.

    A model whose forward cannot be run on made-up values gets lazy logits: whatever it does, they are right.
    """
    form = FUSED if fused else ON_LOGITS
    causal = has_own_loss(model) and _own_loss(model) is ForCausalLMLoss
    head: Any = head_of(model)
    path = next((name for name, module in model.named_modules() if module is head), None)
    layer = unwrapped(head)
    reason = _head_reason(model, layer, path)
    if causal and not fused and (reason or _asks_loss_function(model, path)):
        return Verdict(form, LossRecipe(fused, Tail())), None
    if reason:
        return Verdict(form, None, reason), None
    assert path is not None
    if causal and fused:
        with contextlib.suppress(tail.Unprobed):
            found = tail.find(model, path)
            if isinstance(found, Tail):
                return Verdict(f"{form}{found}", LossRecipe(fused, found)), layer
    try:
        reason, details = tail.lazy_reason(model, path), "lazy logits"
    except tail.Unprobed as error:
        reason, details = "", f"lazy logits, {error}"
    if reason:
        return Verdict(form, None, reason), None
    return Verdict(f"{form} ({details})", LossRecipe(fused, None)), layer


def _asks_loss_function(model: Any, path: str | None) -> bool:
    """Also where that cannot be told."""
    try:
        return path is None or tail.asks_loss_function(model, path)
    except tail.Unprobed:
        return True


def _own_loss(model: Any) -> Any:
    cls: Any = original_class(model)
    return cls.loss_function.fget(model)


def _head_reason(model: Any, head: Any, path: str | None) -> str:
    """Why nothing can take the place of the output layer's logits; empty where it can."""
    if path is None:
        return "its output layer is not one of its modules"
    if original_class(head).forward is not nn.Linear.forward:
        cls = original_class(head)
        return f"its output layer is a {cls.__module__}.{cls.__qualname__}, not a plain torch.nn.Linear"
    if hides_forward(head) or hides_forward(model):
        return "an instance attribute `forward` (a hook of another library) hides the class's"
    if not head.weight.is_floating_point():
        return "its output layer is quantised"
    return hooks_reason(head)
