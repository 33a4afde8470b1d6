"""A small model of any family, with random weights, made from the family's own configuration.

Sizes are replaced by what their names say they are; what a name does not tell is tried: a family whose sizes hang
together in a way of its own gets another variant, until a model is built and gives a loss. Numbers that the default
configuration leaves without effect (a scale of 1, a cap that is off) are set to ones that have an effect.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

HIDDEN, INNER, HEADS, KEY_VALUE_HEADS, HEAD_DIM, LAYERS, EXPERTS, VOCAB = 64, 96, 4, 2, 16, 4, 8, 256

RULES: tuple[tuple[str, int], ...] = (
    # Before the more general ones below them.
    (r"hidden_size_per_layer_input|(ssm_)?state_size|mamba_d_state|mamba_d_head|mamba_head_dim", 16),
    (r"(moe_)?(shared_)?(expert_)?intermediate_size(_mlp)?|(moe|dense|shared)_.*intermediate_size", INNER),
    (r"shared_expert_intermediate(_size)?|(encoder_|decoder_)?ffn_dim|(expert_)?ffn_hidden_size", INNER),
    (r"n_inner|d_ff|dim_ff|dff|d_inner|inner_dim|mlp_hidden_size|hidden_dim|mlp_dim", INNER),
    (r"block_ff_dim|feed_forward_size", INNER),
    (
        r"(\w+_)?hidden_size(_global)?|d_model|n_embd|(\w+_)?emb(ed)?_dim|(\w+_)?embedding_(size|dim)|dim|d_embed",
        HIDDEN,
    ),
    (r"d_embed|word_embed_proj_dim|projection_dim|lru_width|model_dim", HIDDEN),
    (r"num_(hidden_|encoder_|decoder_)?layers|n_layers?|(encoder|decoder)_layers|depth|num_blocks", LAYERS),
    (r"n_local_layers", LAYERS),
    (r"(num|encoder|decoder|swa_num)_attention_heads|n_heads?|num_heads|attention_heads", HEADS),
    (r"(num_global|swa_num)_key_value_heads|linear_num_key_heads", KEY_VALUE_HEADS),
    (r"linear_num(_value)?_heads", HEADS),
    (r"((global|swa|swa_v|v|qk_nope|index|linear)_)?head_dim|linear_(key|value)_head_dim", HEAD_DIM),
    (r"qk_rope_head_dim|rotary_dim|laurel_rank|adapter_rank", HEAD_DIM // 2),
    (r"qk_head_dim", HEAD_DIM + HEAD_DIM // 2),
    (r"(q|kv)_lora_rank", 32),
    (r"(\w+_)?vocab_size(_per_layer_input)?|\w+_vocab", VOCAB),
    (r"max_position_embeddings|n_positions|max_sequence_length|n_ctx|mamba_d_ssm", 128),
    (r"image_size|base_channels", 32),
    (r"patch_size|index_topk|mamba_(n|num)_heads", 8),
    (r"(mamba_)?chunk_size|sliding_window|attention_window_size|local_window", 16),
    (r"time_step_rank", 4),
    (r"index_n_heads", 2),
    (r"n_mamba_heads|mamba_ngroups", 1),
    (r"num_kv_shared_layers", 0),
)
"""What an integer becomes, by its name; the first that fits the whole name counts."""

AT_MOST: tuple[tuple[str, int], ...] = (
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts|moe_router_topk", 2),
    (r"(moe_num_|num_|n_routed_|num_local_)experts", EXPERTS),
    (r"n_group|num_expert_group|num_zero_experts|zero_expert_num", 2),
    (r"topk_group|n_shared_experts|moe_num_shared_experts|first_k_dense_replace|num_dense_layers", 1),
)
"""What an integer becomes unless it is smaller."""

SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FIRST_OTHER_TOKEN = 240
"""Tokens that stand for images and the like; the text has none of them."""

EFFECTIVE: dict[str, float] = {
    "final_logit_softcapping": 5.0,
    "lm_head_multiplier": 0.5,
    "logit_scale": 0.25,
    "logits_scaling": 8.0,
    "logits_soft_cap": 5.0,
    "output_multiplier": 0.4,
}
"""Scales and caps of the logits that a configuration has, and their values here."""

SPREAD = {"init_std": HIDDEN**-0.5 / 2, "initializer_range": HIDDEN**-0.5 / 2}
"""Standard deviations of the weights, and their values here.

