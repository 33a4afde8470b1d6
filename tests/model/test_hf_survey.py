"""Every family is built small, patched and compared; a patch that computes something else is found."""

from __future__ import annotations

import functools
import multiprocessing
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from liger.__main__ import main
from liger_torch.hf import Entry, PatchReport, apply_liger_kernel
from liger_torch.hf.gates import Gate
from liger_torch.hf.survey import SAMPLE, compare, pool, table, tiny

LLAMA = tiny.Family("llama", "LlamaForCausalLM", True)


def test_the_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--sample"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("transformers ")
    for name in SAMPLE:
        assert re.search(rf"^{name} \w+: equal \(loss .*, gradients .*\)\n  patched: ", text, re.MULTILINE)
    for form in (
        *("rms_norm[llama]", "rms_norm[gemma]", "rms_norm[fp32 weight]", "rms_norm[no weight]"),
        *("layer_norm", "layer_norm[1 + weight]", "swiglu", "swiglu[packed]", "geglu[tanh]"),
        *("rope[half]", "rope[half, reverse]", "rope[interleaved]", "rope[interleaved, complex]"),
        *("fused linear cross entropy (scale 0.25)", "fused linear cross entropy (softcap 5)"),
    ):
        assert re.search(rf"[:,] {re.escape(form)}( ×|,|\n)", text), form
    assert text.endswith(f"{len(SAMPLE)} families: {len(SAMPLE)} equal\n")


def test_one_family_and_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--family", "gpt2", "no_such"]) == 1
    text = capsys.readouterr().out
    assert "gpt2 GPT2LMHeadModel: equal" in text
    assert text.endswith("not in this transformers: no_such\n")


