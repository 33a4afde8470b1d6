"""The kernels where they are meant to run: values, bits, streams, graphs, compilation, sizes."""

from __future__ import annotations

import importlib.util
import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_runner
from cases import CASES, DTYPES, Case

import liger_torch
from liger_torch import functional as f
from liger_torch.autograd import call
from liger_triton import divergence

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    """float32 products in float32, not in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_against_float64(case: Case, dtype: str) -> None:
    found = torch_runner.run(case, dtype, "cuda")
    torch_runner.check_against_float64(case, dtype, found, torch_runner.run_reference(case, dtype))
    again = torch_runner.run(case, dtype, "cuda")
    for a, b in zip((*found[0], *found[1]), (*again[0], *again[1]), strict=True):
        assert a is None or torch.equal(a, b), "the same inputs gave other bits"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in CASES if c.kernels_alone], ids=lambda c: c.name)
def test_torch_and_jax_give_the_same_bits(case: Case, dtype: str) -> None:
    jax = pytest.importorskip("jax", reason="needs jax")
    # Looked for, not imported: importing it directly takes Triton's cache folder from the environment.
    if importlib.util.find_spec("jax_triton") is None:
        pytest.skip("needs jax-triton")
    if jax.default_backend() != "gpu":
        pytest.skip("jax sees no GPU")
    import jax_runner

    outputs, gradients = torch_runner.run(case, dtype, "cuda")
    incoming = [
        None if c is None else c.float().cpu().numpy() for c in torch_runner.cotangents(case, dtype, outputs)
    ]
    jax_outputs, jax_gradients = jax_runner.run(case, dtype, incoming)
    names = [o.name for o in (*case.op.outputs, *case.op.operands)]
    for name, ours, theirs in zip(names, (*outputs, *gradients), (*jax_outputs, *jax_gradients), strict=True):
        if ours is not None:
            ours = ours.detach().double().cpu().numpy()
            np.testing.assert_array_equal(ours, np.asarray(theirs, np.float64), err_msg=name)


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return (
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype).requires_grad_()
    )


def test_a_step_never_waits_for_the_device() -> None:
    x, norm, head = draw(512, 256, seed=0), draw(256, seed=1), draw(1000, 256, seed=2)
    labels = torch.arange(512, device="cuda") % 1000
    labels[::2] = -100
    expected = F.cross_entropy(F.linear(F.rms_norm(x, (256,), norm, 1e-6), head).float(), labels)

    def step() -> torch.Tensor:
        valid = liger_torch.valid_rows(labels)
        hidden = f.liger_rms_norm(x, norm)
        torch.cuda._sleep(1000)
        loss = f.liger_fused_linear_cross_entropy(hidden, head, labels, valid_rows=valid)
        loss.backward()
        return loss

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert abs(loss.item() - expected.item()) < 1e-3 * expected.item()


def test_captured_in_a_cuda_graph() -> None:
    x, norm, head = draw(512, 256, seed=0), draw(256, seed=1), draw(1000, 256, seed=2)
    labels = torch.arange(512, device="cuda") % 1000

    def step() -> tuple[torch.Tensor, ...]:
        loss = f.liger_fused_linear_cross_entropy(
            f.liger_rms_norm(x, norm), head, labels, valid_rows=liger_torch.valid_rows(labels)
        )
        return loss, *torch.autograd.grad(loss, (x, norm, head))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(draw(512, 256, seed=7))
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


def test_compiled_by_inductor() -> None:
    x, norm, head = draw(512, 256, seed=0), draw(256, seed=1), draw(1000, 128, seed=2)
    labels = torch.arange(512, device="cuda") % 1000

    def step(x: torch.Tensor, norm: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return f.liger_fused_linear_cross_entropy(
            f.liger_swiglu(f.liger_rms_norm(x, norm)), head, labels[: x.shape[0]]
        )

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for rows in (512, 384):
        operands = [x[:rows].detach().requires_grad_(), norm, head]
        ours = [compiled(*operands), *torch.autograd.grad(compiled(*operands), operands)]
        plain = [step(*operands), *torch.autograd.grad(step(*operands), operands)]
        for a, b in zip(ours, plain, strict=True):
            assert torch_runner.error(a, b) < 1e-6


def test_more_than_2_to_the_31_elements() -> None:
    """The last rows lie beyond what 32 bits count."""
    rows, hidden = 2**31 // 8192 + 5, 8192
    x = torch.zeros(rows, hidden, device="cuda", dtype=torch.bfloat16)
    x[-3:] = draw(3, hidden, seed=0).detach()
    x.requires_grad_()
    y = f.liger_rms_norm(x, None)
    torch.testing.assert_close(
        y[-3:].float(), F.rms_norm(x[-3:].float(), (hidden,), None, 1e-6), atol=0.02, rtol=0.01
    )
    assert not y[:-3].any()
    incoming = torch.zeros_like(y)
    incoming[-3:] = 1
    (g,) = torch.autograd.grad(y, x, incoming)
    assert not g[:-3].any()
    assert g[-3:].any(1).all()
    del x, y, g, incoming
    rows, vocab = 2**31 // 128_256 + 5, 128_256
    logits = torch.zeros(rows, vocab, device="cuda", dtype=torch.bfloat16)
    logits[-3:] = draw(3, vocab, seed=1).detach()
    logits.requires_grad_()
    labels = torch.full((rows,), -100, device="cuda")
    labels[-3:] = torch.tensor([5, 70_000, 128_255], device="cuda")
    loss = f.liger_cross_entropy(logits, labels)
    plain = F.cross_entropy(logits[-3:].float(), labels[-3:])
    assert abs(loss.item() - plain.item()) < 1e-5
    (g,) = torch.autograd.grad(loss, logits)
    tail = logits[-3:].detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(tail, labels[-3:]), tail)
    assert torch_runner.error(g[-3:], expected) < 4e-3
    assert not g[:-3].any()


@pytest.mark.parametrize(
    ("tokens", "options"), [(8192, {}), (16_384, {}), (16_384, {"accum_dtype": torch.float32})]
)
def test_weight_gradient_error_at_full_size(tokens: int, options: dict) -> None:
    """At most twice that of one product in the weight's dtype, Llama-3's head."""
    x, head = draw(tokens, 4096, seed=0), draw(128_256, 4096, seed=1)
    with torch.no_grad():
        head.mul_(0.02)
    labels = torch.randint(0, 128_256, (tokens,), device="cuda")
    (dw,) = torch.autograd.grad(f.liger_fused_linear_cross_entropy(x, head, labels, **options), head)
    with torch.no_grad():
        logits = F.linear(x, head)
        d = torch.empty(tokens, 256, dtype=torch.bfloat16, device="cuda")
        for i in range(0, tokens, 2048):
            p = logits[i : i + 2048].float().softmax(-1)
            p[torch.arange(p.shape[0]), labels[i : i + 2048]] -= 1
            d[i : i + 2048] = (p[:, :256] / tokens).bfloat16()
        exact = d.double().t() @ x.double()
        one = ((d.t() @ x).double() - exact).norm()
        assert (dw[:256].double() - exact).norm() <= 2 * one


def test_current_stream_is_used() -> None:
    stream = torch.cuda.Stream()
    x = draw(64, 256, seed=0)
    with torch.cuda.stream(stream):
        y = f.liger_rms_norm(x, None)
    stream.synchronize()
    assert torch.equal(y, f.liger_rms_norm(x, None))
    with pytest.raises(ValueError, match="weight is on cpu, x on cuda"):
        f.liger_rms_norm(x, torch.ones(256))


def test_float64_is_refused() -> None:
    from liger_triton.rms_norm import RMS_NORM, Options

    with pytest.raises(TypeError, match="float64 on cuda"):
        call(RMS_NORM, Options(), torch.zeros(2, 4, dtype=torch.float64, device="cuda"), None)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_nan_is_seen_beside_eps(beta: float) -> None:
    """The GPU's maximum of NaN and eps is eps, where the interpreter's is NaN: here alone it shows."""
    student, teacher = (torch.rand(2, 20, device="cuda").softmax(-1) for _ in range(2))
    student[0, 3] = torch.nan
    options = divergence.Options(
        beta=beta, eps=1e-10, reduction="tokens", student_space="probs", teacher_space="probs"
    )
    assert call(divergence.JSD, options, student, teacher, None)[0].isnan().tolist() == [True, False]
