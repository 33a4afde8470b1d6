"""Train a small Llama four ways on the same text, from the same weights, and compare.

    python -m examples.demo

Hugging Face's model as it is and patched, and its Flax twin on plain Flax layers and on this package's. The text is
the source of Python's standard library; nothing is downloaded. Each run is a process of its own: the memory of one
then cannot be counted with another's, torch and XLA do not compete for cores, and a patch cannot leak.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples import corpus, messages, report, train_torch
from examples.progress import Progress
from examples.settings import PRESETS, Settings

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "demo"


def prepare(settings: Settings, folder: Path) -> None:
    """Write what all runs share: the settings, the batches and the initial weights."""
    start = time.monotonic()
    texts = corpus.standard_library(settings.corpus_bytes)
    tokenizer = corpus.train_tokenizer(texts, settings.vocab_size)
    batches = corpus.batches(
        texts,
        tokenizer,
        steps=settings.steps,
        batch=settings.batch,
        sequence=settings.sequence,
        seed=settings.seed,
    )
    megabytes = sum(map(len, texts)) / 1e6
    print(
        f"text: {len(texts)} modules of the standard library, {megabytes:.1f} MB; "
        f"a BPE vocabulary of {settings.vocab_size}, trained in {time.monotonic() - start:.0f} s",
        flush=True,
    )
    settings.save(folder / "settings.json")
    np.save(folder / "batches.npy", batches)
    parameters = train_torch.save_initial_model(settings, folder / "model")
    print(
        f"model: Llama, {settings.layers} layers of {settings.hidden_size}, {parameters / 1e6:.1f} M parameters, "
        f"{settings.dtype}; {settings.steps} steps of {settings.batch} x {settings.sequence} tokens",
        flush=True,
    )


def run(job: report.Run, settings: Settings, folder: Path) -> dict[str, Any]:
    """Train in a process, show its progress, and return its result."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **os.environ}
    # JAX would take three quarters of the GPU at its start, whoever else uses it.
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if settings.device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", job.module, str(folder), *(["--liger"] if job.liger else [])]
    log = folder / f"{job.key}.log"
    start = time.monotonic()
    result: dict[str, Any] | None = None
    # A terminal is told which run is starting at once; elsewhere the first loss does.
    progress = Progress(job.name, settings.steps)
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            message = messages.understand(line)
            if message is None:
                errors.write(line)
            elif "step" in message:
                progress.show(message["step"], loss=message["loss"])
            else:
                result = message["result"]
    progress.end()
    if process.returncode or result is None:
        tail = "\n".join(log.read_text().splitlines()[-30:])
        raise SystemExit(f"{job.name}: ended with status {process.returncode}\n{tail}")
    print(f"{job.name}: {result['path']}; {time.monotonic() - start:.0f} s in all", flush=True)
    return {**result, "seconds": time.monotonic() - start}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train four times, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "gpu" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--preset", choices=PRESETS, default=default, help="what to train (here: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="instead of the preset's")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the plot and the numbers")
    options = parser.parse_args(arguments)
    changes = {
        name: getattr(options, name) for name in ("steps", "dtype") if getattr(options, name) is not None
    }
    settings = dataclasses.replace(PRESETS[options.preset], **changes)
    if settings.steps <= settings.untimed:
        parser.error(
            f"--steps must be more than {settings.untimed}, which are not timed; got {settings.steps}"
        )
    if settings.device == "gpu" and default != "gpu":
        parser.error("--preset gpu: torch finds no GPU here; choose cpu")

    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="liger-demo-") as name:
        folder = Path(name)
        prepare(settings, folder)
        results = {job.key: run(job, settings, folder) for job in report.RUNS}
    seconds = time.monotonic() - start

    print(f"\n{report.table(results)}\n\n{report.notes(settings, results)}\n")
    options.output.mkdir(parents=True, exist_ok=True)
    plot, numbers = options.output / "losses.png", options.output / "results.json"
    report.save_plot(settings, results, plot)
    gpu = torch.cuda.get_device_name() if settings.device == "gpu" else None
    report.save_numbers(settings, results, numbers, gpu=gpu, preset=options.preset, seconds=seconds)
    print(f"plot: {plot}\nnumbers: {numbers}\n{seconds:.0f} s in all")


if __name__ == "__main__":
    main()
