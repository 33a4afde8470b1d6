"""What a row was measured from: which edits make it older."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import checkout  # noqa: F401
import pytest

from benchmarks import sources
from benchmarks.models.case import Case, Result
from benchmarks.rows import Row, Run


def test_whole_models_and_calls_on_the_host_are_families_of_their_own() -> None:
    assert sources.family(Row("jsd of logits 8192x128256", "ours", "")) == "jsd"
    assert sources.family(Row("jsd of logits 8192x128256, JAX", "ours", "")) == "jsd, on JAX"
    assert sources.family(Row("rms_norm", "ours", "")) == "rms_norm, on the host"
    assert sources.family(Row("rms_norm_of_tomorrow 1x2", "ours", "")) == sources.EVERYTHING
    assert sources.family(Result(Case("llama-3.2-1b", "ours"))) == "model"
    assert sources.family(Result(Case("llama-3.2-1b", "flax-ours"))) == "model, on JAX"
    names = (
        "rms_norm",
        "rms_norm, on the host",
        "rms_norm, on JAX",
        "rope",
        "model",
        "model, on JAX",
        sources.EVERYTHING,
    )
    assert len({sources.digest(name) for name in names}) == len(names)


FILES = {
    "kernels/liger_triton/rms_norm.py": '"""Norm."""\nfrom liger import geometry\nfrom liger_triton.reduce import total\n',
    "kernels/liger_triton/reduce.py": "def total(x):\n    return x  # all\n",
    "kernels/liger_triton/rope.py": "tile = 1\n",
    "liger/__init__.py": "version = 1\n",
    "liger/geometry/__init__.py": "",
    "liger/geometry/sm_90.json": "{}",
    "liger/interpret.py": "calls = 1\n",
    "liger_torch/autograd.py": "from liger import interpret\nplans = 1\n",
    "liger_torch/direct.py": "calls = 1\n",
    "liger_torch/functional/norms.py": "casting = 1\n",
    "liger_jax/implementations.py": "default = 1\n",
    "liger_jax/nnx/norms.py": "layers = 1\n",
}


def digests(root: Path) -> tuple[str, ...]:
    """Of an op, of its calls on the host, of it on JAX, of models in both frontends, of everything."""
    for function in (sources.digest, sources._imports, sources._code):
        function.cache_clear()
    names = (
        "rms_norm",
        "rms_norm, on the host",
        "rms_norm, on JAX",
        "model",
        "model, on JAX",
        sources.EVERYTHING,
    )
    return tuple(sources.digest(name, root) for name in names)


@pytest.mark.parametrize(
    ("path", "text", "changes"),
    [
        (
            "kernels/liger_triton/reduce.py",
            'def total(x):\n    """Sum."""\n\n    return x\n',
            "no no no no no no",
        ),
        (
            "kernels/liger_triton/reduce.py",
            "def total(x):\n    return x + 1  # all\n",
            "yes yes yes yes yes yes",
        ),
        ("kernels/liger_triton/rope.py", "tile = 2\n", "no no no no no yes"),
        ("liger/__init__.py", "version = 2\n", "no no no no no yes"),
        ("liger/interpret.py", "calls = 2\n", "no no no no no no"),
        ("liger/geometry/sm_90.json", '{"rows": 2}', "yes yes yes yes yes yes"),
        ("liger_torch/autograd.py", "plans = 2\n", "no yes no yes no yes"),
        ("liger_torch/direct.py", "calls = 2\n", "no yes no yes no yes"),
        ("liger_torch/functional/norms.py", "casting = 2\n", "yes yes no yes no yes"),
        ("liger_jax/implementations.py", "default = 2\n", "no no yes no yes yes"),
        ("liger_jax/nnx/norms.py", "layers = 2\n", "no no no no yes yes"),
    ],
)
def test_what_makes_a_row_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, text: str, changes: str
) -> None:
    monkeypatch.setitem(sources.OPS, sources.MODEL, ("liger_triton.rms_norm",))
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    before = digests(tmp_path)
    (tmp_path / path).write_text(text)
    changed = ["no" if a == b else "yes" for a, b in zip(before, digests(tmp_path), strict=True)]
    assert " ".join(changed) == changes


def test_what_has_lost_its_module_is_everything(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "kernels/liger_triton/rms_norm.py").rename(tmp_path / "kernels/liger_triton/renamed.py")
    assert len(set(digests(tmp_path))) == 1


def test_a_run_tells_which_of_its_rows_are_older() -> None:
    norm, rope = (Row(f"{op} 1x2", "ours", "forward") for op in ("rms_norm", "rope"))
    run = Run.now("GPU", None, (norm, rope), {}, {})
    assert run.sources.keys() == {"rms_norm", "rope"}
    assert not run.is_older(norm) and not run.is_older(rope)
    other = dataclasses.replace(run, sources={**run.sources, "rope": "abc"})
    assert not other.is_older(norm) and other.is_older(rope)
    before = dataclasses.replace(run, sources={})  # measured before there were digests
    assert before.is_untold(norm) and not before.is_older(norm) and not run.is_untold(norm)
