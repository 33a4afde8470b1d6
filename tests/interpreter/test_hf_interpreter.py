"""A patched Hugging Face model on the kernels themselves, in Triton's interpreter."""

from __future__ import annotations

import pytest
from hf_models import assert_same_step, batch, counted_ops, step, tiny

from liger.__main__ import main
from liger_torch.backend import INTERPRET
from liger_torch.hf import apply_liger_kernel
from liger_torch.hf.survey import SAMPLE


def test_patched_llama_on_kernels() -> None:
    assert INTERPRET
    options = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48}
    plain, patched = tiny(**options), tiny(**options)
    apply_liger_kernel(patched, strict=True)
    inputs = batch(shape=(2, 7))
    expected = step(plain, **inputs)
    with counted_ops() as calls:
        actual = step(patched, **inputs)
    assert calls == {"rms_norm": 3, "rope": 1, "swiglu": 1, "linear_cross_entropy": 1}
    assert_same_step(actual, expected, loss=1e-5, gradients=1e-4)


@pytest.mark.timeout(900)  # over a minute where nothing else runs
def test_the_sample_of_families_on_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--sample"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].endswith(", kernels in Triton's interpreter")
    assert text.endswith(f" families: {len(SAMPLE)} equal\n")
