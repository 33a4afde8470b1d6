"""The names, argument orders and defaults that calls from liger-kernel, optax, jax.nn and Flax rely on."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

import pytest

TORCH = """
liger_torch.LigerRMSNorm(hidden_size, eps=1e-06, offset=0.0, casting_mode='llama', init_fn='ones', in_place=False, elementwise_affine=True)
liger_torch.LigerFusedAddRMSNorm(hidden_size, eps=1e-06, offset=0.0, casting_mode='llama', init_fn='ones', in_place=False)
liger_torch.LigerLayerNorm(hidden_size, eps=1e-06, bias=False, init_fn='ones')
liger_torch.LigerGroupNorm(num_channels, num_groups, eps=1e-06, bias=False, init_fn='ones')
liger_torch.liger_rotary_pos_emb(q, k, cos, sin, position_ids=None, unsqueeze_dim=1)
liger_torch.liger_multimodal_rotary_pos_emb(q, k, cos, sin, mrope_section, unsqueeze_dim=1)
liger_torch.LigerSwiGLUMLP(config, intermediate_size=None)
liger_torch.LigerQwen3MoeSwiGLUMLP(config, intermediate_size=None)
liger_torch.LigerPhi3SwiGLUMLP(config)
liger_torch.LigerBlockSparseTop2MLP(config)
liger_torch.LigerFalconH1SwiGLUMLP(config)
liger_torch.LigerExperts(config)
liger_torch.LigerExperts.forward(self, hidden_states, top_k_index, top_k_weights)
liger_torch.LigerGEGLUMLP(config)
liger_torch.LigerReLUSquared()
liger_torch.LigerSoftmax()
liger_torch.LigerSparsemax(dim=-1)
liger_torch.LigerCrossEntropyLoss(weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, reduction='mean', softcap=None, return_z_loss=False, return_token_accuracy=False, return_predicted_tokens=False)
liger_torch.LigerFusedLinearCrossEntropyLoss(ce_weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, reduction='mean', softcap=None, return_z_loss=False, accum_dtype=None, use_token_scaling=False, return_token_accuracy=False, return_predicted_tokens=False)
liger_torch.LigerFusedLinearCrossEntropyLoss.forward(self, lin_weight, input, target, bias=None)
liger_torch.LigerKLDIVLoss(reduction='batchmean', log_target=False, eps=1e-10)
liger_torch.LigerKLDIVLoss.forward(self, y_pred, y_true)
liger_torch.LigerJSD(beta=0.5, ignore_index=-100)
liger_torch.LigerJSD.forward(self, log_q, log_p, shift_labels=None)
liger_torch.LigerTVDLoss(reduction='batchmean', ignore_index=-100)
liger_torch.LigerTVDLoss.forward(self, p, q, shift_labels=None)
liger_torch.LigerFusedLinearJSD(jsd_beta=0.5, ignore_index=-100, temperature=1.0, accum_dtype=None)
liger_torch.LigerFusedLinearJSD.forward(self, student_input, student_weight, teacher_input, teacher_weight, shift_labels=None)
liger_torch.fused_linear_logprobs(input, weight, ids, bias=None, temperature=1.0, softcap=None, ignore_index=-100)
liger_torch.functional.liger_rms_norm(X, W, eps=1e-06, offset=0.0, casting_mode='llama', in_place=False)
liger_torch.functional.liger_fused_add_rms_norm(X, R, W, eps=1e-06, offset=0.0, casting_mode='llama', in_place=False)
liger_torch.functional.liger_layer_norm(X, W, B, eps=1e-06)
liger_torch.functional.liger_rope(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None)
liger_torch.functional.liger_swiglu(a, b=None)
liger_torch.functional.liger_geglu(a, b=None)
liger_torch.functional.liger_relu_squared(x)
liger_torch.functional.liger_softmax(x)
liger_torch.functional.liger_cross_entropy(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction='mean', label_smoothing=0.0, lse_square_scale=0.0, softcap=None, return_z_loss=False, return_token_accuracy=False, return_predicted_tokens=False)
liger_torch.functional.liger_fused_linear_cross_entropy(input, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, reduction='mean', softcap=None, return_z_loss=False, accum_dtype=None, use_token_scaling=False, return_token_accuracy=False, return_predicted_tokens=False)
liger_torch.functional.liger_kl_div(input, target, size_average=None, reduce=None, reduction='mean', log_target=False, eps=1e-10)
liger_torch.functional.liger_jsd(input, target, shift_labels=None, beta=0.5, ignore_index=-100)
liger_torch.functional.liger_tvd(input, target, shift_labels=None, reduction='mean', ignore_index=-100)
liger_torch.functional.liger_fused_linear_jsd(student_input, student_weight, teacher_input, teacher_weight, shift_labels=None, jsd_beta=0.5, ignore_index=-100, temperature=1.0, accum_dtype=None)
liger_torch.experimental.LigerEmbedding(num_embeddings, embedding_dim, padding_idx=None)
liger_torch.experimental.matmul(a, b)
liger_torch.experimental.pack_weights(intweights, bits=2)
liger_torch.experimental.unpack_weights(packed, bits=2)
"""

JAX = """
liger_jax.rms_norm(x, scale=None, *, epsilon=1e-06, scale_offset=0.0, casting='llama')
liger_jax.layer_norm(x, scale=None, bias=None, *, epsilon=1e-06)
liger_jax.add_rms_norm(x, residual, scale=None)
liger_jax.apply_rope(q, k, cos, sin)
liger_jax.swiglu(gate, up=None)
liger_jax.geglu(gate, up=None, approximate=True)
liger_jax.softmax_cross_entropy_with_integer_labels(logits, labels)
liger_jax.linear_softmax_cross_entropy(x, kernel, labels)
liger_jax.linear_logprobs(x, kernel, ids)
liger_jax.experimental.embedding(table, ids)
liger_jax.experimental.int2_matmul(a, packed)
"""


def found(path: str) -> Callable[..., object]:
    module, _, name = path.partition(".")
    value = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part) if hasattr(value, part) else importlib.import_module(f"{module}.{part}")
    return value  # type: ignore[return-value]


def spelled(function: Callable[..., object]) -> list[str]:
    """The arguments as the contract writes them, with a "*" where those by keyword begin."""
    spelled: list[str] = []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in spelled:
            spelled.append("*")
        given = "" if argument.default is inspect.Parameter.empty else f"={argument.default!r}"
        spelled.append(argument.name + given)
    return spelled


@pytest.mark.parametrize("line", [*TORCH.split("\n")[1:-1], *JAX.split("\n")[1:-1]])
def test_signature(line: str) -> None:
    """What is listed stands first, in this order; options of our own come after it."""
    path, _, rest = line.partition("(")
    expected = [argument for argument in rest.removesuffix(")").split(", ") if argument]
    assert spelled(found(path))[: len(expected)] == expected


@pytest.mark.parametrize(
    "name",
    [
        "liger_torch",
        "liger_torch.functional",
        "liger_torch.nn",
        "liger_torch.experimental",
        "liger_jax",
        "liger_jax.functional",
        "liger_jax.experimental",
    ],
)
def test_all_that_is_public_is_there_and_annotated(name: str) -> None:
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            assert value.__doc__
            assert signature.return_annotation is not inspect.Signature.empty, public
            assert all(a.annotation is not inspect.Parameter.empty for a in signature.parameters.values()), (
                public
            )
