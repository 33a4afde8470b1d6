"""Hugging Face's Trainer and TRL's give the same losses with this package as without, step by step."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hf_models import counted_ops
from trainers import losses, trl_losses
from without import run_without

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl (extra `peers`)")

REL = 1e-6
"""In float32; the losses are logged with seven digits or more, by transformers 4 those of training with five."""


def by_alias(function: str, folder: Path, *arguments: bool) -> dict[str, Any]:
    """Losses with `use_liger_kernel=True`, where liger_kernel is the alias, and the ops that were called."""
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent.parent / "support")!r})
from liger_torch.integrations import liger_kernel_alias
liger_kernel_alias.install()
from hf_models import counted_ops
import trainers
with counted_ops() as calls:
    losses = trainers.{function}({str(folder)!r}, True, *{arguments!r})
print("\\n" + json.dumps(dict(losses=losses, calls=calls)))
"""
    found: dict[str, Any] = json.loads(run_without(("liger_kernel",), code).strip().splitlines()[-1])
    return found


@pytest.mark.parametrize("with_logits", [False, True], ids=["loss only", "logits"])
def test_trainer_with_use_liger_kernel(with_logits: bool, tmp_path: Path) -> None:
    """Gradients are accumulated over batches with different numbers of labels."""
    expected = losses(str(tmp_path), False, with_logits)
    found = by_alias("losses", tmp_path, with_logits)
    assert len(expected) == 6
    assert found["losses"] == pytest.approx(expected, rel=REL)
    # transformers 4 has the logits computed in evaluation, wanted or not.
    n_fused = 9 + (0 if with_logits or transformers.__version__.startswith("4.") else 3)
    assert found["calls"]["linear_cross_entropy"] == n_fused
    assert {"rms_norm", "rope", "swiglu"} <= set(found["calls"])


@needs_trl
def test_trl_with_use_liger_kernel(tmp_path: Path) -> None:
    """From 1.15 on TRL computes the loss itself, and takes the layers alone."""
    expected = trl_losses(str(tmp_path), False)
    found = by_alias("trl_losses", tmp_path)
    assert len(expected) == 6
    assert found["losses"] == pytest.approx(expected, rel=REL)
    assert {"rms_norm", "rope", "swiglu"} <= set(found["calls"])


@needs_trl
def test_trl_with_our_logprobs(tmp_path: Path) -> None:
    from liger_torch.integrations import trl_logprobs

    utils = importlib.import_module("trl.trainer.utils")
    if not hasattr(utils, "_ChunkedLogProbFunction"):
        with pytest.raises(RuntimeError, match=r"has no trl\.trainer\.utils\._ChunkedLogProbFunction"):
            trl_logprobs.install()
        pytest.skip("needs TRL 1.15, the first with a function of its own for log-probabilities")
    expected = trl_losses(str(tmp_path), False)
    installed = trl_logprobs.install()
    try:
        with counted_ops() as calls:
            actual = trl_losses(str(tmp_path), False)
    finally:
        installed.remove()
    assert actual == pytest.approx(expected, rel=REL)
    assert set(calls) == {"linear_logprobs"}
    assert calls["linear_logprobs"] == 9 + 3
