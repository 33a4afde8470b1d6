"""`python -m liger`: what it prints comes from the code, and it runs where a framework is missing."""

from __future__ import annotations

import importlib.util

import pytest
from without import run_without

from liger.__main__ import COMMANDS, main
from liger_jax.implementations import DEFAULTS
from liger_triton.ops import OPS


def sections(text: str) -> dict[str, dict[str, str]]:
    """For each op, what stands beside each title."""
    found: dict[str, dict[str, str]] = {}
    name = ""
    for line in text.splitlines()[:-1]:
        if line.startswith("  "):
            title, value = line[2:22].strip(), line[22:]
            found[name][title] = value
        else:
            name = line
            found[name] = {}
    return found


def test_ops_lists_every_op_with_what_serves_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops"]) == 0
    found = sections(capsys.readouterr().out)
    assert list(found) == [op.name for op in OPS]
    for op in OPS:
        entry = found[op.name]
        assert all(operand.name in entry["operands"] for operand in op.operands)
        assert entry["JAX by default"] == DEFAULTS[op.name]
        for title in ("PyTorch", "JAX"):
            assert "functional." in entry[title] or "experimental." in entry[title], (
                f"{op.name}: no function in {title}"
            )
        assert int(entry["catalogue"].removesuffix(" calls")) > 0
        assert "none" not in entry["kernels, forward"]
    assert found["rms_norm"]["options"] == "eps=1e-06, offset=0.0, casting='llama', in_place=False"
    assert found["rms_norm"]["kernels, forward"].startswith("norm_forward")
    assert "nn.LigerRMSNorm" in found["rms_norm"]["PyTorch"].split(", ")
    assert "nnx.RMSNorm" in found["rms_norm"]["JAX"].split(", ")
    assert "liger_rms_norm" not in found["add_rms_norm"]["PyTorch"].split("functional.")


def test_a_filter_that_matches_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--filter", "no such thing"]) == 1
    assert capsys.readouterr().out.startswith("0 ")


COMMAND = "import sys; from liger.__main__ import main; code = main({!r}); print('exit', code)"


@pytest.mark.parametrize(
    ("hidden", "title"), [(("torch", "transformers"), "PyTorch"), (("jax", "jaxlib", "flax"), "JAX")]
)
def test_ops_without_a_framework(hidden: tuple[str, ...], title: str) -> None:
    text = run_without(hidden, COMMAND.format(["ops", "--filter", "rms_norm"]))
    entry = sections(text)["rms_norm"]
    assert entry[title] == f"{hidden[0]} is not installed"
    other, needed = {"PyTorch": ("JAX", "jax"), "JAX": ("PyTorch", "torch")}[title]
    said = "functional." if importlib.util.find_spec(needed) else f"{needed} is not installed"
    assert said in entry[other]
    assert text.endswith("exit 0\n")


def test_models_and_info_without_the_frameworks() -> None:
    hidden = ("torch", "jax", "jaxlib", "transformers")
    text = run_without(hidden, COMMAND.format(["models"]))
    assert "is not installed; the families need torch and transformers" in text
    assert "exit 1" in text
    assert "cannot be imported" in run_without(hidden, COMMAND.format(["info"]))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"python -m liger {name}" in capsys.readouterr().out
