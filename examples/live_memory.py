"""The most memory that torch's tensors take at once on a CPU, where the allocator keeps no count."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveMemory(TorchDispatchMode):
    """Adds up the storages alive while it is entered: those given, and those that operators return, until they die.

    A storage counts once, however many tensors look at it. What an operator allocates and frees within itself is not
    seen.
    """

    def __init__(self, alive: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}
        for tensor in alive:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def died(_: weakref.ref[Any]) -> None:
            del self._storages[key]
            self.bytes -= size

        self._storages[key] = weakref.ref(storage, died)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, result)
        return result
