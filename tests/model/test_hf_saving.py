"""Meta device, checkpoints in shards, copies and files of models that adapters and hooks have wrapped."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model, init_empty_weights, load_checkpoint_and_dispatch
from hf_models import assert_same_step, batch, counted_ops, pair, step, tiny
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from liger_torch.hf import AutoLigerKernelForCausalLM, apply_liger_kernel, remove_liger_kernel

ALL = {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}


@pytest.mark.parametrize(
    "context", [lambda: torch.device("meta"), init_empty_weights], ids=["torch", "accelerate"]
)
def test_patched_on_the_meta_device_and_loaded(context: Any, tmp_path: Path) -> None:
    plain = tiny()
    plain.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with context():
        model = AutoModelForCausalLM.from_config(plain.config)
        apply_liger_kernel(model, strict=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    if context is init_empty_weights:
        model = load_checkpoint_and_dispatch(model, tmp_path, device_map={"": "cpu"})
    else:
        model.to_empty(device="cpu")
        model.load_state_dict(plain.state_dict())
        # Those that no file has.
        for name, buffer in plain.named_buffers():
            model.get_buffer(name).copy_(buffer)
    with counted_ops() as calls:
        assert_same_step(step(model.train(), **batch()), step(plain, **batch()))
    assert calls == ALL


def test_checkpoint_in_shards(tmp_path: Path) -> None:
    plain, model = tiny(tie_word_embeddings=True), tiny(tie_word_embeddings=True)
    apply_liger_kernel(model, strict=True)
    for folder, each in (("plain", plain), ("patched", model)):
        each.save_pretrained(tmp_path / folder, max_shard_size="40KB")
    files = [sorted((tmp_path / folder).iterdir()) for folder in ("plain", "patched")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


def with_adapters(model: Any) -> Any:
    torch.manual_seed(1)
    options = {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    return get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **options))


def with_hooks(model: Any) -> Any:
    return dispatch_model(model, {"model": "cpu", "lm_head": "cpu"}, force_hooks=True)


def saved_and_loaded(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize(
    ("wrap", "copied"),
    [(with_adapters, copy.deepcopy), (with_adapters, saved_and_loaded), (with_hooks, copy.deepcopy)],
)
def test_copies_of_wrapped_models(wrap: Any, copied: Any) -> None:
    expected = step(wrap(tiny()), **batch())
    model = tiny()
    apply_liger_kernel(model, strict=True)
    wrapped = wrap(model)
    again = copied(wrapped)
    remove_liger_kernel(model)
    with counted_ops() as calls:
        assert_same_step(step(again, **batch()), expected)
    assert calls == ALL


def test_adapters_saved_and_loaded(tmp_path: Path) -> None:
    expected = step(with_adapters(tiny()), **batch())
    model = tiny()
    apply_liger_kernel(model, strict=True)
    with_adapters(model).save_pretrained(tmp_path)
    again = tiny()
    apply_liger_kernel(again, strict=True)
    again = PeftModel.from_pretrained(again, tmp_path, is_trainable=True).train()
    with counted_ops() as calls:
        assert_same_step(step(again, **batch()), expected)
    assert calls == ALL
    assert type(PeftModel.from_pretrained(tiny(), tmp_path).get_base_model()) is LlamaForCausalLM


def test_deepcopy_is_a_patched_model_of_its_own() -> None:
    plain, patched = pair()
    copied = copy.deepcopy(patched)
    remove_liger_kernel(patched)
    with counted_ops() as calls:
        assert_same_step(step(copied, **batch()), step(plain, **batch()))
    assert calls == {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}
    assert patched.model.norm.weight.grad is None


def test_torch_save_of_the_model() -> None:
    plain, patched = pair()
    file = io.BytesIO()
    torch.save(patched, file)
    remove_liger_kernel(patched)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    with counted_ops() as calls:
        assert_same_step(step(loaded, **batch()), step(plain, **batch()))
    assert calls == {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}
    remove_liger_kernel(loaded)
    assert type(loaded) is LlamaForCausalLM


def test_save_pretrained(tmp_path: Path) -> None:
    _, patched = pair()
    patched.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is LlamaForCausalLM
    assert all("_liger" not in key for module in loaded.modules() for key in module.__dict__)
    wanted = patched.state_dict()
    assert loaded.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())


def test_auto_class(tmp_path: Path) -> None:
    plain = tiny()
    plain.save_pretrained(tmp_path)
    model = AutoLigerKernelForCausalLM.from_pretrained(tmp_path, rope=False).train()
    with counted_ops() as calls:
        assert_same_step(step(model, **batch()), step(plain, **batch()))
    assert calls == {"rms_norm": 5, "swiglu": 2, "linear_cross_entropy": 1}
    model, info = AutoLigerKernelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.train()(**batch()).logits is None
    fresh = AutoLigerKernelForCausalLM.from_config(plain.config)
    assert fresh.train()(**batch()).logits is None


def test_auto_class_checks_its_options_first() -> None:
    with pytest.raises(ValueError, match="cross_entropy and fused_linear_cross_entropy"):
        AutoLigerKernelForCausalLM.from_pretrained("/there is no such file", cross_entropy=True)
