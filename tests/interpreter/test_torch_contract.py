"""What the torch frontend promises about particular ops on the kernels; `test_every_op` has what holds for all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import Case
from torch_runner import error, run, run_reference

import liger_torch
from liger_torch import functional as f
from liger_torch.autograd import call

# ------------------------------------------------------------------------ error beside the framework's own


def plain_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return w * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def draw(*shape: int, dtype: torch.dtype, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype).requires_grad_()


def operands(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    n = 48
    if name == "norm":
        return [draw(n, 512, dtype=dtype, seed=0), draw(512, dtype=dtype, seed=1)]
    if name == "rope":
        return [draw(1, 4, n, 64, dtype=dtype, seed=0), draw(1, 2, n, 64, dtype=dtype, seed=1)]
    if name in ("swiglu", "geglu", "exact geglu"):
        return [draw(n, 512, dtype=dtype, seed=0, scale=3), draw(n, 512, dtype=dtype, seed=1)]
    if name == "cross_entropy":
        return [draw(n, 1000, dtype=dtype, seed=0, scale=3)]
    return [draw(n, 64, dtype=dtype, seed=0), draw(1000, 64, dtype=dtype, seed=1, scale=0.2)]


ANGLES = torch.outer(torch.arange(48.0), 10_000 ** (-torch.arange(0, 64, 2) / 64)).repeat(1, 2)[None]
LABELS = torch.randint(0, 1000, (48,), generator=torch.Generator().manual_seed(5)).where(
    torch.arange(48) % 4 != 0, -100
)
OURS = {
    "norm": lambda x, w: f.liger_rms_norm(x, w),
    "rope": lambda q, k: f.liger_rope(q, k, ANGLES.cos().to(q.dtype), ANGLES.sin().to(q.dtype)),
    "swiglu": lambda a, b: f.liger_swiglu(a, b),
    "geglu": lambda a, b: f.liger_geglu(a, b),
    "exact geglu": lambda a, b: f.liger_geglu(a, b, "none"),
    "cross_entropy": lambda x: f.liger_cross_entropy(x, LABELS),
    "linear_cross_entropy": lambda x, w: f.liger_fused_linear_cross_entropy(x, w, LABELS),
}
THEIRS = {
    "norm": plain_norm,
    "rope": lambda q, k: tuple(
        rotated(x, ANGLES.cos()[:, None].to(x.dtype), ANGLES.sin()[:, None].to(x.dtype)) for x in (q, k)
    ),
    "swiglu": lambda a, b: F.silu(a) * b,
    "geglu": lambda a, b: F.gelu(a, approximate="tanh") * b,
    "exact geglu": lambda a, b: F.gelu(a) * b,
    "cross_entropy": lambda x: F.cross_entropy(x, LABELS),
    "linear_cross_entropy": lambda x, w: F.cross_entropy(F.linear(x, w).float(), LABELS),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OURS)
def test_error_is_no_larger_than_the_frameworks(name: str, dtype: torch.dtype) -> None:
    """Against float64 on the same inputs: outputs and gradients, ours beside plain torch in the same dtype."""

    def results(function: object, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
        out = function(*arguments)  # type: ignore[operator]
        out = out if isinstance(out, tuple) else (out,)
        incoming = [
            draw(*o.shape, dtype=dtype, seed=9).detach().to(o.dtype) if o.dim() else None for o in out
        ]
        return [*out, *torch.autograd.grad(out, arguments, incoming)]

    arguments = operands(name, dtype)
    wide = [t.detach().double().requires_grad_() for t in arguments]
    if name == "rope":  # the tables are rounded to the dtype that is tested, and exact from there on
        cos, sin = (t.to(dtype).double()[:, None] for t in (ANGLES.cos(), ANGLES.sin()))
        exact = results(lambda q, k: (rotated(q, cos, sin), rotated(k, cos, sin)), wide)
    elif name == "norm":
        exact = results(lambda x, w: w * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), wide)
    elif name == "linear_cross_entropy":
        exact = results(lambda x, w: F.cross_entropy(F.linear(x, w), LABELS), wide)
    else:
        exact = results(THEIRS[name], wide)
    ours, theirs = results(OURS[name], arguments), results(THEIRS[name], arguments)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        # In float32 both err in the last place only, and which is nearer is chance; in 16 bits the same holds for
        # results that both round once.
        floor = 3e-7 if dtype == torch.float32 else 0.0
        assert error(mine, truth) <= 1.02 * error(other, truth) + floor


@pytest.mark.parametrize(("margin", "shift"), [(12.0, 0.0), (12.0, 100.0), (20.0, -100.0)])
def test_confident_predictions_keep_their_digits(margin: float, shift: float) -> None:
    """Where the label has nearly all of the probability the loss is a small difference of large numbers."""
    labels = LABELS.clamp(min=0)
    x = draw(48, 1000, dtype=torch.float32, seed=0).detach() * 0.1 + shift
    x[torch.arange(48), labels] += margin
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    truth = F.cross_entropy(wide, labels)
    (exact,) = torch.autograd.grad(truth, wide)
    plain = F.cross_entropy(x, labels)
    theirs = error(torch.autograd.grad(plain, x)[0], exact)
    ours = f.liger_cross_entropy(x, labels)
    assert error(ours, truth) <= 1.5 * error(plain, truth) + 2e-6
    assert error(torch.autograd.grad(ours, x)[0], exact) <= 1.5 * theirs + 1e-6
    # The same logits as a product with the identity, the gradient taken in the forward pass.
    rows, head = torch.eye(48, requires_grad=True), x.detach().t().contiguous()
    fused = f.liger_fused_linear_cross_entropy(rows, head, labels)
    assert error(fused, truth) <= 1.5 * error(plain, truth) + 2e-6
    truth_rows = exact @ head.double()
    theirs = error(torch.autograd.grad(F.cross_entropy(F.linear(rows, head), labels), rows)[0], truth_rows)
    assert error(torch.autograd.grad(fused, rows)[0], truth_rows) <= 1.5 * theirs + 1e-6


@pytest.mark.parametrize("softcap", [1.0, 30.0, 1000.0])
def test_softcap_keeps_its_digits(softcap: float) -> None:
    x = draw(48, 1000, dtype=torch.float32, seed=0)
    labels = LABELS.clamp(min=0)
    wide = x.detach().double().requires_grad_()
    truth = F.cross_entropy(softcap * torch.tanh(wide / softcap), labels)
    loss = f.liger_cross_entropy(x, labels, softcap=softcap)
    plain = F.cross_entropy(softcap * torch.tanh(x / softcap), labels)
    exact = torch.autograd.grad(truth, wide)[0]
    theirs = error(torch.autograd.grad(plain, x)[0], exact)
    assert error(torch.autograd.grad(loss, x)[0], exact) <= 1.5 * theirs + 1e-7


def test_float16_with_a_loss_scale() -> None:
    """The gradients of a mean's logits are too small for float16 until the loss scale is in them."""
    x, w = draw(512, 64, dtype=torch.float16, seed=0), draw(2000, 64, dtype=torch.float16, seed=1, scale=0.2)
    labels = torch.arange(512) * 3
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    exact = torch.autograd.grad(F.cross_entropy(F.linear(*wide), labels) * 65_536, wide)
    theirs = torch.autograd.grad(F.cross_entropy(F.linear(x, w).float(), labels) * 65_536, (x, w))
    ours = torch.autograd.grad(f.liger_fused_linear_cross_entropy(x, w, labels) * 65_536, (x, w))
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        assert error(mine, truth) <= 1.02 * error(other, truth)


