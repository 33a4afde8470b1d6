"""The demo, end to end, on a model small enough for a test; and what it measures memory with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# For these imports only: the tests are to see the installed packages, and the Hub's `kernels`.
sys.path.insert(0, str(ROOT))

from examples import report  # noqa: E402
from examples.live_memory import LiveMemory  # noqa: E402
from examples.settings import PRESETS  # noqa: E402

sys.path.remove(str(ROOT))

KEYS = ["hf", "hf_liger", "flax", "flax_liger"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The demo's output, and the folder that it wrote to."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "examples.demo", "--preset", "tiny", "--output", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout, folder


@pytest.fixture(scope="module")
def numbers(demo: tuple[str, Path]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((demo[1] / "results.json").read_text())
    return result


def test_four_runs_train(numbers: dict[str, Any]) -> None:
    assert list(numbers["runs"]) == KEYS
    for run in numbers["runs"].values():
        assert len(run["losses"]) == PRESETS["tiny"].steps
        # The batches differ; the first loss is that of guessing, log(vocabulary), and no later one is above it.
        assert run["losses"][0] == pytest.approx(6.24, abs=0.2)
        assert run["losses"][-1] < run["losses"][0]
        assert 0 < run["tokens_per_second"] < float("inf")


def test_the_runs_follow_the_plain_ones(numbers: dict[str, Any]) -> None:
    runs = numbers["runs"]
    for key, plain in [("hf_liger", "hf"), ("flax", "hf"), ("flax_liger", "flax")]:
        apart = [abs(a - b) for a, b in zip(runs[key]["losses"], runs[plain]["losses"], strict=True)]
        assert runs[key]["compared_with"] == plain
        assert runs[key]["largest_difference"] == max(apart) < 1e-5


def test_peak_holds_weights_gradients_and_optimizer_state(numbers: dict[str, Any]) -> None:
    """And is of the order of that and the logits, in both frameworks: they count the same thing."""
    for run in numbers["runs"].values():
        settings = PRESETS["tiny"]
        embeddings = 2 * settings.vocab_size * settings.hidden_size
        assert 4 * 4 * embeddings < run["peak_bytes"] < 8 * 4 * 4 * embeddings


def test_the_paths_are_named(numbers: dict[str, Any]) -> None:
    paths = [numbers["runs"][key]["path"] for key in KEYS]
    assert paths == ["torch on the CPU", "reference on the CPU", "XLA on the CPU", "reference on the CPU"]
    assert numbers["runs"]["hf_liger"]["patched"]


def test_table_and_plot(demo: tuple[str, Path], numbers: dict[str, Any]) -> None:
    output, folder = demo
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("run  "))
    for line, key in zip(lines[start + 2 : start + 6], KEYS, strict=True):
        assert line.startswith(numbers["runs"][key]["name"])
        assert f"{numbers['runs'][key]['losses'][-1]:.4f}" in line
        assert numbers["runs"][key]["path"] in line
    assert "WARNING" not in output
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert {"torch", "jax", "transformers"} <= set(numbers["versions"])


def test_a_run_that_strays_is_reported() -> None:
    results: dict[str, dict[str, Any]] = {key: {"losses": [6.0, 5.0], "peak_measure": "x"} for key in KEYS}
    assert "WARNING" not in report.notes(PRESETS["tiny"], results)
    results["flax"]["losses"] = [6.0, 5.001]
    assert "WARNING: a loss is 1.0e-03" in report.notes(PRESETS["tiny"], results)


def test_live_memory_counts_storages_until_they_die() -> None:
    kept = torch.zeros(1000)  # 4000 bytes, given
    with LiveMemory([kept, kept[10:]]) as memory:
        assert memory.bytes == 4000
        first = kept + 1
        view = first[:10]
        del first
        assert memory.bytes == 8000  # The view keeps its storage.
        del view
        assert memory.bytes == 4000
        kept.mul_(2)
        assert (memory.bytes, memory.peak) == (4000, 8000)


def test_live_memory_sees_the_backward_pass() -> None:
    weight = torch.ones(1000, requires_grad=True)
    with LiveMemory([weight]) as memory:
        (weight * weight).sum().backward()
        assert weight.grad is not None
        held = memory.bytes
        # Weight and its gradient; the scalars of the sum are gone or a few bytes.
        assert 8000 <= held < 8100
        assert memory.peak >= 12000
