"""The product of int8 activations and two-bit weights is that of integers, to the last digit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CASES

import liger_jax.experimental
from liger.device import PRESETS
from liger_torch import experimental
from liger_triton import int2_matmul


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 4, 1), (3, 60, 5), (1, 4096, 70), (33, 2052, 130), (130, 256, 65), (0, 8, 3)]
)
def test_exact(m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(m)
    a, w = rng.integers(-128, 128, (m, k)).astype(np.int8), rng.integers(-1, 2, (k, n)).astype(np.int8)
    exact = a.astype(np.int64) @ w.astype(np.int64)
    packed = experimental.pack_weights(torch.from_numpy(w))
    ours = experimental.matmul(torch.from_numpy(a), packed)
    assert ours.dtype == torch.int32
    np.testing.assert_array_equal(ours.numpy(), exact)
    theirs = liger_jax.experimental.int2_matmul(a, packed.numpy(), implementation="triton")
    np.testing.assert_array_equal(np.asarray(theirs), exact)


def test_the_largest_sums() -> None:
    """Every product -128 * 2, on which int8 or fp16 sums would fail."""
    a = torch.full((2, 8192), -128, dtype=torch.int8)
    packed = torch.full((2048, 3), 255, dtype=torch.uint8)
    assert torch.equal(experimental.matmul(a, packed), torch.full((2, 3), -256 * 8192, dtype=torch.int32))


def test_strided_operands_are_read_as_they_lie() -> None:
    a = torch.arange(-60, 60, dtype=torch.int8).view(3, 40)
    packed = torch.arange(96, dtype=torch.uint8).view(4, 24)
    for left, right in ((a[:, 8:24], packed[:, 2:9]), (a[:, ::2][:, :16], packed[:, ::3])):
        expected = left.int() @ experimental.unpack_weights(right)
        assert torch.equal(experimental.matmul(left, right), expected)


def test_k_is_cut_for_few_rows_alone() -> None:
    """In a few forms, whatever the number of tokens; and some case is cut in the interpreter."""
    forms = {}
    for device in PRESETS.values():
        for n_rows in range(1, 3000):
            launch = int2_matmul.product_launch(n_rows, 1024, 4096, 4096, device)
            forms.setdefault(device, set()).add(launch.constants)
            splits = launch.outputs[0].shape[0]
            assert (splits > 1) <= (n_rows <= 128)
            assert (
                8 * splits * n_rows <= 1024 or splits == 1
            )  # partial sums are no more bytes than the weights
        assert len(forms[device]) <= 6
    assert any(
        int2_matmul.geometry(c.operands()[0].shape[0], c.operands()[1].shape[0], 70, PRESETS["sm_90"]).splits
        > 1
        for c in CASES
        if c.op is int2_matmul.INT2_MATMUL
    )