# ------------------------------------------------------------------------------------------------ autograd


def test_saved_tensor_overwritten_is_noticed() -> None:
    x = draw(4, 16, dtype=torch.float32, seed=0)
    hidden = x * 1.0
    y = f.liger_rms_norm(hidden, None)
    hidden.detach().add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_in_place_writes_the_gradient_over_the_incoming_one_only_when_asked() -> None:
    for in_place in (False, True):
        x = draw(4, 16, dtype=torch.float32, seed=0)
        y = f.liger_rms_norm(x, None, in_place=in_place)
        incoming = torch.ones_like(y)
        (g,) = torch.autograd.grad(y, x, incoming)
        assert (g.data_ptr() == incoming.data_ptr()) == in_place
        plain = plain_norm(x, torch.ones(16))
        assert torch.allclose(g, torch.autograd.grad(plain.sum(), x)[0], atol=1e-5)


def test_upstream_gradient_is_honoured() -> None:
    """Fused linear cross entropy computes its gradients before it knows what they will be multiplied with."""
    x, w = draw(6, 24, dtype=torch.float32, seed=0), draw(50, 24, dtype=torch.float32, seed=1)
    y = LABELS[:6] % 50
    for factor in (1.0, -2.5):
        ours = torch.autograd.grad(f.liger_fused_linear_cross_entropy(x, w, y) * factor, (x, w))
        plain = torch.autograd.grad(F.cross_entropy(F.linear(x, w), y) * factor, (x, w))
        for a, b in zip(ours, plain, strict=True):
            assert error(a, b) < 1e-6


