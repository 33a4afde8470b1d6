"""What goes wrong in liger-kernel, by the thread that tells of it, does not here; over all ops where it is not of one.

Numbers are issues and pull requests of linkedin/Liger-Kernel unless another repository is named.
"""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import REPRESENTATIVES, Case
from strategies import SPACES, Drawn, Space
from torch_runner import check_against_float64, cotangents, differentiate, error, run, run_reference, tensors

import liger_torch
import liger_triton
from liger.device import PRESETS
from liger.launch import Spec
from liger_torch import functional as f
from liger_torch.autograd import call
from liger_torch.backend import NAMES, TorchBackend
from liger_triton.catalogue import FAMILIES, Call

DIFFERENTIABLE = [case for case in REPRESENTATIVES if any(case.needs())]
each_op = pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda c: c.name)
CALLS = [call for family in FAMILIES for call in family()]
H200 = PRESETS["sm_90"]


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).requires_grad_()


X, W = draw(8, 24, seed=0), draw(50, 24, seed=1)
LABELS = torch.tensor([1, -100, 3, 49, -100, 0, 7, 7])


# ------------------------------------------------------------------------ what is written where it must not be


@each_op
def test_272_what_made_the_input_keeps_its_result(case: Case) -> None:
    """#262, #272, #273, #343: the loss writes its gradient over the logits, which the op before it has saved."""
    results = []
    for copied in (False, True):
        leaves = tensors(case, "float32")
        # exp saves its result for its backward pass.
        made = [t.exp() if t is not None and t.requires_grad else t for t in leaves]
        given = [t.clone() if copied and t is not None else t for t in made]
        outputs = list(call(case.op, case.options, *given))
        results.append(differentiate(case, "float32", leaves, outputs))
    for a, b in zip(*results, strict=True):
        assert a is None or b is None or torch.equal(a, b)


@each_op
def test_370_an_incoming_gradient_that_others_share_stays(case: Case) -> None:
    """#370, #376, #1305: the gradient is written over the incoming one, which the residual stream shares."""
    given = tensors(case, "float32")
    outputs = list(call(case.op, case.options, *given))
    used = [i for i, o in enumerate(outputs) if o is not None and o.requires_grad]
    by_output = cotangents(case, "float32", outputs)
    used = [i for i in used if by_output[i] is not None]
    incoming = [by_output[i] for i in used]
    residuals = [torch.zeros_like(outputs[i]).requires_grad_() for i in used]  # type: ignore[arg-type]
    sums = [outputs[i] + r for i, r in zip(used, residuals, strict=True)]
    wanted = [t for t in given if t is not None and t.requires_grad]
    gradients = torch.autograd.grad(sums, [*wanted, *residuals], [c.clone() for c in incoming])  # type: ignore[union-attr]
    for gradient, expected in zip(gradients[len(wanted) :], incoming, strict=True):
        assert torch.equal(gradient, expected)  # type: ignore[arg-type]


@each_op
def test_inputs_stay_without_gradients_too(case: Case) -> None:
    """Logits of ignored tokens are set to zero even in evaluation; RoPE rotates q and k where they lie (source)."""
    given = [None if t is None else t.detach() for t in tensors(case, "float32")]
    copies = [None if t is None else t.clone() for t in given]
    with torch.no_grad():
        call(case.op, case.options, *given)
    assert all(t is None or torch.equal(t, copy) for t, copy in zip(given, copies, strict=True))


# ------------------------------------------------------------------------------------------- cross entropy


def test_507_a_loss_without_a_gradient() -> None:
    expected = F.cross_entropy(X @ W.T, LABELS)
    for loss in (
        f.liger_cross_entropy((X @ W.T).detach(), LABELS),
        f.liger_fused_linear_cross_entropy(X.detach(), W.detach(), LABELS),
    ):
        assert not loss.requires_grad
        assert error(loss, expected) < 1e-6


@pytest.mark.parametrize("weights", ["ones", "per token"])
def test_968_gradients_of_losses_by_token(weights: str) -> None:
    """#968, #1298, #338: with reduction="none" gradients are wrong or zero once they are weighted."""
    factors = torch.ones(8) if weights == "ones" else torch.linspace(-1, 2, 8)
    plain = torch.autograd.grad((F.cross_entropy(X @ W.T, LABELS, reduction="none") * factors).sum(), (X, W))
    fused = f.liger_fused_linear_cross_entropy(X, W, LABELS, reduction="none")
    on_logits = f.liger_cross_entropy(X @ W.T, LABELS, reduction="none")
    for loss in (fused, on_logits):
        for a, b in zip(torch.autograd.grad((loss * factors).sum(), (X, W)), plain, strict=True):
            assert error(a, b) < 1e-6


