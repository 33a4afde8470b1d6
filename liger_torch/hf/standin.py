"""A model reduced to what lies between its backbone and its loss, so that its own forward can be run in no time.

A stand-in is an instance of a subclass of a module's class, with the module's attributes. Modules on the way to the
output layer keep their forward, and so do those without weights, such as a softcap; every other one returns made-up
hidden states. What they look up (a child, a weight, a property, a method) is there: children are stand-ins too, weights
are zeros that take no memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from liger_torch.hf.swap import original_class


class Hidden:
    """What a backbone returns: hidden states, by any number, and None under every other name."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self._hidden = hidden

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._hidden if name in ("last_hidden_state", "hidden_state") else None

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return (self._hidden,)[index]
        return getattr(self, index) if isinstance(index, str) else self._hidden

    def __iter__(self) -> Any:
        return iter((self._hidden,))


def of_model(
    model: nn.Module, path: str, head: nn.Module, hidden: torch.Tensor, namespace: dict[str, Any]
) -> nn.Module:
    """A stand-in for the model whose output layer, at `path`, is `head`; `namespace` overrides what its class has."""
    first, _, rest = path.partition(".")
    clone = _instance(model, {"__getattr__": _weights(model), **namespace})
    for name, child in model.named_children():
        if name != first:
            clone.add_module(name, _returning(child, hidden))
        elif not rest:
            clone.add_module(name, head)
        else:
            clone.add_module(name, of_model(child, rest, head, hidden, {}))
    return clone


def _instance(module: nn.Module, namespace: dict[str, Any]) -> nn.Module:
    cls: Any = original_class(module)
    metaclass: Any = type(cls)
    clone: Any = cls.__new__(metaclass(cls.__name__, (cls,), {"__module__": cls.__module__, **namespace}))
    nn.Module.__init__(clone)
    own = clone.__dict__.keys() | {"forward"}
    clone.__dict__.update((name, value) for name, value in module.__dict__.items() if name not in own)
    return clone


def _weights(module: nn.Module) -> Callable[[nn.Module, str], Any]:
    """The `__getattr__` of a stand-in: zeros for the module's parameters and buffers."""
    own: Any = original_class(module).__getattr__

    def __getattr__(self: nn.Module, name: str) -> Any:
        for tensors in (module._parameters, module._buffers):
            if name in tensors:
                return zeros(tensors[name])
        return own(self, name)

    return __getattr__


def _returning(module: nn.Module, hidden: torch.Tensor) -> nn.Module:
    """A stand-in that returns hidden states whatever it is given, as a tensor where the module surely does."""
    is_leaf = not any(True for _ in module.children())
    weights = _weights(module)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        passed_on = bool(args) and isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
        return hidden if is_leaf or passed_on else Hidden(hidden)

    def __getattr__(self: nn.Module, name: str) -> Any:
        child = module._modules.get(name)
        if child is None:
            return weights(self, name)
        self._modules[name] = _returning(child, hidden)
        return self._modules[name]

    namespace: dict[str, Any] = {"__getattr__": __getattr__}
    if any(True for _ in itertools.chain(module.parameters(), module.buffers())):
        namespace["forward"] = forward
    return _instance(module, namespace)


def zeros(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """In a tensor's place, in float64 as everything that floats in a probe, without memory."""
    if tensor is None:
        return None
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return torch.zeros((), dtype=dtype).expand(tensor.shape)
