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

from liger_torch.hf import probe, rotations
from liger_torch.hf.probe import Verdict
from liger_torch.hf.swap import original_class

KIND = "rope"


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

    def __init__(self) -> None:
        self.depth = 0  # of the object, not of the class: torch.compile does not see that one hides the other


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
    return "rotary" in name or rotations.Signature(_plain(value)).is_rotation


def _plain(function: Any) -> Any:
    """transformers' kernel decorator makes a module of a function."""
    return function.forward if isinstance(function, nn.Module) else function


def recognise(function: RopeFunction) -> Verdict:
    """The verdict on a function: whether `liger_rope` computes what it does."""
    value = function.value
    if isinstance(value, Dispatcher):
        value = value.original
    known = rotations.recognise(_plain(value))
    if isinstance(known, str):
        return Verdict("rope", None, known)
    return Verdict(known.rotation.name, RopeRecipe())


class Dispatcher:
    """Stands in the place of a rotation."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        functools.update_wrapper(self, _plain(original))
        self.signature = rotations.Signature(_plain(original))
        with probe.probing():
            known = rotations.recognise(_plain(original))
        self.known = None if isinstance(known, str) else known
        self.leases = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the original gives, by the kernel inside of swapped modules."""
        return (self.rotate if _swapped.depth else self.original)(*args, **kwargs)

    def rotate(self, *args: Any, **kwargs: Any) -> Any:
        """What the original gives, by the kernel where it can be."""
        if self.known is not None:
            given = {**dict(zip(self.signature.names, args, strict=False)), **kwargs}
            rotated = self._by_kernel(self.known, given)
            if rotated is not None:
                return rotated
        return self.original(*args, **kwargs)

    def _by_kernel(self, known: rotations.Known, given: dict[str, Any]) -> Any:
        """The rotation, or None where the original must compute it."""
        xs = tuple(given.pop(name, None) for name in self.signature.rotated)
        tables = tuple(given.pop(name, None) for name in self.signature.tables)
        axis = given.pop("unsqueeze_dim", self.signature.default_axis)
        sections = given.pop("mrope_section", None)
        given.pop("position_ids", None)  # where there is one, it is not looked at: the probe passes none
        if given or not all(isinstance(x, torch.Tensor) for x in (*xs, *tables)):
            return None
        rotated = rotations.rotate(known, xs, tables, axis, sections)
        return rotated if rotated is None or len(xs) == 2 else rotated[0]


_lock = threading.RLock()


class Lease:
    """Keeps the dispatcher of a function in its place until it is released or collected.

    A copy of a patched model, or one that is loaded, takes a lease of its own.
    """

    def __init__(self, function: RopeFunction) -> None:
        self.function = function
        with _lock:
            dispatcher = function.value
            if not isinstance(dispatcher, Dispatcher):
                dispatcher = Dispatcher(dispatcher)
                setattr(sys.modules[function.module], function.name, dispatcher)
            dispatcher.leases += 1
        self.release = weakref.finalize(self, _release, function, dispatcher)
        self.release.atexit = False

    def __reduce__(self) -> tuple[type[Lease], tuple[RopeFunction]]:
        return Lease, (self.function,)


def _release(function: RopeFunction, dispatcher: Dispatcher) -> None:
    with _lock:
        dispatcher.leases -= 1
        # Whoever has put something else there since keeps it; the dispatcher below then calls the original. The file
        # may be gone as well: that of remote code.
        file = sys.modules.get(function.module)
        if dispatcher.leases == 0 and getattr(file, function.name, None) is dispatcher:
            setattr(file, function.name, dispatcher.original)
