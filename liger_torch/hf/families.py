"""`apply_liger_kernel_to_<family>`: upstream's names and arguments, over the one engine.

Given no model they arrange for the family's models to be patched when they are built, whoever builds them: upstream's
way of use, `apply_liger_kernel_to_llama()` before `from_pretrained`.

All of them are made from one table, which says in what a family's arguments differ from Llama's. Any other model type
of transformers has such a function too. Every argument is True where it is not given, `cross_entropy` excepted:
upstream switches off by default what it has no kernel for in a family, while the engine looks, and reports.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from liger_torch.hf.patch import Parts, apply_liger_kernel
from liger_torch.hf.report import PatchReport, warn_once

PREFIX = "apply_liger_kernel_to_"

ARGUMENTS = {
    "rope": "rotate q and k in one kernel.",
    "rms_norm": "RMSNorm modules.",
    "layer_norm": "LayerNorm modules.",
    "swiglu": "the elementwise part of gated MLPs and of experts, whichever gate they have.",
    "geglu": "the elementwise part of gated MLPs and of experts, whichever gate they have.",
    "relu_squared": "must be False: MLPs with a squared ReLU are left as they are.",
    "cross_entropy": "the loss, computed from the logits.",
    "fused_linear_cross_entropy": "the loss, computed together with the output layer, without the logits.",
}
"""What the functions of the families take, in this order, and what it is."""

_LLAMA = ("rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy")
_GEMMA = ("rope", "rms_norm", "geglu", "cross_entropy", "fused_linear_cross_entropy")

_TABLE = (
    (
        "deepseek_v2 deepseek_v3 deepseek_v4 exaone4 falcon_h1 glm4 glm4v glm4v_moe gpt_oss granite hunyuan_v1_dense "
        "hunyuan_v1_moe llama ministral mistral mixtral olmo2 olmo3 phi3 qwen2 qwen2_5_vl qwen3 qwen3_5 qwen3_5_moe "
        "qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe smollm3",
        _LLAMA,
    ),
    ("internvl llama4 llava mllama muse_glimmer qwen2_vl smolvlm", (*_LLAMA, "layer_norm")),
    ("gemma gemma2 gemma3_text gemma4_text", _GEMMA),
    ("gemma3 gemma4 paligemma", (*_GEMMA, "layer_norm")),
    ("nemotron", ("rope", "layer_norm", "relu_squared", "cross_entropy", "fused_linear_cross_entropy")),
    ("pixtral", ("rope", "rms_norm", "swiglu")),
)

FAMILIES = {family: arguments for families, arguments in _TABLE for family in families.split()}
"""The families that upstream has a function for, and its arguments."""

_OFF = ("relu_squared", "cross_entropy")

FamilyFunction = Callable[..., "PatchReport | PendingPatch"]


class PendingPatch:
    """Models of exactly these classes that are built from now on will be patched, until `remove` is called.

    Models of a subclass are not; a warning says so, once per subclass.
    Of several for one class the last one counts. Models that were patched stay patched.
    """

    def __init__(self, model_classes: Iterable[type[Any]], parts: Parts) -> None:
        self.model_classes, self.parts = tuple(model_classes), parts
        for model_class in self.model_classes:
            pending = _pending.setdefault(model_class, [])
            if not pending:
                _install(model_class)
            pending.append(self)

    def remove(self) -> None:
        """Stop patching new models; does nothing the second time."""
        for model_class in self.model_classes:
            pending = _pending.get(model_class, [])
            if self in pending:
                pending.remove(self)
                if not pending:
                    del _pending[model_class]
                    _uninstall(model_class)


_pending: dict[type[Any], list[PendingPatch]] = {}
_own_post_init: dict[type[Any], Any] = {}


def _install(model_class: type[Any]) -> None:
    """transformers calls `post_init` at the end of every model's constructor."""
    inherited = model_class.post_init
    if "post_init" in vars(model_class):
        _own_post_init[model_class] = inherited

    def post_init(self: Any) -> None:
        inherited(self)
        # A subclass's constructor goes on after that, and may still change what it has inherited.
        if type(self) is not model_class:
            warn_once(
                type(self),
                f"{type(self).__name__}: a subclass of {model_class.__name__} is not patched when it is built; call "
                "apply_liger_kernel on the model.",
            )
        else:
            apply_liger_kernel(self, **dataclasses.asdict(_pending[model_class][-1].parts))

    model_class.post_init = post_init


def _uninstall(model_class: type[Any]) -> None:
    own = _own_post_init.pop(model_class, None)
    if own is None:
        del model_class.post_init
    else:
        model_class.post_init = own