def test_243_every_option_of_a_loss_reaches_its_function() -> None:
    """#243: the module takes label_smoothing and leaves it behind."""
    options = {
        "ignore_index": 7, "label_smoothing": 0.2, "lse_square_scale": 0.1, "softcap": 4.0, "reduction": "sum",
    }  # fmt: skip
    labels = LABELS.clamp(min=0)
    for name, module, function, operands in (
        ("fused", liger_torch.LigerFusedLinearCrossEntropyLoss, f.liger_fused_linear_cross_entropy, (X, W)),
        ("logits", liger_torch.LigerCrossEntropyLoss, f.liger_cross_entropy, (X @ W.T,)),
    ):
        plain = function(*operands, labels)
        for option, value in options.items():
            chosen = {option: value}
            arguments = (W, X, labels) if name == "fused" else (*operands, labels)
            found, expected = module(**chosen)(*arguments), function(*operands, labels, **chosen)
            assert torch.equal(found, expected), option
            assert not torch.equal(found, plain), f"{option} does nothing"


def test_501_autocast() -> None:
    """#305, #318, #501, hiyouga/LLaMA-Factory#5583: float32 weights beside bfloat16 activations under autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = f.liger_fused_linear_cross_entropy(X.bfloat16(), W, LABELS)
    gradients = torch.autograd.grad(loss, (X, W))
    expected = torch.autograd.grad(F.cross_entropy(X @ W.T, LABELS), (X, W))
    for a, b in zip(gradients, expected, strict=True):
        assert a.dtype == torch.float32
        assert error(a, b) < 0.02


def test_827_a_weight_gradient_gathered_over_chunks() -> None:
    """#827, #512, axolotl-ai-cloud/axolotl#1601: added in bfloat16, chunk by chunk."""
    x, w = draw(256, 16, seed=2, dtype=torch.bfloat16), draw(40, 16, seed=3, dtype=torch.bfloat16)
    labels = torch.arange(256) % 40
    exact = torch.autograd.grad(F.cross_entropy(x.double() @ w.double().T, labels), w)[0]
    one, many = (
        torch.autograd.grad(f.liger_fused_linear_cross_entropy(x, w, labels, chunk_bytes=bytes_), w)[0]
        for bytes_ in (10**6, 4 * 40 * 2)
    )
    assert error(many, exact) <= 2 * error(one, exact)


def test_237_nothing_is_computed_for_a_frozen_head(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []
    own = TorchBackend.matmul
    monkeypatch.setattr(
        TorchBackend, "matmul", lambda self, *a, **kw: (products.append(1), own(self, *a, **kw))[1]
    )
    f.liger_fused_linear_cross_entropy(X, W.detach(), LABELS).backward(inputs=[X])
    assert len(products) == 2  # the logits and the gradient of X


def test_a_trainable_head_on_a_frozen_backbone_gets_its_gradient() -> None:
    """All gradients hang on the input's requires_grad (source of fused_linear_cross_entropy)."""
    bias = torch.zeros(50, requires_grad=True)
    for wanted in ((W,), (bias,), (W, bias)):
        head = W if any(t is W for t in wanted) else W.detach()
        b = bias if any(t is bias for t in wanted) else bias.detach()
        loss = f.liger_fused_linear_cross_entropy(X.detach(), head, LABELS, b)
        expected = F.cross_entropy(F.linear(X.detach(), head, b), LABELS)
        for mine, plain in zip(
            torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted), strict=True
        ):
            assert error(mine, plain) < 1e-6


def test_a_loss_is_float32_whatever_the_logits_are() -> None:
    """Each row's loss and their sum are rounded to bfloat16 (source of cross_entropy)."""
    logits = draw(64, 50, seed=4, dtype=torch.bfloat16)
    labels = torch.arange(64) % 50
    exact = F.cross_entropy(logits.double(), labels)
    assert f.liger_cross_entropy(logits, labels).dtype == torch.float32
    assert error(f.liger_cross_entropy(logits, labels), exact) < 1e-6


def test_767_a_head_without_rows_is_named() -> None:
    """#767: under ZeRO-3 the head's weight is empty outside its module: ZeroDivisionError."""
    with pytest.raises(ValueError, match=r"weight has shape \(0, 24\)"):
        f.liger_fused_linear_cross_entropy(X, W[:0].detach(), LABELS.clamp(max=-100))


def test_a_batch_of_ignored_labels_is_0_with_gradients_of_0() -> None:
    ignored = torch.full_like(LABELS, -100)
    for loss in (
        f.liger_cross_entropy(X @ W.T, ignored),
        f.liger_fused_linear_cross_entropy(X, W, ignored),
    ):
        assert loss.item() == 0.0
        assert not any(g.any() for g in torch.autograd.grad(loss, (X, W)))


# ------------------------------------------------------------------------------------- norms and positions


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "group_norm"])
def test_statistics_do_not_cancel(name: str) -> None:
    """E[x^2] - E[x]^2 (source of group_norm); statistics in bfloat16 (source of layer_norm)."""
    x = (draw(2, 8, 64, seed=5) + 300).detach().requires_grad_()
    functions = {
        "rms_norm": (lambda t: f.liger_rms_norm(t, None), lambda t: F.rms_norm(t, (64,), eps=1e-6)),
        "layer_norm": (
            lambda t: f.liger_layer_norm(t, None, None),
            lambda t: F.layer_norm(t, (64,), eps=1e-6),
        ),
        "group_norm": (
            lambda t: f.liger_group_norm(t, None, None, 8, 4, 1e-6),
            lambda t: F.group_norm(t, 4, eps=1e-6),
        ),
    }
    ours, plain = functions[name]
    exact = plain(x.double())
    assert error(ours(x), exact) <= 2 * error(plain(x), exact) + 1e-7


