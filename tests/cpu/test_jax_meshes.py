"""The functions on meshes of two devices, which have to be asked for before JAX starts."""

from __future__ import annotations

import os
import subprocess
import sys

import jax_meshes


def test_values_and_gradients_on_two_devices() -> None:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    done = subprocess.run(
        [sys.executable, jax_meshes.__file__], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