@pytest.mark.parametrize("buffer_dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_goes_into_a_given_buffer(buffer_dtype: torch.dtype) -> None:
    x, w = draw(6, 24, dtype=torch.bfloat16, seed=0), draw(50, 24, dtype=torch.bfloat16, seed=1)
    y = LABELS[:6] % 50
    buffer = torch.ones(50, 24, dtype=buffer_dtype)
    loss = f.liger_fused_linear_cross_entropy(x, w, y, weight_grad=buffer, chunk_bytes=250)
    dx, dw = torch.autograd.grad(loss * 3, (x, w), allow_unused=True)
    assert dw is None
    exact = torch.autograd.grad(F.cross_entropy(F.linear(x.double(), w.double()), y) * 3, (x, w))
    assert error(dx, exact[0]) < 0.02
    assert error(buffer.double() - 1, exact[1]) < 0.02


def test_buffer_may_be_emptied_between_the_passes() -> None:
    """It is no saved tensor: another op may add to it, or `zero_grad` may clear it, before the backward pass."""
    x, w = draw(6, 24, dtype=torch.float32, seed=0), draw(50, 24, dtype=torch.float32, seed=1)
    buffer = torch.ones(50, 24)
    loss = f.liger_fused_linear_cross_entropy(x, w, LABELS[:6] % 50, weight_grad=buffer)
    buffer.zero_()
    loss.backward()
    exact = torch.autograd.grad(F.cross_entropy(F.linear(x, w), LABELS[:6] % 50), w)[0]
    assert error(buffer, exact) < 1e-6


def test_buffer_in_bfloat16_is_rounded_a_few_times_only() -> None:
    x, w = draw(640, 24, dtype=torch.bfloat16, seed=0), draw(50, 24, dtype=torch.bfloat16, seed=1)
    y = torch.arange(640) % 50
    buffer = torch.zeros(50, 24, dtype=torch.bfloat16)
    f.liger_fused_linear_cross_entropy(x, w, y, weight_grad=buffer, chunk_bytes=1000).backward()
    exact = torch.autograd.grad(F.cross_entropy(F.linear(x.double(), w.double()), y), w)[0]
    one = torch.autograd.grad(f.liger_fused_linear_cross_entropy(x, w, y, chunk_bytes=10**6), w)[0]
    assert error(buffer, exact) <= 2 * error(one, exact)
    with pytest.raises(ValueError, match=r"accum_dtype is 'float32' beside weight_grad"):
        f.liger_fused_linear_cross_entropy(x, w, y, weight_grad=buffer, accum_dtype=torch.float32)


def test_ignored_rows_are_left_out_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = draw(40, 24, dtype=torch.float32, seed=0), draw(50, 24, dtype=torch.float32, seed=1)
    y = torch.where(torch.arange(40) % 2 == 0, torch.arange(40), -100)
    from liger_torch.backend import TorchBackend

    rows: list[int] = []
    original = TorchBackend.matmul

    def counted(self: TorchBackend, a: torch.Tensor, b: torch.Tensor, **kw: object) -> torch.Tensor:
        rows.append(a.shape[0])
        return original(self, a, b, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchBackend, "matmul", counted)
    handle = liger_torch.valid_rows(y)
    results = {}
    for reduction in ("mean", "none"):
        rows.clear()
        out = f.liger_fused_linear_cross_entropy(
            x, w, y, valid_rows=handle, reduction=reduction, return_predicted_tokens=True
        )
        results[reduction] = torch.autograd.grad(out.loss.sum(), (x, w))
        assert rows and max(rows) <= 50 and rows[0] == 20
        plain = F.cross_entropy(F.linear(x, w), y, reduction=reduction)
        assert torch.allclose(out.loss, plain, atol=1e-6)
        assert torch.equal(out.predicted_tokens, torch.where(y == -100, -1, F.linear(x, w).argmax(-1)))
        for a, b in zip(results[reduction], torch.autograd.grad(plain.sum(), (x, w)), strict=True):
            assert error(a, b) < 1e-6
    rows.clear()
    f.liger_fused_linear_cross_entropy(x.detach(), w.detach(), y, valid_rows=handle)
    assert rows == [20]  # forward only: one product, no gradient
    with pytest.raises(ValueError, match="made for ignore_index -100, the loss has -1"):
        f.liger_fused_linear_cross_entropy(x, w, y.clamp(min=-1), ignore_index=-1, valid_rows=handle)
    with pytest.raises(ValueError, match="valid_rows was made for 40 labels, target has 39"):
        f.liger_fused_linear_cross_entropy(x[:39], w, y[:39], valid_rows=handle)


@pytest.mark.parametrize(
    ("frozen", "products"),
    [((), 3), (("w",), 2), (("x",), 2), (("x", "w"), 1)],
    ids=["both", "head", "input", "all"],
)
def test_nothing_is_computed_for_frozen_operands(
    frozen: tuple[str, ...], products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from liger_torch.backend import TorchBackend

    calls: list[tuple[int, ...]] = []
    original = TorchBackend.matmul
    monkeypatch.setattr(
        TorchBackend,
        "matmul",
        lambda self, a, b, **kw: (calls.append(a.shape), original(self, a, b, **kw))[1],
    )
    x, w = draw(6, 24, dtype=torch.float32, seed=0), draw(50, 24, dtype=torch.float32, seed=1)
    if "x" in frozen:
        x = x.detach()
    if "w" in frozen:
        w = w.detach()
    loss = f.liger_fused_linear_cross_entropy(x, w, LABELS[:6] % 50)
    if loss.requires_grad:
        loss.backward()
    assert len(calls) == products


# ------------------------------------------------------------------------------------- strides and devices


def test_strided_inputs_are_read_as_they_lie() -> None:
    """Transposed heads, slices of packed projections, rows with gaps, expanded gradients."""
    packed = draw(2, 5, (4 + 2 + 2) * 16, dtype=torch.float32, seed=0)
    q, k, _ = packed.split([4 * 16, 2 * 16, 2 * 16], dim=-1)
    q, k = q.view(2, 5, 4, 16).transpose(1, 2), k.view(2, 5, 2, 16).transpose(1, 2)
    cos, sin = ANGLES[:, :5, :16].cos(), ANGLES[:, :5, :16].sin()
    for a, x in zip(f.liger_rope(q, k, cos, sin), (q, k), strict=True):
        assert torch.allclose(a, rotated(x, cos[:, None], sin[:, None]), atol=1e-6)
    wide = draw(6, 40, dtype=torch.float32, seed=1)
    rows = wide[:, 8:24]
    weight = draw(16, dtype=torch.float32, seed=2)
    y = f.liger_rms_norm(rows, weight)
    assert torch.allclose(y, plain_norm(rows, weight), atol=1e-6)
    (g,) = torch.autograd.grad(y.sum(), wide)  # the incoming gradient is one number, expanded
    assert torch.allclose(g, torch.autograd.grad(plain_norm(rows, weight).sum(), wide)[0], atol=1e-5)
    columns = draw(16, 6, dtype=torch.float32, seed=3).t()
    assert torch.allclose(f.liger_rms_norm(columns, weight), plain_norm(columns, weight), atol=1e-6)
    half = wide[:, ::2]
    assert torch.allclose(f.liger_swiglu(half), F.silu(half[:, :10]) * half[:, 10:], atol=1e-6)
    logits = draw(50, 6, dtype=torch.float32, seed=4).t()
    assert torch.allclose(
        f.liger_cross_entropy(logits, LABELS[:6] % 50), F.cross_entropy(logits, LABELS[:6] % 50)
    )


def test_autocast_casts_the_fused_loss_like_a_linear_layer() -> None:
    x, w = draw(6, 24, dtype=torch.float32, seed=0), draw(50, 24, dtype=torch.float32, seed=1)
    y = LABELS[:6] % 50
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = f.liger_fused_linear_cross_entropy(x, w, y)
    dx, dw = torch.autograd.grad(loss, (x, w))
    assert loss.dtype == dx.dtype == dw.dtype == torch.float32
    half = f.liger_fused_linear_cross_entropy(x.bfloat16(), w.bfloat16(), y)
    assert torch.equal(loss, half)


def test_autocast_in_the_backward_pass_changes_nothing() -> None:
    x, w = draw(6, 24, dtype=torch.float32, seed=0), draw(50, 24, dtype=torch.float32, seed=1)
    y = LABELS[:6] % 50
    loss = f.liger_fused_linear_cross_entropy(x, w, y, reduction="none").sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dw = torch.autograd.grad(loss, w)[0]
    assert error(dw, torch.autograd.grad(F.cross_entropy(F.linear(x, w), y, reduction="sum"), w)[0]) < 1e-6


def test_autocast_promotes_streams_of_different_dtypes() -> None:
    x = draw(5, 16, dtype=torch.float32, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, s = f.liger_fused_add_rms_norm(x.bfloat16(), x, None)
        assert y.dtype == s.dtype == f.liger_swiglu(x.bfloat16(), x).dtype == torch.float32
    with pytest.raises(TypeError, match="residual has dtype float32 but x has bfloat16"):
        f.liger_fused_add_rms_norm(x.bfloat16(), x, None)


def test_last_tokens_of_batches_compile_one_kernel() -> None:
    """Their row stride is the sequence's length; it must not become a constant of the kernel."""
    from liger_torch.backend import backend_for

    backend = backend_for(torch.device("cpu"))
    strides = {
        backend.strides(backend.matrix(torch.zeros(batch, seq, 16)[:, -1]))[0]
        for seq in (20, 30, 50)
        for batch in (1, 3)
    }
    assert strides == {16}
    assert backend.strides(backend.matrix(torch.zeros(4, 48)[:, :16]))[0] == 48  # a packed projection stays


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_wider_than_65536(dtype: str) -> None:
    import cases

    from liger_triton import glu, rms_norm

    for case in (
        Case(
            "wide",
            rms_norm.RMS_NORM,
            rms_norm.Options(),
            cases.together(cases.normal(2, 65_537), cases.normal(65_537)),
        ),
        Case(
            "wide",
            glu.SWIGLU,
            glu.Options("silu"),
            cases.together(cases.normal(2, 65_537), cases.normal(2, 65_537)),
        ),
    ):
        outputs, gradients = run(case, dtype)
        exact = run_reference(case, dtype)
        for a, b in zip((*outputs, *gradients), (*exact[0], *exact[1]), strict=True):
            assert error(a, b) < (2e-6 if dtype == "float32" else 6e-3)


# --------------------------------------------------------------------------------------------------- errors


def test_out_of_range_label_gives_nan_in_its_row_alone() -> None:
    """What a GPU does, where such a label cannot be found in time; on a CPU the functional form raises before."""
    from liger_triton.cross_entropy import CROSS_ENTROPY, Options

    x = draw(4, 10, dtype=torch.float32, seed=0)
    (loss, *_) = call(CROSS_ENTROPY, Options(reduction="none"), x, torch.tensor([1, 10, -100, -1]), None)
    assert loss.isnan().tolist() == [False, True, False, True]
    (g,) = torch.autograd.grad(loss.sum(), x)
    assert g.isnan().any(1).tolist() == [False, True, False, True]


def test_masked_parts_of_the_vocabulary() -> None:
    """Whole blocks of -inf, first, between and last."""
    x = draw(3, 20_000, dtype=torch.float32, seed=0)
    masked = x.detach().clone()
    masked[0, :9000] = masked[1, 8000:17_000] = masked[2, 9000:] = float("-inf")
    masked.requires_grad_()
    labels = torch.tensor([19_000, 5, 5])
    ours, plain = f.liger_cross_entropy(masked, labels), F.cross_entropy(masked, labels)
    assert error(ours, plain) < 1e-6
    assert error(*(torch.autograd.grad(loss, masked)[0] for loss in (ours, plain))) < 1e-6


def test_saved_tensors_that_a_hook_lays_out_anew() -> None:
    """As `torch.autograd.graph.save_on_cpu` does: what comes back has no gaps, and the next call's has them again."""
    x = draw(6, 2 * 256, dtype=torch.float32, seed=0).detach()[:, :256].requires_grad_()
    w = draw(256, dtype=torch.float32, seed=1)

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(f.liger_rms_norm(x, w).square().sum(), (x, w))

    expected = gradients()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.clone(memory_format=torch.contiguous_format), lambda t: t
    ):
        hooked = gradients()
    for found in (hooked, gradients()):
        assert all(map(torch.equal, found, expected))
