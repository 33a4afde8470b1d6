"""Bad input: an error that names the argument, what was received and what to do, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

import liger_torch
from liger_torch import functional as f

X = torch.zeros(2, 3, 8)
W = torch.zeros(8)
HEAD = torch.zeros(10, 8)
Y = torch.zeros(2, 3, dtype=torch.int64)
Q, TABLE = torch.zeros(1, 2, 3, 8), torch.zeros(1, 3, 8)

BAD: list[tuple[str, type[Exception], str, Callable[[], object]]] = [
    ("weight shape", ValueError, r"rms_norm: weight has shape \(7,\).*expected \(8,\)", lambda: f.liger_rms_norm(X, W[:7])),
    ("casting", ValueError, "casting_mode is 'lama'; choose one of 'llama'", lambda: f.liger_rms_norm(X, W, casting_mode="lama")),
    ("dtype", TypeError, "x has dtype int64; cast it to one of float32", lambda: f.liger_rms_norm(X.long(), W)),
    ("residual", ValueError, "residual has shape", lambda: f.liger_fused_add_rms_norm(X, X[:1], W)),
    ("residual dtype", TypeError, "residual has dtype bfloat16 but x has float32", lambda: f.liger_fused_add_rms_norm(X, X.bfloat16(), W)),
    ("up", ValueError, r"up has shape \(2, 3, 4\)", lambda: f.liger_swiglu(X, X[..., :4])),
    ("odd", ValueError, "needs an even last axis", lambda: f.liger_swiglu(X[..., :7])),
    ("interleaved", ValueError, "swiglu: interleaved is True beside up", lambda: f.liger_swiglu(X, X, interleaved=True)),
    ("limit", ValueError, "swiglu: limit is 0.0; it must be positive", lambda: f.liger_swiglu(X, X, limit=0.0)),
    ("approximate", ValueError, "geglu: approximate is 'erf'; choose one of 'none', 'tanh'", lambda: f.liger_geglu(X, X, "erf")),
    ("geglu up", ValueError, r"geglu: up has shape \(2, 3, 4\)", lambda: f.liger_geglu(X, X[..., :4])),
    ("relu squared", TypeError, "relu_squared: x has dtype int64", lambda: f.liger_relu_squared(Y)),
    ("softmax scalar", ValueError, r"softmax: x has shape \(\)", lambda: f.liger_softmax(X[0, 0, 0])),
    ("softmax dim", IndexError, "Dimension out of range", lambda: f.liger_softmax(X, 3)),
    ("sparsemax empty", ValueError, r"sparsemax: x has shape \(2, 8, 0\)", lambda: f.liger_sparsemax(X[:, :0], 1)),
    ("heads axis", ValueError, "unsqueeze_dim is 3", lambda: f.liger_rope(Q, Q, TABLE, TABLE, unsqueeze_dim=3)),
    ("positions", ValueError, "leave position_ids out", lambda: f.liger_rope(Q, Q, TABLE, TABLE, Y[:1])),
    ("table", ValueError, r"cos has shape \(1, 2, 8\)", lambda: f.liger_rope(Q, Q, TABLE[:, :2], TABLE[:, :2])),
    ("rotary", ValueError, "rotary_dim 10; it must be even and at most head_dim", lambda: f.liger_rope(Q, Q, *(torch.zeros(1, 3, 10),) * 2)),
    ("labels", ValueError, r"target has shape \(2, 2\)", lambda: f.liger_cross_entropy(X, Y[:, :2])),
    ("label dtype", TypeError, "target has dtype float32", lambda: f.liger_cross_entropy(X, Y.float())),
    ("label range", ValueError, r"target holds the label 8; labels must lie in \[0, 8\)", lambda: f.liger_cross_entropy(X, Y + 8)),
    ("reduction", ValueError, "reduction is 'avg'", lambda: f.liger_cross_entropy(X, Y, reduction="avg")),
    ("smoothing", ValueError, "label_smoothing is 1.5", lambda: f.liger_cross_entropy(X, Y, label_smoothing=1.5)),
    ("softcap", ValueError, "softcap is 0.0; it must be positive", lambda: f.liger_cross_entropy(X, Y, softcap=0.0)),
    ("deprecated", ValueError, "size_average is True", lambda: f.liger_cross_entropy(X, Y, size_average=True)),
    ("class weight", ValueError, r"weight has shape \(7,\)", lambda: f.liger_cross_entropy(X, Y, W[:7])),
    ("head shape", ValueError, r"weight has shape \(10, 7\); expected \(vocab, hidden\)", lambda: f.liger_fused_linear_cross_entropy(X, HEAD[:, :7], Y)),
    ("head dtype", TypeError, "weight has dtype bfloat16 but input has float32", lambda: f.liger_fused_linear_cross_entropy(X, HEAD.bfloat16(), Y)),
    ("accum", ValueError, "accum_dtype is 'int8'", lambda: f.liger_fused_linear_cross_entropy(X, HEAD, Y, accum_dtype=torch.int8)),
    ("head label", ValueError, "target holds the label 10", lambda: f.liger_fused_linear_cross_entropy(X, HEAD, Y + 10)),
    ("init", ValueError, "init_fn is 'two'", lambda: liger_torch.LigerRMSNorm(8, init_fn="two")),
    ("kl target", ValueError, r"kl_div: target has shape \(2, 3, 7\).*expected \(2, 3, 8\)", lambda: f.liger_kl_div(X, X[..., :7])),
    ("kl reduction", ValueError, "kl_div: reduction is 'avg'; choose one of 'none', 'token'", lambda: f.liger_kl_div(X, X, reduction="avg")),
    ("kl deprecated", ValueError, "kl_div: size_average is True", lambda: f.liger_kl_div(X, X, True)),
    ("kl logits", ValueError, "log_target is True beside from_logits", lambda: f.liger_kl_div(X, X, log_target=True, from_logits=True)),
    ("kl elements", ValueError, 'reduction is "none".*not computed from logits', lambda: f.liger_kl_div(X, X, reduction="none", from_logits=True)),
    ("jsd beta", ValueError, "jsd: beta is 1.5; it must lie between 0.0 and 1.0", lambda: f.liger_jsd(X, X, beta=1.5)),
    ("jsd labels", ValueError, r"jsd: shift_labels has shape \(2, 2\)", lambda: f.liger_jsd(X, X, Y[:, :2])),
    ("jsd temperature", ValueError, "temperature is 2.0 beside probabilities", lambda: f.liger_jsd(X, X, temperature=2.0)),
    ("tvd temperature", ValueError, "tvd: temperature is 0.0; it must be positive", lambda: f.liger_tvd(X, X, from_logits=True, temperature=0.0)),
    ("vocabularies", ValueError, "teacher_weight has a vocabulary of 9, student_weight has one of 10", lambda: f.liger_fused_linear_jsd(X, HEAD, X, HEAD[:9])),
    ("teacher's tokens", ValueError, r"teacher_input has shape \(1, 3, 8\)", lambda: f.liger_fused_linear_jsd(X, HEAD, X[:1], HEAD)),
    ("teacher's dtype", TypeError, "teacher_weight has dtype bfloat16 but teacher_input has float32", lambda: f.liger_fused_linear_jsd(X, HEAD, X, HEAD.bfloat16())),
    ("hard labels", ValueError, "weight_hard_loss is 0.5 but there are no labels; pass shift_labels, or a weight_hard_loss of 0", lambda: f.liger_fused_linear_jsd(X, HEAD, X, HEAD, weight_hard_loss=0.5)),
    ("hard label", ValueError, "shift_labels holds the label 10", lambda: f.liger_fused_linear_jsd(X, HEAD, X, HEAD, Y + 10, weight_hard_loss=0.5)),
    ("teacher", ValueError, r"teacher_input requires a gradient.*pass teacher_input.detach\(\)", lambda: f.liger_fused_linear_jsd(X, HEAD, X.clone().requires_grad_(), HEAD)),
    ("an option that is a tensor", TypeError, r"logprobs: temperature is tensor\(2.\); it must be a number", lambda: f.token_logprobs(X, Y, temperature=torch.tensor(2.0))),
    ("an option that is None", TypeError, "swiglu: alpha is None; it must be a number", lambda: f.liger_swiglu(X, X, alpha=None)),
    ("an option that is a string", TypeError, "rms_norm: offset is '1'; it must be a number", lambda: f.liger_rms_norm(X, W, offset="1")),
    ("an option that is no bool", TypeError, "swiglu: interleaved is 'no'; it must be True or False", lambda: f.liger_swiglu(X, interleaved="no")),
    ("an option that is no integer", TypeError, "embedding: padding_idx is 0.5; it must be an int", lambda: f.liger_embedding(HEAD, Y, padding_idx=0.5)),
    ("an infinite softcap", ValueError, "logprobs: softcap is inf; it must be a finite number", lambda: f.token_logprobs(X, Y, softcap=float("inf"))),
    ("no number", TypeError, "rms_norm: eps is None; it must be a number", lambda: f.liger_rms_norm(X, W, None)),
    ("eps", ValueError, "rms_norm: eps is -1.0; it must be a finite number of at least 0", lambda: f.liger_rms_norm(X, W, -1.0)),
    ("no tensor", TypeError, "rms_norm: x is a list; it must be a torch.Tensor", lambda: f.liger_rms_norm([1.0], W)),
    ("no labels", TypeError, "cross_entropy: target is a list", lambda: f.liger_cross_entropy(X, [0])),
    ("no sine", TypeError, "rope: sin is None", lambda: f.liger_rope(Q, Q, TABLE, None)),
    ("scalar logits", ValueError, r"cross_entropy: input has shape \(\)", lambda: f.liger_cross_entropy(X[0, 0, 0], Y)),
    ("z-loss", ValueError, "lse_square_scale is -1.0", lambda: f.liger_cross_entropy(X, Y, lse_square_scale=-1.0)),
    ("fused class weight", ValueError, r"ce_weight has shape \(7,\)", lambda: f.liger_fused_linear_cross_entropy(X, HEAD, Y, ce_weight=W[:7])),
    ("head and input swapped", ValueError, r"weight has shape \(2, 3, 8\)", lambda: f.liger_fused_linear_cross_entropy(HEAD, X, Y[0])),
    ("accum once", ValueError, "choose one of None, 'float32'.$", lambda: f.liger_fused_linear_cross_entropy(X, HEAD, Y, accum_dtype=torch.float16)),
    ("valid rows", TypeError, r"valid_rows is a Tensor; make it with liger_torch.valid_rows\(target", lambda: f.liger_fused_linear_cross_entropy(X, HEAD, Y, valid_rows=Y >= 0)),
    ("logprobs input", TypeError, "weight has dtype bfloat16 but input has float32", lambda: f.fused_linear_logprobs(X, HEAD.bfloat16(), Y)),
    ("indices", TypeError, "embedding: indices has dtype float32", lambda: f.liger_embedding(HEAD, X[0, 0])),
    ("jsd_beta", ValueError, "linear_jsd: jsd_beta is 2.0", lambda: f.liger_fused_linear_jsd(X, HEAD, X, HEAD, jsd_beta=2.0)),
    ("head norms", ValueError, "qk_norm_rope: casting_mode is 'lama'", lambda: f.liger_qk_norm_rope(Q, Q, W, W, TABLE, TABLE, casting_mode="lama")),
    ("frequencies", ValueError, r"freqs_ci has shape \(5, 4\).*\(3, 4\)", lambda: f.liger_llama4_vision_rotary_pos_emb(Q.transpose(1, 2), Q.transpose(1, 2), torch.zeros(5, 4, dtype=torch.complex64))),
    (
        "activation",
        ValueError,
        "the activation is 'gelu'",
        lambda: liger_torch.LigerSwiGLUMLP(SimpleNamespace(hidden_act="gelu", hidden_size=8, intermediate_size=8)),
    ),
    (
        "gelu",
        ValueError,
        "LigerGEGLUMLP: the activation is 'gelu_new'",
        lambda: liger_torch.LigerGEGLUMLP(SimpleNamespace(hidden_act="gelu_new", hidden_size=8, intermediate_size=8)),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "act"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_refused(error: type[Exception], message: str, act: Callable[[], object]) -> None:
    with pytest.raises(error, match=message):
        act()


def test_tables_that_require_a_gradient_are_refused() -> None:
    table = TABLE.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"cos requires a gradient.*pass cos.detach\(\)"):
        f.liger_rope(Q, Q, table, TABLE)
