"""What is particular to LayerNorm and GroupNorm, on the kernels: errors beside torch's own, and means that are large."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, with_tokens
from torch_runner import check_against_float64, error, run, run_reference

from liger import interpret
from liger.device import DEFAULT
from liger.launch import Launch
from liger.plan import dense, launches
from liger_torch import autograd
from liger_torch import functional as f
from liger_torch.backend import backend_for
from liger_triton import group_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def draw(*shape: int, dtype: torch.dtype, seed: int, mean: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) + mean).to(dtype).requires_grad_()


def results(function: Callable[..., torch.Tensor], operands: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output, and the gradients for a cotangent that the operands' 16-bit dtypes hold."""
    out = function(*operands)
    incoming = draw(*out.shape, dtype=torch.bfloat16, seed=9).detach().to(out.dtype)
    return [out, *torch.autograd.grad(out, operands, incoming)]


def check_beside_torch(
    ours: Callable[..., torch.Tensor], theirs: Callable[..., torch.Tensor], operands: list[torch.Tensor]
) -> None:
    """Assert that our errors against float64 are no larger than those of torch's op in the same dtype."""
    exact = results(theirs, [t.detach().double().requires_grad_() for t in operands])
    # In float32 both err in the last places only, and which is nearer is chance.
    slack, floor = (1.5, 3e-7) if operands[0].dtype == torch.float32 else (1.02, 0.0)
    found = zip(results(ours, operands), results(theirs, operands), exact, strict=True)
    for mine, other, truth in found:
        assert error(mine, truth) <= slack * error(other, truth) + floor


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("width", [512, 20_001])
def test_a_sum_is_normalised_as_it_is_kept(dtype: torch.dtype, width: int) -> None:
    """Rounded: the bits are those of the norm of the sum, where rows are held and where they are read again."""
    x, residual = (draw(3, width, dtype=dtype, seed=i).detach() for i in (1, 2))
    weight = draw(width, dtype=dtype, seed=3).detach()
    y, s = f.liger_fused_add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(s, x + residual)
    assert torch.equal(y, f.liger_rms_norm(s, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("width", [512, 20_001])
def test_layer_norm_errs_no_more_than_torchs(dtype: torch.dtype, mean: float, width: int) -> None:
    operands = [
        draw(6, width, dtype=dtype, seed=0, mean=mean),
        *(draw(width, dtype=dtype, seed=i) for i in (1, 2)),
    ]
    check_beside_torch(
        lambda x, w, b: f.liger_layer_norm(x, w, b, 1e-5),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-5),
        operands,
    )


def check_norms_beside_torch(rows: int, width: int, dtype: torch.dtype) -> None:
    """LayerNorm and RMSNorm of rows of this width."""
    x, w, b = (
        draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(((rows, width), (width,), (width,)))
    )
    check_beside_torch(
        lambda x, w, b: f.liger_layer_norm(x, w, b, 1e-5),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-5),
        [x, w, b],
    )
    check_beside_torch(
        lambda x, w: f.liger_rms_norm(x, w, 1e-5, casting_mode="gemma"),
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-5),
        [x, w],
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_rows_in_registers_err_no_more_than_torchs(dtype: torch.dtype) -> None:
    """So wide, LayerNorm's gradient takes both of its means at once, and RMSNorm of 16 bits loads its weight early."""
    check_norms_beside_torch(6, 2304, dtype)


@pytest.mark.parametrize("width", [7168, 7169, 8193, 16_385])
def test_rows_on_both_sides_of_where_they_are_swept_err_no_more_than_torchs(width: int) -> None:
    """In 16 bits the forward pass holds them up to 7168 columns (LayerNorm 8192), and in 4096 beyond, or 8192 at a time."""
    check_norms_beside_torch(3, width, torch.bfloat16)


@pytest.mark.parametrize("value", [1000.1, 33_000.1])
def test_a_swept_row_of_one_number_has_that_mean(value: float) -> None:
    """The means of lanes are added as differences: added at full size they round, and nothing divides by 1e-3 in vain."""
    x = torch.full((2, 16_390), value)
    assert f.liger_layer_norm(x, None, None, 1e-6).abs().max() == 0


@pytest.mark.parametrize("width", [1000, 9000, 20_001])
def test_large_means_keep_the_digits_of_what_is_left(width: int) -> None:
    """E[x^2] - E[x]^2 would be off by more than the variance here, which float32 cannot see in it: 1 in 10^8."""
    x = draw(3, width, dtype=torch.float32, seed=0, mean=10_000.0)
    exact = F.layer_norm(x.detach().double(), (width,), eps=1e-6)
    assert error(f.liger_layer_norm(x, None, None), exact) < 1e-3
    assert error(F.layer_norm(x, (width,), eps=1e-6), exact) < 1e-3


def test_statistics_of_16_bit_rows_are_float32() -> None:
    """Rounded to bfloat16 they would put an error of 2**-9 into every number of a row, all in one direction."""
    x = draw(64, 256, dtype=torch.bfloat16, seed=0, mean=1.0)
    incoming = draw(64, 256, dtype=torch.bfloat16, seed=1).detach()
    (g,) = torch.autograd.grad(f.liger_layer_norm(x, None, None), x, incoming)
    wide = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(F.layer_norm(wide, (256,), eps=1e-6), wide, incoming.double())
    size = (g.double() * exact).sum(1) / exact.square().sum(1)
    assert (size - 1).abs().max() < 2**-10


def test_weight_and_bias_of_other_dtypes() -> None:
    x = draw(5, 16, dtype=torch.bfloat16, seed=0)
    w, b = draw(16, dtype=torch.float32, seed=1), draw(16, dtype=torch.float16, seed=2)
    y = f.liger_layer_norm(x, w, b)
    gradients = torch.autograd.grad(y.sum(), (x, w, b))
    assert [t.dtype for t in (y, *gradients)] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
        torch.float16,
    ]
    assert error(y, F.layer_norm(x.double(), (16,), w.double(), b.double(), 1e-6)) < 2**-8


