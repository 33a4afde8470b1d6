"""Count the bytes that interpreted launches move through memory.

An array that its launch marks as `resident` counts each byte once per launch, since it stays in cache; every other
one counts as often as it is loaded or stored. `Launch.traffic` is the formula that the count is compared with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from liger.launch import DTYPE_BYTES, Launch


@dataclasses.dataclass(frozen=True, slots=True)
class Count:
    """Bytes that one launch moved."""

    launch: Launch
    moved: int


class Traffic:
    """What was counted, launch by launch."""

    def __init__(self) -> None:
        self.counts: list[Count] = []
        self._loads: list[tuple[np.ndarray, int]] = []
        self._stored = 0

    def load(self, addresses: np.ndarray, itemsize: int) -> None:
        """Record a load of the elements at these addresses."""
        self._loads.append((addresses, itemsize))

    def store(self, n_elements: int, itemsize: int) -> None:
        """Record a store."""
        self._stored += n_elements * itemsize

    def finish(self, launch: Launch, inputs: Sequence[int]) -> None:
        """Add up the launch that has just run."""
        moved = self._stored
        resident = [
            (address, spec)
            for address, spec in zip(inputs, launch.inputs, strict=True)
            if spec.resident and not spec.unread
        ]
        once: list[list[np.ndarray]] = [[] for _ in resident]
        for addresses, itemsize in self._loads:
            for (begin, spec), chunks in zip(resident, once, strict=True):
                inside = (addresses >= begin) & (addresses < begin + spec.size * DTYPE_BYTES[spec.dtype])
                chunks.append(addresses[inside])
                addresses = addresses[~inside]
            moved += addresses.size * itemsize
        for (_, spec), chunks in zip(resident, once, strict=True):
            if chunks:
                moved += np.unique(np.concatenate(chunks)).size * DTYPE_BYTES[spec.dtype]
        self.counts.append(Count(launch, moved))
        self._loads, self._stored = [], 0


_observers: list[Traffic] = []


@contextmanager
def count() -> Iterator[Traffic]:
    """Count every launch that is interpreted inside the context, in whichever thread."""
    traffic = Traffic()
    _observers.append(traffic)
    try:
        yield traffic
    finally:
        _observers.remove(traffic)


@contextmanager
def observed(launch: Launch, inputs: Sequence[int]) -> Iterator[None]:
    """Let the counting contexts, if there are any, see one launch. Called by the interpreter, under its lock."""
    if not _observers:
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    load, store = Builder.create_masked_load, Builder.create_masked_store

    def counted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        result = load(self, ptrs, mask, *rest)
        # A mask that a number was combined with is one of integers to the interpreter.
        addresses = np.broadcast_to(ptrs.data, mask.data.shape)[mask.data.astype(bool)]
        for observer in _observers:
            observer.load(addresses, result.data.itemsize)
        return result

    def counted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        for observer in _observers:
            observer.store(int(np.count_nonzero(mask.data)), value.data.itemsize)
        return store(self, ptrs, value, mask, *rest)

    Builder.create_masked_load, Builder.create_masked_store = counted_load, counted_store
    try:
        yield
    finally:
        Builder.create_masked_load, Builder.create_masked_store = load, store
    for observer in _observers:
        observer.finish(launch, inputs)
