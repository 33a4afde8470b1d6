"""The repaired interpreter: bfloat16 as a GPU computes it, and one launch at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from liger import interpret
from liger.interpreter_repairs import narrow, widen
from liger.launch import Launch, Spec
from liger_torch.backend import TorchBackend

BACKEND = TorchBackend(torch.device("cpu"))


def float32_of_every_kind() -> torch.Tensor:
    """Random bits (so all exponents, denormals and NaNs too), and what lies at and beside the halfway points."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    halfway = (rng.integers(0, 2**16, 20_000, dtype=np.uint32) << 16) | 0x8000
    special = np.array(
        [
            0.0,
            -0.0,
            np.inf,
            -np.inf,
            np.nan,
            1.0,
            65504.0,
            3.3895314e38,
            3.4e38,
            -3.4028235e38,
            1e-45,
            1.1754942e-38,
        ],
        np.float32,
    )
    values = np.concatenate([bits, halfway - 1, halfway, halfway + 1, special.view(np.uint32)])
    return torch.from_numpy(values.view(np.float32).copy())


def same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal bit for bit, but for which NaN a NaN is."""
    assert actual.dtype == expected.dtype == torch.bfloat16
    both_nan = actual.isnan() & expected.isnan()
    return bool((both_nan | (actual.view(torch.int16) == expected.view(torch.int16))).all())


def test_rounding_is_that_of_torch() -> None:
    values = float32_of_every_kind()
    rounded = torch.from_numpy(narrow(values.numpy())).view(torch.bfloat16)
    assert same(rounded, values.to(torch.bfloat16))


def test_widening_is_exact() -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    wide = torch.from_numpy(widen(every.view(torch.int16).numpy().view(np.uint16)))
    assert torch.equal(wide.view(torch.int32), every.float().view(torch.int32))


@triton.jit
def convert(x_ptr, n, y_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n).to(y_ptr.dtype.element_ty), mask=i < n)


@triton.jit
def arithmetic(a_ptr, b_ptr, out_ptr, less_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(a_ptr + i), tl.load(b_ptr + i)
    tl.store(out_ptr + i, a + b)
    tl.store(out_ptr + BLOCK + i, a * b)
    tl.store(out_ptr + 2 * BLOCK + i, a - b)
    tl.store(out_ptr + 3 * BLOCK + i, tl.maximum(a, b))
    tl.store(out_ptr + 4 * BLOCK + i, -a)
    tl.store(out_ptr + 5 * BLOCK + i, tl.where(a > b, a, b) + tl.full((BLOCK,), 1.5, tl.bfloat16))
    tl.store(less_ptr + i, (a < b).to(tl.int32))
    tl.store(less_ptr + BLOCK + i, (a == b).to(tl.int32))


@triton.jit
def product(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    tl.store(c_ptr + i * N + j, tl.dot(tl.load(a_ptr + i * N + j), tl.load(b_ptr + i * N + j)))


@pytest.mark.parametrize(
    ("source", "target"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("int32", "bfloat16")]
)
def test_casts_in_a_kernel(source: str, target: str) -> None:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int32": torch.int32}
    x = float32_of_every_kind()
    if source == "int32":
        x = x.view(torch.int32)
    elif source == "bfloat16":
        x = x.to(torch.bfloat16)
    n = x.numel()
    launch = Launch(
        convert, (-(-n // 65536),), (Spec((n,), source),), (Spec((n,), target),), (n,), (("BLOCK", 65536),)
    )
    (y,) = BACKEND.launch(launch, x)
    expected = x.to(dtypes[target])
    if target == "bfloat16":
        assert same(y, expected)
    else:
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.nan_to_num(), expected.nan_to_num())


def test_arithmetic() -> None:
    n = 4096
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, generator=generator).to(torch.bfloat16) for _ in range(2))
    b[::7] = a[::7]
    launch = Launch(
        arithmetic,
        (1,),
        (Spec((n,), "bfloat16"),) * 2,
        (Spec((6, n), "bfloat16"), Spec((2, n), "int32")),
        constants=(("BLOCK", n),),
    )
    out, compared = BACKEND.launch(launch, a, b)
    larger = torch.maximum(a, b)
    for actual, expected in zip(out, (a + b, a * b, a - b, larger, -a, larger + 1.5), strict=True):
        assert torch.equal(actual, expected)
    assert torch.equal(compared.bool(), torch.stack([a < b, a == b]))


def test_product() -> None:
    n = 32
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator).to(torch.bfloat16) for _ in range(2))
    launch = Launch(
        product, (1,), (Spec((n, n), "bfloat16"),) * 2, (Spec((n, n), "float32"),), constants=(("N", n),)
    )
    (c,) = BACKEND.launch(launch, a, b)
    exact = a.double() @ b.double()
    # Sums of 32 products in fp32, each product exact.
    assert (c.double() - exact).abs().max() <= n * 2.0**-24 * (a.double().abs() @ b.double().abs()).max()


@triton.jit
def where_wanted(x_ptr, wanted_ptr, n, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    wanted = tl.load(wanted_ptr) != 0
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=(i < n) & wanted, other=-1.0))


@pytest.mark.parametrize("wanted", [0, 1])
def test_mask_of_a_block_and_a_scalar(wanted: int) -> None:
    specs = (Spec((4,), "float32"), Spec((1,), "int32"))
    launch = Launch(where_wanted, (1,), specs, (Spec((4,), "float32"),), (3,), (("BLOCK", 4),))
    (out,) = BACKEND.launch(launch, torch.ones(4), torch.tensor([wanted], dtype=torch.int32))
    assert out.tolist() == ([1.0, 1.0, 1.0, -1.0] if wanted else [-1.0] * 4)


@triton.jit
def which_program(n, out_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(
        out_ptr + i, tl.program_id(0) * 1000 + tl.num_programs(0) + tl.zeros((BLOCK,), tl.int32), mask=i < n
    )


def test_threads_take_turns() -> None:
    """Two grids at once: the interpreter keeps the program's index in a global, so without the lock they mix."""

    def run(programs: int) -> bool:
        n = programs * 4
        launch = Launch(which_program, (programs,), (), (Spec((n,), "int32"),), (n,), (("BLOCK", 4),))
        (out,) = BACKEND.launch(launch)
        expected = torch.arange(programs, dtype=torch.int32).repeat_interleave(4) * 1000 + programs
        return torch.equal(out, expected)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(run, [40, 70] * 12))
    finally:
        sys.setswitchinterval(interval)


