"""Rotary embeddings are those of the model families' own Hugging Face code."""

from __future__ import annotations

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_runner import error
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek_v3
from transformers.models.gemma3 import modeling_gemma3 as gemma3
from transformers.models.glm4_moe import modeling_glm4_moe as glm4_moe
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.llama4 import modeling_llama4 as llama4
from transformers.models.olmo2 import modeling_olmo2 as olmo2
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl

import liger_jax
import liger_torch
from liger.device import DEFAULT
from liger.plan import Planned, dense, launches
from liger_torch import functional as f
from liger_triton import rope

BATCH, SEQ, HEAD_DIM = 2, 7, 32


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def heads(layout: str, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k with the heads where the family has them."""
    q, k = (draw(BATCH, SEQ, n, HEAD_DIM, seed=n, dtype=dtype) for n in (4, 1))
    return (q, k) if layout == "bshd" else (q.transpose(1, 2), k.transpose(1, 2))


def same(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...], *operands: torch.Tensor) -> None:
    """Results and gradients, in float64."""
    for a, b, x in zip(ours, theirs, operands, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
        incoming = draw(*b.shape, seed=9).detach()
        both = (torch.autograd.grad(y, x, incoming, retain_graph=True)[0] for y in (a, b))
        torch.testing.assert_close(*both, rtol=1e-13, atol=1e-14)


def angles(*lead: int, columns: int = HEAD_DIM // 2) -> torch.Tensor:
    """Of random positions, a column per pair."""
    positions = torch.randint(0, 100, lead, generator=torch.Generator().manual_seed(3)).double()
    return positions[..., None] * 100 ** (-torch.arange(columns) / columns)


def test_multimodal_sections_are_qwen2_vls() -> None:
    """Whose rotary module merges the tables since transformers 5; before, the attention did."""
    q, k = heads("bhsd")
    section = [4, 7, 5]
    planes = angles(3, BATCH, SEQ)
    module = SimpleNamespace(mrope_section=section)
    merge = qwen2_vl.Qwen2VLRotaryEmbedding.recomposition_frequencies
    merged = (merge(module, t) for t in (planes.cos(), planes.sin()))
    theirs = qwen2_vl.apply_rotary_pos_emb(q, k, *merged)
    wide = [torch.cat((t, t), -1) for t in (planes.cos(), planes.sin())]
    same(liger_torch.liger_multimodal_rotary_pos_emb(q, k, *wide, section), theirs, q, k)
    same(f.liger_qwen2vl_mrope(q, k, *wide, section, 1), theirs, q, k)
    by_token = (x.transpose(1, 2) for x in (q, k))
    swapped = f.liger_rope(*by_token, *wide, unsqueeze_dim=2, mrope_section=section)
    same(tuple(x.transpose(1, 2) for x in swapped), theirs, q, k)


def test_interleaved_sections_of_qwen3_vl_are_merged_before() -> None:
    q, k = heads("bhsd")
    module = SimpleNamespace(mrope_section=[6, 5, 5])
    merge = qwen3_vl.Qwen3VLTextRotaryEmbedding.recomposition_frequencies
    cos, sin = (merge(module, t) for t in (angles(3, BATCH, SEQ).cos(), angles(3, BATCH, SEQ).sin()))
    same(f.liger_rope(q, k, cos, sin), qwen3_vl.apply_rotary_pos_emb(q, k, cos, sin), q, k)


def test_half_tables_are_gpt_oss() -> None:
    q, k = heads("bhsd")
    cos, sin = angles(BATCH, SEQ).cos(), angles(BATCH, SEQ).sin()
    theirs = gpt_oss.apply_rotary_pos_emb(q, k, cos, sin)
    same(liger_torch.liger_rotary_pos_emb_gpt_oss(q, k, cos, sin), theirs, q, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_complex_pairs_are_llama4s_bit_for_bit(dtype: torch.dtype) -> None:
    q, k = heads("bshd", dtype)
    frequencies = torch.polar(torch.ones(1), angles(BATCH, SEQ).float())
    theirs = llama4.apply_rotary_emb(q, k, frequencies)
    ours = liger_torch.liger_llama4_text_rotary_pos_emb(q, k, frequencies)
    for a, b, x in zip(ours, theirs, (q, k), strict=True):
        assert torch.equal(a, b)
        incoming = draw(*b.shape, seed=9, dtype=dtype).detach()
        # Backward, torch multiplies by the conjugate; the sign of a zero is all that may differ.
        assert torch.equal(*(torch.autograd.grad(y, x, incoming, retain_graph=True)[0] for y in (a, b)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_complex_patches_are_llama4s_bit_for_bit(dtype: torch.dtype) -> None:
    q, k = heads("bshd", dtype)
    frequencies = torch.polar(torch.ones(1), angles(SEQ, 1).float())  # as the vision tower's buffer lies
    theirs = llama4.vision_apply_rotary_emb(q, k, frequencies)
    for shape in ((SEQ, 1, -1), (SEQ, -1), (1, SEQ, 1, -1)):
        ours = liger_torch.liger_llama4_vision_rotary_pos_emb(q, k, frequencies.view(shape))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(TypeError, match=r"freqs_cis has dtype torch.float32, not a complex one"):
        liger_torch.liger_llama4_vision_rotary_pos_emb(q, k, frequencies.real)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [qwen2_vl, qwen3_vl])
def test_patches_are_qwens_bit_for_bit(family: object, dtype: torch.dtype) -> None:
    q, k = (x[0] for x in heads("bshd", dtype))
    angle = angles(SEQ).repeat(1, 2).float()
    cos, sin = angle.cos(), angle.sin()
    theirs = family.apply_rotary_pos_emb_vision(q, k, cos, sin)  # type: ignore[attr-defined]
    ours = liger_torch.liger_rotary_pos_emb_vision(q, k, cos, sin)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_error_in_bfloat16_is_no_larger_than_the_familys() -> None:
    """Which rounds both products and their sum, where we round once."""
    q, k = heads("bhsd", torch.bfloat16)
    cos, sin = (t.repeat(1, 1, 2).bfloat16() for t in (angles(BATCH, SEQ).cos(), angles(BATCH, SEQ).sin()))
    exact = qwen2_vl.apply_rotary_pos_emb(*(t.double() for t in (q, k, cos, sin)))
    theirs = qwen2_vl.apply_rotary_pos_emb(q, k, cos, sin)
    for a, b, truth in zip(f.liger_rope(q, k, cos, sin), theirs, exact, strict=True):
        assert error(a, truth) < 0.8 * error(b, truth)


def test_packed_sequences_are_rotated_like_separate_ones() -> None:
    q, k = heads("bhsd")
    cos, sin = draw(5, HEAD_DIM).detach(), draw(5, HEAD_DIM, seed=1).detach()
    lengths = (3, 4)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ours = f.liger_rope(q, k, cos, sin, position_ids=positions)
    parts = [
        f.liger_rope(*(x.split(lengths, 2)[i] for x in (q, k)), cos[:n], sin[:n])
        for i, n in enumerate(lengths)
    ]
    same(ours, tuple(torch.cat(part, 2) for part in zip(*parts, strict=True)), q, k)
    partial = f.liger_rope(q, k, cos[:, :8], sin[:, :8], positions.int(), interleaved=True)
    expected = f.liger_rope(q, k, cos[positions, :8], sin[positions, :8], interleaved=True)
    same(partial, expected, q, k)


def test_deinterleaved_is_deepseek() -> None:
    """Bit for bit: their code as it is since transformers 5.17, and as it was before, by transposing q and k."""
    q, k = heads("bhsd", torch.float32)
    angle = angles(BATCH, SEQ).repeat(1, 1, 2).float()
    tables = angle.cos(), angle.sin()
    options = {"interleaved": True, "deinterleave": True}
    same(
        f.liger_rope(q, k, *tables, **options),
        deepseek_v3.apply_rotary_pos_emb_interleave(q, k, *tables),
        q,
        k,
    )
    halves = (x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) for x in (q, k))
    same(f.liger_rope(q, k, *tables, **options), qwen2_vl.apply_rotary_pos_emb(*halves, *tables), q, k)


def test_position_out_of_range_is_named_on_a_cpu_and_nan_elsewhere() -> None:
    q, k = heads("bhsd", torch.float32)
    table = torch.ones(5, HEAD_DIM)
    positions = torch.tensor([[0, 1, 2, 5, 3, 4, 0]])
    with pytest.raises(
        ValueError, match=r"position_ids holds the position 5; positions must lie in \[0, 5\)"
    ):
        f.liger_rope(q, k, table, table, positions)
    with pytest.raises(ValueError, match="holds the position -1"):
        f.liger_rope(q, k, table, table, positions - 1)
    arrays = (jnp.asarray(x.detach().numpy()) for x in (q, k, table, table))
    rotated, _ = liger_jax.apply_rope(*arrays, heads_axis=-3, position_ids=jnp.asarray(positions.numpy()))
    assert np.isnan(rotated).any(axis=(0, 1, 3)).tolist() == [False] * 3 + [True] + [False] * 3


def test_forms_of_jax() -> None:
    """The keywords of JAX beside the functions of torch."""
    q, k = heads("bshd", torch.float32)
    x, y = (jnp.asarray(t.detach().numpy()) for t in (q, k))

    def close(ours: tuple[object, ...], theirs: tuple[torch.Tensor, ...]) -> None:
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(np.asarray(a), b.detach().numpy(), rtol=1e-6, atol=1e-6)

    frequencies = torch.polar(torch.ones(1), angles(BATCH, SEQ).float())
    turned = jnp.asarray(frequencies.numpy())
    options = {"interleaved": True, "rotary_dim": HEAD_DIM}
    close(
        liger_jax.apply_rope(x, y, turned.real, turned.imag, **options),
        f.liger_llama4_text_rotary_pos_emb(q, k, frequencies),
    )
    angle = angles(SEQ).repeat(1, 2).float()
    tables = [jnp.asarray(t.numpy()) for t in (angle.cos(), angle.sin())]
    close(
        liger_jax.apply_rope(x[0], y[0], *tables),
        f.liger_rotary_pos_emb_vision(q[0], k[0], angle.cos(), angle.sin()),
    )
    planes = angles(3, BATCH, SEQ).repeat(1, 1, 1, 2).float()
    tables = [jnp.asarray(t.numpy()) for t in (planes.cos(), planes.sin())]
    close(
        liger_jax.apply_rope(x, y, *tables, mrope_section=[4, 7, 5]),
        f.liger_rope(q, k, planes.cos(), planes.sin(), unsqueeze_dim=2, mrope_section=[4, 7, 5]),
    )
    close(
        liger_jax.apply_rope(x, y, *(t[0] for t in tables), interleaved=True, deinterleave=True),
        f.liger_rope(
            q, k, planes[0].cos(), planes[0].sin(), unsqueeze_dim=2, interleaved=True, deinterleave=True
        ),
    )
    positions = jnp.arange(SEQ)[::-1]
    close(
        liger_jax.apply_rope(x, y, *(t[0, 0] for t in tables), position_ids=positions),
        f.liger_rope(
            q, k, planes[0, 0].cos(), planes[0, 0].sin(), torch.arange(SEQ).flip(0)[None], unsqueeze_dim=2
        ),
    )


# ----------------------------------------------------------------------------------------- normalised heads

NORMS = {  # norm, rotation, rotated share of a head, options
    "qwen3": (qwen3.Qwen3RMSNorm, qwen3.apply_rotary_pos_emb, 1, {}),
    "gemma3": (
        gemma3.Gemma3RMSNorm,
        gemma3.apply_rotary_pos_emb,
        1,
        {"offset": 1.0, "casting_mode": "gemma"},
    ),
    "glm4_moe": (glm4_moe.Glm4MoeRMSNorm, glm4_moe.apply_rotary_pos_emb, 2, {}),
    "qwen3_next": (
        qwen3_next.Qwen3NextRMSNorm,
        qwen3_next.apply_rotary_pos_emb,
        4,
        {"offset": 1.0, "casting_mode": "gemma"},
    ),
}
each_family = pytest.mark.parametrize("family", NORMS)


def norms_of(family: str, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """q_norm and k_norm with weights of their own."""
    found = tuple(NORMS[family][0](HEAD_DIM, eps=1e-5).to(dtype) for _ in range(2))
    for seed, norm in enumerate(found):
        norm.weight.data = draw(HEAD_DIM, seed=seed, dtype=dtype).detach()
    return found  # type: ignore[return-value]


@each_family
def test_normalised_heads_in_float64(family: str) -> None:
    """torch's norm in the place of the family's, which is float32 whatever it is given."""
    _, rotate, parts, options = NORMS[family]
    q, k = heads("bhsd")
    weights = draw(HEAD_DIM, seed=5), draw(HEAD_DIM, seed=6)
    cos, sin = (t.repeat(1, 1, 2) for t in _cos_sin(parts))
    offset = options.get("offset", 0.0)
    normed = (F.rms_norm(x, (HEAD_DIM,), w + offset, 1e-5) for x, w in zip((q, k), weights, strict=True))
    ours = f.liger_qk_norm_rope(q, k, *weights, cos, sin, 1e-5, **options)
    theirs = rotate(*normed, cos, sin)
    same(ours, theirs, q, k)
    same(ours, theirs, *weights)
    by_token = (x.transpose(1, 2) for x in (q, k))
    swapped = f.liger_qk_norm_rope(*by_token, *weights, cos, sin, 1e-5, unsqueeze_dim=2, **options)
    same(tuple(x.transpose(1, 2) for x in swapped), theirs, q, k)


def _cos_sin(parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle = angles(BATCH, SEQ, columns=HEAD_DIM // 2 // parts)
    return angle.cos(), angle.sin()


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalised_heads_are_rounded_as_the_familys(family: str, dtype: torch.dtype) -> None:
    """Bit for bit what its norms make of q and k, rotated in float32; and no further from the truth than its own.

    In float32 to the last place: ours sums over heads that are transposed, and on some processors torch does so in
    another order.
    """
    _, rotate, parts, options = NORMS[family]
    q, k = heads("bhsd", dtype)
    norms = norms_of(family, dtype)
    cos, sin = (t.repeat(1, 1, 2).to(dtype) for t in _cos_sin(parts))
    weights = [norm.weight for norm in norms]
    ours = f.liger_qk_norm_rope(q, k, *weights, cos, sin, 1e-5, **options)
    normed = [norm(x) for norm, x in zip(norms, (q, k), strict=True)]
    in_float32 = rotate(*(x.float() for x in normed), cos.float(), sin.float())
    theirs = rotate(*normed, cos, sin)
    wide = [t.detach().double() for t in (q, k, *weights, cos, sin)]
    exact = f.liger_qk_norm_rope(*wide, 1e-5, **options)
    for a, b, other, truth in zip(ours, in_float32, theirs, exact, strict=True):
        if dtype == torch.float32:
            assert (a - b).abs().max() <= 2 * torch.finfo(dtype).eps * b.abs().max()
        else:
            assert torch.equal(a, b.to(dtype))
        assert error(a, truth) <= error(other, truth) + 1e-7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_norm_over_all_heads_is_rms_norm_and_then_rope(dtype: torch.dtype) -> None:
    """OLMo 2: the whole row decides about each of its heads."""
    cos, sin = (t.repeat(1, 1, 2).to(dtype) for t in _cos_sin(1))
    rows = [draw(BATCH, SEQ, n * HEAD_DIM, seed=n, dtype=dtype) for n in (4, 2)]
    norms = [olmo2.Olmo2RMSNorm(x.shape[-1]).to(dtype) for x in rows]
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
    split = [
        norm(x).view(BATCH, SEQ, -1, HEAD_DIM).transpose(1, 2) for norm, x in zip(norms, rows, strict=True)
    ]
    ours = [
        f.liger_rms_norm(x, norm.weight, casting_mode="gemma").view(BATCH, SEQ, -1, HEAD_DIM)
        for norm, x in zip(norms, rows, strict=True)
    ]
    if dtype == torch.bfloat16:
        for a, b in zip(ours, split, strict=True):
            assert torch.equal(a.transpose(1, 2), b)
    theirs = olmo2.apply_rotary_pos_emb(*split, cos, sin)
    for a, b in zip(f.liger_rope(*ours, cos, sin, unsqueeze_dim=2), theirs, strict=True):
        assert error(a.transpose(1, 2), b) <= (1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_weights_of_all_heads_together_are_refused() -> None:
    q, k = heads("bhsd", torch.float32)
    table = torch.ones(SEQ, HEAD_DIM)
    one, all_heads = torch.ones(HEAD_DIM), torch.ones(4 * HEAD_DIM)
    with pytest.raises(
        ValueError, match=r"q_weight has shape \(128,\); expected \(32,\) \(head_dim: every head is"
    ):
        f.liger_qk_norm_rope(q, k, all_heads, one, table, table)
    with pytest.raises(TypeError, match="k_weight has dtype bfloat16 but q_weight has float32; cast one"):
        f.liger_qk_norm_rope(q, k, one, one.bfloat16(), table, table)
    with pytest.raises(ValueError, match="unsqueeze_dim is 3"):
        f.liger_qk_norm_rope(q, k, one, one, table, table, unsqueeze_dim=3)
    odd = torch.ones(1, 1, 2, 5)
    with pytest.raises(ValueError, match="head_dim 5; it must be even"):
        f.liger_qk_norm_rope(odd, odd, odd[0, 0, 0], odd[0, 0, 0], *[torch.ones(2, 4)] * 2)
    x, scale = jnp.ones((1, SEQ, 4, HEAD_DIM)), jnp.ones(3)
    with pytest.raises(ValueError, match=r"k_scale has shape \(3,\)"):
        liger_jax.qk_norm_rope(x, x, jnp.ones(HEAD_DIM), scale, *[jnp.ones((SEQ, HEAD_DIM))] * 2)
    with pytest.raises(ValueError, match="epsilon is -1"):
        liger_jax.qk_norm_rope(x, x, *[jnp.ones(HEAD_DIM)] * 2, *[jnp.ones((SEQ, HEAD_DIM))] * 2, epsilon=-1)


# --------------------------------------------------------------------------------------------------- errors

X, TABLE = torch.zeros(1, 2, 3, 8), torch.zeros(3, 8)
PLANES = torch.zeros(3, 1, 3, 8)
IDS = torch.zeros(1, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("message", "arguments", "options"),
    [
        (r"rotary_dim is 6, but cos has 8 columns", (TABLE,), {"rotary_dim": 6}),
        (r"rotary_dim 16; it must be even and at most head_dim", (TABLE,), {"rotary_dim": 16}),
        (r"mrope_section was given beside position_ids", (TABLE,), {"position_ids": IDS, "mrope_section": [1, 1, 2]}),
        (r"mrope_section was given, but cos has shape \(3, 8\); leave", (TABLE,), {"mrope_section": [1, 1, 2]}),
        (r"mrope_section is \[1, 2, 2\]; expected three positive", (PLANES,), {"mrope_section": [1, 2, 2]}),
        (r"interleaved is True beside mrope_section", (PLANES,), {"mrope_section": [1, 1, 2], "interleaved": True}),
        (r"deinterleave is True, but interleaved is not", (TABLE,), {"deinterleave": True}),
        (r"position_ids has shape \(1, 2\); expected \(batch or 1, seq\)", (TABLE,), {"position_ids": IDS[:, :2]}),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(message: str, arguments: tuple[torch.Tensor], options: dict) -> None:
    with pytest.raises(ValueError, match=message):
        f.liger_rope(X, X, *arguments, *arguments, **options)
    names = {"position_ids": lambda ids: jnp.asarray(ids.numpy())}
    options = {name: names.get(name, lambda v: v)(value) for name, value in options.items()}
    x, table = jnp.zeros((1, 3, 2, 8)), jnp.asarray(arguments[0].numpy())
    with pytest.raises(ValueError, match=message.replace("(batch or 1, seq)", ".*")):
        liger_jax.apply_rope(x, x, table, table, **options)


def test_position_dtype() -> None:
    with pytest.raises(TypeError, match="position_ids has dtype float32; cast it to one of int64, int32"):
        f.liger_rope(X, X, TABLE, TABLE, IDS.float())


def test_one_kernel_for_all_batches_and_lengths() -> None:
    """Of what is compiled in, nothing changes with the batch, its length or the number of positions."""

    def constants(op: object, options: object, *operands: Planned) -> set[object]:
        needs = (True, True, *(False,) * (len(operands) - 2))
        return {
            (launch.kernel, launch.constants, launch.num_warps)
            for launch, _ in launches(op, options, operands, needs, DEFAULT)
        }  # type: ignore[arg-type]

    found: dict[str, set[object]] = {"rope": set(), "positions": set(), "mrope": set()}
    for batch, seq in ((1, 100), (3, 100), (3, 77), (8, 4096)):
        q, k = (
            Planned((batch, seq, n, 128), "bfloat16", (n * seq * 128, 128, seq * 128, 1)) for n in (32, 8)
        )
        table = dense((batch, seq, 128), "float32")
        found["rope"] |= constants(rope.ROPE, rope.Options(), q, k, table, table)
        table, ids = dense((seq + 5, 128), "float32"), dense((batch, seq), "int64")
        found["positions"] |= constants(rope.ROPE_AT_POSITIONS, rope.Options(), q, k, table, table, ids)
        table = Planned((batch, seq, 3, 128), "float32", (seq * 128, 128, batch * seq * 128, 1))
        found["mrope"] |= constants(rope.MROPE, rope.MultimodalOptions((16, 24, 24)), q, k, table, table)
    assert {name: len(variants) for name, variants in found.items()} == dict.fromkeys(found, 2)
