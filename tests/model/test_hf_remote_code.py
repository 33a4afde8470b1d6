"""A model whose code comes with its checkpoint: nothing in it has a name or a form that a list could hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import VOCAB, assert_same_step, batch, counted_ops, step
from transformers import AutoConfig, AutoModelForCausalLM, dynamic_module_utils

from liger_torch.hf import AutoLigerKernelForCausalLM, apply_liger_kernel, remove_liger_kernel

CODE = '''
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class PlumConfig(PretrainedConfig):
    model_type = "plum"

    def __init__(self, vocab_size=VOCAB, width=32, odd_norm=False, own_loss=True, **kwargs):
        self.vocab_size, self.width, self.odd_norm, self.own_loss = vocab_size, width, odd_norm, own_loss
        super().__init__(**kwargs)


class ScaleNorm(nn.Module):
    """RMSNorm, by a division, in float32 to the end."""

    def __init__(self, width):
        super().__init__()
        self.g, self.tiny = nn.Parameter(torch.ones(width)), 1e-5

    def forward(self, states):
        wide = states.float()
        return (self.g.float() * (wide / (wide.square().mean(-1, keepdim=True) + self.tiny).sqrt())).to(states.dtype)


class OddNorm(ScaleNorm):
    """Divides by the mean of the magnitudes."""

    def forward(self, states):
        return self.g * states / (states.abs().mean(-1, keepdim=True) + self.tiny)


class Mixer(nn.Module):
    """A gated unit whose names are in the wrong order."""

    def __init__(self, width):
        super().__init__()
        self.out = nn.Linear(2 * width, width)
        self.b, self.a = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)

    def forward(self, tokens):
        return self.out(self.a(tokens) * F.gelu(self.b(tokens)))


def turn(left, right, cos, sin):
    def half(x):
        a, b = x.chunk(2, -1)
        return torch.cat((-b, a), -1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return left * cos + half(left) * sin, right * cos + half(right) * sin


class Look(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.o, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), 2

    def forward(self, x, cos, sin):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k = turn(q, k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))


class Plum(PreTrainedModel):
    config_class = PlumConfig
    _no_split_modules = []
    _input_embed_layer = "words"

    def __init__(self, config):
        super().__init__(config)
        width, norm = config.width, OddNorm if config.odd_norm else ScaleNorm
        self.words = nn.Embedding(config.vocab_size, width)
        self.first_norm, self.second_norm, self.last_norm = norm(width), norm(width), norm(width)
        self.look, self.mixer = Look(width), Mixer(width)
        self.unembed = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.unembed

    def set_output_embeddings(self, layer):
        self.unembed = layer

    def forward(self, input_ids=None, labels=None, **kwargs):
        x = self.words(input_ids)
        steps = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
        angles = (steps[:, None] / 100 ** torch.linspace(0, 1, self.config.width // 4)).repeat(1, 2)[None]
        x = x + self.look(self.first_norm(x), angles.cos(), angles.sin())
        x = self.last_norm(x + self.mixer(self.second_norm(x)))
        logits = 0.5 * self.unembed(x)
        loss = None
        if labels is not None and self.config.own_loss:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        elif labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)
'''.replace("VOCAB", str(VOCAB))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a folder with code, configuration and no weights."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "cache"))

    def write(**options: Any) -> Path:
        folder = tmp_path / "plum"
        folder.mkdir()
        (folder / "modeling_plum.py").write_text(CODE)
        classes = {"AutoConfig": "modeling_plum.PlumConfig", "AutoModelForCausalLM": "modeling_plum.Plum"}
        config = {"model_type": "plum", "auto_map": classes, "tie_word_embeddings": False, **options}
        (folder / "config.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        return folder

    yield write
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def load(folder: Path, auto: Any = AutoModelForCausalLM) -> Any:
    return auto.from_pretrained(folder, trust_remote_code=True).train()


@pytest.mark.parametrize("own_loss", [True, False], ids=["own loss", "loss_function"])
def test_everything_is_recognised(own_loss: bool, checkpoint: Any) -> None:
    folder = checkpoint(own_loss=own_loss)
    plain, model = load(folder), load(folder)
    report = apply_liger_kernel(model, strict=True)
    forms = {(entry.kind, entry.form) for entry in report.patched}
    loss = "fused linear cross entropy " + ("(lazy logits)" if own_loss else "(scale 0.5)")
    assert forms == {
        ("norm", "rms_norm[fp32 weight]"),
        ("mlp", "geglu[exact]"),
        ("rope", "rope[half]"),
        ("loss", loss),
    }
    expected = step(plain, **batch())
    with counted_ops() as calls:
        assert_same_step(step(model, **batch()), expected)
    assert calls == {"rms_norm": 3, "rope": 1, "geglu": 1, "linear_cross_entropy": 1}
    remove_liger_kernel(model)
    file = sys.modules[type(plain).__module__]
    assert all(
        getattr(value, "__module__", "").partition(".")[0] != "liger_torch" for value in vars(file).values()
    )
    assert type(model) is type(plain)
    assert torch.equal(step(model, **batch())[0], expected[0])


def test_what_is_unknown_is_reported(checkpoint: Any) -> None:
    folder = checkpoint(odd_norm=True)
    plain, model = load(folder), load(folder)
    (left,) = apply_liger_kernel(model).left
    assert (left.name, left.count) == ("OddNorm", 3)
    with counted_ops() as calls:
        assert_same_step(step(model, **batch()), step(plain, **batch()))
    assert calls == {"rope": 1, "geglu": 1, "linear_cross_entropy": 1}


def test_loaded_patched_and_saved_again(checkpoint: Any, tmp_path: Path) -> None:
    folder = checkpoint()
    model = load(folder, AutoLigerKernelForCausalLM)
    assert model(**batch()).logits is None
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == ["Plum"]
    assert config["auto_map"]["AutoModelForCausalLM"].endswith("modeling_plum.Plum")
    again = load(tmp_path / "again")
    assert not hasattr(type(again), "_liger_recipe")
    assert_same_step(step(again, **batch()), step(load(folder), **batch()))
