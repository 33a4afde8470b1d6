"""Log-probabilities on the kernels: three ways to one gradient, what each costs, and digits where they are few."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_runner import error

import liger_jax
import liger_torch
from liger_torch import LogProbs, fused_linear_logprobs, token_logprobs
from liger_torch.autograd import call
from liger_torch.backend import TorchBackend, backend_for
from liger_triton import logprobs
from liger_triton.linear_chunks import LinearChunks
from liger_triton.logprobs_parts import shift_launch

ROWS, HIDDEN, VOCAB = 12, 24, 50
ROW_BYTES = 4 * VOCAB
IDS = torch.where(torch.arange(ROWS) % 4 == 1, -100, torch.arange(ROWS) * 3)


def draw(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype).requires_grad_()


def operands(needs: str = "xwb") -> list[torch.Tensor]:
    made = draw(ROWS, HIDDEN, seed=0), draw(VOCAB, HIDDEN, seed=1, scale=0.5), draw(VOCAB, seed=2)
    return [t.requires_grad_(name in needs) for name, t in zip("xwb", made, strict=True)]


def loss(results: LogProbs, weights: tuple[float, float, float] = (1.0, 0.3, -0.7)) -> torch.Tensor:
    """Another cotangent for every token and result."""
    along = torch.linspace(-1.0, 2.0, ROWS)
    return sum(w * (along * r).sum() for w, r in zip(weights, results, strict=True) if w)  # type: ignore[return-value]


def gradients(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    value = loss(fused_linear_logprobs(x, w, IDS, b, **options))
    return list(torch.autograd.grad(value, [t for t in (x, w, b) if t.requires_grad]))


KEPT = {"none": False, "some": 5 * ROW_BYTES, "all": True, "auto": "auto", "exactly all": ROWS * ROW_BYTES}


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
def test_kept_and_recomputed_logits_give_the_same(keep: Any) -> None:
    options: dict[str, Any] = {"softcap": 4.0, "temperature": 0.8}
    expected = gradients(*operands(), keep_logits=False, **options)
    for chunk_rows in (3, ROWS):
        found = gradients(*operands(), keep_logits=keep, chunk_bytes=chunk_rows * ROW_BYTES, **options)
        for a, b in zip(found, expected, strict=True):
            assert error(a, b) < 1e-6


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
def test_second_backward_is_right(keep: Any) -> None:
    """Also where the first one has turned the kept logits into their gradient, and with other cotangents."""
    given = operands()
    results = fused_linear_logprobs(given[0], given[1], IDS, given[2], keep_logits=keep)
    first = torch.autograd.grad(loss(results), given, retain_graph=True)
    again = torch.autograd.grad(loss(results), given, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = torch.autograd.grad(loss(results, (0.0, 1.0, 0.0)), given)
    x, w, b = operands()
    fresh = torch.autograd.grad(loss(fused_linear_logprobs(x, w, IDS, b), (0.0, 1.0, 0.0)), (x, w, b))
    for a, c in zip(other, fresh, strict=True):
        assert error(a, c) < 1e-6


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (1.0, 0.3, -0.7), (0.0, 0.0, 1.0)])
def test_gradient_of_a_frozen_head(weights: tuple[float, float, float]) -> None:
    """Prepared in the forward pass, for logp alone."""
    used = tuple(name for name, w in zip(("logp", "lse", "entropy"), weights, strict=True) if w)
    x, w, b = operands("x")
    results = fused_linear_logprobs(x, w, IDS, b, differentiable=used, chunk_bytes=5 * ROW_BYTES)
    (found,) = torch.autograd.grad(loss(results, weights), x, retain_graph=True)
    (again,) = torch.autograd.grad(loss(results, weights), x)
    exact = torch.autograd.grad(loss(token_logprobs(x @ w.t() + b, IDS), weights), x)[0]
    assert error(found, exact) < 1e-6
    assert torch.equal(found, again)


@pytest.mark.parametrize(
    ("needs", "options", "products"),
    [
        ("", {}, 1),
        ("xwb", {"keep_logits": False}, 4),
        ("xwb", {"keep_logits": True}, 3),
        ("xwb", {}, 3),
        ("x", {"keep_logits": False}, 3),
        ("x", {}, 2),
        ("w", {"keep_logits": False}, 3),
        ("w", {}, 2),
        ("b", {"keep_logits": False}, 2),
        ("x", {"keep_logits": False, "differentiable": ("logp",)}, 2),
        ("xw", {"keep_logits": False, "differentiable": ("logp",)}, 4),
        ("xb", {"keep_logits": False, "differentiable": ("logp",)}, 3),
    ],
)
def test_number_of_products(
    needs: str, options: dict[str, Any], products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []
    original = TorchBackend.matmul
    monkeypatch.setattr(
        TorchBackend,
        "matmul",
        lambda self, a, b, **kw: (calls.append(a.shape), original(self, a, b, **kw))[1],
    )
    x, w, b = operands(needs)
    results = fused_linear_logprobs(x, w, IDS, b, **options)
    assert len(calls) == 1 + ("differentiable" in options and needs == "x")
    if needs:
        loss(results).backward()
    assert len(calls) == products


@pytest.mark.parametrize(
    "options", [{"keep_logits": False}, {"keep_logits": True}, {"differentiable": ("logp",)}]
)
def test_ignored_rows_are_left_out_of_the_products(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    original = LinearChunks.logits
    monkeypatch.setattr(
        LinearChunks,
        "logits",
        lambda self, start, stop: (rows.append(stop - start), original(self, start, stop))[1],
    )
    needs = "x" if "differentiable" in options else "xwb"
    x, w, b = operands(needs)
    every = dict.fromkeys(("return_predicted", "return_rank"), True)
    handle = liger_torch.valid_rows(IDS)
    ours = fused_linear_logprobs(x, w, IDS, b, valid_rows=handle, **every, **options)
    found = torch.autograd.grad(loss(ours), [t for t in (x, w, b) if t.requires_grad])
    assert rows and set(rows) == {9}
    plain = fused_linear_logprobs(x, w, IDS, b, **every)
    for a, c in zip((*ours, ours.predicted, ours.rank), (*plain, plain.predicted, plain.rank), strict=True):
        assert a.dtype == c.dtype
        torch.testing.assert_close(a, c)
    weights = (1.0, 0.0, 0.0) if needs == "x" else (1.0, 0.3, -0.7)
    expected = torch.autograd.grad(loss(plain, weights), [t for t in (x, w, b) if t.requires_grad])
    for a, c in zip(found, expected, strict=True):
        assert error(a, c) < 1e-6
    with pytest.raises(ValueError, match="valid_rows was made for 12 labels, ids has 11"):
        fused_linear_logprobs(x[:11], w, IDS[:11], b, valid_rows=handle)


# -------------------------------------------------------------------------------------------------- digits


def plain_logprobs(z: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    log_p = z.log_softmax(-1)
    return log_p.gather(-1, ids[:, None])[:, 0], z.logsumexp(-1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize(("margin", "shift"), [(12.0, 0.0), (12.0, 100.0), (20.0, -100.0)])
def test_confident_predictions_keep_their_digits(margin: float, shift: float) -> None:
    """Where one token has nearly all of the probability logp and entropy are small differences of large numbers."""
    n, vocab = 16, 1000
    ids = torch.arange(n) * 7
    x = draw(n, vocab, seed=0).detach() * 0.1 + shift
    x[torch.arange(n), ids] += margin
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    exact, theirs = plain_logprobs(wide, ids), plain_logprobs(x, ids)
    ours = token_logprobs(x, ids)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        # The logarithm of a sum near 1 has the digits of 1.
        assert (mine - truth).abs().max() <= 1.5 * (other - truth).abs().max() + 1e-7
        found, plain, right = (
            torch.autograd.grad(r.sum(), t, retain_graph=True)[0]
            for r, t in ((mine, x), (other, x), (truth, wide))
        )
        assert error(found, right) <= 1.5 * error(plain, right) + 1e-6
    # The entropy's gradient has all of them: no log_total in it.
    found, right = (torch.autograd.grad(r.sum(), t)[0] for r, t in ((ours.entropy, x), (exact[2], wide)))
    off_label = torch.ones_like(x, dtype=torch.bool)
    off_label[torch.arange(n), ids] = False
    assert error(found[off_label], right[off_label]) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen", [False, True])
def test_error_is_no_larger_than_plain_torchs(dtype: torch.dtype, frozen: bool) -> None:
    """Against float64 on the same inputs, log_softmax in float32 on logits in the dtype."""
    n, vocab = 48, 1000
    ids = torch.arange(n) * 17
    x, w = draw(n, 64, seed=0, dtype=dtype), draw(vocab, 64, seed=1, scale=0.2, dtype=dtype)
    w.requires_grad_(not frozen)
    wanted = (x,) if frozen else (x, w)
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, w)]
    incoming = draw(n, seed=9).detach()
    exact, theirs = plain_logprobs(wide[0] @ wide[1].t(), ids), plain_logprobs((x @ w.t()).float(), ids)
    differentiable = ("logp",) if frozen else ("logp", "lse", "entropy")
    ours = fused_linear_logprobs(x, w, ids, differentiable=differentiable)
    # In float32 both err in the last place only; a prepared gradient is rounded once more when it is scaled.
    slack, floor = (1.0, 3e-7) if dtype == torch.float32 else (1.5 if frozen else 1.02, 0.0)
    for name, mine, other, truth in zip(("logp", "lse", "entropy"), ours, theirs, exact, strict=True):
        assert mine.dtype == torch.float32
        assert error(mine, truth) <= 1.02 * error(other, truth) + 3e-7
        if name not in differentiable:
            continue
        found, plain, right = (
            torch.autograd.grad(r, t, incoming.to(r.dtype), retain_graph=True)
            for r, t in ((mine, wanted), (other, wanted), (truth, [t for t in wide if t.requires_grad]))
        )
        for a, b, c in zip(found, plain, right, strict=True):
            assert error(a, c) <= slack * error(b, c) + floor


def test_weight_gradient_with_kept_rows_is_within_twice_the_error_of_one_product() -> None:
    """Four chunks and then the kept rows, however many these are."""
    n, hidden, vocab = 3000, 32, 96
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, hidden, generator=generator).bfloat16()
    d = (torch.randn(n, vocab, generator=generator) + 0.05).bfloat16()
    exact = d.double().t() @ x.double()
    one = error((d.float().t() @ x.float()).bfloat16(), exact)
    backend = backend_for(torch.device("cpu"))
    weight = torch.zeros(vocab, hidden, dtype=torch.bfloat16)
    for kept in (200, 1500, 2900):
        chunks = LinearChunks(
            backend,
            x,
            weight,
            None,
            layout="vh",
            wanted=(False, True, False),
            chunk_bytes=-(-(n - kept) // 4) * 2 * vocab,
            tail_rows=kept,
        )
        assert len(chunks.chunks()) == 5
        assert chunks.chunks()[-1] == (n - kept, n)
        assert chunks.plan.accum_dtype == "bfloat16"
        sums = chunks.sums()
        for start, stop in chunks.chunks():
            chunks.add(sums, d[start:stop], start, stop)
        assert error(chunks.finished(sums)[1], exact) <= 2 * one


def test_id_out_of_range_gives_nan_in_its_row_alone() -> None:
    """What a GPU does, where such an id cannot be found in time; on a CPU the functional form raises before."""
    x = draw(4, 10, seed=0)
    ids = torch.tensor([1, 10, -100, -1])
    logp, lse, entropy, _, rank = call(logprobs.LOGPROBS, logprobs.Options(return_rank=True), x, ids)
    assert logp.isnan().tolist() == [False, True, False, True]
    assert not lse.isnan().any() and not entropy.isnan().any()
    assert rank[1:].tolist() == [-1, -1, -1]
    (g,) = torch.autograd.grad(logp.sum(), x, retain_graph=True)
    assert g.isnan().all(1).tolist() == [False, True, False, True]
    assert not g[[0, 2]].isnan().any()
    assert not torch.autograd.grad((lse + entropy).sum(), x)[0].isnan().any()


def test_a_device_whose_words_are_all_masked_adds_nothing() -> None:
    given = (torch.tensor([x]) for x in (torch.finfo(torch.float32).min, 3.0, 8.0, 0.0))
    backend, best = backend_for(torch.device("cpu")), torch.zeros(1, dtype=torch.int32)
    total, weighted, _ = backend.launch(shift_launch(1, False), *given, best)
    assert (total.item(), weighted.item()) == (0.0, 0.0)


@pytest.mark.parametrize("mask", [float("-inf"), torch.finfo(torch.float32).min])
def test_masked_parts_of_the_vocabulary(mask: float) -> None:
    """Whole blocks of -inf, or of the lowest number there is, first, between and last."""
    x = draw(3, 12_000, seed=0).detach()
    x[0, :5000] = x[1, 4000:9000] = x[2, 5000:] = mask
    x.requires_grad_()
    ids = torch.tensor([11_000, 5, 5])
    results = token_logprobs(x, ids)
    assert torch.autograd.grad(results.entropy.sum(), x, retain_graph=True)[0].isfinite().all()
    for row, finite in enumerate(x > mask):
        part = x[row, finite].detach().double().requires_grad_()
        own = finite[: ids[row]].sum()[None]
        exact = plain_logprobs(part[None], own)
        for mine, truth in zip(results, exact, strict=True):
            assert error(mine[row], truth[0]) < 1e-6
            (found,) = torch.autograd.grad(mine[row], x, retain_graph=True)
            (right,) = torch.autograd.grad(truth[0], part, retain_graph=True)
            assert error(found[row, finite], right) < 1e-5
            assert not found[row, ~finite].any()


def test_autocast_casts_like_a_linear_layer() -> None:
    x, w, b = operands()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = fused_linear_logprobs(x, w, IDS, b)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(loss(results), (x, w, b)))
    half = fused_linear_logprobs(x.bfloat16(), w.bfloat16(), IDS, b.bfloat16())
    assert all(torch.equal(a, c) for a, c in zip(results, half, strict=True))


def test_a_prepared_gradient_is_prepared_under_compilation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    original = TorchBackend.matmul
    monkeypatch.setattr(
        TorchBackend,
        "matmul",
        lambda self, a, b, **kw: (calls.append(a.shape), original(self, a, b, **kw))[1],
    )
    x, w, b = operands("x")

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x: torch.Tensor) -> torch.Tensor:
        return fused_linear_logprobs(x, w, IDS, b, differentiable=("logp",), keep_logits=True).logp.sum()

    torch._dynamo.reset()
    compiled(x).backward()
    assert len(calls) == 2


@pytest.mark.parametrize("options", [{}, {"keep_logits": True}, {"differentiable": ("logp",)}], ids=str)
def test_jax_options_and_layouts(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x, kernel, bias = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 5, 24), (24, 37), (37,))
    )
    ids, where = jnp.asarray(rng.integers(0, 37, (2, 5))), jnp.asarray(rng.random((2, 5)) < 0.7)
    every: dict[str, Any] = {
        "where": where,
        "temperature": 0.7,
        "softcap": 3.0,
        "logit_scale": 0.8,
        "return_predicted": True,
        "return_rank": True,
    }

    def total(results: liger_jax.LogProbs) -> tuple[jax.Array, Any]:
        return sum(w * jnp.sum(r) for w, r in zip((1.0, 0.5, 2.0), results, strict=True)), results  # type: ignore[return-value]

    def ours(x: jax.Array, kernel: jax.Array, bias: jax.Array, **more: Any) -> Any:
        return total(
            liger_jax.linear_logprobs(
                x, kernel, ids, bias=bias, chunk_bytes=3 * 37 * 4, **every, **options, **more
            )
        )

    def plain(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> Any:
        z = 3.0 * jnp.tanh(0.8 * (x @ kernel + bias) / 3.0) / 0.7
        log_p = jax.nn.log_softmax(z)
        own = jnp.take_along_axis(log_p, ids[..., None], -1)
        values = [own[..., 0], jax.nn.logsumexp(z, -1), -jnp.sum(jnp.exp(log_p) * log_p, -1)]
        if "differentiable" in options:
            values[1:] = map(jax.lax.stop_gradient, values[1:])
        best, rank = jnp.argmax(z, -1), jnp.sum(log_p > own, -1)
        tokens = (jnp.where(where, v, -1).astype(jnp.int32) for v in (best, rank))
        return total(liger_jax.LogProbs(*(jnp.where(where, v, 0) for v in values), *tokens))

    for argnums in ((0, 1, 2), (0,)):
        (_, expected), expected_gradients = jax.value_and_grad(plain, argnums, has_aux=True)(x, kernel, bias)
        for more in (
            {"implementation": "triton"},
            {"implementation": "xla"},
            {"implementation": "triton", "kernel_layout": "vh"},
        ):
            vh = "kernel_layout" in more

            def function(x: Any, kernel: Any, bias: Any, more: Any = more, vh: bool = vh) -> Any:
                return ours(x, kernel.T if vh else kernel, bias, **more)

            (_, results), found = jax.value_and_grad(function, argnums, has_aux=True)(x, kernel, bias)
            for a, b in zip(
                jax.tree.leaves((results, found)),
                jax.tree.leaves((expected, expected_gradients)),
                strict=True,
            ):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("argnums", "options", "products"),
    [
        ((), {}, 1),
        ((0, 1), {}, 4),
        ((0, 1), {"keep_logits": True}, 3),
        (0, {}, 3),
        (0, {"differentiable": ("logp",)}, 2),
        ((0, 1), {"differentiable": ("logp",)}, 4),
    ],
)
def test_jax_number_of_products(argnums: Any, options: dict[str, Any], products: int) -> None:
    x, kernel, ids = jnp.ones((6, 8)), jnp.ones((8, 30)), jnp.arange(6)

    def value(x: jax.Array, kernel: jax.Array) -> jax.Array:
        results = liger_jax.linear_logprobs(x, kernel, ids, **options, implementation="triton")
        return sum(jnp.sum(r) for r in results)  # type: ignore[return-value]

    function = jax.value_and_grad(value, argnums) if argnums != () else value
    assert jax.jit(function).lower(x, kernel).as_text().count("stablehlo.dot_general") == products
