"""FSDP1, FSDP2 and DDP on two processes: patched before the wrapping and after it, a model computes what it did."""

from __future__ import annotations

from typing import Any

import pytest
from hf_models import assert_same_step
from hf_sharding import NAMES, PATCHED_FIRST, UNPATCHED, WRAPPED_FIRST, outcomes
from ranks import on_two_ranks


@pytest.fixture(scope="module")
def ranks() -> Any:
    """All of them in one pair of processes: starting it takes longer than what it does."""
    return on_two_ranks(outcomes)


@pytest.mark.parametrize("order", [PATCHED_FIRST, WRAPPED_FIRST])
@pytest.mark.parametrize("name", NAMES)
def test_same_step(name: str, order: str, ranks: Any) -> None:
    for found in ranks:
        outcome, expected = found[name, order], found[name, UNPATCHED]
        assert_same_step(outcome.step, expected.step)
        assert outcome.second == pytest.approx(expected.second, rel=1e-6)
        assert outcome.calls == {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}
        assert not outcome.left
    losses = {found[name, order].step[0].item() for found in ranks}
    assert len(losses) == 2, "the ranks have had the same tokens"