def test_a_grid_of_nothing_runs_nothing() -> None:
    launch = Launch(which_program, (0,), (), (Spec((0,), "int32"),), (0,), (("BLOCK", 4),))
    assert launch.is_empty
    (out,) = BACKEND.launch(launch)
    assert out.shape == (0,)


def test_compiled_kernels_are_refused() -> None:
    """A process that was started without TRITON_INTERPRET=1 says so instead of failing somewhere in Triton."""
    script = """
from liger import interpret
from liger_triton.norm import forward_launch
from liger_triton.rms_norm import Options
from liger.device import DEFAULT
launch = forward_launch(1, 8, "float32", None, None, 8, None, Options(), DEFAULT)
try:
    interpret.run(launch, [0] * len(launch.inputs), [0] * len(launch.outputs))
except RuntimeError as error:
    print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    printed = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert "norm_forward was imported without TRITON_INTERPRET=1; set it before the process starts" in printed


def test_interpreting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interpret.enabled()
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not interpret.enabled()


def test_what_is_done_once_changes_no_bit() -> None:
    """Kernels that call device functions, branch, reduce, scan, divide integers and cast, in every dtype."""
    script = """
import hashlib, sys
from cases import REPRESENTATIVES, DTYPES
from liger import interpreter_speed
from torch_runner import run
if sys.argv[1] == "as Triton has it":
    interpreter_speed.apply = lambda: None
digest = hashlib.sha256()
for name in ("swiglu", "embedding", "group_norm", "qk_norm_rope", "sparsemax", "cross_entropy", "jsd", "int2_matmul"):
    for dtype in DTYPES:
        case = next(case for case in REPRESENTATIVES if case.op.name == name)
        for array in sum(run(case, dtype), []):
            if array is not None:
                digest.update(f"{array.shape} {array.dtype} {array.tolist()}".encode())
print(digest.hexdigest())
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    plain, once = (
        subprocess.run(
            [sys.executable, "-P", "-c", script, how],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout.split()
        for how in ("as Triton has it", "once")
    )
    assert plain == once
    assert len(plain) == 1
