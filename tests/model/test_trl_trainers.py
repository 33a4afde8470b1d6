"""TRL's trainers with this package's losses in place: what they log, and how weights move, is what TRL's own give."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from liger_torch.integrations import trl_gkd, trl_logprobs

MISSING = [name for name in ("trl", "datasets", "tokenizers") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (extra `peers`)")

TRAINERS = {
    "dpo": trl_logprobs,
    "gkd": trl_gkd,
    "grpo": trl_logprobs,
    "kto": trl_logprobs,
    "sft": trl_logprobs,
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@contextlib.contextmanager
def installed(integration: Any) -> Iterator[None]:
    here = integration.install()
    try:
        yield
    finally:
        here.remove()


def counted(monkeypatch: pytest.MonkeyPatch, integration: Any) -> list[str]:
    """A list that grows with each call of this package's op."""
    name = "liger_jsd" if integration is trl_gkd else "fused_linear_logprobs"
    function, calls = getattr(integration, name), []

    def count(*args: Any, **options: Any) -> Any:
        calls.append(name)
        return function(*args, **options)

    monkeypatch.setattr(integration, name, count)
    return calls


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRAINERS)
def test_trainer(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl_trainers

    expected, expected_moves = trl_trainers.two_steps(name, tmp_path / "trl")
    calls = counted(monkeypatch, TRAINERS[name])
    with installed(TRAINERS[name]):
        found, found_moves = trl_trainers.two_steps(name, tmp_path / "ours")
    # The policy of each step at least, and the reference model where there is one.
    assert len(calls) >= 2
    n_calls = len(calls)

    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5, abs=0) != 0
        # Rewards are differences of numbers a thousand times as large.
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    for key, move in expected_moves.items():
        torch.testing.assert_close(found_moves[key], move, rtol=1e-4, atol=1e-6)
    assert any(move.abs().max() > 1e-3 for move in expected_moves.values())

    trl_trainers.two_steps(name, tmp_path / "removed")
    assert len(calls) == n_calls


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean", "none"])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("items", [None, 5, torch.tensor(5)])
def test_gkd_loss(reduction: str, labelled: bool, items: Any) -> None:
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 11, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[-100, 1, 2, 3, 4], [1, 2, -100, -100, 5], [-100] * 5]) if labelled else None
    for beta in (0.0, 0.3, 1.0):
        arguments = (student, teacher, labels, beta, 0.7, reduction, items)
        expected = GKDTrainer.generalized_jsd_loss(*arguments)
        with installed(trl_gkd):
            found = GKDTrainer.generalized_jsd_loss(*arguments)
        torch.testing.assert_close(found.to(expected.dtype), expected, rtol=1e-6, atol=1e-7)


def test_gkd_install_twice_is_refused_and_removed_once() -> None:
    from trl.experimental.gkd import GKDTrainer

    original = GKDTrainer.generalized_jsd_loss
    here = trl_gkd.install()
    with pytest.raises(RuntimeError, match="already"):
        trl_gkd.install()
    here.remove()
    here.remove()
    assert GKDTrainer.generalized_jsd_loss is original
