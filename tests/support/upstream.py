"""liger-kernel's own tests as a table: shapes, dtypes and tolerances of its `test/transformers/test_<op>.py`.

Read off commit ead96b61 (August 2026), with the tolerances of the operator where a test has one for the module too. What
ours are compared with is plain torch in the same dtype, as there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from liger_torch import functional as f

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
Tensors = tuple[torch.Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Check:
    """An op beside plain torch.

    Attributes:
        name: for the test's id.
        shapes: shapes (tokens..., features) of upstream's tests.
        tolerances: absolute and relative one, by dtype.
        make: operands from a shape, dtype and device; the floating ones get gradients.
        ours: the op.
        plain: plain torch.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    tolerances: dict[torch.dtype, tuple[float, float]]
    make: Callable[[tuple[int, ...], torch.dtype, str], Tensors]
    ours: Callable[..., Any]
    plain: Callable[..., Any]


def normal(*shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float32).to(device, dtype)


def streams(n: int) -> Callable[[tuple[int, ...], torch.dtype, str], Tensors]:
    return lambda shape, dtype, device: tuple(normal(*shape, dtype=dtype, device=device) for _ in range(n))


def with_vectors(n_streams: int, n_vectors: int) -> Callable[[tuple[int, ...], torch.dtype, str], Tensors]:
    def make(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensors:
        vectors = (normal(shape[-1], dtype=dtype, device=device) for _ in range(n_vectors))
        return (*streams(n_streams)(shape, dtype, device), *vectors)

    return make


def logits_and_labels(ignored: int) -> Callable[[tuple[int, ...], torch.dtype, str], Tensors]:
    def make(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensors:
        *tokens, vocab = shape
        n = torch.Size(tokens).numel()
        labels = torch.randint(0, vocab, (n,)).where(torch.rand(n) > 0.3, ignored)
        labels[0] = (ignored + 1) % vocab  # at least one counts
        return normal(n, vocab, dtype=dtype, device=device), labels.to(device)

    return make


def linear(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensors:
    """(tokens..., hidden, vocab)."""
    *tokens, hidden, vocab = shape
    n = torch.Size(tokens).numel()
    x, weight = (
        normal(n, hidden, dtype=dtype, device=device),
        normal(vocab, hidden, dtype=dtype, device=device),
    )
    return x, weight * hidden**-0.5, torch.randint(0, vocab, (n,)).to(device)


def heads(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensors:
    """(batch, seq, q heads, k heads, head_dim); the tables as integers' angles, without gradients."""
    batch, seq, q_heads, k_heads, head_dim = shape
    q, k = (normal(batch, n, seq, head_dim, dtype=dtype, device=device) for n in (q_heads, k_heads))
    return q, k, torch.arange(seq, device=device)


def distributions(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensors:
    """Log-probabilities of a student, with gradients, and indices that stand for a teacher."""
    *tokens, vocab = shape
    n = torch.Size(tokens).numel()
    return normal(n, vocab, dtype=dtype, device=device).log_softmax(-1), torch.arange(n, device=device)


def teacher(like: torch.Tensor) -> torch.Tensor:
    """Log-probabilities, the same at every call."""
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(3))
    return drawn.to(like.device, like.dtype).log_softmax(-1)


def two_layers(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensors:
    """(tokens..., hidden, vocab): the student's; the teacher's layer is the same one, read backwards."""
    x, weight, _ = linear(shape, dtype, device)
    return x, weight


def plain_jsd(q: torch.Tensor, p: torch.Tensor, beta: float) -> torch.Tensor:
    q, p = q.float(), p.float()
    if beta in (0.0, 1.0):
        a, b = (q, p) if beta == 0.0 else (p, q)
        return F.kl_div(a, b, reduction="batchmean", log_target=True)
    m = (beta * p.exp() + (1 - beta) * q.exp()).log()
    sides = (F.kl_div(m, s, reduction="batchmean", log_target=True) for s in (p, q))
    return sum(w * s for w, s in zip((beta, 1 - beta), sides, strict=True))  # type: ignore[return-value]


def angles(positions: torch.Tensor, like: torch.Tensor) -> Tensors:
    frequencies = 10_000 ** -(torch.arange(0, like.shape[-1], 2, device=like.device) / like.shape[-1])
    table = torch.outer(positions.float(), frequencies).repeat(1, 2)[None]
    return table.cos().to(like.dtype), table.sin().to(like.dtype)


def plain_rms(x: torch.Tensor, w: torch.Tensor, casting: str) -> torch.Tensor:
    wide = x if casting == "none" else x.float()
    y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    if casting == "gemma":
        return (y * (1.0 + w.float())).to(x.dtype)
    return w * y.to(x.dtype)


def plain_rope(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> Tensors:
    cos, sin = (t[:, None] for t in angles(positions, q))
    half = q.shape[-1] // 2
    turned = lambda x: torch.cat((-x[..., half:], x[..., :half]), -1)  # noqa: E731
    return tuple(x * cos + turned(x) * sin for x in (q, k))


def plain_sparsemax(x: torch.Tensor) -> torch.Tensor:
    ordered = x.sort(-1, descending=True).values
    rank = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    sums = ordered.cumsum(-1)
    size = (1 + rank * ordered > sums).sum(-1, keepdim=True)
    return torch.clamp(x - (sums.gather(-1, size - 1) - 1) / size, min=0)


def plain_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    **options: Any,
) -> torch.Tensor:
    logits = logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    loss = F.cross_entropy(logits, labels, **options)
    valid = labels != options.get("ignore_index", -100)
    return loss + z_loss * (logits.logsumexp(-1)[valid] ** 2).mean() if z_loss else loss


NORMS = ((2, 128, 512), (5, 123, 123))
MLPS = ((2, 256, 512), (6, 42, 431))
LAYERS = ((2, 8, 64), (4, 16, 128), (1, 1, 1023), (3, 7, 256), (1, 1, 1500))
ROPES = ((1, 128, 32, 32, 64), (2, 128, 32, 8, 64), (3, 423, 73, 155, 92), (1, 8192, 32, 8, 128))
SOFTMAXES = ((2, 8), (4, 16), (1, 1023), (3, 7, 256), (1, 4096), (1, 2, 4096))
VOCABULARIES = ((2, 4096, 32000), (3, 423, 32000))
RMS = {FP32: (1e-4, 1e-6), BF16: (2e-1, 2e-2)}
CE = {FP32: (1e-8, 1e-6), BF16: (1e-8, 5e-2)}


def _rms_norms() -> list[Check]:
    checks = []
    for casting, offset in (("llama", 0.0), ("gemma", 1.0), ("none", 0.0)):

        def ours(x: torch.Tensor, w: torch.Tensor, c: str = casting, o: float = offset) -> torch.Tensor:
            return f.liger_rms_norm(x, w, 1e-6, o, c)

        def added(
            x: torch.Tensor, r: torch.Tensor, w: torch.Tensor, c: str = casting, o: float = offset
        ) -> Tensors:
            return f.liger_fused_add_rms_norm(x, r, w, 1e-6, o, c)

        def plain(x: torch.Tensor, w: torch.Tensor, c: str = casting) -> torch.Tensor:
            return plain_rms(x, w, c)

        def plain_added(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor, c: str = casting) -> Tensors:
            return plain_rms(x + r, w, c), x + r

        checks.append(Check(f"rms_norm-{casting}", NORMS, RMS, with_vectors(1, 1), ours, plain))
        checks.append(
            Check(f"fused_add_rms_norm-{casting}", NORMS, RMS, with_vectors(2, 1), added, plain_added)
        )
    return checks


def _cross_entropies() -> list[Check]:
    checks = []
    for name, ignored, options in (
        ("mean", -100, {"reduction": "mean"}),
        ("sum", -100, {"reduction": "sum"}),
        ("none", -100, {"reduction": "none"}),
        ("ignore_index", 2, {"ignore_index": 2}),
        ("label_smoothing", 1, {"ignore_index": 1, "label_smoothing": 0.1}),
        ("z_loss", -100, {"z_loss": 1e-4}),
        ("softcap", -100, {"softcap": 30.0, "label_smoothing": 0.1}),
    ):

        def ours(x: torch.Tensor, y: torch.Tensor, chosen: dict[str, Any] = options) -> Any:
            mine = {{"z_loss": "lse_square_scale"}.get(k, k): v for k, v in chosen.items()}
            return f.liger_cross_entropy(x, y, **mine)

        def plain(x: torch.Tensor, y: torch.Tensor, chosen: dict[str, Any] = options) -> torch.Tensor:
            return plain_cross_entropy(x, y, **chosen)

        checks.append(
            Check(f"cross_entropy-{name}", VOCABULARIES, CE, logits_and_labels(ignored), ours, plain)
        )
    return checks


def _linear_cross_entropies() -> list[Check]:
    checks = []
    for reduction, tolerances in (
        ("mean", {FP32: (1e-5, 5e-4), BF16: (5e-3, 5e-2)}),
        ("sum", {FP32: (1e-3, 5e-2), BF16: (5e0, 5e1)}),
    ):

        def ours(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, r: str = reduction) -> Any:
            return f.liger_fused_linear_cross_entropy(x, w, y, reduction=r)

        def plain(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, r: str = reduction) -> torch.Tensor:
            return F.cross_entropy(F.linear(x, w).float(), y, reduction=r)

        shapes = ((8, 128, 1024, 4096), (4, 47, 31, 123))
        checks.append(Check(f"linear_cross_entropy-{reduction}", shapes, tolerances, linear, ours, plain))
    return checks


def _divergences() -> list[Check]:
    shapes = ((1, 4096, 32000), (41, 401, 1271))
    tolerances = {FP32: (1e-8, 1e-6), BF16: (1e-8, 5e-2), FP16: (1e-3, 1e-3)}
    checks = []
    for reduction in ("batchmean", "sum", "mean", "none"):
        for log_target in (False, True):

            def ours(q: torch.Tensor, _: torch.Tensor, r: str = reduction, log: bool = log_target) -> Any:
                return f.liger_kl_div(q, teacher(q) if log else teacher(q).exp(), reduction=r, log_target=log)

            def plain(q: torch.Tensor, _: torch.Tensor, r: str = reduction, log: bool = log_target) -> Any:
                p = teacher(q)
                return F.kl_div(q.float(), (p if log else p.exp()).float(), reduction=r, log_target=log)

            name = f"kl_div-{reduction}{'-log_target' if log_target else ''}"
            checks.append(Check(name, shapes, tolerances, distributions, ours, plain))
    for beta in (0.0, 0.1, 0.5, 0.9, 1.0):

        def ours_jsd(q: torch.Tensor, _: torch.Tensor, b: float = beta) -> Any:
            return f.liger_jsd(q, teacher(q), beta=b)

        def theirs_jsd(q: torch.Tensor, _: torch.Tensor, b: float = beta) -> Any:
            return plain_jsd(q, teacher(q), b)

        bounds = {FP32: (1e-7, 1e-6), BF16: (1e-7, 5e-2), FP16: (1e-3, 1e-3)}
        checks.append(
            Check(
                f"jsd-{beta}", ((2, 1024, 3200), (41, 401, 1271)), bounds, distributions, ours_jsd, theirs_jsd
            )
        )
    for temperature, beta in ((1.0, 0.5), (2.0, 0.1), (1.0, 0.0), (1.0, 1.0)):

        def ours_linear(x: torch.Tensor, w: torch.Tensor, t: float = temperature, b: float = beta) -> Any:
            return f.liger_fused_linear_jsd(
                x, w, x.detach().flip(0), w.detach().flip(1), jsd_beta=b, temperature=t
            )

        def theirs_linear(x: torch.Tensor, w: torch.Tensor, t: float = temperature, b: float = beta) -> Any:
            q, p = (
                (F.linear(a, c).float() / t).log_softmax(-1)
                for a, c in ((x, w), (x.detach().flip(0), w.detach().flip(1)))
            )
            return plain_jsd(q, p, b)

        checks.append(
            Check(
                f"linear_jsd-{temperature}-{beta}",
                ((8, 128, 1024, 4096), (4, 423, 167, 1423)),
                {FP32: (1e-5, 5e-4), BF16: (5e-3, 5e-2)},
                two_layers,
                ours_linear,
                theirs_linear,
            )
        )
    return checks


CHECKS: tuple[Check, ...] = (
    *_rms_norms(),
    Check(
        "layer_norm",
        LAYERS,
        {FP32: (1e-5, 1e-5), BF16: (2e-2, 2e-2)},
        with_vectors(1, 2),
        lambda x, w, b: f.liger_layer_norm(x, w, b, 1e-6),
        # Not in bfloat16: torch's own sums the gradients of weight and bias in it on a CPU, and errs by 0.4 of them.
        lambda x, w, b: F.layer_norm(x.float(), x.shape[-1:], w.float(), b.float(), 1e-6).to(x.dtype),
    ),
    # Upstream's tests are of the whole MLP, with 1 and 10,000 as absolute tolerances; these are of its elementwise part,
    # with those of the functional GEGLU test.
    Check(
        "swiglu",
        MLPS,
        {FP32: (1e-5, 1e-5), BF16: (1e-2, 1e-2)},
        streams(2),
        f.liger_swiglu,
        lambda a, b: F.silu(a) * b,
    ),
    Check(
        "geglu",
        MLPS,
        {FP32: (1e-5, 1e-5), BF16: (1e-2, 1e-2)},
        streams(2),
        f.liger_geglu,
        lambda a, b: F.gelu(a, approximate="tanh") * b,
    ),
    Check(
        "relu_squared",
        ((2, 8, 4096), (4, 16, 2048), (1, 1, 1023), (3, 7, 256), (2, 8), (1, 4096)),
        {FP32: (1e-5, 1e-5), BF16: (1e-1, 5e-2)},
        streams(1),
        f.liger_relu_squared,
        lambda x: F.relu(x).square(),
    ),
    Check(
        "rope",
        ROPES,
        {FP32: (1e-5, 1e-5), BF16: (1e-1, 1e-5), FP16: (1e-2, 1e-5)},
        heads,
        lambda q, k, positions: f.liger_rope(q, k, *angles(positions, q)),
        plain_rope,
    ),
    Check(
        "softmax",
        SOFTMAXES,
        {FP32: (1e-5, 1e-5), BF16: (5e-2, 5e-2)},
        streams(1),
        f.liger_softmax,
        lambda x: F.softmax(x, -1),
    ),
    Check("sparsemax", NORMS, {FP32: (1e-5, 1e-5)}, streams(1), f.liger_sparsemax, plain_sparsemax),
    *_cross_entropies(),
    *_linear_cross_entropies(),
    *_divergences(),
)


def with_fewer_tokens(shape: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The shape with its second axis so short that it has about `most` elements: upstream's features stay."""
    rest = torch.Size(shape).numel() // shape[1] if len(shape) > 2 else 1
    return shape if len(shape) < 3 else (shape[0], max(min(shape[1], most // rest), 1), *shape[2:])


def assert_holds(check: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """Outputs and gradients of ours and of plain torch are as near as upstream's tests ask."""
    torch.manual_seed(0)
    operands = check.make(shape, dtype, device)
    atol, rtol = check.tolerances[dtype]
    results = []
    for function in (check.ours, check.plain):
        given = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in operands]
        outputs = function(*given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        incoming = [torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).to(o) for o in outputs]
        wanted = [t for t in given if t.requires_grad]
        results.append((*outputs, *torch.autograd.grad(outputs, wanted, incoming)))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other.to(mine.dtype), atol=atol, rtol=rtol)
