"""The benchmarks' gate before timing, entries and their peers, turns, memory, and the command that runs all."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.util
import itertools
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from liger_torch.functional import liger_rms_norm
from liger_triton.rms_norm import RMS_NORM, Options

# The benchmarks are no part of what is installed. At the end of the path the checkout hides nothing that is.
sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import (
    aimed,
    aims,
    checks,
    gate,
    memory,
    providers,
    run,
    sources,
    turns,
)
from benchmarks import all as everything
from benchmarks.commands import COMMANDS, Command, module_of
from benchmarks.entries import entries, linear_cross_entropy, linear_jsd, logprobs, policy, preference
from benchmarks.entry import Entry
from benchmarks.groups import GROUPS
from benchmarks.jax_side import entries as jax_entries
from benchmarks.phases import Phases
from benchmarks.rows import Row, Run

sys.path.pop()

ROOT = Path(__file__).parents[2]


def draw() -> tuple[torch.Tensor, torch.Tensor, None]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 64, generator=generator).bfloat16() for n in (100, 1))
    return x.requires_grad_(), weight[0].clone().requires_grad_(), None


@pytest.mark.parametrize("wrong", [False, True])
def test_the_gate(wrong: bool) -> None:
    def function(x: torch.Tensor, weight: torch.Tensor, *_: None) -> torch.Tensor:
        y = liger_rms_norm(x, weight, 1e-6)
        return y * 1.1 if wrong else y

    entry = Entry("rms_norm", RMS_NORM, Options(), lambda: draw()[: len(RMS_NORM.operands)], function)
    operands = entry.operands()
    few = gate.few_rows(entry, operands)
    assert few[0] is not None and few[0].shape == (checks.ROWS, 64)
    found = gate.error(entry, function, operands, gate.exact(entry, operands))
    assert (found > gate.limit(None, torch.bfloat16)) == wrong


def test_a_wrong_formula_is_no_measure_of_the_others() -> None:
    rounding = torch.finfo(torch.bfloat16).eps
    assert gate.limit(None, torch.bfloat16) == gate.limit(rounding / 8, torch.bfloat16) == 4 * rounding
    assert gate.limit(1.5 * rounding, torch.bfloat16) == 6 * rounding
    assert gate.limit(0.5, torch.bfloat16) == gate.limit(float("inf"), torch.bfloat16) == 8 * rounding


HEADS = {
    "linear_cross_entropy": lambda: linear_cross_entropy.entry(96, 32, 80),
    "half": lambda: linear_cross_entropy.entry(96, 32, 80, half=True),
    "frozen": lambda: linear_cross_entropy.entry(96, 32, 80, frozen=True),
    "forward": lambda: linear_cross_entropy.entry(96, 32, 80, forward=True),
    "one chunk": lambda: linear_cross_entropy.entry(96, 32, 80, one_chunk=True),
    "log-probs": lambda: logprobs.entry(96, 32, 80),
    "log-probs, recomputed": lambda: logprobs.entry(96, 32, 80, alone=True, keep=False),
    "linear_jsd": lambda: linear_jsd.entry(96, 32, 48, 80),
    "dpo": lambda: preference.entry(2, 24, 32, 80),
    "grpo": lambda: policy.entry(4, 24, 32, 80),
}


@pytest.mark.parametrize("name", HEADS)
def test_ours_and_the_plain_formula_pass_the_gate(name: str) -> None:
    torch.manual_seed(0)
    entry = HEADS[name]()
    operands = entry.draw("cpu")
    right = gate.exact(entry, operands)
    for implementation in ("ours", providers.EAGER, "ours: per token (recomputes)"):
        function = run.functions_of(dataclasses.replace(entry, compiled=False)).get(implementation)
        if function is not None:
            assert gate.error(entry, function, operands, right) <= gate.limit(None, torch.bfloat16)
    wrong = [t * 1.1 if t.is_floating_point() else t for t in right]
    assert gate.error(entry, entry.function, operands, wrong) > gate.limit(None, torch.bfloat16)


# ------------------------------------------------------------------------------------------------- entries, peers


def test_every_entry_can_be_drawn_and_is_named_once() -> None:
    names = []
    for entry in entries():
        names.append(entry.name)
        operands = entry.draw("meta")
        assert all(t is None or t.device.type == "meta" for t in operands), entry.name
        if entry.products is None and entry.moved is None:  # which looks at the ids
            assert all(n >= 0 for n in entry.bytes(operands)) and entry.bytes(operands)[0] > 0, entry.name
        for peer in entry.peers:
            assert peer.startswith("ours: ") or providers.provider_of(peer) in providers.PROVIDERS, peer
    assert len(names) == len(set(names))


AIMED = {
    "rms_norm 8192x4096": {"forward": 0.93, "backward": 0.85},
    "layer_norm 8192x4096": {"forward": 0.93, "backward": 0.85},
    "add_rms_norm 8192x4096": {"forward": 0.92, "backward": 0.85},
    "add_layer_norm 8192x4096": {"forward": 0.92, "backward": 0.85},
    "rope 8192 tokens, 32+8 heads of 128": {"forward": 0.90, "backward": 0.90},
    "swiglu 8192x14336": {"forward": 0.95, "backward": 0.90},
    "geglu tanh 8192x14336": {"forward": 0.95, "backward": 0.90},
    "cross_entropy 8192x128256": {"forward and backward": 0.85},
    "cross_entropy 4096x256000": {"forward and backward": 0.78},
    "kl_div 8192x128256": {"forward and backward": 0.80},
    "jsd 8192x128256": {"forward and backward": 0.80},
    **{
        f"linear_cross_entropy {n} tokens, hidden 4096, vocabulary 128256{variant}": {which: aim}
        for n, variant, which, aim in (
            (4096, "", "forward and backward", 0.93),
            (8192, "", "forward and backward", 0.93),
            (16_384, "", "forward and backward", 0.93),
            (32_768, "", "forward and backward", 0.93),
            (4096, ", one chunk", "forward and backward", 0.96),
            (8192, ", one chunk", "forward and backward", 0.96),
            (16_384, ", one chunk", "forward and backward", 0.96),
            (32_768, ", one chunk", "forward and backward", 0.96),
            (8192, ", half the labels ignored", "forward and backward", 0.92),
            (8192, ", frozen head", "forward and backward", 0.94),
            (8192, ", forward only", "forward", 0.94),
        )
    },
    **{
        f"linear_logprobs 8192 tokens, hidden 4096, vocabulary 128256, head, logp alone, {variant}": {
            "forward and backward": 0.92
        }
        for variant in ("recomputed", "logits kept")
    },
    "linear_jsd 8192 tokens, hidden 4096 and 4096, vocabulary 128256": {"forward and backward": 0.90},
    "embedding 8192 tokens, table 128256x4096": {"backward": 0.75},
}
"""What is aimed at, as a share of the ceiling."""

AHEAD = {
    "linear_cross_entropy 8192 tokens, hidden 4096, vocabulary 128256": 1.4,
    "linear_cross_entropy 8192 tokens, hidden 2304, vocabulary 256000": 2.5,
    "linear_cross_entropy 8192 tokens, hidden 4096, vocabulary 128256, half the labels ignored": 2.8,
    "linear_jsd 8192 tokens, hidden 4096 and 4096, vocabulary 128256": 1.9,
    "grpo 8 answers of 1024 tokens, hidden 4096, vocabulary 128256": 8.0,
    "dpo 4 pairs of 1024 tokens, hidden 4096, vocabulary 128256, reference model": 1.2,
    "rms_norm 8192x4096": 2.0,
    "layer_norm 8192x4096": 2.0,
    "cross_entropy 8192x128256": 2.0,
    "kl_div 8192x128256": 2.0,
    "jsd 8192x128256": 2.0,
}
"""How many times as fast as liger-kernel."""


def test_entries_know_what_is_aimed_at() -> None:
    known = {entry.name: entry for entry in entries()}
    for name, shares in AIMED.items():
        assert known[name].target == shares, name
    for name, times in AHEAD.items():
        assert list(known[name].ahead.values()) == [times], name
    fused = "linear_cross_entropy 8192 tokens, hidden 4096, vocabulary 128256"
    assert known[fused].within_mb == 1700.0
    assert known[next(n for n in known if n.startswith("dpo"))].lean == {providers.LIGER: 0.5}


def test_the_aims_that_are_held_are_those_of_the_entries() -> None:
    assert list(aims.held()) == list(aimed.current()), "python -m benchmarks aims"


def test_every_op_that_is_measured_is_known_with_its_module() -> None:
    named = [(entry.name, entry.op) for entry in entries()]
    named += [(entry.name, entry.op) for _, entry in jax_entries.entries()]
    for name, op in named:
        found = sources.op(Row(name, "ours", ""))
        assert found in sources.OPS, name
        assert op is None or op.forward.__module__ in sources.OPS[found], name


def test_a_provider_that_is_not_there_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, reason in (
        ("no_such_package", "not installed"),
        ("tests_support_of_nothing", "not installed"),
    ):
        gone = providers.Provider("quack", module)
        monkeypatch.setitem(providers.PROVIDERS, "quack", gone)
        assert providers.absent(["ours", "quack: variant"]) == {"quack": reason}
    with pytest.raises(providers.Absent, match="not installed"):
        providers.peer("quack", "no_such_package.function")(1)


def test_a_provider_whose_import_fails_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "package_that_fails.py").write_text("raise RuntimeError('no GPU')")
    monkeypatch.syspath_prepend(tmp_path)
    gone = providers.Provider("quack", "package_that_fails")
    assert gone.absent == "does not import: RuntimeError: no GPU"


def test_a_function_that_a_version_has_not_is_absent() -> None:
    with pytest.raises(providers.Absent, match="no_such_function"):
        providers.peer("torch fused", "torch.nn.functional.no_such_function")(1)


# ------------------------------------------------------------------------------------------------- time


def test_kernels_that_overlap_count_once() -> None:
    assert turns.busy([(0, 10), (5, 12), (20, 21), (20, 25)]) == 17
    assert turns.busy([]) == 0


def test_a_row_that_is_looked_up_twice_is_read_once() -> None:
    (entry,) = (e for e in entries(["embedding"]) if "8192 tokens, table" in e.name)
    table = torch.zeros(50, 4, dtype=torch.bfloat16)
    assert entry.bytes((torch.tensor([3, 3, 7]), table, None)) == (
        24 + 16 + 24,
        24 + 24 + 400,
        24 + 16 + 24 + 400,
    )


def test_candidates_in_turn_take_different_operands() -> None:
    """What one has just read is in the cache for the next, which must not ask for it."""
    candidates = {"ours": (0, 1, 2), "peer": (0, 1, 2), "other": (0, 1, 2)}
    taken = turns.Rotation(candidates)
    sets = [taken.next(name) for name in turns.rounds(dict.fromkeys(candidates, 30))]
    assert all(a != b for a, b in itertools.pairwise(sets))
    assert set(sets) == {0, 1, 2}


def test_every_candidate_stands_behind_every_other() -> None:
    """A call pays for what the one before it left to be written."""
    names = ("ours", "peer", "other", "copy")
    order = turns.rounds(dict.fromkeys(names, 30))
    assert all(sorted(order[i : i + 4]) == sorted(names) for i in range(0, 120, 4))
    behind = collections.Counter(itertools.pairwise(order))
    assert all(behind[a, b] >= 4 for a, b in itertools.permutations(names, 2))
    assert order == turns.rounds(dict.fromkeys(names, 30)), "the same in every run"


def test_slow_calls_are_sampled_less() -> None:
    assert [turns.samples_of(us) for us in (10.0, 9e4, 2e5)] == [30, 30, 10]
    assert [turns.blocks_of(us) for us in (0.1, 10.0, 3e3, 6e4)] == [(30, 2000), (30, 200), (30, 1), (5, 1)]
    order = turns.rounds({"fast": 3, "slow": 1, "other": 2})
    assert [set(order[:3]), set(order[3:5]), order[5]] == [
        {"fast", "slow", "other"},
        {"fast", "other"},
        "fast",
    ]


def test_what_is_timed_may_stand_behind_itself() -> None:
    """A GPU at the limit of its power has another clock behind a copy."""
    samples = {"ours": 3, "products": 2}
    names = turns.rounds(samples)
    assert turns.turns_of(samples, settled=False) == [(name, True) for name in names]
    order = turns.turns_of(samples, settled=True)
    assert order[0::2] == [(name, False) for name in names] and order[1::2] == [
        (name, True) for name in names
    ]


def test_phases_are_added_up() -> None:
    phases = Phases()
    for name in ("gate", "device", "gate"):
        with phases.of(name):
            time.sleep(0.01)
    assert list(phases.seconds) == ["gate", "device"]
    assert phases.seconds["gate"] >= 0.02 and phases.seconds["device"] >= 0.01
    assert re.fullmatch(r"gate \d\.\d, device \d\.\d", str(phases))


# ------------------------------------------------------------------------------------------------- memory


def test_memory_is_planned_without_a_gpu() -> None:
    n, h, v = 32_768, 256, 32_000
    entry = linear_cross_entropy.entry(n, h, v)
    gradients, logits = 2 * (n * h + v * h) / 1e6, 2 * n * v / 1e6
    ours, eager = (memory.planned(entry, f) for f in (entry.function, entry.peers[providers.EAGER]))
    assert ours is not None and eager is not None
    assert gradients < ours < gradients + logits
    assert eager > 3 * logits  # in bfloat16, and twice that in float32


def test_processes_wait_for_room() -> None:
    room, order = memory.Room(10.0), []
    started = threading.Event()

    def second() -> None:
        started.set()
        with room.of(20.0):  # more than there is: all of it
            order.append("second")

    with room.of(6.0):
        thread = threading.Thread(target=second)
        thread.start()
        started.wait()
        with room.of(4.0):
            order.append("first")
    thread.join()
    assert order == ["first", "second"]


# ------------------------------------------------------------------------------------------------- all


def test_all_has_every_group_and_ends_with_the_report() -> None:
    parts = [part.words for part in everything.parts([], resume=False)]
    assert [words for words in parts if words[0] == "run"] == [("run", group) for group in GROUPS]
    assert parts[0][0] == "offline" and parts[-1] == ("report",)
    norms = [part.words for part in everything.parts(["norms"], resume=True)]
    assert norms == [("run", "norms", "--resume"), ("jax", "norms", "--seconds", "540", "--resume")]
    for name in COMMANDS:
        assert importlib.util.find_spec(module_of(name)), name


def test_every_entry_whose_memory_matters_is_in_a_part() -> None:
    words = [word for part in COMMANDS["memory"].parts for word in part]
    flagged = [entry.name for entry in entries() if entry.memory]
    assert flagged and all(any(word in name for word in words) for name in flagged)


def test_a_part_that_fails_does_not_stop_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {
        "report": Command("", parts=(("--no-such-option",), ("--help",)), gpu=False),
        "run": Command("", parts=(("norms",),)),
    }
    monkeypatch.setattr(everything, "COMMANDS", commands)
    monkeypatch.setattr(everything, "LOGS", tmp_path)
    monkeypatch.setattr(everything, "has_gpu", lambda: False)
    monkeypatch.chdir(ROOT)
    assert everything.run(argparse.Namespace(words=[], list=False, resume=False)) == 1
    said = capsys.readouterr().out
    assert "exit status 2" in said and "left out: it needs a GPU" in said
    assert "3 parts, 1 failed, 1 left out" in said


def test_a_part_that_can_do_nothing_here_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "benchmarks.py").write_text("print('skipped: why')\nraise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(everything, "COMMANDS", {"offline": Command("", gpu=False)})
    monkeypatch.setattr(everything, "LOGS", tmp_path)
    assert everything.run(argparse.Namespace(words=[], list=False, resume=False)) == 0
    said = capsys.readouterr().out
    assert "left out: skipped: why" in said and "1 parts, 0 failed, 1 left out" in said


def test_a_part_ends_with_the_process_that_started_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], **more: Any) -> subprocess.Popen[bytes]:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **more))
        return started[0]

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    popen = subprocess.Popen
    monkeypatch.setattr(everything, "LOGS", tmp_path)
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(everything, "_show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        everything.execute(next(everything.parts(["norms"], resume=False)))
    assert started[0].poll() is not None


# ------------------------------------------------------------------------------------------------- command lines


@pytest.mark.parametrize(
    "words",
    [
        ("all", "--list", "nrms"),
        ("memory", "nrms"),
        ("models", "nrms"),
        ("host", "nrms"),
        ("jax", "nrms"),
        ("offline", "traffic", "nrms"),
    ],
    ids=lambda words: words[0],
)
def test_a_word_that_names_nothing_is_an_error(words: tuple[str, ...]) -> None:
    module = importlib.import_module(module_of(words[0]))
    parser = argparse.ArgumentParser()
    module.arguments(parser)
    with pytest.raises(SystemExit, match="nrms"):
        module.run(parser.parse_args(words[1:]))


def test_the_command_that_is_kept_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["", "memory", "cross_entropy 4096x", "--output", "/a/place", "--resume", "--output=/another"]
    monkeypatch.setattr(sys, "argv", words)
    cut = Run.now("GPU", (4e6, None), (), {}, {})
    assert cut.copy_tb_s == (4.0, None) and cut.drift == 0 and "cut short" in cut.about
    assert "(it drifted by 2.5%" in Run.now("GPU", (4e6, 3.9e6), (), {}, {}).about
    assert cut.command == "python -m benchmarks memory 'cross_entropy 4096x' --resume"
