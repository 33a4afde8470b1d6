"""Shared by all test groups: the `gpu` marker, how hypothesis behaves, and what is left out where torch is missing.

Torch, JAX and Triton are not imported here: several groups set variables that these read when they are imported.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from pathlib import Path

import hypothesis
import pytest

# No deadline: the first call of an op compiles. The same examples every time, so that a failure can be run again.
hypothesis.settings.register_profile("liger", deadline=None, derandomize=True)
hypothesis.settings.load_profile("liger")

# For the tests of meshes; every other test uses the first of them.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")


def has_gpu() -> bool:
    """Whether this process can see a GPU of NVIDIA or AMD."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/kfd"))


NEEDS_TORCH = re.compile(
    r"^ *(import|from) (torch|transformers|liger_torch|examples|torch_runner|hf_models|layouts|model_sizes|upstream|benchmarks\.offline import .*peaks)\b",
    re.MULTILINE,
)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where torch is not installed, leave out the files that import it: JAX is tested without it."""
    if collection_path.suffix != ".py" or importlib.util.find_spec("torch"):
        return None
    return bool(NEEDS_TORCH.search(collection_path.read_text())) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what needs a GPU where there is none."""
    if has_gpu():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and this machine has none"))
