"""Modules, compilation on a CPU, and memory planned without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import checkout  # noqa: F401
import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from transformers import FalconH1Config, GemmaConfig
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1MLP
from transformers.models.gemma.modeling_gemma import GemmaMLP

import liger_torch
from benchmarks.peak_memory import PeakMemory
from liger_torch import functional as f

CONFIG = SimpleNamespace(hidden_size=8, intermediate_size=12, hidden_act="silu")


def test_modules_compute_what_their_names_say() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8)
    norm = liger_torch.LigerRMSNorm(8, eps=1e-5)
    assert torch.allclose(norm(x), F.rms_norm(x, (8,), norm.weight, 1e-5), atol=1e-6)
    gemma = liger_torch.LigerRMSNorm(8, offset=1.0, casting_mode="gemma", init_fn="zeros")
    assert torch.allclose(gemma(x), F.rms_norm(x, (8,), None, 1e-6), atol=1e-6)
    assert liger_torch.LigerRMSNorm(8, elementwise_affine=False).weight is None
    y, s = liger_torch.LigerFusedAddRMSNorm(8)(x, x)
    assert torch.equal(s, 2 * x)
    assert torch.allclose(y, F.rms_norm(2 * x, (8,), None, 1e-6), atol=1e-6)
    mlp = liger_torch.LigerSwiGLUMLP(CONFIG)
    plain = mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    assert torch.allclose(mlp(x), plain, atol=1e-6)
    packed = liger_torch.LigerPhi3SwiGLUMLP(CONFIG)
    gate, up = packed.gate_up_proj(x).chunk(2, -1)
    assert torch.allclose(packed(x), packed.down_proj(F.silu(gate) * up), atol=1e-6)
    expert = liger_torch.LigerBlockSparseTop2MLP(CONFIG)
    assert torch.allclose(expert(x), expert.w2(F.silu(expert.w1(x)) * expert.w3(x)), atol=1e-6)
    labels = torch.tensor([[1, -100, 3], [0, 7, 7]])
    loss = liger_torch.LigerCrossEntropyLoss(label_smoothing=0.1)(x, labels)
    assert torch.allclose(loss, F.cross_entropy(x.transpose(1, 2), labels, label_smoothing=0.1))
    head = torch.randn(9, 8)
    fused = liger_torch.LigerFusedLinearCrossEntropyLoss(reduction="sum")(head, x, labels)
    assert torch.allclose(
        fused, F.cross_entropy((x @ head.T).transpose(1, 2), labels, reduction="sum"), rtol=1e-5
    )


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_geglu_mlp_is_gemmas(activation: str) -> None:
    config = GemmaConfig(hidden_size=8, intermediate_size=12, hidden_act=activation)
    assert_same_module(liger_torch.LigerGEGLUMLP(config), GemmaMLP(config))
    gemma2 = SimpleNamespace(hidden_size=8, intermediate_size=12, hidden_activation=activation)
    assert liger_torch.LigerGEGLUMLP(gemma2).approximate == ("tanh" if "tanh" in activation else "none")


@pytest.mark.parametrize("bias", [False, True])
def test_falcon_h1_mlp_is_hugging_faces(bias: bool) -> None:
    config = FalconH1Config(hidden_size=8, intermediate_size=12, mlp_multipliers=[0.4, 0.3], mlp_bias=bias)
    assert_same_module(liger_torch.LigerFalconH1SwiGLUMLP(config), FalconH1MLP(config))


def assert_same_module(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Of the same parameters: the same results and gradients, in float64."""
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    results = []
    for module in (ours.double(), theirs.double()):
        y = module(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_relu_squared_module() -> None:
    x = torch.randn(2, 3, 8)
    assert torch.equal(liger_torch.LigerReLUSquared()(x), F.relu(x).square())


def test_softmax_and_sparsemax_modules() -> None:
    x = torch.randn(2, 3, 8)
    softmax, sparsemax = liger_torch.LigerSoftmax(1), liger_torch.LigerSparsemax(1)
    assert repr(softmax) == "LigerSoftmax(dim=1)"
    torch.testing.assert_close(softmax(x), torch.nn.Softmax(1)(x))
    assert torch.equal(sparsemax(x), f.liger_sparsemax(x.transpose(1, 2)).transpose(1, 2))
    assert torch.equal(liger_torch.LigerSparsemax()(x), f.liger_sparsemax(x))


def test_compiles_whole_on_a_cpu() -> None:
    x, w, head = (torch.randn(s, requires_grad=True) for s in ((6, 8), (8,), (9, 8)))
    labels = torch.tensor([1, -100, 3, 0, 7, 7])

    def step(x: torch.Tensor, w: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return f.liger_fused_linear_cross_entropy(
            f.liger_swiglu(f.liger_rms_norm(x, w).repeat(1, 2)), head, labels
        )

    expected = torch.autograd.grad(step(x, w, head), (x, w, head))
    found = torch.autograd.grad(
        torch.compile(step, fullgraph=True, backend="aot_eager")(x, w, head), (x, w, head)
    )
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_calls_refuse_what_eager_ones_refuse() -> None:
    x, labels = torch.randn(4, 8), torch.tensor([1, 2, 3, 4])
    for call in (
        lambda: f.liger_cross_entropy(x, labels, reduction="avg"),
        lambda: f.liger_rms_norm(x, x[0, :1]),
        lambda: f.liger_fused_add_rms_norm(x, x[:1], None),
    ):
        with pytest.raises(Exception, match=r"reduction is 'avg'|weight has shape|residual has shape"):
            torch.compile(call, fullgraph=True, backend="eager")()


def test_another_number_of_tokens_does_not_compile_again() -> None:
    """The first length is compiled as it is, the second for any; no third time."""
    head, norm = torch.randn(9, 8), torch.randn(8)

    def step(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        gated = f.liger_swiglu(f.liger_softmax(x, 0), f.liger_geglu(x, f.liger_relu_squared(x), "none"))
        gated = f.liger_sparsemax(gated)
        hidden, _ = f.liger_fused_add_rms_norm(f.liger_rms_norm(x, norm), gated, norm)
        return f.liger_fused_linear_cross_entropy(hidden, head, labels) + f.liger_cross_entropy(
            hidden, labels % 8
        )

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for n in (5, 6, 7, 11, 12, 30):
        x, labels = torch.randn(n, 8), torch.arange(n) % 9
        torch.testing.assert_close(compiled(x, labels), step(x, labels))
    assert counter.frame_count <= 2


def test_weight_gradient_buffer_on_a_cpu() -> None:
    x, head = torch.randn(6, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    labels = torch.tensor([1, -100, 3, 0, 7, 7])
    buffer = torch.ones(9, 8)
    loss = f.liger_fused_linear_cross_entropy(x, head, labels, weight_grad=buffer)
    _, nothing = torch.autograd.grad(loss, (x, head), allow_unused=True)
    assert nothing is None
    expected = torch.autograd.grad(F.cross_entropy(x @ head.T, labels), head)[0]
    torch.testing.assert_close(buffer - 1, expected)
    for wrong in (torch.zeros(9, 1), torch.zeros(8)):
        with pytest.raises(ValueError, match="weight_grad has shape"):
            f.liger_fused_linear_cross_entropy(x, head, labels, weight_grad=wrong)
    with pytest.raises(TypeError, match="weight_grad has dtype int32"):
        f.liger_fused_linear_cross_entropy(x, head, labels, weight_grad=buffer.int())


def peak_of_a_step(tokens: int, hidden: int, vocab: int, **options: Any) -> float:
    """GB beyond the inputs, for forward and backward of the fused loss in bf16, on meta tensors."""
    x = torch.empty(tokens, hidden, dtype=torch.bfloat16, device="meta", requires_grad=True)
    head = torch.empty(vocab, hidden, dtype=torch.bfloat16, device="meta", requires_grad=True)
    labels = torch.empty(tokens, dtype=torch.int64, device="meta")
    with PeakMemory() as memory:
        loss = f.liger_fused_linear_cross_entropy(x, head, labels, **options)
        loss.backward()
    return memory.peak / 1e9


def test_peak_memory_of_the_fused_loss() -> None:
    """Llama-3's head at 8192 tokens. The gradients (1.05 GB of the weight, 0.07 of the input) are counted too."""
    shape = (8192, 4096, 128_256)
    default = peak_of_a_step(*shape)
    assert 1.05 < default < 1.7
    buffer = torch.empty(shape[2], shape[1], dtype=torch.bfloat16, device="meta")
    assert 0.5 < peak_of_a_step(*shape, weight_grad=buffer) < 0.7
    assert peak_of_a_step(*shape, chunk_bytes=64_000_000, accum_dtype=torch.bfloat16) < 1.25
    naive = 8192 * 128_256 * 2 / 1e9
    assert default < naive  # less than the logits alone


@pytest.mark.parametrize("tokens", [1, 1000, 8192, 16_384, 65_536, 262_144, 1_000_001])
@pytest.mark.parametrize(("hidden", "vocab"), [(4096, 128_256), (2304, 256_000), (512, 1000)])
def test_plan_of_the_chunks(tokens: int, hidden: int, vocab: int) -> None:
    """Few chunks where they are added in bf16, an fp32 sum otherwise, whichever takes less memory."""
    from liger.device import H200
    from liger_triton.linear_chunks import MAX_ROUNDED_SUMS, plan

    p = plan(tokens, hidden, vocab, "bfloat16", True, None, None, H200)
    assert (p.n_chunks - 1) * p.chunk_rows < tokens <= p.n_chunks * p.chunk_rows
    if p.accum_dtype == "bfloat16":
        assert p.n_chunks <= MAX_ROUNDED_SUMS
    head, logits = 2 * hidden * vocab, 2 * vocab * p.chunk_rows
    if logits <= max(512e6, head / 2) + 2 * vocab * 256 and p.accum_dtype == "bfloat16":
        return  # within the budget, and few
    chosen = logits + (head if p.accum_dtype == "bfloat16" else 2 * head)
    large_chunks = 2 * vocab * -(-tokens // MAX_ROUNDED_SUMS) + head
    assert chosen <= max(large_chunks, 2 * head + head) * 1.05 + 2 * vocab * 1024
    assert plan(tokens, hidden, vocab, "bfloat16", True, "float32", None, H200).accum_dtype == "float32"
    assert plan(tokens, hidden, vocab, "float32", True, None, None, H200).accum_dtype == "float32"


@pytest.mark.parametrize("chunk_bytes", [1, 2_200_000, 3_000_000])
def test_no_chunk_is_larger_than_was_asked_for(chunk_bytes: int) -> None:
    """But for a buffer of 16 bits, to which no more than a few may be added."""
    from liger.device import H200
    from liger_triton.linear_chunks import MAX_ROUNDED_SUMS, plan

    for tokens in (1, 1500, 2200, 2300, 100_000):
        for weight_gradient, accum in ((True, None), (True, "bfloat16"), (False, None)):
            p = plan(tokens, 64, 1000, "bfloat16", weight_gradient, accum, chunk_bytes, H200)
            assert p.chunk_rows <= max(chunk_bytes // 2000, 1)
            assert (p.n_chunks - 1) * p.chunk_rows < tokens <= p.n_chunks * p.chunk_rows
        p = plan(tokens, 64, 1000, "bfloat16", True, None, chunk_bytes, H200, buffer_dtype="bfloat16")
        assert p.n_chunks <= MAX_ROUNDED_SUMS


@pytest.mark.parametrize("tokens", [4096, 20_000, 100_000])
def test_weight_gradient_error_is_within_twice_that_of_one_product(tokens: int) -> None:
    """In bf16, gathered as the plan says: against float64, beside a single product."""
    from liger.device import H200
    from liger_torch.backend import backend_for
    from liger_triton.linear_chunks import plan

    hidden, vocab = 64, 96
    # The plan of a large vocabulary, on matrices small enough for a CPU.
    p = plan(tokens, 4096, 128_256, "bfloat16", True, None, None, H200)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, hidden, generator=generator).bfloat16()
    d = (torch.randn(tokens, vocab, generator=generator) + 0.05).bfloat16()
    backend, total = backend_for(torch.device("cpu")), None
    for start in range(0, tokens, p.chunk_rows):
        part = slice(start, start + p.chunk_rows)
        total = backend.matmul(d[part].t(), x[part], add_to=total, dtype=p.accum_dtype)
    exact = d.double().t() @ x.double()
    one = (torch.mm(d.t().float(), x.float()).bfloat16() - exact).norm()
    assert (backend.cast(total, "bfloat16") - exact).norm() <= 2 * one


def experts(dtype: torch.dtype, width: int) -> tuple[torch.nn.Module, torch.nn.Module, list[torch.Tensor]]:
    """Ours, those of transformers with the same weights, and what both are called with: one expert has no token."""
    modeling = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    config = modeling.Qwen3MoeConfig(hidden_size=16, moe_intermediate_size=width, num_experts=4)
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    ours = liger_torch.LigerExperts(config).to(dtype)
    theirs = modeling.Qwen3MoeExperts(config).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    index = torch.tensor([[0, 3], [3, 1], [1, 0], [3, 0], [0, 1]])
    given = [torch.randn(5, 16).to(dtype), torch.rand(5, 2).to(dtype)]
    return ours, theirs, [given[0].requires_grad_(), index, given[1].requires_grad_()]


def results(module: torch.nn.Module, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output and all gradients."""
    y = module(*given)
    wanted = [given[0], given[2], module.gate_up_proj, module.down_proj]
    return [y, *torch.autograd.grad(y, wanted, torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))]


@pytest.mark.parametrize("width", [8, 6])
def test_experts_are_those_of_transformers(width: int) -> None:
    ours, theirs, given = experts(torch.float64, width)
    exact = results(theirs, given)
    for a, b in zip(results(ours, given), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    # In bfloat16 by the grouped product (8) or expert by expert (6): no further from the truth than transformers'.
    narrow = [t.detach().bfloat16().requires_grad_() if t.is_floating_point() else t for t in given]
    with torch.no_grad():
        given = [t.double() if t.is_floating_point() else t for t in narrow]
    given = [t.requires_grad_() if t.is_floating_point() else t for t in given]
    for module in (ours, theirs):
        module.bfloat16()
    found, plain = results(ours, narrow), results(theirs, narrow)
    exact = results(theirs.double(), given)
    for a, b, c in zip(found, plain, exact, strict=True):
        assert (a - c).norm() <= 1.1 * (b - c).norm()


def test_experts_under_autocast_are_those_in_its_dtype() -> None:
    ours, _, given = experts(torch.float32, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(*given)
    assert y.dtype == torch.float32
    with torch.no_grad():
        narrow = ours.bfloat16()(given[0].bfloat16(), given[1], given[2].detach())
    # The weights of the experts, and the sum over them, stay in float32 under autocast.
    torch.testing.assert_close(y, narrow.float(), rtol=2e-2, atol=2e-2)


def test_experts_with_no_token_and_of_other_configurations() -> None:
    ours, _, (x, index, weights) = experts(torch.bfloat16, 8)
    assert ours(x[:0], index[:0], weights[:0]).shape == (0, 16)
    mixtral = SimpleNamespace(num_local_experts=2, hidden_size=4, intermediate_size=6, hidden_act="silu")
    assert liger_torch.LigerExperts(mixtral).gate_up_proj.shape == (2, 12, 4)
    with pytest.raises(ValueError, match="LigerExperts: the configuration has no number of experts"):
        liger_torch.LigerExperts(SimpleNamespace(hidden_size=4, intermediate_size=6, hidden_act="silu"))
    with pytest.raises(ValueError, match="LigerExperts: the activation is 'gelu'"):
        liger_torch.LigerExperts(SimpleNamespace(num_experts=2, hidden_size=4, hidden_act="gelu"))
