"""Shared by all test groups: the `gpu` marker, and how hypothesis behaves.

Torch, JAX and Triton are not imported here: several groups set variables that these read when they are imported.
"""

from __future__ import annotations

import glob
import os

import hypothesis
import pytest

# No deadline: the first call of an op compiles. The same examples every time, so that a failure can be run again.
hypothesis.settings.register_profile("liger", deadline=None, derandomize=True)
hypothesis.settings.load_profile("liger")


def has_gpu() -> bool:
    """Whether this process can see a GPU of NVIDIA or AMD."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/kfd"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what needs a GPU where there is none."""
    if has_gpu():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and this machine has none"))
