"""The same kernel, launch and inputs from torch and from JAX: the same bits where kernels alone compute.

Fused linear cross entropy has matrix products of the frameworks in it and agrees within their fp32 summation order.
"""

from __future__ import annotations

import jax_runner
import numpy as np
import pytest
import torch
import torch_runner
from cases import EACH_ONCE, Case


def as_float(array: object) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        return array.detach().double().numpy()
    return np.asarray(array, np.float64)


# Options and shapes reach both frontends alike whatever the dtype; one of 16 bits stands for both.
@pytest.mark.parametrize(("case", "dtype"), EACH_ONCE, ids=[f"{c.name}-{dtype}" for c, dtype in EACH_ONCE])
def test_torch_and_jax_agree(case: Case, dtype: str) -> None:
    outputs, gradients = torch_runner.run(case, dtype)
    incoming = [
        None if c is None else c.float().numpy() for c in torch_runner.cotangents(case, dtype, outputs)
    ]
    jax_outputs, jax_gradients = jax_runner.run(case, dtype, incoming)
    names = [o.name for o in (*case.op.outputs, *case.op.operands)]
    pairs = zip(names, (*outputs, *gradients), (*jax_outputs, *jax_gradients), strict=True)
    for name, ours, theirs in pairs:
        assert (ours is None) == (theirs is None), name
        if ours is None:
            continue
        a, b = as_float(ours), as_float(theirs)
        assert a.shape == b.shape, name
        assert str(ours.dtype).removeprefix("torch.") == str(theirs.dtype), name
        if case.kernels_alone:
            np.testing.assert_array_equal(a, b, err_msg=name)
        elif a.size and name != "predicted":
            # One product summed in another order, rounded to the dtype of its result.
            unit = {"float32": 2e-6, "bfloat16": 2.0**-7, "float16": 2.0**-10}[dtype]
            assert np.linalg.norm(a - b) <= unit * max(np.linalg.norm(a), 1e-6), name