# The models that are trained, by what they are made for. A model without any of these heads is looked up last.
_MAPPINGS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
)


def model_types(family: str) -> tuple[str, ...]:
    """The model types of a family: its own and that of its text model, which a checkpoint may have alone."""
    return tuple(t for t in (family, f"{family}_text", f"{family}_text_model") if t in CONFIG_MAPPING)


def model_classes(family: str) -> tuple[type[Any], ...]:
    """The classes that transformers' auto classes build for a family, outermost ones only."""
    configs = [type(AutoConfig.for_model(model_type)) for model_type in model_types(family)]
    found = _built_for(configs, _MAPPINGS) or _built_for(configs, ("MODEL_MAPPING",))
    return tuple(dict.fromkeys(found))


def _built_for(configs: Iterable[type[Any]], mappings: Iterable[str]) -> list[type[Any]]:
    tables = [getattr(modeling_auto, name) for name in mappings]
    return [table[config] for config in configs for table in tables if config in table]


def arguments_of(family: str) -> tuple[str, ...]:
    """What the function of a family takes, beside the model; that of one that upstream has none for takes it all."""
    return FAMILIES.get(family, (*_LLAMA, "layer_norm"))


@functools.cache
def family_function(family: str) -> FamilyFunction:
    """`apply_liger_kernel_to_<family>`, for a family of `FAMILIES` or any model type; the same one every time."""
    return made_function(family, arguments_of(family), inspect.Parameter.POSITIONAL_OR_KEYWORD)


def made_function(family: str, arguments: Iterable[str], kind: Any) -> FamilyFunction:
    """The function of a family, whose arguments are of this kind of `inspect.Parameter`."""
    name = PREFIX + family
    signature = _signature((*arguments, "model"), kind)

    def apply(*args: Any, **kwargs: Any) -> PatchReport | PendingPatch:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}; it takes {', '.join(signature.parameters)}.") from None
        bound.apply_defaults()
        model = bound.arguments.pop("model")
        parts = asked_for(name, bound.arguments)
        if not model_types(family):
            raise ValueError(f"{name}: transformers {transformers.__version__} has no model type {family!r}.")
        if model is None:
            return PendingPatch(model_classes(family), parts)
        given = getattr(getattr(model, "config", None), "model_type", None)
        if given not in model_types(family):
            raise ValueError(
                f"{name}: model has model_type {given!r}, not {family!r}; apply_liger_kernel(model) takes any model."
            )
        return apply_liger_kernel(model, **dataclasses.asdict(parts))

    apply.__name__ = apply.__qualname__ = name
    apply.__signature__ = signature  # type: ignore[attr-defined]
    described = "\n".join(
        f"        {each}: {ARGUMENTS[each]}" for each in signature.parameters if each != "model"
    )
    apply.__doc__ = f"""Let a {family} model run on this package's kernels; see `apply_liger_kernel`.

    Args:
{described}
        model: the model. Without it, every {family} model that is built from now on is patched, but none of a
            subclass.

    Returns:
        The report; without a model, a `PendingPatch`, whose `remove()` ends it.

    Raises:
        TypeError: an argument that it does not have.
        ValueError: both losses at once; a model of another family; a family that transformers does not have.
    """
    return apply


def _signature(order: Iterable[str], kind: Any) -> inspect.Signature:
    return inspect.Signature(
        [
            inspect.Parameter(name, kind, default=None, annotation=nn.Module | None)
            if name == "model"
            else inspect.Parameter(name, kind, default=name not in _OFF, annotation=bool)
            for name in order
        ],
        return_annotation=PatchReport | PendingPatch,
    )


def asked_for(name: str, given: Mapping[str, bool]) -> Parts:
    """The parts that the arguments of the function `name` ask for.

    Raises:
        TypeError: an argument that no function of a family has.
        ValueError: arguments that exclude each other, or cannot be honoured.
    """
    unknown = set(given) - set(ARGUMENTS)
    if unknown:
        raise TypeError(
            f"{name}: unknown argument {', '.join(sorted(unknown))}; it takes {', '.join(ARGUMENTS)}."
        )
    if given.get("relu_squared"):
        raise ValueError(f"{name}: relu_squared=True, but {ARGUMENTS['relu_squared']}")
    parts = {part: value for part, value in given.items() if part not in ("swiglu", "geglu", "relu_squared")}
    gates = {given[gate] for gate in ("swiglu", "geglu") if gate in given}
    if len(gates) == 2:
        raise ValueError(
            f"{name}: swiglu={given['swiglu']} and geglu={given['geglu']}, but a model has one of them."
        )
    for gate in gates:
        parts |= {"glu": gate, "experts": gate}
    return Parts(**parts)
