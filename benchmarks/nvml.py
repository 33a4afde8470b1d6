"""Clock, power and temperature of the GPU, asked of the driver's own library (NVML), which needs no package."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
from collections.abc import Iterable
from typing import NamedTuple

SM_CLOCK, MAX_CLOCK_SM = 1, 1
GPU_TEMPERATURE = 0


class Reading(NamedTuple):
    """One look at the GPU."""

    clock_mhz: float
    power_w: float
    temperature_c: float


def middle(readings: Iterable[Reading]) -> Reading | None:
    """The median of each figure; None of no readings."""
    found = list(readings)
    return Reading(*map(statistics.median, zip(*found, strict=True))) if found else None


def _checked(library: ctypes.CDLL, name: str, *arguments: object) -> None:
    status = getattr(library, name)(*arguments)
    if status:
        raise OSError(f"{name} returned {status}")


def address(library: str = "libcuda.so.1") -> bytes:
    """The PCI address of the first GPU that CUDA shows to this process, by CUDA_VISIBLE_DEVICES; NVML shows all.

    Raises:
        OSError: there is no driver, or no GPU.
    """
    cuda = ctypes.CDLL(library)
    device, text = ctypes.c_int(), ctypes.create_string_buffer(32)
    _checked(cuda, "cuInit", 0)
    _checked(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    _checked(cuda, "cuDeviceGetPCIBusId", text, len(text), device)
    return text.value


class Monitor:
    """Reads the first GPU of this process; where NVML cannot be had, `absent` says why and `read` gives None."""

    def __init__(self, library: str = "libnvidia-ml.so.1") -> None:
        self.absent = ""
        self._handle = ctypes.c_void_p()
        try:
            self._nvml = ctypes.CDLL(library)
            self._call("nvmlInit_v2")
            self._call("nvmlDeviceGetHandleByPciBusId_v2", address(), ctypes.byref(self._handle))
            self._read()
        except (OSError, AttributeError) as failure:
            self.absent = f"NVML: {failure}"

    def _call(self, name: str, *arguments: object) -> None:
        _checked(self._nvml, name, *arguments)

    def _number(self, name: str, *arguments: object) -> int:
        found = ctypes.c_uint()
        self._call(name, self._handle, *arguments, ctypes.byref(found))
        return found.value

    def _read(self) -> Reading:
        return Reading(
            float(self._number("nvmlDeviceGetClockInfo", SM_CLOCK)),
            self._number("nvmlDeviceGetPowerUsage") / 1e3,
            float(self._number("nvmlDeviceGetTemperature", GPU_TEMPERATURE)),
        )

    def read(self) -> Reading | None:
        """How the GPU is now."""
        if self.absent:
            return None
        try:
            return self._read()
        except OSError as failure:
            self.absent = f"NVML: {failure}"
            return None

    def hardware(self) -> dict[str, str]:
        """The driver and the limits under which the GPU runs."""
        if self.absent:
            return {"nvml": self.absent}
        found: dict[str, str] = {}
        with contextlib.suppress(OSError, AttributeError):
            text = ctypes.create_string_buffer(80)
            self._call("nvmlSystemGetDriverVersion", text, 80)
            found["driver"] = text.value.decode()
        with contextlib.suppress(OSError, AttributeError):
            found["power limit"] = f"{self._number('nvmlDeviceGetEnforcedPowerLimit') / 1e3:.0f} W"
        with contextlib.suppress(OSError, AttributeError):
            found["highest clock"] = f"{self._number('nvmlDeviceGetMaxClockInfo', MAX_CLOCK_SM)} MHz"
        return found
