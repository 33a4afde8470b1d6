"""`apply_liger_kernel_to_<family>`: upstream's names and signatures, over the one engine.

Given no model they arrange for the family's causal language models to be patched when they are built, whoever builds
them: upstream's way of use, `apply_liger_kernel_to_llama()` before `from_pretrained`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from liger_torch.hf.patch import Parts, apply_liger_kernel
from liger_torch.hf.report import PatchReport, warn_once


class PendingPatch:
    """Models of exactly this class that are built from now on will be patched, until `remove` is called.

    Models of a subclass are not; a warning says so, once per subclass.
    Of several for one class the last one counts. Models that were patched stay patched.
    """

    def __init__(self, model_class: type[Any], parts: Parts) -> None:
        self.model_class, self.parts = model_class, parts
        pending = _pending.setdefault(model_class, [])
        if not pending:
            _install(model_class)
        pending.append(self)

    def remove(self) -> None:
        """Stop patching new models; does nothing the second time."""
        pending = _pending.get(self.model_class, [])
        if self in pending:
            pending.remove(self)
            if not pending:
                del _pending[self.model_class]
                _uninstall(self.model_class)


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


class FamilyFunction(Protocol):
    """The signature that all of them have."""

    def __call__(
        self,
        rope: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        cross_entropy: bool = False,
        fused_linear_cross_entropy: bool = True,
        model: nn.Module | None = None,
    ) -> PatchReport | PendingPatch:
        """See `family_function`."""
        ...


def family_function(family: str) -> FamilyFunction:
    """`apply_liger_kernel_to_<family>`."""

    def apply(
        rope: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        cross_entropy: bool = False,
        fused_linear_cross_entropy: bool = True,
        model: nn.Module | None = None,
    ) -> PatchReport | PendingPatch:
        parts = Parts(
            rope=rope,
            rms_norm=rms_norm,
            glu=swiglu,
            cross_entropy=cross_entropy,
            fused_linear_cross_entropy=fused_linear_cross_entropy,
        )
        if model is None:
            model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.for_model(family))]
            return PendingPatch(model_class, parts)
        given = getattr(getattr(model, "config", None), "model_type", None)
        if given != family:
            raise ValueError(
                f"{apply.__name__}: model has model_type {given!r}, not {family!r}; "
                "apply_liger_kernel(model) takes any model."
            )
        return apply_liger_kernel(model, **dataclasses.asdict(parts))

    apply.__name__ = apply.__qualname__ = f"apply_liger_kernel_to_{family}"
    apply.__doc__ = f"""Let a {family} model run on this package's kernels; see `apply_liger_kernel`.

    Args:
        rope: rotate q and k in one kernel.
        rms_norm: RMSNorm modules.
        swiglu: the elementwise part of gated MLPs with SiLU.
        cross_entropy: the loss, computed from the logits.
        fused_linear_cross_entropy: the loss, computed together with the output layer, without the logits.
        model: the model. Without it, every {family} causal language model that is built from now on is
            patched, but none of a subclass.

    Returns:
        The report; without a model, a `PendingPatch`, whose `remove()` ends it.

    Raises:
        ValueError: both losses at once; a model of another family.
    """
    return apply
