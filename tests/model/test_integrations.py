"""The ways into other libraries: they give what those expect, and leave nothing behind when they are removed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hf_models import assert_same_step, batch, counted_ops, step, tiny
from without import run_without

from liger_torch.functional import CrossEntropyOutput
from liger_torch.hf import PatchReport, PendingPatch
from liger_torch.integrations import liger_kernel_alias, upstream

REAL = importlib.util.find_spec("liger_kernel") is not None
peers = pytest.mark.skipif(not REAL, reason="needs liger-kernel (extra `peers`)")


# ---- the alias of liger_kernel, in processes of their own that do not find the real one


def alone(code: str, *hidden: str) -> str:
    return run_without(("liger_kernel", *hidden), code)


def test_the_tools_imports() -> None:
    alone(
        """
from liger_torch.integrations import liger_kernel_alias
alias = liger_kernel_alias.install()
assert liger_kernel_alias.install() is alias

# Hugging Face's Trainer
import transformers
from transformers.utils import is_liger_kernel_available
assert is_liger_kernel_available()
from liger_kernel.transformers import _apply_liger_kernel_to_instance
# OpenRLHF
from liger_kernel.transformers import AutoLigerKernelForCausalLM
assert issubclass(AutoLigerKernelForCausalLM, transformers.AutoModelForCausalLM)
# verl
from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction
from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance as same
assert same is _apply_liger_kernel_to_instance
# LLaMA-Factory, ms-swift
import inspect
for family in (
    "gemma gemma2 gemma3 gemma3_text glm4 glm4v glm4v_moe granite gpt_oss internvl llama llama4 llava mistral mixtral "
    "mllama olmo2 paligemma phi3 qwen2 qwen2_vl qwen2_5_vl qwen3 qwen3_moe qwen3_next qwen3_5"
).split():
    name = f"apply_liger_kernel_to_{family}"
    namespace = {}
    exec(f"from liger_kernel.transformers import {name}", namespace)
    function = namespace[name]
    assert function.__name__ == name
    assert "fused_linear_cross_entropy" in inspect.signature(function).parameters, name
import importlib.metadata
assert importlib.metadata.version("liger-kernel") == importlib.metadata.version("liger_kernel") == "0.8.5"
from liger_kernel.transformers.model import loss_utils
loss_utils.LigerForCausalLMLoss = loss_utils.LigerForCausalLMLoss
# TRL, of before 1.13
from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss, LigerFusedLinearGRPOLoss
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss, LigerFusedLinearKTOLoss
import liger_torch.chunked_loss
assert LigerFusedLinearDPOLoss is liger_torch.chunked_loss.LigerFusedLinearDPOLoss
# as attributes
import liger_kernel.transformers
import liger_torch
assert liger_kernel.__version__ == "0.8.5"
assert liger_kernel.transformers.swiglu.LigerSwiGLUMLP is liger_torch.LigerSwiGLUMLP
assert "LigerRMSNorm" in dir(liger_kernel.transformers)
"""
    )


def test_the_alias_comes_late_and_goes() -> None:
    alone(
        """
import sys
import transformers
from transformers.utils import import_utils, is_liger_kernel_available
assert not is_liger_kernel_available()
from liger_torch.integrations import liger_kernel_alias
alias = liger_kernel_alias.install()
assert is_liger_kernel_available()
import liger_kernel.transformers.model.loss_utils
alias.remove()
alias.remove()
assert not is_liger_kernel_available()
assert not any(name.startswith("liger_kernel") for name in sys.modules)
try:
    import liger_kernel
except ModuleNotFoundError:
    pass
else:
    raise AssertionError
import importlib.metadata
try:
    importlib.metadata.version("liger_kernel")
except importlib.metadata.PackageNotFoundError:
    pass
else:
    # The real one's files, where its module is hidden.
    assert not any(type(finder).__module__.startswith("liger_torch") for finder in sys.meta_path)
