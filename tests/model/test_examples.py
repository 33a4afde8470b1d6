"""The examples of post-training, for a few steps each: they end well, with a plot, and fail where nothing is learned."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# For this import only: the tests are to see the installed packages, and the Hub's `kernels`.
sys.path.insert(0, str(ROOT))

from examples.curves import Options, Report  # noqa: E402

sys.path.remove(str(ROOT))

STEPS = {"distillation": 6, "dpo_flax": 6, "dpo_trl": 6, "grpo": 8, "sft_trl": 6}


@pytest.mark.parametrize("name", STEPS)
def test_example(name: str, tmp_path: Path) -> None:
    if name.endswith("_trl") and importlib.util.find_spec("trl") is None:
        pytest.skip("needs trl (extra `peers`)")
    command = [sys.executable, "-m", f"examples.{name}", f"--steps={STEPS[name]}", f"--output={tmp_path}"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"step {STEPS[name]} of {STEPS[name]}" in process.stdout
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("rises", "message"), [(False, "does not fall"), (True, "does not rise")])
def test_a_curve_that_goes_the_wrong_way_fails(rises: bool, message: str, tmp_path: Path) -> None:
    report = Report("title", Options(steps=4, output=tmp_path))
    curve = report.curve("run", rises=rises)
    for value in [1.0, 2.0, 3.0, 2.5] if not rises else [2.0, 3.0, 1.0, 1.5]:
        curve.add(value)
    with pytest.raises(SystemExit, match=message):
        report.finish("plot.png")
    assert (tmp_path / "plot.png").exists()
