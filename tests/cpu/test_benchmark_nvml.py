"""Clock, power and temperature of the GPU, of a library that stands in for the driver's."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import pytest

from benchmarks import nvml


def test_without_nvml_it_is_said(tmp_path: Path) -> None:
    monitor = nvml.Monitor(library=str(tmp_path / "libnvidia-ml.so"))
    assert monitor.read() is None
    assert monitor.hardware()["nvml"].startswith("NVML: ")
    assert nvml.middle([]) is None
    readings = [nvml.Reading(1.0, 2.0, 3.0), nvml.Reading(3.0, 2.0, 1.0), nvml.Reading(2.0, 2.0, 2.0)]
    assert nvml.middle(readings) == nvml.Reading(2.0, 2.0, 2.0)


class Driver:
    """As CUDA's and NVML's libraries, of a machine with two GPUs of which CUDA shows the second one alone."""

    clocks: Mapping[bytes, int] = {b"0000:1B:00.0": 1111, b"0000:4D:00.0": 1980}

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = 7 + ordinal
        return 0

    def cuDeviceGetPCIBusId(self, text: Any, size: int, device: Any) -> int:
        text.value = b"0000:4D:00.0"
        return 0 if device.value == 7 and size > 12 else 1

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus: bytes, handle: Any) -> int:
        handle._obj.value = self.clocks[bus]
        return 0

    def nvmlDeviceGetClockInfo(self, handle: Any, which: int, found: Any) -> int:
        found._obj.value = handle.value
        return 0

    def nvmlDeviceGetPowerUsage(self, handle: Any, found: Any) -> int:
        found._obj.value = 500_000
        return 0

    def nvmlDeviceGetTemperature(self, handle: Any, which: int, found: Any) -> int:
        found._obj.value = 40
        return 0


def test_the_gpu_that_is_read_is_the_one_that_cuda_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert nvml.Monitor().read() == nvml.Reading(1980.0, 500.0, 40.0)
    monkeypatch.setattr(Driver, "cuInit", lambda self, flags: 100)
    assert nvml.Monitor().absent == "NVML: cuInit returned 100"