again = liger_kernel_alias.install()
assert again is not alias
assert is_liger_kernel_available()
import liger_kernel
"""
    )


def test_what_the_alias_does_not_have() -> None:
    alone(
        """
import importlib
from liger_torch.integrations import liger_kernel_alias
liger_kernel_alias.install()
for name, error, words in (
    ("from liger_kernel.transformers import LigerDyT", ImportError, "LigerDyT"),
    ("from liger_kernel.transformers import LigerDyT", ImportError, "liger_kernel_alias.py"),
    ("from liger_kernel.ops import LigerRopeFunction", ImportError, "LigerRopeFunction"),
    ("from liger_kernel.chunked_loss import LigerNoSuchLoss", ImportError, "LigerNoSuchLoss"),
    ("import liger_kernel.ops.utils", ModuleNotFoundError, "liger_kernel.ops.utils"),
    ("import liger_kernel.ops; liger_kernel.ops.utils", AttributeError, "alias of liger_kernel"),
):
    try:
        exec(name)
    except error as raised:
        assert words in str(raised), raised
    else:
        raise AssertionError(name)
import liger_kernel.transformers
assert not hasattr(liger_kernel.transformers, "LigerDyT")
"""
    )


@peers
def test_the_real_liger_kernel_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="liger_kernel is installed"):
        liger_kernel_alias.install()


@peers
def test_all_names_of_the_alias_are_upstreams() -> None:
    more_of_ours = ("functional", "chunked_loss", "transformers")
    for module in liger_kernel_alias.MODULES:
        real = importlib.import_module(module)
        if not module.endswith(more_of_ours):
            assert all(hasattr(real, name) for name in liger_kernel_alias._public(module)), module
    for ours in (upstream.LigerForCausalLMLoss, upstream.LigerFusedLinearScaledCrossEntropyFunction.apply):
        where = (
            "liger_kernel.ops" if ours.__name__ == "apply" else "liger_kernel.transformers.model.loss_utils"
        )
        theirs: Any = getattr(importlib.import_module(where), ours.__qualname__.partition(".")[0])
        theirs = getattr(theirs, "apply", theirs)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    table = importlib.import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
    for model_type, function in upstream.MODEL_TYPE_TO_APPLY_LIGER_FN.items():
        assert model_type not in table or table[model_type].__name__ == function.__name__


# ---- what stands behind names of upstream's that we do not have


def test_patching_an_instance() -> None:
    plain, patched = tiny(), tiny()
    report = upstream._apply_liger_kernel_to_instance(model=patched, rope=False, swiglu=True, geglu=True)
    assert isinstance(report, PatchReport)
    assert set(report.counts) == {"norm", "mlp", "loss"}
    assert_same_step(step(patched, **batch()), step(plain, **batch()))
    report = upstream._apply_liger_kernel_to_instance(
        model=patched, fused_linear_cross_entropy=False, swiglu=True
    )
    assert "loss" not in report.counts
    with pytest.raises(TypeError, match="unknown argument attention"):
        upstream._apply_liger_kernel_to_instance(model=patched, attention=True)


def test_functions_of_families_take_keywords() -> None:
    function = upstream.apply_liger_kernel_to_llama
    assert function is upstream.MODEL_TYPE_TO_APPLY_LIGER_FN["llama"]
    assert upstream.MODEL_TYPE_TO_APPLY_LIGER_FN["gemma3_text"] is upstream.apply_liger_kernel_to_gemma3_text
    with pytest.raises(TypeError, match="too many positional arguments"):
        function(True, False, True)
    pending = upstream._apply_liger_kernel("llama", rope=False)
    assert isinstance(pending, PendingPatch)
    pending.remove()


@pytest.mark.parametrize("items", [None, 7, torch.tensor(7)], ids=["mean", "int", "tensor"])
@pytest.mark.parametrize("shifted", [False, True])
def test_causal_loss(items: Any, shifted: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 9, 8, requires_grad=True), torch.randn(31, 8)
    labels = torch.randint(0, 31, (2, 9))
    labels[0, :3] = -100
    given = {"shift_labels": labels} if shifted else {}
    logits = 5 * torch.tanh(hidden @ weight.T / 5)
    expected = transformers.loss.loss_utils.ForCausalLMLoss(logits, labels, 31, items, **given)
    (wanted,) = torch.autograd.grad(expected, hidden)
    options = {"num_items_in_batch": items, "final_logit_softcapping": 5.0, "cache_position": None, **given}
    actual = upstream.LigerForCausalLMLoss(hidden, weight, labels, 8, **options)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, hidden)[0], wanted)
    more = upstream.LigerForCausalLMLoss(hidden, weight, labels, 8, return_token_accuracy=True, **options)
    assert isinstance(more, CrossEntropyOutput)
    torch.testing.assert_close(more.loss, expected)
    assert more.token_accuracy is not None


def test_scaled_cross_entropy() -> None:
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 8, requires_grad=True) for n in (9, 31))
    ids = torch.randint(0, 31, (9,))
    ids[:2] = -100
    function = upstream.LigerFusedLinearScaledCrossEntropyFunction
    nll, entropy = function.apply(hidden, weight, ids, 0.7, -100, 1, True)
    logits = hidden @ weight.T / 0.7
    expected = F.cross_entropy(logits, ids, reduction="none")
    own = torch.distributions.Categorical(logits=logits).entropy() * (ids != -100)
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(entropy, own)
    incoming = torch.randn(2, 9)
    wanted = torch.autograd.grad((incoming * torch.stack((expected, own))).sum(), (hidden, weight))
    actual = torch.autograd.grad((incoming * torch.stack((nll, entropy))).sum(), (hidden, weight))
    torch.testing.assert_close(actual, wanted)
    torch.testing.assert_close(function.apply(hidden, weight, ids, 0.7), expected)
    with pytest.raises(ValueError, match="m_tiles_per_cluster must be 1"):
        function.apply(hidden, weight, ids, 0.7, -100, 2)
    with pytest.raises(ValueError, match="selected_token_ids must be None"):
        function.apply(hidden, weight, ids, selected_token_ids=ids)


# ---- TRL's function of log-probabilities


TRL = importlib.util.find_spec("trl") is not None
needs_trl = pytest.mark.skipif(not TRL, reason="needs trl (extra `peers`)")


@pytest.fixture
def trl_logprobs() -> Iterator[Any]:
    from liger_torch.integrations import trl_logprobs

    installed = trl_logprobs.install()
    yield installed
    installed.remove()


@needs_trl
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    "outputs", [(), ("entropy", "is_top1"), ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")]
)
def test_logprobs_are_trls(
    trl_logprobs: Any, outputs: tuple[str, ...], biased: bool, softcap: float | None
) -> None:
    from trl.trainer import utils

    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 8, requires_grad=True) for n in (9, 31))
    bias = torch.randn(31, requires_grad=True) if biased else None
    targets = torch.randint(0, 31, (9,))
    targets[:4] = (hidden @ weight.T + (0 if bias is None else bias)).argmax(-1)[:4]
    arguments = (hidden, weight, bias, targets, 0.7, 13, softcap, 1.5, outputs)
    operands = [t for t in (hidden, weight, bias) if t is not None]
    expected = trl_logprobs.function.original.apply(*arguments)
    with counted_ops() as calls:
        actual = utils._ChunkedLogProbFunction.apply(*arguments)
    assert calls == {"linear_logprobs": 1}
    assert [x is None for x in actual] == [x is None for x in expected]
    incoming = torch.randn(2, 9)
    for a, e in zip(actual, expected, strict=True):
        if a is not None:
            assert (a.dtype, a.requires_grad) == (e.dtype, e.requires_grad)
            torch.testing.assert_close(a, e)

    def gradients(found: Any) -> Any:
        loss = sum((g * x).sum() for g, x in zip(incoming, found[:2], strict=True) if x is not None)
        return torch.autograd.grad(loss, operands)

    torch.testing.assert_close(gradients(actual), gradients(expected), rtol=1e-4, atol=1e-4)


@needs_trl
def test_a_head_in_another_dtype(trl_logprobs: Any) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(9, 8, requires_grad=True)
    weight = torch.randn(31, 8).bfloat16().requires_grad_()
    targets = torch.randint(0, 31, (9,))
    results = []
    for function in (trl_logprobs.function, trl_logprobs.function.original):
        logp = function.apply(hidden, weight, None, targets, 1.0, 13, None, 1.0, ())[0]
        results.append((logp.detach(), *torch.autograd.grad(logp.sum(), (hidden, weight))))
    torch.testing.assert_close(*results)


@needs_trl
def test_trl_has_its_function_back() -> None:
    from trl.trainer import utils

    from liger_torch.integrations import trl_logprobs

    before = utils._ChunkedLogProbFunction
    installed = trl_logprobs.install()
    assert utils._ChunkedLogProbFunction is not before
    with pytest.raises(RuntimeError, match="already"):
        trl_logprobs.install()
    installed.remove()
    installed.remove()
    assert utils._ChunkedLogProbFunction is before


@needs_trl
def test_trl_without_such_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer import utils

    from liger_torch.integrations import trl_logprobs

    monkeypatch.delattr(utils, "_ChunkedLogProbFunction")
    with pytest.raises(RuntimeError, match=r"has no trl.trainer.utils._ChunkedLogProbFunction"):
        trl_logprobs.install()


# ---- transformers' own exchange of layers


HUB = transformers.utils.is_kernels_available()
needs_kernels = pytest.mark.skipif(
    not HUB, reason="needs the library `kernels` in a version that transformers accepts"
)


@needs_kernels
@pytest.mark.parametrize(
    ("family", "form"),
    [("llama", "llama"), ("qwen3", "llama"), ("olmo2", "fp32 weight"), ("mistral", "llama")],
)
def test_hub_kernels(family: str, form: str) -> None:
    """In bfloat16 the forms differ, and each family gets its own."""
    from liger_torch.integrations import hub_kernels

    plain, model = tiny(family).bfloat16(), tiny(family).bfloat16()
    registration = hub_kernels.register()
    try:
        model.set_use_kernels(True)
        with counted_ops() as calls:
            actual = step(model, **batch())
        assert calls["rope"] == 2
        assert calls["rms_norm"] == sum("Norm" in type(m).__name__ for m in plain.modules())
        assert f"{form}]" in model.model.norm._liger_form.form.name
        assert_same_step(actual, step(plain, **batch()), loss=1e-4, gradients=2e-2)
        model.eval()
        torch.testing.assert_close(
            model(**batch()).logits, plain.eval()(**batch()).logits, rtol=0.02, atol=0.02
        )
    finally:
        registration.remove()
        registration.remove()
    other = tiny(family)
    other.set_use_kernels(True)
    with counted_ops() as calls:
        other(**batch())
    assert not calls


@needs_kernels
def test_what_is_no_known_form_keeps_its_code() -> None:
    from liger_torch.integrations import hub_kernels

    plain, model = tiny(), tiny()
    cls: Any = type(model.model.norm)
    other = type("OtherRMSNorm", (cls,), {"forward": lambda self, x: 1.5 * cls.forward(self, x)})
    for each in (plain, model):
        each.model.norm.__class__ = other
    registration = hub_kernels.register()
    try:
        model.set_use_kernels(True)
        with counted_ops() as calls:
            assert_same_step(step(model, **batch()), step(plain, **batch()))
        assert calls["rms_norm"] == 4
    finally:
        registration.remove()


@pytest.mark.skipif(HUB, reason="the library `kernels` is there")
def test_hub_kernels_say_what_they_need() -> None:
    from liger_torch.integrations import hub_kernels

    with pytest.raises(RuntimeError, match="the library `kernels`, at least "):
        hub_kernels.register()
