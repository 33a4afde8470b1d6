"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

FOLDERS = ("liger", "liger_triton", "liger_torch", "liger_jax")


def modules_with_examples() -> list[str]:
    found = []
    for name in FOLDERS:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        folder = Path(spec.submodule_search_locations[0])
        for path in sorted(folder.rglob("*.py")):
            if ">>> " in path.read_text():
                found.append(".".join((name, *path.relative_to(folder).with_suffix("").parts)))
    return found


def test_there_are_examples() -> None:
    assert len(modules_with_examples()) > 15


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name: str) -> None:
    pytest.importorskip(name.partition(".")[0].replace("liger_", ""), reason="needs the framework")
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
