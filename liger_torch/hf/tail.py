"""What a model does between its output layer and its loss, found by running its own forward on made-up values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from liger_torch.hf import probe, standin
from liger_torch.hf.lazy import Family, LazyLogits
from liger_torch.hf.swap import original_class


@dataclasses.dataclass(frozen=True)
class Tail:
    """softcap * tanh(scale * logits / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def __str__(self) -> str:
        parts = [f"scale {self.scale:g}"] if self.scale != 1.0 else []
        parts += [f"softcap {self.softcap:g}"] if self.softcap is not None else []
        return f" ({', '.join(parts)})" if parts else ""


class Unprobed(Exception):
    """The model's own code did not run on made-up values."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"not probed: {type(error).__name__}: {error}")


_TINY, _HUGE = 2.0**-20, 2.0**20
_BETWEEN = (-30.0, -3.0, -0.5, 0.0, 0.5, 1.0, 3.0, 30.0)


def find(model: Any, path: str) -> Tail | str:
    """What the loss function is given, the output layer being at `path`; or why that is not to be told.

    The forward is run once with logits from tiny to huge, and once with NaN in their place, so that any other use of
    them is seen.

    Raises:
        Unprobed: the forward fails.
    """
    labels = _labels()
    made_up = torch.tensor((_TINY, _HUGE, *_BETWEEN), dtype=torch.float64).repeat(*labels.shape, 1)
    head = _Head(model.get_submodule(path), _returns(made_up[0, 0]))
    seen = _losses(model, path, head, labels)
    if len(seen) != 1 or head.calls != 1:
        return f"its forward asks for {len(seen)} losses and {head.calls} times for logits"
    logits, passed = seen[0]
    if passed is not labels:
        return "its forward changes the labels"
    if not isinstance(logits, torch.Tensor) or logits.shape != made_up.shape:
        return "its forward reshapes the logits"
    tail = _between(made_up, logits)
    if tail is None:
        return "its forward changes the logits in a way that is neither a scale nor a softcap"
    stub = _Head(model.get_submodule(path), _returns(torch.tensor([math.nan], dtype=torch.float64)))
    try:
        output = _run(model, path, stub, labels, loss_function=staticmethod(_no_loss))
        if not isinstance(output, ModelOutput):
            return f"its forward returns a {type(output).__name__}"
        finite = math.isfinite(output["loss"])
    except Exception:  # it has looked at the logits, and found something else
        finite = False
    return tail if finite else "its forward uses the logits beside the loss"


def asks_loss_function(model: Any, path: str) -> bool:
    """Whether a model's loss comes from its `loss_function`.

    Raises:
        Unprobed: the forward fails.
    """
    head = model.get_submodule(path)
    logits = _returns(torch.zeros(head.out_features, dtype=torch.float64))
    return bool(_losses(model, path, _Head(head, logits), _labels()))


def _losses(model: Any, path: str, head: nn.Module, labels: torch.Tensor) -> list[tuple[Any, Any]]:
    """The logits and labels with which a model calls its `loss_function`."""
    seen: list[tuple[Any, Any]] = []

    def loss(logits: Any, labels: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((logits, labels))
        return _no_loss()

    try:
        _run(model, path, head, labels, loss_function=staticmethod(loss))
    except Exception as error:  # the model's own code, fed with what it may not expect
        raise Unprobed(error) from error
    return seen


def _returns(logits: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same logits for every token."""
    return lambda hidden: logits.repeat(*hidden.shape[:-1], 1)


def _no_loss(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.zeros((), dtype=torch.float64)


def _between(before: torch.Tensor, after: torch.Tensor) -> Tail | None:
    at_tiny, at_huge = (after[0, 0, i].item() for i in (0, 1))
    scale = at_tiny / _TINY
    # Below the cap's rounding error: tanh is not quite the identity at the tiny logit.
    scale = 1.0 if math.isclose(scale, 1.0, rel_tol=1e-6) else scale
    for tail in (Tail(scale), Tail(scale, at_huge)) if scale > 0 and at_huge > 0 else ():
        expected = before * tail.scale
        if tail.softcap is not None:
            expected = tail.softcap * torch.tanh(expected / tail.softcap)
        if torch.allclose(after.double(), expected, rtol=1e-5, atol=0):
            return tail
    return None


def lazy_reason(model: Any, path: str) -> str:
    """Why a model's own loss cannot be computed in the place of lazy logits; empty where it can.

    Raises:
        Unprobed: the forward fails.
    """
    source = _Counted()
    family = Family(source)
    module = model.get_submodule(path)

    def lazy(hidden: torch.Tensor) -> LazyLogits:
        return LazyLogits(family, hidden, module.weight.shape[0], hidden.dtype, requires_grad=False)

    try:
        _run(model, path, _Head(module, lazy), _labels())
    except Exception as error:  # the model's own code, or ours to stop it
        if not family.used_by:
            raise Unprobed(error) from error
    if family.used_by:
        return needs(family)
    return "" if source.losses else "its forward does not compute a cross entropy of the logits"


def needs(family: Family) -> str:
    """Why lazy logits have been computed."""
    return f"its forward needs the logits themselves ({family.used_by})"


class _Counted:
    """A `liger_torch.hf.lazy.Source` that computes nothing."""

    losses = 0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def loss(self, logits: LazyLogits, target: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        self.losses += 1
        return _no_loss()


class _Head(nn.Module):
    """In the output layer's place, with its attributes."""

    def __init__(self, head: Any, compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.compute, self.calls = compute, 0
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = (standin.zeros(tensor) for tensor in (head.weight, head.bias))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """What is to be returned for these hidden states."""
        self.calls += 1
        return self.compute(hidden)


def _labels() -> torch.Tensor:
    return torch.tensor([[1, 2, 3, 4]])


def _run(model: Any, path: str, head: nn.Module, labels: torch.Tensor, **namespace: Any) -> Any:
    """What the model's own forward returns between a backbone that returns zeros, and `head`."""
    hidden = torch.zeros(*labels.shape, model.get_submodule(path).in_features, dtype=torch.float64)
    clone = standin.of_model(model, path, head, hidden, namespace)
    # With routers' logits, which the stand-in has not, an auxiliary loss would be computed of them.
    wanted = {"return_dict": True, "output_router_logits": False}
    named = {p.name for p in probe.parameters_of(original_class(model).forward)}
    options = {name: value for name, value in wanted.items() if name in named}
    return clone.train()(input_ids=labels.clone(), labels=labels, **options)