With those for large models, the layers of one so narrow would hardly show in its loss. Twice as large ones bring some
families to where moving the weights by their last digit moves gradients by 1e-4.
"""

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"head_dim": HEAD_DIM},
    {"rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]}},
    {"rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]}},
    {"num_key_value_heads": HEADS},
    {"head_dim": 8},
    {"qk_rope_head_dim": 16, "qk_head_dim": 32},
    {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128},
    {"head_dim": 24, "qk_head_dim": 24},
)
"""What is tried in this order."""

_ROPE = {"rope_theta": 1e4, "rope_type": "default"}
_PARTIAL_MROPE = {
    "text_config.rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
}
_EXPERTS = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
}
_QWEN4 = {
    "text_config.ngram_vocab_size_base": 64,
    "text_config.indexer_n_heads": 2,
    "text_config.indexer_kv_heads": 1,
    "text_config.indexer_head_dim": 16,
    "text_config.indexer_budget": 8,
    "text_config.indexer_compress_ratio": 4,
}
_HYBRID = ["linear_attention", "full_attention"] * 2

OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {
        "num_hidden_layers": LAYERS,
        "global_config.hidden_size": 2 * HIDDEN,
        "global_config.head_dim": 2 * HEAD_DIM,
        "encoder_config.hidden_size_global": 2 * HIDDEN,
        "decoder_config.hidden_size_global": 2 * HIDDEN,
    },
    "chameleon": {"vocabulary_map": {"<image>": 250, "IMGIMGBSZ": 251}},
    "cohere_compass": {"text_config.rope_parameters": {"full_attention": _ROPE}},
    "cohere_compass_text": {"text_config.rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {"rope_parameters": _ROPE, "attn_config.rope_theta": 1e4, "attn_config.clip_qkv": 8.0},
    "deepseek_v2": {"head_dim": 8, "rope_parameters": _ROPE, **_EXPERTS},
    "dots1": {"first_k_dense_replace": 1, **_EXPERTS},
    "glm46v": _PARTIAL_MROPE,
    "glm4v": _PARTIAL_MROPE,
    "glm_ocr": _PARTIAL_MROPE,
    "glmga": _PARTIAL_MROPE,
    "granitemoehybrid": {"layer_types": _HYBRID},
    "hrm_text": {"num_layers_per_stack": 1, "H_cycles": 1, "L_cycles": 3},
    "hunyuan_vl": {"text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 2, 2, 2]}},
    "jamba": {
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 1},
    "qwen4_exp": _QWEN4,
    "qwen4_exp_text": _QWEN4,
    "reformer": {"axial_pos_shape": (4, 3), "axial_pos_embds_dim": (32, 32)},
    "step3p7": {"text_config.sliding_window": 16},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32, "use_mamba_kernels": False},
    "zamba2": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "mamba_headdim": 16,
        "n_mamba_heads": 8,
        "hybrid_layer_ids": [1, 3],
    },
}
"""What no rule gives: attributes by family. A dot leads into a configuration inside, where there is one."""


@dataclasses.dataclass(frozen=True)
class Family:
    """A row of the survey.

    Attributes:
        name: transformers' `model_type`.
        model: the class's name.
        causal: whether it is a causal language model; otherwise it takes images and text.
    """

    name: str
    model: str
    causal: bool


@dataclasses.dataclass(frozen=True)
class Built:
    """A small model.

    Attributes:
        model: in training mode.
        inputs: what it is called with.
        reason: why it gives no loss for them; empty where it does.
    """

    model: Any
    inputs: dict[str, torch.Tensor]
    reason: str = ""


class NotBuiltError(Exception):
    """There is no small model of the family; the message says why."""


def families() -> tuple[Family, ...]:
    """All that the installed transformers has: causal language models, and models of images and text, by name."""
    found: dict[tuple[str, str], Family] = {}
    for causal, mapping in (
        (True, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (False, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    ):
        for name, models in mapping.items():
            model = models if isinstance(models, str) else models[0]
            found.setdefault((name, model), Family(name, model, causal))
    return tuple(found[key] for key in sorted(found))


def build(family: Family) -> Built:
    """A small model that gives a loss; where no variant does, the first that could be built.

    Raises:
        NotBuiltError: none could.
    """
    first: Built | None = None
    reasons: dict[str, None] = {}
    for variant in VARIANTS:
        try:
            model = _model(family, variant)
        except Exception as error:  # transformers' code, with sizes that it may not expect
            reasons[short(error)] = None
            continue
        inputs = text()
        reason = _why_no_loss(model, inputs)
        if not reason:
            return Built(model, inputs)
        reasons[reason] = None
        first = first or Built(model, inputs)
    if first is None:
        raise NotBuiltError("; ".join(reasons))
    return dataclasses.replace(first, reason="; ".join(reasons))


def text() -> dict[str, torch.Tensor]:
    """Two rows of text, and labels of which some are ignored."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 200, (2, 12), generator=generator)
    labels = ids.clone()
    labels[0, :3] = -100
    return {"input_ids": ids, "labels": labels}


