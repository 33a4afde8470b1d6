"""A patched Hugging Face model on the kernels themselves, in Triton's interpreter."""

from __future__ import annotations

from hf_models import assert_same_step, batch, counted_ops, step, tiny

from liger_torch.backend import INTERPRET
from liger_torch.hf import apply_liger_kernel


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
