"""Geometries that are timed in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import checkout  # noqa: F401
import pytest
import torch
from torch._C._autograd import DeviceType

from benchmarks import tune


class Candidate:
    """Leaves events of its launches, each of so many microseconds."""

    def __init__(self, events: list[Any], name: str, us: tuple[int, ...]) -> None:
        self.events, self.name, self.launches = events, name, us

    def __call__(self) -> None:
        for us in self.launches:
            start = len(self.events)
            self.events.append(
                SimpleNamespace(
                    start_ns=lambda start=start: start,
                    duration_ns=lambda us=us: us * 1000,
                    device_type=lambda: DeviceType.CUDA,
                    name=self.name,
                )
            )


def test_geometries_take_turns_in_another_order_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    @contextlib.contextmanager
    def profile(**_: Any) -> Iterator[Any]:
        yield SimpleNamespace(profiler=SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: events)))

    monkeypatch.setattr(tune, "profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    candidates: Any = {name: Candidate(events, name, us) for name, us in {"a": (5, 2), "b": (3,)}.items()}
    assert tune.microseconds(candidates, 9) == {"a": 7.0, "b": 3.0}
    rounds = [tuple(e.name for e in events[i : i + 3]) for i in range(0, 27, 3)]
    assert set(rounds) == {("a", "a", "b"), ("b", "a", "a")}
    events.clear()
    candidates["b"].events = []  # a launch that the profiler did not see
    with pytest.raises(AssertionError, match="lost launches"):
        tune.microseconds(candidates, 3)
