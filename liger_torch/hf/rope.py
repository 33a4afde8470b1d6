"""Recognising the functions by which attention modules rotate q and k, and what is put in their place.

The function is a global of the modeling file, so every model of that file calls it. A dispatcher takes its place that
calls the kernel for attention modules that were swapped here, and the original for everything else: for models that
are not patched, and for shapes and dtypes that the kernel does not take. Each patched model holds a `Lease`; with the
last one the original comes back.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from liger_torch.autograd import uses_reference
from liger_torch.functional import liger_rope
from liger_torch.hf import probe
from liger_torch.hf.probe import Verdict
from liger_torch.hf.swap import original_class
from liger_triton.rope import ROPE, Options

KIND = "rope"

RTOL = 1e-9
"""In float64."""


@dataclasses.dataclass(frozen=True)
class RopeFunction:
    """A function that a module's forward looks up among the globals of its file."""

    module: str
    name: str

    @property
    def value(self) -> Any:
        """What stands there now."""
        return getattr(sys.modules[self.module], self.name)

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Swapped(threading.local):
    """How many swapped attention modules this thread is inside of."""

    depth = 0


_swapped = _Swapped()


@dataclasses.dataclass(frozen=True)
class RopeRecipe:
    """An attention module's own forward, inside of which the dispatcher calls `liger_rope`."""

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """See `liger_torch.hf.swap.Recipe`."""

        @functools.wraps(base.forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            _swapped.depth += 1
            try:
                return base.forward(self, *args, **kwargs)
            finally:
                _swapped.depth -= 1

        return {"forward": forward}


def functions_called(module: nn.Module) -> tuple[RopeFunction, ...]:
    """The rotations that a module's forward calls, recognised or not."""
    return _functions_called(original_class(module).forward)


@functools.lru_cache(1024)
def _functions_called(forward: Any) -> tuple[RopeFunction, ...]:
    forward = inspect.unwrap(forward)
    code, scope = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
    if code is None or scope.get("__name__", "") not in sys.modules:
        return ()
    return tuple(
        RopeFunction(scope["__name__"], name)
        for name in code.co_names
        if name in scope and _is_rotation(name, scope[name])
    )


def _is_rotation(name: str, value: Any) -> bool:
    if not callable(value) or isinstance(value, type):
        return False
    return "rotary" in name or [p.name for p in _parameters(value)][2:4] == ["cos", "sin"]


def _plain(function: Any) -> Any:
    """transformers' kernel decorator makes a module of a function."""
    return function.forward if isinstance(function, nn.Module) else function


def _parameters(function: Any) -> list[inspect.Parameter]:
    return probe.parameters_of(_plain(function))


def recognise(function: RopeFunction) -> Verdict:
    """The verdict on a function: whether it is (q, k, cos, sin) -> q and k rotated by halves."""
    form = "rope[half]"
    value = function.value
    if isinstance(value, _Dispatcher):
        value = value.original
    names = [p.name for p in _parameters(value)]
    if names[2:4] != ["cos", "sin"]:
        return Verdict(form, None, f"takes ({', '.join(names)}), not (q, k, cos, sin, ...)")
    batch, seq, head_dim = 2, 5, 16
    angles = probe.random(batch, seq, head_dim // 2, seed=2).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    q, k = probe.random(batch, seq, 4, head_dim), probe.random(batch, seq, 2, head_dim, seed=1)
    expected = ROPE.reference((q, k, cos, sin), Options())
    for axis in (1, 2) if "unsqueeze_dim" in names else (1,):
        arguments = (q, k) if axis == 2 else (q.transpose(1, 2), k.transpose(1, 2))
        options = {} if axis == _default_axis(value) else {"unsqueeze_dim": axis}
        try:
            rotated = value(*arguments, cos, sin, **options)
        except Exception as error:  # somebody else's code, fed with what it may not expect
            return Verdict(form, None, f"could not be probed: {type(error).__name__}: {error}")
        if not isinstance(rotated, tuple) or len(rotated) != 2:
            return Verdict(form, None, "does not return q and k")
        for actual, wanted in zip(rotated, expected, strict=True):
            assert wanted is not None
            if not probe.is_close(actual, wanted if axis == 2 else wanted.transpose(1, 2), RTOL):
                return Verdict(form, None, "does not rotate the two halves of a head by (cos, sin)")
    return Verdict(form, RopeRecipe())


def _default_axis(function: Any) -> int:
    """The axis of the heads where the caller names none."""
    for parameter in _parameters(function):
        if parameter.name == "unsqueeze_dim" and isinstance(parameter.default, int):
            return parameter.default
    return 1


class _Dispatcher:
    """Stands in the place of a rotation."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        functools.update_wrapper(self, _plain(original))
        self.default_axis = _default_axis(original)
        self.leases = 0

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if _swapped.depth and not args and (not kwargs or list(kwargs) == ["unsqueeze_dim"]):
            axis = kwargs.get("unsqueeze_dim", self.default_axis)
            if _fits(q, k, cos, sin, axis):
                return liger_rope(q, k, cos, sin, unsqueeze_dim=axis)
        return self.original(q, k, cos, sin, *args, **kwargs)


def _fits(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axis: int) -> bool:
    """Whether the kernel computes what the original would."""
    if q.dim() != 4 or k.dim() != 4 or cos.dim() != 3 or axis not in (1, 2):
        return False
    batch, seq, head_dim = q.shape[0], q.shape[3 - axis], q.shape[3]
    return (
        (k.shape[0], k.shape[3 - axis], k.shape[3]) == (batch, seq, head_dim)
        and cos.shape == sin.shape
        and cos.shape[0] in (1, batch)
        and (cos.shape[1], cos.shape[2]) == (seq, head_dim)
        and head_dim % 2 == 0
        and q.device == k.device == cos.device == sin.device
        and q.dtype == k.dtype
        and cos.dtype == sin.dtype
        and not (cos.requires_grad or sin.requires_grad)
        and (q.dtype != torch.float64 or uses_reference(q))
        and _keeps_dtype(q, cos)
    )


def _keeps_dtype(q: torch.Tensor, cos: torch.Tensor) -> bool:
    """Whether the original returns q's dtype, or attention casts its result to that anyway."""
    if torch.promote_types(q.dtype, cos.dtype) == q.dtype:
        return True
    kind = q.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == q.dtype


_lock = threading.RLock()


class Lease:
    """Keeps the dispatcher of a function in its place until it is released or collected.

    A copy of a patched model, or one that is loaded, takes a lease of its own.
    """

    def __init__(self, function: RopeFunction) -> None:
        self.function = function
        with _lock:
            dispatcher = function.value
            if not isinstance(dispatcher, _Dispatcher):
                dispatcher = _Dispatcher(dispatcher)
                setattr(sys.modules[function.module], function.name, dispatcher)
            dispatcher.leases += 1
        self.release = weakref.finalize(self, _release, function, dispatcher)
        self.release.atexit = False

    def __reduce__(self) -> tuple[type[Lease], tuple[RopeFunction]]:
        return Lease, (self.function,)


def _release(function: RopeFunction, dispatcher: _Dispatcher) -> None:
    with _lock:
        dispatcher.leases -= 1
        # Whoever has put something else there since keeps it; the dispatcher below then calls the original.
        if dispatcher.leases == 0 and function.value is dispatcher:
            setattr(sys.modules[function.module], function.name, dispatcher.original)
