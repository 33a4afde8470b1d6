"""Every function of the JAX frontend lowers for a GPU on a machine without one, and to plain XLA for a CPU."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import jax_cases
import numpy as np
import pytest
from jax_cases import CASES, Case

import liger_jax
from liger.device import PRESETS
from liger.launch import Launch, Spec
from liger_jax import _jax_triton
from liger_jax.launch import _launcher

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="needs jax-cuda13-plugin (requirements-aot.txt)",
)

CALL = re.compile(r"stablehlo\.custom_call @(triton_kernel_call\w*)")


def lowered(function: Any, arguments: tuple[Any, ...], platform: str, preset: str = "sm_90") -> str:
    with liger_jax.planning_for(PRESETS[preset]):
        # A function of its own, since JAX would reuse a trace that was planned for another device.
        traced = jax.jit(lambda *a: function(*a)).trace(*arguments)
        return traced.lower(lowering_platforms=(platform,)).as_text()


def forward_and_backward(case: Case) -> Any:
    return lambda *a: jax_cases.gradients(case.ours, case, a[:-1], a[-1])


def inputs(case: Case, dtype: str = "bfloat16") -> tuple[tuple[Any, ...], Any]:
    rng = np.random.default_rng(0)
    arguments = case.make(rng, jnp.dtype(dtype))
    return arguments, jax_cases.cotangents(rng, jax.eval_shape(case.ours, *arguments))


def choose(launcher: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for a launcher. jax-triton 0.4 cannot write over an input; left alone, the choice falls on it otherwise."""
    if launcher == "direct" or (launcher == "jax_triton" and _jax_triton.two_pointers()):
        monkeypatch.setenv("LIGER_JAX_LAUNCHER", launcher)
    else:
        monkeypatch.delenv("LIGER_JAX_LAUNCHER", raising=False)


@pytest.mark.parametrize("launcher", ["jax_triton", "direct"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_calls(case: Case, launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(launcher, monkeypatch)
    arguments, cotangent = inputs(case)
    forward = CALL.findall(lowered(case.ours, arguments, "cuda"))
    both = CALL.findall(lowered(forward_and_backward(case), (*arguments, cotangent), "cuda"))
    assert (len(forward), len(both)) == case.launches
    ours = "triton_kernel_call_ffi"
    assert all(name == ours for name in both) or launcher == "jax_triton"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cpu_is_plain_xla(case: Case) -> None:
    arguments, cotangent = inputs(case)
    assert "triton" not in lowered(forward_and_backward(case), (*arguments, cotangent), "cpu")


@pytest.mark.parametrize("preset", sorted(name for name, d in PRESETS.items() if d.vendor == "cuda"))
def test_every_nvidia_target(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGER_JAX_LAUNCHER", "direct")
    arguments, cotangent = inputs(jax_cases.named("rms_norm"))
    text = lowered(forward_and_backward(jax_cases.named("rms_norm")), (*arguments, cotangent), "cuda", preset)
    assert len(CALL.findall(text)) == jax_cases.named("rms_norm").launches[1]


@pytest.mark.parametrize("launcher", ["jax_triton", "direct", None])
def test_logits_gradient_is_written_over_the_logits(
    launcher: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(launcher, monkeypatch)
    case = jax_cases.named("linear_cross_entropy")
    arguments, cotangent = inputs(case)
    text = lowered(forward_and_backward(case), (*arguments, cotangent), "cuda")
    calls = [line for line in text.splitlines() if CALL.search(line)]
    # The loss kernel over its logits, and the scaling of the two gradients.
    aliased = [line for line in calls if "output_operand_alias" in line]
    assert len(aliased) == 3
    assert sum("11x70xbf16" in line for line in aliased) == 1


def test_nothing_is_computed_for_what_is_not_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGER_JAX_LAUNCHER", "direct")
    case = jax_cases.named("linear_cross_entropy")
    x, kernel, labels = inputs(case)[0]
    loss = lambda x, kernel: case.ours(x, kernel, labels)  # noqa: E731

    def products(function: Any) -> int:
        return lowered(function, (x, kernel), "cuda").count("stablehlo.dot_general")

    assert products(loss) == 1
    assert products(jax.grad(loss, 0)) == 2
    assert products(jax.grad(loss, 1)) == 2
    assert products(jax.grad(loss, (0, 1))) == 3


@pytest.mark.parametrize("name", ["swiglu", "relu_squared"])
def test_no_kernel_where_xla_is_asked_for(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    function = getattr(liger_jax, name)
    assert CALL.search(lowered(function, inputs(case)[0], "cuda"))
    assert not CALL.search(
        lowered(functools.partial(function, implementation="xla"), inputs(case)[0], "cuda")
    )


@pytest.mark.parametrize("before", ["a-cache", None])
def test_importing_jax_triton_leaves_tritons_cache_alone(before: str | None) -> None:
    script = (
        "import os; from liger_jax import _jax_triton; _jax_triton.two_pointers();"
        "print(os.environ.get('TRITON_CACHE_DIR'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_CACHE_DIR"}
    if before is not None:
        environment["TRITON_CACHE_DIR"] = before
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(before)


def test_an_unknown_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGER_JAX_LAUNCHER", "cuda")
    with pytest.raises(ValueError, match="LIGER_JAX_LAUNCHER is 'cuda'"):
        lowered(liger_jax.rms_norm, (jnp.ones((2, 8)),), "cuda")


def test_jax_triton_is_refused_where_it_cannot_write_over_an_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jax_triton, "two_pointers", lambda: False)
    monkeypatch.setenv("LIGER_JAX_LAUNCHER", "jax_triton")
    written_over = Launch(
        lambda: None, (1,), (Spec((4,), "float32"),), (Spec((4,), "float32"),), aliases=((0, 0),)
    )
    with pytest.raises(ValueError, match=r"LIGER_JAX_LAUNCHER is 'jax_triton', but .* writes over an input"):
        _launcher(written_over)