@each_op
def test_saved_statistics_are_float32(case: Case) -> None:
    """Means and inverse deviations are kept in the storage dtype (source of layer_norm)."""
    given = tensors(case, "bfloat16")
    specs = tuple(None if t is None else Spec(tuple(t.shape), NAMES[t.dtype]) for t in given)
    _, saved = case.op.infer(specs, case.options, case.op.computed(case.needs()))
    for declared, spec in zip(case.op.saved, saved, strict=True):
        if spec is not None and declared.axes == 0 and spec.dtype not in ("int32", "int64"):
            assert spec.dtype == "float32", declared.name


def test_a_layer_norm_starts_as_the_identity() -> None:
    """Its bias is drawn at random (source of transformers/layer_norm)."""
    module = liger_torch.LigerLayerNorm(8, bias=True)
    assert torch.equal(module.weight, torch.ones(8))
    assert torch.equal(module.bias, torch.zeros(8))


@pytest.mark.parametrize("heads", [(0, 0), (1, 1), (3, 1), (1, 3)])
def test_461_one_head(heads: tuple[int, int]) -> None:
    """#342, #461, #464: RoPE is wrong with a single head."""
    q, k = (draw(2, n, 5, 16, seed=6 + n) for n in heads)
    angles = torch.outer(torch.arange(5.0), 10_000 ** -(torch.arange(0, 16, 2) / 16)).repeat(1, 2)[None]
    cos, sin = angles.cos(), angles.sin()
    for ours, x in zip(f.liger_rope(q, k, cos, sin), (q, k), strict=True):
        plain = x * cos[:, None] + torch.cat((-x[..., 8:], x[..., :8]), -1) * sin[:, None]
        assert error(ours, plain) < 1e-6


# ------------------------------------------------------------------------------------------ kernels, launches


def test_815_no_kernel_adds_atomically() -> None:
    """#815, #945, #1253, #883: sums whose order is chance, in 16 bits in GroupNorm's case."""
    folder = Path(inspect.getfile(liger_triton)).parent
    files = list(folder.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                assert "atomic" not in name, f"{file.name}:{node.lineno}"


def test_803_every_kernel_is_compiled_beyond_int32_offsets() -> None:
    """#803, #1246, #1296: illegal accesses above 2**31 elements. `test_addresses` looks at the offsets themselves."""
    largest: Counter[str] = Counter()
    for planned in CALLS:
        for entry in planned.entries(H200):
            sizes = (*entry.extents, *(spec.size for spec in entry.launch.outputs))
            largest[entry.launch.name] = max(largest[entry.launch.name], *sizes)
    # Others read and write a few numbers per token.
    assert {name for name, size in largest.items() if 2**24 <= size < 2**31} == set()


@pytest.mark.parametrize("call", CALLS, ids=lambda c: c.name)
def test_1294_tokens_are_counted_along_the_first_axis_of_a_grid(call: Call) -> None:
    """#1294, limits of DyT and GRPO (source): the other two axes end at 65,535."""
    for entry in call.entries(H200):
        assert all(n <= 65_535 for n in entry.launch.grid[1:]), entry.name


@pytest.mark.parametrize("call", CALLS, ids=lambda c: c.name)
def test_1350_no_float_is_a_runtime_argument(call: Call) -> None:
    """#1350, #1358: a Python float becomes a float64 under Inductor, and the kernel 2 to 6 times slower."""
    for entry in call.entries(H200):
        assert all(type(value) is int for value in entry.launch.integers), entry.name


# Of products the framework's sums err more than 24 roundings at this width.
WIDE = [
    space
    for space in SPACES
    if "width" in space.sizes and all(case.kernels_alone for case in REPRESENTATIVES if case.op is space.op)
]


@pytest.mark.parametrize("space", WIDE, ids=lambda space: space.op.name)
def test_rows_wider_than_65536(space: Space) -> None:
    """Upstream's norms, gates, softmax and divergences end there (`calculate_settings`)."""
    like = next(case for case in REPRESENTATIVES if case.op is space.op)
    drawn = Drawn(
        tokens=(2,) * max(space.token_axes[0], 1),
        sizes={name: 65_537 if name == "width" else 2 for name in space.sizes},
        options=like.options,
        present=frozenset(
            o.name for o, v in zip(space.op.operands, like.operands(), strict=True) if v is not None
        ),
        scale=1.0,
    )
    makers = space.operands(drawn)

    def make(rng: object) -> tuple:
        return tuple(
            makers[o.name](rng) if o.name in makers and (not o.optional or o.name in drawn.present) else None  # type: ignore[arg-type]
            for o in space.op.operands
        )

    case = Case("wide", space.op, like.options, make, keep_dtype=like.keep_dtype, roundings=like.roundings)
    check_against_float64(case, "float32", run(case, "float32"), run_reference(case, "float32"))
