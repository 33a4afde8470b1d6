"""Models of images and text, given images: what patching must not change, and what it does to the vision tower."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from hf_models import counted_ops
from transformers import AutoConfig, AutoModelForImageTextToText

from liger_torch.hf import apply_liger_kernel, remove_liger_kernel
from liger_torch.hf.survey import compare
from liger_torch.hf.survey.compare import difference

VOCAB, IMAGE, START, END = 96, 90, 91, 92
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    **TOKENS,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.1,
}
QWEN = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.1,
}
QWEN_TOKENS = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
NEW = int(transformers.__version__.partition(".")[0]) >= 5
"""Whether the library names things as from version 5 on."""


def rotation(**parameters: Any) -> dict[str, Any]:
    """The configuration's entries for RoPE, as this transformers names them."""
    parameters = {"rope_type": "default", "rope_theta": 1e4} | parameters
    if NEW:
        return {"rope_parameters": parameters}
    return {"rope_theta": parameters.pop("rope_theta"), "rope_scaling": parameters}


MROPE = rotation(mrope_section=[1, 1, 2])

# Sizes that are small, and weights that are not: the image must show in the loss.
MODELS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**TEXT, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": TOWER,
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
        "boi_token_index": START,
        "eoi_token_index": END,
    },
    "llava": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 32, **TOWER},
        "image_token_index": IMAGE,
    },
    "mllama": {
        "text_config": {**TEXT, **rotation(), "num_hidden_layers": 3, "cross_attention_layers": [1]},
        "vision_config": {
            **{name: value for name, value in TOWER.items() if name != "num_attention_heads"},
            "attention_heads": 2,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        "image_token_index": IMAGE,
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, **MROPE},
        "vision_config": {
            **QWEN,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "window_size": 8,
            "fullatt_block_indexes": [1],
        },
        **QWEN_TOKENS,
    },
    "qwen2_vl": {
        "text_config": {**TEXT, **MROPE},
        "vision_config": {**QWEN, "embed_dim": 32, "hidden_size": 32},
        **QWEN_TOKENS,
    },
}

ROWS = 2
IMAGE_TOKENS = {"gemma3": 4, "llava": 16, "mllama": 1, "qwen2_5_vl": 6, "qwen2_vl": 6}
"""In each row."""


def tiny(family: str) -> Any:
    """A model in training mode, whose other weights are random too: norms, biases, and what images are passed by."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **MODELS[family]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or not parameter.any():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.train()


def batch(family: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Text with an image in each row, of other pixels with another seed."""
    generator = torch.Generator().manual_seed(1)
    n_image = IMAGE_TOKENS[family]
    text = torch.randint(3, IMAGE, (ROWS, 12), generator=generator)
    image = torch.tensor([[START] + [IMAGE] * n_image + [END]]).expand(ROWS, -1)
    ids = torch.cat((text[:, :3], image, text[:, 3:]), 1)
    is_image = ids == IMAGE
    labels = ids.masked_fill(ids >= IMAGE, -100)
    labels[0, :2] = -100
    found = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    random = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    if family.startswith("qwen"):
        # A patch is 3 channels of 2 frames of 4 x 4 pixels; 2 x 2 patches become one token.
        grid = torch.tensor([[1, 4, 6]] * ROWS)
        found |= {"pixel_values": random(ROWS * 24, 3 * 2 * 4 * 4), "image_grid_thw": grid}
        found |= {"mm_token_type_ids": is_image.int()}
    elif family == "mllama":
        # Of two tiles; the second row's image has only the first.
        tiles = torch.tensor([[[1, 1]], [[1, 0]]])
        found |= {"pixel_values": random(ROWS, 1, 2, 3, 16, 16), "aspect_ratio_mask": tiles}
        found |= {"aspect_ratio_ids": torch.tensor([[2], [1]])}
        seen = (torch.arange(ids.shape[1]) >= 4).reshape(1, -1, 1, 1)
        found |= {"cross_attention_mask": (seen & (tiles[:, None] == 1)).int()}
    else:
        found |= {"pixel_values": random(ROWS, 3, 16, 16)}
    if family == "gemma3":
        found |= {"token_type_ids": is_image.int()}
    return found


def step(model: Any, inputs: dict[str, torch.Tensor]) -> compare.Step:
    return compare.step(model, lambda: model(**inputs).loss)


TOWERS: dict[str, tuple[str, ...]] = {
    "gemma3": ("norm: LayerNorm x6 -> layer_norm", "norm: Gemma3RMSNorm x14 -> rms_norm[gemma]"),
    "llava": ("norm: LayerNorm x6 -> layer_norm",),
    "mllama": ("norm: LayerNorm x8 -> layer_norm",),
    "qwen2_5_vl": (
        f"norm: {'Qwen2_5_VL' if NEW else 'Qwen2'}RMSNorm x10 -> rms_norm[llama]",
        "mlp: Qwen2_5_VLMLP x2 -> swiglu",
        "rope: Qwen2_5_VLVisionAttention (apply_rotary_pos_emb_vision) x2 -> rope[half]",
    ),
    "qwen2_vl": (
        "norm: LayerNorm x5 -> layer_norm",
        "rope: VisionAttention (apply_rotary_pos_emb_vision) x2 -> rope[half]",
    ),
}
"""What reports say of vision towers and of what connects them to the text."""


@pytest.mark.parametrize("family", MODELS)
def test_a_step_with_images(family: str) -> None:
    model, inputs = tiny(family), batch(family)
    expected = step(model, inputs)
    assert abs(step(model, batch(family, seed=1)).loss - expected.loss) > 1e-4, "the image does not matter"
    report = apply_liger_kernel(model, strict=True)
    with counted_ops() as calls:
        actual = step(model, inputs)
    loss, gradients, reason = difference(actual, expected)
    assert not reason, (loss, gradients)
    assert any(gradient.any() for name, gradient in actual.gradients.items() if "vis" in name)
    assert {*TOWERS[family]} <= {str(entry) for entry in report.entries}
    assert calls["linear_cross_entropy"] == 1
    # Every module and rotation that is reported has run on the kernels, in the tower as in the text.
    assert calls["rms_norm"] + calls["layer_norm"] == report.counts["norm"]
    assert calls["swiglu"] + calls["geglu"] == report.counts["mlp"]
    assert (
        calls["rope"] + calls["mrope"] == report.counts["rope"]
    )  # transformers 4 leaves the planes to the function


@pytest.mark.parametrize("family", MODELS)
def test_logits_come_back(family: str) -> None:
    model, inputs = tiny(family), batch(family)
    expected = model(**inputs)
    apply_liger_kernel(model, strict=True)
    assert model(**inputs).logits is None
    with torch.no_grad():
        evaluated = model.eval()(**inputs)
    torch.testing.assert_close(evaluated.logits, expected.logits, rtol=1e-4, atol=1e-5)
    remove_liger_kernel(model)
    assert torch.equal(model.train()(**inputs).logits, expected.logits)
