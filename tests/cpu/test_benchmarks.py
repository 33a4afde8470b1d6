"""The benchmarks' bookkeeping: the gate before timing, rows and pages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from liger_torch.functional import liger_rms_norm
from liger_triton.rms_norm import RMS_NORM, Options

# The benchmarks are no part of what is installed. At the end of the path the checkout hides nothing that is.
sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import gate, report
from benchmarks.entry import Entry
from benchmarks.rows import RESULTS, Row, Run, Spread

sys.path.pop()


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
    assert few[0] is not None and few[0].shape == (gate.ROWS, 64)
    found = gate.error(entry, function, operands)
    assert (found > gate.limit(None, torch.bfloat16)) == wrong


def rows() -> tuple[Row, ...]:
    fast, slow = Spread.of([1.0, 2.0, 3.0]), Spread.of([4.0])
    return (
        Row("op 1x2", "ours", "forward", slow, slow, "copy", 1.0, 1e-3, 5.0),
        Row("op 1x2", "peer", "forward", fast, slow, "copy", 1.0, 1e-3, 5.0),
        Row("op 1x2", "other-peer", "", error=0.5, note="not timed: its error is out of line"),
    )


def test_rows_are_kept_as_they_are(tmp_path: Path) -> None:
    run = Run("GPU", "2026-01-01", "python -m benchmarks run", {"torch": "2"}, (3.0, 3.1), rows())
    run.save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json") == run
    assert run.rows[0].device_share == 0.25
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)


def test_a_page_shows_what_was_lost(tmp_path: Path) -> None:
    run = Run("GPU", "2026-01-01", "python -m benchmarks run", {"torch": "2"}, (3.0, 3.1), rows())
    text = report.text_of(run, RESULTS / "gpu" / "all.json")
    assert "| op 1x2 | forward | 4.0 | peer | 2.0 |" in text
    assert "its error is out of line" in text
    report.plot(run, tmp_path / "run")
    assert (tmp_path / "run.png").stat().st_size > 1000 and (tmp_path / "run.svg").exists()
