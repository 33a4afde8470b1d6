"""The demo's results: a table, a plot and a file of numbers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from examples.settings import Settings

TOLERANCE = 1e-4
"""How far a float32 run may be from the plain run at any step."""

PACKAGES = ("torch", "transformers", "triton", "jax", "jaxlib", "flax", "optax", "tokenizers", "numpy")


@dataclasses.dataclass(frozen=True)
class Run:
    """One of the four.

    Attributes:
        name: for readers.
        key: in the file of numbers.
        module: the process that trains.
        liger: whether it is on this package's layers.
        plain: key of the run it is compared with.
    """

    name: str
    key: str
    module: str
    liger: bool
    plain: str | None


RUNS = (
    Run("Hugging Face", "hf", "examples.train_torch", False, None),
    Run("Hugging Face, patched", "hf_liger", "examples.train_torch", True, "hf"),
    Run("Flax", "flax", "examples.train_jax", False, "hf"),
    Run("Flax, our layers", "flax_liger", "examples.train_jax", True, "flax"),
)


def differences(results: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Per run that has a plain run to follow: how far its loss is from that one's, at each step."""
    return {
        run.key: [
            abs(ours - plain)
            for ours, plain in zip(results[run.key]["losses"], results[run.plain]["losses"], strict=True)
        ]
        for run in RUNS
        if run.plain is not None
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table, as text."""
    apart = differences(results)
    names = {run.key: run.name for run in RUNS}
    rows = [("run", "first loss", "last loss", "tokens/s", "peak MiB", "largest difference", "path")]
    for run in RUNS:
        result = results[run.key]
        difference = f"{max(apart[run.key]):.1e} from {names[run.plain]}" if run.plain else "-"
        rows.append(
            (
                run.name,
                f"{result['losses'][0]:.4f}",
                f"{result['losses'][-1]:.4f}",
                f"{result['tokens_per_second']:,.0f}",
                f"{result['peak_bytes'] / 2**20:,.1f}",
                difference,
                result["path"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numeric = range(1, 5)
    lines = [
        "  ".join(
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def notes(settings: Settings, results: dict[str, dict[str, Any]]) -> str:
    """What a reader of the table has to know."""
    measures = {run.module: results[run.key]["peak_measure"] for run in RUNS}
    lines = [
        f"tokens/s: of the median step, without compilation and the first {settings.untimed} steps.",
        "peak: the most memory in use during a step, with weights, optimiser state and batch; in torch by "
        f"{measures['examples.train_torch']}, in JAX by {measures['examples.train_jax']}.",
    ]
    if settings.device == "cpu":
        lines.append(
            "On a CPU the ops run as plain array code: the speed of the kernels shows on a GPU only."
        )
    if settings.dtype == "float32":
        worst = max(map(max, differences(results).values()))
        lines.append(
            f"Every loss of every run is within {TOLERANCE:g} of its plain run's."
            if worst <= TOLERANCE
            else f"WARNING: a loss is {worst:.1e} from its plain run's; {TOLERANCE:g} is expected in float32."
        )
    else:
        lines.append(
            f"In {settings.dtype} the runs round in different places, so their losses part by as much."
        )
    return "\n".join(lines)


def save_plot(settings: Settings, results: dict[str, dict[str, Any]], path: Path) -> None:
    """The four curves, and below how far each is from its plain run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(3, 2))
    # The curves lie on each other: the first is the widest and each later one lets it show.
    styles = {"hf": (6.0, "-"), "hf_liger": (3.5, "-"), "flax": (2.0, "--"), "flax_liger": (1.2, ":")}
    colors = {"hf": "#c6dbef", "hf_liger": "#3182bd", "flax": "#fd8d3c", "flax_liger": "#000000"}
    apart = differences(results)
    for run in RUNS:
        width, style = styles[run.key]
        losses = results[run.key]["losses"]
        steps = range(1, len(losses) + 1)
        above.plot(steps, losses, style, linewidth=width, color=colors[run.key], label=run.name)
        if run.plain is not None:
            # A logarithmic axis has no zero: losses equal to the bit stand at the bottom.
            shown = [max(difference, 1e-9) for difference in apart[run.key]]
            below.plot(steps, shown, style, color=colors[run.key], label=f"{run.name} - {run.plain}")
    if settings.dtype == "float32":
        below.axhline(TOLERANCE, color="grey", linewidth=0.8)
    above.set_ylabel("loss")
    above.legend()
    below.set_yscale("log")
    below.set_ylabel("difference from plain")
    below.set_xlabel("step")
    figure.suptitle(f"Llama, {settings.layers} layers of {settings.hidden_size}, {settings.dtype}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {"system": platform.platform(), "processor": model, "cores": os.cpu_count()}


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    return found


def save_numbers(settings: Settings, results: dict[str, dict[str, Any]], path: Path, **more: Any) -> None:
    """Everything in the table, every loss, and what it was measured with."""
    apart = differences(results)
    numbers = {
        "settings": dataclasses.asdict(settings),
        "runs": {
            run.key: {
                "name": run.name,
                "compared_with": run.plain,
                "largest_difference": max(apart[run.key]) if run.plain else None,
                **results[run.key],
            }
            for run in RUNS
        },
        "machine": machine(),
        "versions": versions(),
        **more,
    }
    path.write_text(json.dumps(numbers, indent=2) + "\n")