@pytest.mark.parametrize("pick", [0, 1])
def test_only_one_output_of_add_layer_norm_used(pick: int) -> None:
    given = [
        draw(*shape, dtype=torch.float32, seed=i) for i, shape in enumerate([(5, 16), (5, 16), (16,), (16,)])
    ]

    def plain(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return F.layer_norm(x + r, (16,), w, b, 1e-6), x + r

    found = [
        torch.autograd.grad(outputs[pick].square().sum(), given, allow_unused=True)
        for outputs in (f.liger_fused_add_layer_norm(*given), plain(*given))
    ]
    for a, b in zip(*found, strict=True):
        nothing = torch.zeros(())
        assert torch.allclose(nothing if a is None else a, nothing if b is None else b, atol=1e-5)


SHAPES = {
    "held": (6, 8, 30),
    "split": (2, 8, 3000),
    "images": (2, 8, 40, 24),
    "swept": (2, 8, 3000),
    "swept-odd": (2, 6, 1025),  # neither channels nor positions fill the last tile
}


@pytest.fixture
def shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """On a GPU of one multiprocessor few groups are enough to be swept, one by each program."""
    if request.param.startswith("swept"):
        one = dataclasses.replace(DEFAULT, multiprocessors=1)
        monkeypatch.setattr(backend_for(torch.device("cpu")), "device", one)
    return SHAPES[request.param]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES, indirect=True)
def test_group_norm_errs_no_more_than_torchs(dtype: torch.dtype, mean: float, shape: tuple[int, ...]) -> None:
    operands = [
        draw(*shape, dtype=dtype, seed=0, mean=mean),
        *(draw(shape[1], dtype=dtype, seed=i) for i in (1, 2)),
    ]
    check_beside_torch(
        lambda x, w, b: f.liger_group_norm(x, w, b, shape[1], 2, 1e-5),
        lambda x, w, b: F.group_norm(x, 2, w, b, 1e-5),
        operands,
    )


@pytest.mark.parametrize("shape", SHAPES, indirect=True)
def test_groups_with_large_means_keep_their_digits(shape: tuple[int, ...]) -> None:
    x = draw(*shape, dtype=torch.float32, seed=0, mean=10_000.0)
    exact = F.group_norm(x.detach().double(), 2, eps=1e-6)
    assert error(f.liger_group_norm(x, None, None, shape[1], 2), exact) < 1e-3


@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (2, 8, 40, 24), (2, 16, 3, 4, 2)], ids=str)
def test_channels_last_is_read_as_it_lies(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    format_ = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = draw(*shape, dtype=torch.float32, seed=0).detach()
    given = [
        x.to(memory_format=format_).requires_grad_(),
        *(draw(shape[1], dtype=torch.float32, seed=i) for i in (1, 2)),
    ]
    addresses: list[set[int]] = []
    run = interpret.run
    monkeypatch.setattr(
        interpret,
        "run",
        lambda launch, inputs, outputs: (addresses.append(set(inputs)), run(launch, inputs, outputs))[1],
    )
    y = f.liger_group_norm(*given, shape[1], 2)
    assert given[0].data_ptr() in addresses[0]
    incoming = draw(*shape, dtype=torch.float32, seed=3).detach()
    gradients = torch.autograd.grad(y, given, incoming.to(memory_format=format_))
    assert y.is_contiguous(memory_format=format_)
    assert gradients[0].is_contiguous(memory_format=format_)
    exact = [t.detach().double().requires_grad_() for t in given]
    theirs = F.group_norm(exact[0], 2, *exact[1:], 1e-6)
    for a, b in zip(
        (y, *gradients), (theirs, *torch.autograd.grad(theirs, exact, incoming.double())), strict=True
    ):
        assert error(a, b) < 1e-6


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("rms_norm-(3, 5, 33)", 300),
        ("layer_norm-(3, 5, 33)", 300),
        ("layer_norm-bias-alone", 300),
        ("group_norm-held", 40),
        ("group_norm-held-channels-last", 20),
        ("group_norm-held-bias-alone", 40),
        ("group_norm-split", 3),
        ("group_norm-split-channels-last", 3),
    ],
)
def test_programs_that_take_many_turns(name: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU of one multiprocessor, where every program goes through its loops more than once."""
    case = with_tokens(next(c for c in CASES if c.name == name), tokens)
    monkeypatch.setattr(
        backend_for(torch.device("cpu")), "device", dataclasses.replace(DEFAULT, multiprocessors=1)
    )
    monkeypatch.setattr(autograd, "_plans", {})  # those for the usual one are of no use
    found = run(case, "float32")
    check_against_float64(case, "float32", found, run_reference(case, "float32"))


def test_another_size_of_images_is_no_other_kernel() -> None:
    """Upstream compiles for every size. Ours for odd and aligned ones, and for sizes that need another tile."""

    def constants(launch: Launch) -> tuple[object, ...]:
        return launch.name, launch.constants, launch.num_warps

    kernels = {
        constants(launch)
        for images in (2, 7)
        for side in (40, 44, 48, 52, 56, 60)
        for launch, _ in launches(
            group_norm.GROUP_NORM,
            group_norm.Options(32),
            (dense((images, 320, side * side), "bfloat16"), *(dense((320,), "bfloat16"),) * 2),
            (True, True, True),
            DEFAULT,
        )
    }
    # Few images: three forward, three backward. Many: one and one. And one for the vectors.
    assert len(kernels) == 9