def _why_no_loss(model: Any, inputs: dict[str, torch.Tensor]) -> str:
    try:
        loss = getattr(model(**inputs), "loss", None)
    except Exception as error:  # the same
        return short(error)
    if loss is None:
        return "gives no loss"
    return "" if loss.requires_grad and loss.isfinite() else "its loss is not finite, or has no gradient"


def short(error: Exception) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:160]}"


def _model(family: Family, variant: dict[str, Any]) -> Any:
    model_class = getattr(transformers, family.model)
    config_class, wanted = CONFIG_MAPPING[family.name], model_class.config_class
    # The language model of a family that also looks at images is built from a part of the configuration.
    config = wanted() if wanted in config_class.sub_configs.values() else config_class()
    shrink(config, variant)
    for path, value in OWN.get(family.name, {}).items():
        *inside, name = path.split(".")
        target = config
        for step in inside:
            target = getattr(target, step, target)
        setattr(target, name, value)
    if family.causal and hasattr(config, "is_decoder"):
        config.is_decoder = True
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        # Weights of norms and biases are all equal at first, and could be mixed up unseen.
        for parameter in model.parameters():
            if parameter.dim() == 1 and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


# ---- configurations


def shrink(config: PretrainedConfig, variant: dict[str, Any]) -> None:
    """Make a configuration small, and those inside it."""
    n_layers = next((v for k, v in vars(config).items() if _of(LAYERS, k) and _is_int(v)), None)
    multi_head = getattr(config, "num_key_value_heads", None) == getattr(config, "num_attention_heads", 0)
    tokens = iter(range(FIRST_OTHER_TOKEN, VOCAB))
    for name, value in list(vars(config).items()):
        if name.startswith("_"):
            continue
        if isinstance(value, PretrainedConfig):
            shrink(value, variant)
            continue
        new = value
        if name in EFFECTIVE and (value is None or isinstance(value, float)):
            new = EFFECTIVE[name]
        elif name in SPREAD and value is not None:
            new = SPREAD[name]
        elif isinstance(value, bool):
            continue
        elif name in variant:
            new = variant[name]
        elif name in SPECIAL_TOKENS and value is not None:
            new = SPECIAL_TOKENS[name] if isinstance(value, int) else [SPECIAL_TOKENS[name]]
        elif _is_int(value):
            new = _number(name, value, multi_head, tokens)
        elif isinstance(value, list | tuple) and n_layers and len(value) == n_layers:
            new = type(value)(_of_all_kinds(value))
        elif name in ("rope_scaling", "rope_parameters") and isinstance(value, dict):
            new = _rotation(value)
        if new is not value and new != value:
            setattr(config, name, new)


def _number(name: str, value: int, multi_head: bool, tokens: Iterator[int]) -> int:
    if name == "num_key_value_heads":
        return HEADS if multi_head else min(value, KEY_VALUE_HEADS)
    if name.endswith(("token_id", "token_index")):
        return next(tokens)
    for pattern, size in RULES:
        if re.fullmatch(pattern, name):
            return size
    for pattern, size in AT_MOST:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _of(size: int, name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern, value in RULES if value == size)


def _of_all_kinds(values: Any) -> list[Any]:
    """One for each layer, so that every kind of layer remains."""
    kinds: list[Any] = []
    for value in values:
        if value not in kinds:
            kinds.append(value)
    return (kinds * LAYERS)[:LAYERS]


def _rotation(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a rotation, or those of several by the kind of layer."""
    if any(isinstance(value, dict) for value in parameters.values()):
        return {k: _rotation(v) if isinstance(v, dict) else v for k, v in parameters.items()}
    small = copy.deepcopy(parameters)
    if small.get("rope_theta", 0) is None:
        small["rope_theta"] = 1e4
    n_pairs = int(HEAD_DIM * small.get("partial_rotary_factor", 1.0)) // 2
    for name, value in small.items():
        if name.endswith("rope_section") and value:
            n = len(value)
            small[name] = [(n_pairs + i) // n for i in range(n)]
        elif name in ("short_factor", "long_factor") and value:
            small[name] = [1.0] * n_pairs
    return small
