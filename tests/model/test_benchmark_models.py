"""The benchmarks of whole models: the arms train the same model, and whatever happens to a case becomes a row."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# The benchmarks are no part of what is installed. At the end of the path the checkout hides nothing that is.
sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import report
from benchmarks.marked import marks
from benchmarks.models import arms, command, data, longest, pool, readme, step, worker
from benchmarks.models.case import Case, Result
from benchmarks.models.report import behind, grouped, lost
from benchmarks.placed import placed
from benchmarks.rows import Run, Spread, keep, load, save

sys.path.pop()

TINY = Case("llama-tiny", "eager", tokens=64, sequence=32, steps=2, dtype="float32")


def losses(**changes: Any) -> list[float]:
    """Those of a short training."""
    case = dataclasses.replace(TINY, what="curve", steps=4, **changes)
    result = worker.result_of(case)
    assert not result.note
    return list(result.losses)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "gemma-tiny", "checkpointing": True},
        {"train": "lora", "checkpointing": True, "valid": 0.5},
    ],
    ids=["full", "gemma2 checkpointed", "lora"],
)
def test_the_arms_train_the_same_model(changes: dict[str, Any]) -> None:
    ours = losses(arm="ours", **changes)
    assert ours == pytest.approx(losses(arm="eager", **changes), abs=1e-3)
    assert ours[-1] < ours[0] and math.isfinite(ours[-1])


def test_the_flax_arms_train_the_same_model() -> None:
    ours = losses(arm="flax-ours")
    assert ours == pytest.approx(losses(arm="flax-plain"), abs=1e-3)
    assert ours[-1] < ours[0]


def test_a_step_has_its_time_and_operations() -> None:
    result = worker.result_of(dataclasses.replace(TINY, arm="ours"))
    assert result.step is not None and result.step.samples == 2 and result.tokens_s and result.utilisation
    # Six for every token and weight of a linear layer, and attention to half of the tokens of each sequence.
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) + 64 * 211
    assert result.tflops is not None
    assert result.tflops * 1e12 == 6 * weights * 64 + 2 * 2 * 12 * (32 * 32 / 2) * 64
    assert result.losses[0] == pytest.approx(math.log(211), abs=0.1)


def test_flops_of_frozen_layers_and_windows() -> None:
    lora = dataclasses.replace(TINY, train="lora")
    full, adapted = (arms.model_flops(c, arms.build(c, "cpu")) for c in (TINY, lora))
    frozen = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) + 64 * 211
    adapters = 2 * arms.RANK * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))
    assert adapted - full == (6 * adapters - 2 * frozen) * TINY.tokens
    gemma = dataclasses.replace(TINY, model="gemma-tiny")
    windows = [min(32, w) for w in (8, 32)]
    pairs = sum(32 * w - w * w / 2 for w in windows)
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) + 64 * 211
    assert arms.model_flops(gemma, arms.build(gemma, "cpu")) == 6 * weights * 64 + 12 * pairs * 64 * 2


def test_labels_of_prompts_do_not_count() -> None:
    tokens = data.uniform(0, 2, 1024, 211)
    labels = data.labels_of(tokens, 0.25)
    assert (labels[:, :384] == data.IGNORE_INDEX).all() and (labels[:, 384:512] == tokens[:, 384:512]).all()
    assert (data.labels_of(tokens, 1.0) == tokens).all()


def test_walks_are_soon_learnt() -> None:
    walks = data.walks(0, 3, 2, 500, 32_000)
    assert walks.shape == (3, 2, 500) and (walks == data.walks(0, 3, 2, 500, 32_000)).all()
    assert len(set(walks.flat)) <= data.VISITED and walks.max() > data.VISITED
    walks = data.walks(0, 3, 2, 50, 20)
    following = {(a, b) for row in walks.reshape(6, 50) for a, b in itertools.pairwise(row)}
    assert len(following) <= 20 * data.SUCCESSORS
    result = worker.result_of(dataclasses.replace(TINY, what="curve", steps=100, tokens=256))
    assert result.losses[0] == pytest.approx(math.log(211), abs=0.1)
    assert result.losses[-1] < result.losses[0] - 1


def test_running_out_of_memory_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")

    monkeypatch.setattr(step.Training, "step", fail)
    assert worker.result_of(TINY).note == "out of memory"
    found = worker.result_of(dataclasses.replace(TINY, what="longest"))
    assert found.fits is None and found.fails == 64 and found.note == "no length fits"

    monkeypatch.setattr(step.Training, "step", lambda _: 1 / 0)
    assert worker.result_of(TINY).note == "failed: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("limit", [700, 5000, 100_000, 131_072])
def test_the_longest_context_is_found(limit: int) -> None:
    tried = []

    def probe(tokens: int) -> longest.Probe:
        tried.append(tokens)
        return tokens, 1.0 if tokens <= limit else None, min(5 + tokens * 75e-5, 5 + limit * 75e-5)

    done = longest.search(probe, 8192, 5 + limit * 75e-5, 60.0)
    fits = max((p[0] for p in done if p[1] is not None), default=0)
    fails = min(p[0] for p in done if p[1] is None)
    assert fits <= limit < fails
    assert fails - fits <= max(longest.MULTIPLE, longest.TOLERANCE * fits)
    assert len(tried) == len(set(tried)) <= 8


def test_a_search_ends_before_its_time_does() -> None:
    done = longest.search(lambda tokens: (tokens, tokens * 1e3, 1.0), 1024, 80.0, 4000.0)
    assert [p[0] for p in done] == [1024]  # twice the length may take four times as long


def test_a_search_for_which_there_is_no_time_tries_shorter_lengths() -> None:
    """Memory would allow for 100,000 tokens, but the square of the length only for three times the second one."""
    done = longest.search(lambda tokens: (tokens, tokens / 10, 5 + tokens * 75e-5), 8192, 80.0, 15.0)
    lengths = [p[0] for p in done]
    assert lengths[:2] == [8192, 16_384] and 45_000 < lengths[2] < 50_000 < lengths[3] < 90_000
    assert all(p[1] is not None for p in done)


def options(*words: str) -> argparse.Namespace:
    """What the command line means."""
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    return parser.parse_args(words)


def test_cases_of_a_command_line() -> None:
    found = command.cases(
        options("llama-3.2", "--arms", "ours,liger", "--tokens", "4096,8192", "--train", "full,lora")
    )
    assert [(c.arm, c.train, c.tokens, c.sequence) for c in found] == [
        (arm, train, tokens, tokens)
        for train in ("full", "lora")
        for tokens in (4096, 8192)
        for arm in ("ours", "liger")
    ]
    assert all(c.model == "llama-3.2-1b" for c in found)
    (curve,) = command.cases(options("--what", "curve", "--arms", "flax-ours"))
    assert (curve.model, curve.batch, curve.sequence, curve.steps) == ("llama-110m", 4, 1024, 100)
    assert command.cases(options("qwen3", "--arms", "flax-ours")) == []
    small, large = command.cases(options("qwen3", "--what", "longest", "--memory", "24,48", "--arms", "ours"))
    assert (small.memory_gb, large.memory_gb) == (24, 48) and small.key != large.key
    assert small.title == "qwen3-4b, full, in 24 GB"
    with pytest.raises(ValueError, match="not a number of sequences"):
        command.cases(options("qwen3", "--sequence", "3000"))


def some_results() -> tuple[Result, ...]:
    times = Spread.of([100.0, 101.0, 102.0])
    fast, slow = (dataclasses.replace(TINY, arm=arm, model="llama-3.2-1b") for arm in ("ours", "eager"))
    common: dict[str, Any] = {
        "tflops": 9.0,
        "product_tflops": (600.0, 610.0),
        "peak_gb": 20.0,
        "reserved_gb": 21.0,
    }
    long, curve = ([dataclasses.replace(c, what=what) for c in (fast, slow)] for what in ("longest", "curve"))
    return (
        Result(fast, step=times, wall_ms=101.0, losses=(5.0,), kernels=(("gemm", 3, 1.5),), **common),
        Result(slow, note="out of memory", peak_gb=79.0),
        Result(long[0], fits=65536, fails=66560, probes=((8192, 100.0, 9.0), (65536, 500.0, 70.0))),
        Result(long[1], fits=16384, fails=17408, probes=((8192, 100.0, 19.0), (17408, None, 79.0))),
        Result(curve[0], losses=(5.0, 4.0, 3.0)),
        Result(curve[1], losses=(5.0, 4.001, 3.0)),
    )


def run_of(rows: tuple[Result, ...]) -> Run:
    """A run with these."""
    return Run("GPU", "2026-01-01", "python -m benchmarks models", {"torch": "2"}, None, rows, "abc")


def test_results_are_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    rows = some_results()
    keep(path, run_of(rows), load(path, Result.from_json))
    assert load(path, Result.from_json) == (run_of(rows),)
    again = Result(dataclasses.replace(rows[1].case, steps=20))  # the same case, however often it is timed
    keep(path, run_of((again,)), load(path, Result.from_json))
    assert load(path, Result.from_json) == (run_of((rows[0], *rows[2:])), run_of((again,)))


def test_the_report_shows_the_results(tmp_path: Path) -> None:
    save(tmp_path / "results" / "gpu" / "models.json", [run_of(some_results())])
    docs, front = tmp_path / "docs", tmp_path / "README.md"
    front.write_text("before\n{}\nold\n{}\nafter\n".format(*marks("models")))
    parser = argparse.ArgumentParser()
    report.arguments(parser)
    words = [
        "--results",
        str(tmp_path / "results"),
        "--output",
        str(docs),
        "--readme",
        str(front),
    ]
    assert report.run(parser.parse_args(words)) == 0
    index = (docs / "README.md").read_text()
    assert "gpu/models.md" in index
    assert "where another arm is ahead" not in index
    text = (docs / "gpu" / "models.md").read_text()
    shown = front.read_text()
    assert "\nold\n" not in shown and shown.startswith("before\n") and shown.endswith("after\n")
    anchor = "longest-llama-3-2-1b-full-float32-ours"
    assert "llama-3.2-1b, full, 1 x" not in shown  # out of memory beside ours
    assert f"[65,536 tokens](docs/benchmarks/gpu/models.md#{anchor})§" in shown and f'id="{anchor}"' in text
    assert "</a>ours§ | 101.0 (100.0 to 102.0) | 634 |" in text
    assert "</a>eager | out of memory (at 79.0 GB)" in text
    assert "</a>ours§ | 65,536 |" in text
    assert "</a>ours§ | 5.0000 | 3.0000 | 1.0e-03 at step 2 |" in text
    for name in ("steps", "longest", "curves"):
        for suffix in ("png", "svg"):
            assert (docs / "gpu" / f"models-{name}.{suffix}").stat().st_size > 1000


def test_the_first_page_tells_where_another_arm_is_ahead(tmp_path: Path) -> None:
    ours, eager, *long = some_results()[:4]
    ours = dataclasses.replace(ours, step=None, note="out of memory")
    eager = dataclasses.replace(some_results()[0], case=eager.case)
    long[1] = dataclasses.replace(long[1], fits=131072, fails=None)
    path = tmp_path / "gpu" / "models.json"
    save(path, [run_of((ours, eager, *long))])
    first, second = (re.sub(r"\]\([^)]*\)", "]", line) for line in behind(path).splitlines()[-2:])
    assert first.endswith("| eager | ms | [101.0] | [out of memory]§ |")
    assert second.endswith("| eager | longest context | [131,072] | [65,536]§ |")
    assert not readme.has_pair(placed([run_of(tuple(long))], "here"))


def test_published_models_are_not_trained_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "has_gpu", lambda: False)
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    with pytest.raises(SystemExit, match="needs a GPU"):
        command.run(parser.parse_args(["gemma-2-2b"]))


def test_the_readme_shows_groups_of_ours_and_another_arm_that_both_finished() -> None:
    step, no_step, ours, eager = some_results()[:4]
    stepped = dataclasses.replace(step, case=no_step.case)
    for pair, is_shown in (
        ((step, stepped), True),
        ((step, no_step), False),
        ((step,), False),
        ((ours, eager), True),
        ((ours, dataclasses.replace(eager, fails=None)), False),
        ((dataclasses.replace(stepped, case=dataclasses.replace(step.case, arm="liger")), stepped), False),
    ):
        assert readme.has_pair(placed([run_of(pair)], "")) == is_shown


def test_a_search_that_ended_for_lack_of_time_loses_no_comparison() -> None:
    ours, eager = some_results()[2:4]

    def lines(ours_fails: int | None, eager_fits: int) -> int:
        results = dataclasses.replace(ours, fails=ours_fails), dataclasses.replace(eager, fits=eager_fits)
        return len(lost(grouped(placed([run_of(results)], ""))))

    assert ours.fits == 65_536
    assert lines(66_560, 66_560) == 1
    assert lines(66_560, 65_536) == 0
    assert lines(90_112, 70_656) == 0  # ours may be as long
    assert lines(None, 131_072) == 0


def test_a_longest_context_is_known_to_the_search_s_tolerance_or_told_to_be_at_least_so_long() -> None:
    found = some_results()[2]
    assert not found.is_at_least and found.fits == 65_536
    assert not dataclasses.replace(found, fails=67_502).is_at_least  # 3 %
    assert dataclasses.replace(found, fails=67_584).is_at_least
    assert dataclasses.replace(found, fails=None).is_at_least
    assert not dataclasses.replace(found, fits=None, fails=None).is_at_least


def test_a_case_runs_in_a_process_of_its_own() -> None:
    ((late, machine),) = pool.results([TINY], limit=0.01, seconds=300.0)
    assert late.note == "failed: no result within 0 s" and late.failed and machine == {}
    ((late, machine),) = pool.results([TINY], limit=300.0, seconds=0.0)
    assert late.note == "not run: the time was up" and machine == {}
    ((result, machine),) = pool.results([TINY], limit=300.0, seconds=300.0)
    assert result.step is not None and machine["device"] == "CPU"
