"""The GPU that launches are planned for, and the settings that hold where a function is called."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator

import jax

from liger import device as devices
from liger.device import Device

_planned: contextvars.ContextVar[Device | None] = contextvars.ContextVar("liger_planned_device", default=None)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a call notes while it is traced, for the lowering that comes later.

    Attributes:
        device: the GPU to plan for; None for the one that this process sees.
        precision: `jax.default_matmul_precision` around the call.
    """

    device: Device | None
    precision: str | None


def current_plan() -> Plan:
    """The settings that hold now."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return Plan(_planned.get(), precision)


@contextlib.contextmanager
def planning_for(device: Device) -> Iterator[None]:
    """Plan and compile for this GPU instead of the local one, so that a machine without it can lower for it.

    Holds for functions traced inside the context. (JAX reuses a trace that it made before: use a new function.)

    >>> import jax, jax.numpy as jnp, liger_jax
    >>> from liger.device import PRESETS
    >>> with liger_jax.planning_for(PRESETS["sm_80"]):
    ...     traced = jax.jit(liger_jax.rms_norm).trace(jnp.ones((4, 64)), jnp.ones(64))
    """
    token = _planned.set(device)
    try:
        yield
    finally:
        _planned.reset(token)


@functools.cache
def local_device() -> Device:
    """The first local GPU; `liger.device.DEFAULT` on a machine without one."""
    try:
        gpu = jax.local_devices(backend="gpu")[0]
    except RuntimeError:
        return devices.DEFAULT
    capability = gpu.compute_capability
    if capability.startswith("gfx"):
        arch: int | str = capability.split(":")[0]
        nearest = devices.MI300X
    else:
        major, minor = map(int, capability.split("."))
        arch = 10 * major + minor
        nearest = max(
            (d for d in devices.PRESETS.values() if isinstance(d.arch, int) and d.arch <= max(arch, 80)),
            key=lambda d: d.arch,
        )
    # XLA does not tell the sizes of caches: those of the nearest GPU that is known.
    return dataclasses.replace(nearest, arch=arch, multiprocessors=gpu.core_count)
