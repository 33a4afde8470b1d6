"""The references are what torch and the model families compute, in float64, and their gradients are right."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case
from cases.activations import sparsemax_by_sorting
from torch_runner import differentiate, error, tensors
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from liger.op import Op
from liger_torch import functional as f
from liger_torch.autograd import call

LABELS = torch.tensor([[3, -100, 7], [0, 9, 9]])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


def same(ours: torch.Tensor, theirs: torch.Tensor, *operands: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    incoming = torch.randn(theirs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for a, b in zip(
        torch.autograd.grad(ours, operands, incoming),
        torch.autograd.grad(theirs, operands, incoming),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_rms_norm_is_torchs() -> None:
    x, w = draw(2, 3, 16), draw(16, seed=1)
    same(f.liger_rms_norm(x, w, 1e-5), F.rms_norm(x, (16,), w, 1e-5), x, w)
    same(f.liger_rms_norm(x, None, 1e-5), F.rms_norm(x, (16,), None, 1e-5), x)
    y, s = f.liger_fused_add_rms_norm(x, x * 2, w)
    same(y + s, F.rms_norm(3 * x, (16,), w, 1e-6) + 3 * x, x, w)


@pytest.mark.parametrize(
    ("module", "options"), [(LlamaRMSNorm, {}), (GemmaRMSNorm, {"offset": 1.0, "casting_mode": "gemma"})]
)
def test_rounding_is_the_model_familys_bit_for_bit(module: type, options: dict) -> None:
    """In bf16, where it matters whether one rounds before or after the weight."""
    torch.manual_seed(0)
    theirs = module(64, eps=1e-6).bfloat16()
    torch.nn.init.normal_(theirs.weight)
    x = torch.randn(50, 64).bfloat16()
    assert torch.equal(f.liger_rms_norm(x, theirs.weight, 1e-6, **options), theirs(x))


def test_rope_is_hugging_faces() -> None:
    q, k = draw(2, 4, 5, 16), draw(2, 2, 5, 16, seed=1)
    angles = torch.outer(torch.arange(5.0), 10 ** (-torch.arange(8.0) / 8)).double().repeat(1, 2)[None]
    cos, sin = angles.cos(), angles.sin()
    ours, theirs = f.liger_rope(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin)
    same(ours[0], theirs[0], q)
    same(ours[1], theirs[1], k)
    swapped = f.liger_rope(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=2)
    assert torch.equal(swapped[0].transpose(1, 2), ours[0])
    table, positions = torch.randn(9, 16).double(), torch.tensor([[0, 3, 8, 1, 1]])
    by_position = f.liger_rope(q, k, table, table, position_ids=positions)
    assert torch.equal(by_position[0], f.liger_rope(q, k, table[positions], table[positions])[0])


def test_interleaved_rope_is_the_rotation_of_complex_pairs() -> None:
    q, k = draw(2, 4, 5, 16), draw(2, 2, 5, 16, seed=1)
    angle = torch.randn(5, 4, dtype=torch.float64)
    cos, sin = (t.repeat_interleave(2, -1)[None] for t in (angle.cos(), angle.sin()))
    pairs = torch.view_as_complex(q.detach()[..., :8].reshape(2, 4, 5, 4, 2))
    rotated = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    expected = torch.cat([rotated, q[..., 8:]], -1)
    torch.testing.assert_close(f.liger_rope(q, k, cos, sin, interleaved=True)[0], expected)


def test_swiglu_is_torchs() -> None:
    a, b = draw(2, 3, 16), draw(2, 3, 16, seed=1)
    same(f.liger_swiglu(a, b), F.silu(a) * b, a, b)
    packed = draw(2, 3, 32)
    same(f.liger_swiglu(packed), F.silu(packed[..., :16]) * packed[..., 16:], packed)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_geglu_is_torchs(approximate: str) -> None:
    a, b = draw(2, 3, 16), draw(2, 3, 16, seed=1)
    same(f.liger_geglu(a, b, approximate), F.gelu(a, approximate=approximate) * b, a, b)
    packed = draw(2, 3, 32)
    gate, up = packed.chunk(2, -1)
    same(f.liger_geglu(packed, approximate=approximate), F.gelu(gate, approximate=approximate) * up, packed)


def test_relu_squared_is_hugging_faces() -> None:
    x = draw(2, 3, 16)
    same(f.liger_relu_squared(x), ACT2FN["relu2"](x), x)


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_softmax_is_torchs(dim: int) -> None:
    x = draw(5, 7, 6)
    same(f.liger_softmax(x, dim), F.softmax(x, dim), x)


@pytest.mark.parametrize("dim", [-1, 0, 1])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_sparsemax_is_that_of_the_paper(dim: int, scale: float) -> None:
    """Algorithm 1 of arXiv:1602.02068, row by row, and its Jacobian: diag(s) - s s^T / |s|, s marking the support."""
    x = (draw(5, 7, 6) * scale).detach().requires_grad_()
    y = f.liger_sparsemax(x, dim)
    dy = draw(5, 7, 6, seed=1).detach()
    (dx,) = torch.autograd.grad(y, x, dy)
    rows = (t.detach().movedim(dim, -1).reshape(-1, x.shape[dim]).numpy() for t in (x, y, dy, dx))
    for z, p, g, gradient in zip(*rows, strict=True):
        expected = sparsemax_by_sorting(z)
        np.testing.assert_allclose(p, expected, rtol=1e-12, atol=1e-14)
        support = expected > 0
        np.testing.assert_allclose(gradient, support * (g - g[support].mean()), rtol=1e-12, atol=1e-14)


def gpt_oss_gate(packed: torch.Tensor) -> torch.Tensor:
    return GptOssExperts._apply_gate(SimpleNamespace(alpha=1.702, limit=7.0), packed)


def falcon_h1_gate(packed: torch.Tensor) -> torch.Tensor:
    """What FalconH1MLP hands to its down projection."""
    gate, up = packed.chunk(2, -1)
    return up * F.silu(gate * 0.4)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (gpt_oss_gate, {"alpha": 1.702, "limit": 7.0, "up_offset": 1.0, "interleaved": True}),
        (falcon_h1_gate, {"gate_multiplier": 0.4}),
    ],
)
def test_swiglu_is_the_model_familys(family: Callable[..., torch.Tensor], options: dict) -> None:
    packed = (draw(40, 64) * 5).detach().requires_grad_()
    same(f.liger_swiglu(packed, **options), family(packed), packed)
    at_the_limit = torch.tensor([[7.0, 7.0, 7.1, -7.0, -9.0, -7.1]]).double().requires_grad_()
    same(f.liger_swiglu(at_the_limit, **options), family(at_the_limit), at_the_limit)
    half = packed.detach().bfloat16().requires_grad_()
    exact = packed.detach().bfloat16().double().requires_grad_()
    incoming = draw(40, 32, seed=3).bfloat16()
    results = [(family(exact), exact), (f.liger_swiglu(half, **options), half), (family(half), half)]
    (y, dx), *rounded = [(y, torch.autograd.grad(y, x, incoming.to(y.dtype))[0]) for y, x in results]
    (our_y, our_dx), (their_y, their_dx) = rounded
    assert error(our_y, y) < error(their_y, y)
    assert error(our_dx, dx) < error(their_dx, dx)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_of_large_gates_has_finite_gradients(dtype: torch.dtype) -> None:
    a = torch.tensor([-200.0, -100.0, -88.0, 88.0, 200.0], dtype=dtype, requires_grad=True)
    (g,) = torch.autograd.grad(f.liger_swiglu(a, torch.ones_like(a)).sum(), a)
    (plain,) = torch.autograd.grad(F.silu(a).sum(), a)
    torch.testing.assert_close(g, plain)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs(reduction: str, smoothing: float, weighted: bool) -> None:
    x, w = draw(2, 3, 10), torch.rand(10, dtype=torch.float64) if weighted else None
    ours = f.liger_cross_entropy(x, LABELS, w, reduction=reduction, label_smoothing=smoothing)
    theirs = F.cross_entropy(x.transpose(1, 2), LABELS, w, reduction=reduction, label_smoothing=smoothing)
    same(ours, theirs, x)
    h, weight, bias = draw(2, 3, 4), draw(10, 4, seed=1), draw(10, seed=2)
    linear = f.liger_fused_linear_cross_entropy(
        h, weight, LABELS, bias, w, reduction=reduction, label_smoothing=smoothing, scale=0.5, softcap=2.0
    )
    logits = 2 * torch.tanh(0.5 * F.linear(h, weight, bias) / 2)
    theirs = F.cross_entropy(
        logits.transpose(1, 2), LABELS, w, reduction=reduction, label_smoothing=smoothing
    )
    same(linear, theirs, h, weight, bias)


def test_z_loss_accuracy_and_predictions() -> None:
    x = draw(2, 3, 10)

    def call(x: torch.Tensor) -> f.CrossEntropyOutput:
        more = {"return_z_loss": True, "return_token_accuracy": True, "return_predicted_tokens": True}
        return f.liger_cross_entropy(x, LABELS, lse_square_scale=0.1, **more)

    def z_loss(x: torch.Tensor) -> torch.Tensor:
        return 0.1 * x.logsumexp(-1).square()[valid].mean()

    valid = LABELS != -100
    same(call(x).z_loss, z_loss(x), x)
    same(call(x).loss, F.cross_entropy(x.transpose(1, 2), LABELS) + z_loss(x), x)
    best = x.argmax(-1)
    assert torch.equal(call(x).predicted_tokens, torch.where(valid, best, -1))
    assert call(x).token_accuracy == (best == LABELS)[valid].double().mean()


def test_label_out_of_range_gives_nan_in_its_row_alone() -> None:
    """As on a GPU: the functional form raises before, where it can look."""
    from liger_triton.cross_entropy import CROSS_ENTROPY, Options

    x = draw(4, 10)
    (loss, *_) = call(CROSS_ENTROPY, Options(reduction="none"), x, torch.tensor([1, 10, -100, -1]), None)
    assert loss.isnan().tolist() == [False, True, False, True]
    (g,) = torch.autograd.grad(loss.sum(), x)
    assert g.isnan().all(1).tolist() == [False, True, False, True]
    assert not g[[0, 2]].isnan().any()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: f.liger_cross_entropy(x, y, label_smoothing=0.1, lse_square_scale=0.1),
        lambda x, y: sum(f.token_logprobs(x, y)).sum(),
        lambda x, y: f.liger_jsd(x, x.detach().roll(1, -1), y, from_logits=True),
    ],
    ids=["cross_entropy", "logprobs", "jsd"],
)
def test_what_an_ignored_row_holds_has_no_gradient(loss: Callable[..., torch.Tensor]) -> None:
    """As in the kernels: padding need not hold numbers."""
    x = torch.randn(3, 9)
    x[1] = float("nan")
    x.requires_grad_()
    value = loss(x, torch.tensor([4, -100, 0]))
    (dx,) = torch.autograd.grad(value, x)
    assert value.isfinite()
    assert dx[[0, 2]].abs().amin() > 0
    assert not dx[1].any()


def test_token_scaling_takes_the_probability_as_a_constant() -> None:
    h, weight = draw(2, 3, 4), draw(10, 4, seed=1)
    ours = f.liger_fused_linear_cross_entropy(h, weight, LABELS, use_token_scaling=True)
    nll = F.cross_entropy(F.linear(h, weight).transpose(1, 2), LABELS, reduction="none")
    same(ours, (nll * (-nll).exp().detach()).sum() / 5, h, weight)


SMALL = [
    c
    for c in CASES
    if any(c.needs())
    and all(v is None or 0 < v.size < 10_000 for v in c.operands())
    and not getattr(c.options, "token_scaling", False)
    and getattr(c.options, "padding_idx", None) is None
]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_gradcheck(case: Case) -> None:
    """The reference's first and second derivatives against finite differences, in float64.

    Token scaling and padding_idx hold constant what finite differences vary; they have tests of their own.
    """
    given = [
        t.detach().double().requires_grad_(t.requires_grad) if t is not None and t.is_floating_point() else t
        for t in tensors(case, "float32")
    ]
    wanted = [t for t in given if t is not None and t.requires_grad]

    def function(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fresh = iter(values)
        full = [next(fresh) if t is not None and t.requires_grad else t for t in given]
        outputs = case.op.reference(tuple(full), case.options)
        return tuple(
            o for o, d in zip(outputs, case.op.outputs, strict=True) if o is not None and d.differentiable
        )

    assert torch.autograd.gradcheck(function, wanted, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, wanted, fast_mode=True)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_cpu_tensors_take_the_reference_and_stay_as_they_were(case: Case) -> None:
    given = tensors(case, "bfloat16")
    versions = [None if t is None else t._version for t in given]
    outputs = list(call(case.op, case.options, *given))
    gradients = differentiate(case, "bfloat16", given, outputs)
    assert [None if t is None else t._version for t in given] == versions
    for tensor, gradient, need in zip(given, gradients, case.needs(), strict=True):
        assert (gradient is not None) == need
        if need:
            assert (gradient.shape, gradient.dtype) == (tensor.shape, tensor.dtype)


@pytest.mark.parametrize("op", dict.fromkeys(case.op for case in CASES), ids=lambda op: op.name)
def test_outputs_have_gradients_as_declared(op: Op) -> None:
    """As where the kernels run: what is there to be logged holds on to no graph."""
    for case in (case for case in CASES if case.op is op and "wide" not in case.name):
        operands = tensors(case, "float32")
        wanted = any(t is not None and t.requires_grad for t in operands)
        for output, declared in zip(call(op, case.options, *operands), op.outputs, strict=True):
            if output is not None:
                assert output.requires_grad == (declared.differentiable and wanted), (
                    case.name,
                    declared.name,
                )