def test_an_older_transformers_lacks_some_of_the_sample(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("liger_torch.hf.survey.SAMPLE", ("gpt2", "no_such"))
    assert main(["models", "--sample"]) == 0
    assert capsys.readouterr().out.endswith("not in this transformers: no_such\n")


# ---- building


def test_a_small_model_has_every_kind_of_layer_and_effective_numbers() -> None:
    built = tiny.build(tiny.Family("gemma3_text", "Gemma3ForCausalLM", True))
    config = built.model.config
    assert not built.reason
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.final_logit_softcapping == 5.0
    assert sum(p.numel() for p in built.model.parameters()) < 1e6
    for name, parameter in built.model.named_parameters():
        assert parameter.std() > 0, f"{name} has one value only"


def test_a_configuration_inside_is_made_small_too() -> None:
    config = AutoConfig.for_model("qwen2_vl")
    config.text_config.rope_parameters = {"rope_type": "default", "mrope_section": [16, 24, 24]}
    tiny.shrink(config, {})
    assert (config.text_config.hidden_size, config.vision_config.embed_dim) == (64, 64)
    assert config.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
    assert config.image_token_id >= tiny.FIRST_OTHER_TOKEN > tiny.text()["input_ids"].max()


def test_what_cannot_be_built_or_run_is_a_row_with_the_reason() -> None:
    row = compare.survey(tiny.Family("vision-encoder-decoder", "VisionEncoderDecoderModel", False))
    assert row.outcome == compare.NOT_BUILT and "encoder" in row.reason
    row = compare.survey(tiny.Family("blip", "BlipForConditionalGeneration", False))
    assert row.outcome == compare.NOT_COMPARED and "pixel_values" in row.reason
    assert row.report is not None and row.report.patched


# ---- comparing


def wrong(change: Callable[[nn.Module], None], model: nn.Module) -> PatchReport:
    """Patch a model, and change something."""
    report = apply_liger_kernel(model)
    change(model)
    return report


def wrong_numbers(model: nn.Module) -> None:
    """One MLP's result is a little off."""
    mlp = model.get_submodule("model.layers.1.mlp")
    mlp.register_forward_hook(lambda module, args, output: output * (1 + 1e-3))


def wrong_gradient(model: nn.Module) -> None:
    """The right numbers, and a gradient that is a little off."""
    weight = model.get_parameter("model.layers.0.input_layernorm.weight")
    weight.register_hook(lambda gradient: gradient * (1 + 1e-4))


def no_gradient(model: nn.Module) -> None:
    """A parameter that is left out of the graph."""
    model.get_parameter("model.norm.weight").requires_grad_(False)


def failure(model: nn.Module) -> None:
    """A forward that raises."""
    raise RuntimeError("no kernel\nfor this")


@pytest.mark.parametrize(
    ("change", "outcome", "reason"),
    [
        (wrong_numbers, compare.UNEQUAL, "text: its loss is .* off"),
        (
            wrong_gradient,
            compare.UNEQUAL,
            r"text: the gradient of model.layers.0.input_layernorm.weight is 1.0e-04 off",
        ),
        (
            no_gradient,
            compare.UNEQUAL,
            "text: 1 parameters have a gradient in only one of the two: model.norm.weight",
        ),
        (failure, compare.FAILED, "RuntimeError: no kernel for this"),
    ],
)
def test_a_wrong_patch_is_found(change: Any, outcome: str, reason: str) -> None:
    row = compare.survey(LLAMA, functools.partial(wrong, change))
    assert row.outcome == outcome
    assert re.fullmatch(reason, row.reason)


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Gate.__call__
    monkeypatch.setattr(Gate, "__call__", lambda *operands: 1.001 * own(*operands))
    assert compare.survey(LLAMA).outcome == compare.UNEQUAL


def test_what_looks_at_images_is_compared_by_itself() -> None:
    family = tiny.Family("qwen2_vl", "Qwen2VLForConditionalGeneration", False)

    def change(model: nn.Module) -> None:
        model.get_parameter("model.visual.blocks.0.norm1.weight").register_hook(lambda gradient: -gradient)

    row = compare.survey(family, functools.partial(wrong, change))
    assert (row.outcome, row.compared) == (compare.UNEQUAL, (compare.TEXT, "model.visual"))
    assert row.reason.startswith("model.visual: the gradient of model.visual.blocks.0.norm1.weight is ")


class Unsteady(nn.Module):
    """Another loss at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls = 0

    def forward(self) -> Any:
        self.calls += 1
        return types.SimpleNamespace(loss=self.calls * self.weight.sum())


def test_what_is_not_certain_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "text", dict)
    monkeypatch.setattr(tiny, "_model", lambda family, variant: Unsteady())
    row = compare.survey(LLAMA)
    assert (row.outcome, row.compared) == (compare.NOT_COMPARED, ())
    assert row.reason.startswith("moving its weights by their last digit does as much: its loss is ")


def test_weights_are_moved_and_brought_back() -> None:
    layer = nn.Linear(30, 30)
    before = layer.weight.detach().clone()
    with compare.moved_by_a_digit(layer):
        off = (layer.weight / before - 1).abs()
        assert off.min() > 0 and off.max() < 2e-7
    assert torch.equal(layer.weight, before)


def test_differences() -> None:
    def made(loss: float, small: float) -> compare.Step:
        return compare.Step(torch.tensor(loss), {"a": torch.ones(4), "b": torch.tensor([1e-6 * small])})

    assert compare.difference(made(2.0, 1.0), made(2.0, 1.0)) == (0.0, 0.0, "")
    # What is nothing beside the other gradients may be anything within rounding.
    assert compare.difference(made(2.0, 1.1), made(2.0, 1.0))[2] == ""
    assert compare.difference(made(2.001, 1.0), made(2.0, 1.0))[2] == "its loss is 5.0e-04 off"
    nan = made(2.0, float("nan"))
    assert compare.difference(nan, nan)[2] == "the gradient of b is inf off"


# ---- processes


def test_a_family_that_does_not_end_or_crashes_is_a_row() -> None:
    (row,) = pool.rows([LLAMA], seconds=0.01)
    assert (row.outcome, row.reason) == (compare.ENDED, "not done in 0.01 s")
    process = pool._Process(multiprocessing.get_context("forkserver"), LLAMA, 60.0)
    process._process.kill()
    process.results.poll(60.0)
    crashed = process.row()
    assert crashed is not None
    assert (crashed.outcome, crashed.reason) == (compare.ENDED, "its process ended with exit code -9")


# ---- the page


def rows() -> list[compare.Row]:
    report = PatchReport(
        "Model",
        (
            Entry("mlp", "MLP", 3, "swiglu(up|gate)"),
            Entry("mlp", "OtherMLP", 1, "swiglu(up|gate)"),
            Entry("norm", "Norm", 2, "rms_norm", "takes more than one tensor"),
        ),
    )
    return [
        compare.Row(LLAMA, compare.EQUAL, "", report, (compare.TEXT, "model.tower"), 0.0, 1e-7),
        compare.Row(LLAMA, compare.NOT_BUILT, "ImportError: timm"),
    ]


def test_lines() -> None:
    assert [table.line(row) for row in rows()] == [
        "llama LlamaForCausalLM: equal (loss 0.0e+00, gradients 1.0e-07)\n"
        "  patched: swiglu(up|gate) ×4\n  left: Norm ×2: takes more than one tensor\n  compared: text, model.tower",
        "llama LlamaForCausalLM: not built\n  ImportError: timm",
    ]
    assert table.counts(rows()) == "1 equal, 1 not built"


def test_the_page_keeps_other_versions() -> None:
    newer = table.page(rows()[:1], table.Setting("5.17.0", "2.13.0", "references"))
    both = table.page(rows(), table.Setting("4.57.6", "2.12.0", "references"), newer)
    assert "## transformers 4.57.6\n" in both and "## transformers 5.17.0\n" not in both
    assert (
        "| 4.57.6 | 2.12.0 | 1 | 0 | 0 | 0 | 0 | 1 |\n| 5.17.0 | 2.13.0 | 1 | 0 | 0 | 0 | 0 | 0 |\n" in both
    )
    assert (
        "| llama | `LlamaForCausalLM` | swiglu(up\\|gate) ×4 | Norm ×2: takes more than one tensor | text, model.tower | equal |"
        in both
    )
    assert "|  |  |  | not built: ImportError: timm |" in both
    again = table.page(rows()[:1], table.Setting("5.17.0", "2.13.0", "references"), both)
    assert again.count("| 5.17.0 |") == again.count("| 4.57.6 |") == 1


def test_the_page_that_is_published() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    for name in SAMPLE:
        assert re.search(rf"^\| {name} \| .* \| equal \|$", page, re.MULTILINE), name
    for version in re.findall(r"^\| \d\S* \| .* \|$", page, re.MULTILINE):
        equal, *bad = map(int, version.split(" | ")[2:6])
        assert equal > 100 and not any(bad)
