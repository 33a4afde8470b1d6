"""`liger_kernel` as another name of this package, for tools that import it.

    from liger_torch.integrations import liger_kernel_alias

    liger_kernel_alias.install()
    trainer = transformers.Trainer(model, TrainingArguments(use_liger_kernel=True, ...), ...)

It is for tools that ask for upstream's package by name: Hugging Face's Trainer, TRL, verl, OpenRLHF, LLaMA-Factory and
ms-swift. What they import from it is here, and no more; any other name is an ImportError. Install it before the tool is
imported: some look for the package once, when they are imported.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

VERSION = "0.8.5"
"""The version of liger-kernel whose names these are; TRL asks for 0.8.2 or later."""

_PACKAGE = "liger_kernel"
_ADAPTED = "liger_torch.integrations.upstream"

_LAYERS = {
    "cross_entropy": "LigerCrossEntropyLoss",
    "fused_add_rms_norm": "LigerFusedAddRMSNorm",
    "fused_linear_cross_entropy": "LigerFusedLinearCrossEntropyLoss",
    "fused_linear_jsd": "LigerFusedLinearJSD",
    "geglu": "LigerGEGLUMLP",
    "group_norm": "LigerGroupNorm",
    "jsd": "LigerJSD",
    "kl_div": "LigerKLDIVLoss",
    "layer_norm": "LigerLayerNorm",
    "llama4_rope": "liger_llama4_text_rotary_pos_emb liger_llama4_vision_rotary_pos_emb",
    "qwen2vl_mrope": "liger_multimodal_rotary_pos_emb",
    "relu_squared": "LigerReLUSquared",
    "rms_norm": "LigerRMSNorm",
    "rope": "liger_rotary_pos_emb",
    "softmax": "LigerSoftmax",
    "sparsemax": "LigerSparsemax",
    "swiglu": "LigerBlockSparseTop2MLP LigerExperts LigerFalconH1SwiGLUMLP LigerPhi3SwiGLUMLP LigerQwen3MoeSwiGLUMLP "
    "LigerSwiGLUMLP",
    "tvd": "LigerTVDLoss",
}
"""Modules of `liger_kernel.transformers`, and what they have of the names of `liger_torch`."""


@dataclasses.dataclass(frozen=True)
class _Source:
    """A module of ours, and which of its names are meant; None for all of its `__all__`."""

    module: str
    names: tuple[str, ...] | None = None

    def public(self) -> Iterable[str]:
        """The names that it has."""
        return importlib.import_module(self.module).__all__ if self.names is None else self.names


def _sources() -> dict[str, tuple[_Source, ...]]:
    layers = {name: _Source("liger_torch", tuple(names.split())) for name, names in _LAYERS.items()}
    auto = _Source("liger_torch.hf", ("AutoLigerKernelForCausalLM",))
    patching = _Source(_ADAPTED)
    return {
        "": (),
        "chunked_loss": (_Source("liger_torch.chunked_loss"),),
        "ops": (_Source(_ADAPTED, ("LigerFusedLinearScaledCrossEntropyFunction",)),),
        "transformers": (auto, *layers.values(), patching),
        "transformers.auto_model": (auto,),
        "transformers.functional": (_Source("liger_torch.functional"),),
        "transformers.model": (),
        "transformers.model.loss_utils": (_Source(_ADAPTED, ("LigerForCausalLMLoss",)),),
        "transformers.monkey_patch": (patching,),
        **{f"transformers.{name}": (source,) for name, source in layers.items()},
    }


MODULES = {f"{_PACKAGE}.{name}".rstrip("."): sources for name, sources in _sources().items()}
"""The modules of the alias, and where their names come from. They are looked up when they are asked for."""


def install() -> Alias:
    """Let `import liger_kernel` find this package, in this process.

    Returns:
        The alias, whose `remove()` ends that; the same one if it is installed already.

    Raises:
        RuntimeError: the real liger-kernel is installed.
    """
    global _installed
    if _installed is None:
        if _exists(_PACKAGE):
            raise RuntimeError(
                "liger_kernel is installed, and an alias of that name would hide it; uninstall liger-kernel, or leave "
                "the alias out."
            )
        _installed = Alias()
    return _installed


class Alias:
    """The alias; made by `install`. Models that were patched through it stay patched when it is removed."""

    def __init__(self) -> None:
        self._finder = _Finder()
        sys.meta_path.append(self._finder)
        self._restore = _look_again(True)

    def remove(self) -> None:
        """Let `import liger_kernel` fail again; does nothing the second time."""
        global _installed
        if _installed is not self:
            return
        _installed = None
        sys.meta_path.remove(self._finder)
        for name in MODULES:
            sys.modules.pop(name, None)
        self._restore()


_installed: Alias | None = None


def _exists(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _look_again(available: bool) -> Callable[[], None]:
    """Let transformers, if it has been imported, look for the package again; returns what undoes that."""
    utils: Any = sys.modules.get("transformers.utils.import_utils")
    forget = getattr(getattr(utils, "is_liger_kernel_available", None), "cache_clear", lambda: None)
    forget()
    # transformers 4 has looked when it was imported.
    flag = getattr(utils, "_liger_kernel_available", None)
    if flag is not None:
        utils._liger_kernel_available = available

    def restore() -> None:
        forget()
        if flag is not None:
            utils._liger_kernel_available = flag

    return restore


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of `MODULES`, and the version under the name of upstream's distribution."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MODULES:
            return None
        is_package = any(name.startswith(f"{fullname}.") for name in MODULES)
        # With an origin, a failing `from ... import` says where the module is from.
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=__file__, is_package=is_package)
        spec.has_location = True
        return spec

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__
        module.__doc__ = f"{name}, as far as {__package__}.{Path(__file__).stem} has it."
        if name == _PACKAGE:
            module.__version__ = VERSION  # type: ignore[attr-defined]
        module.__getattr__ = lambda attribute: _look_up(name, attribute)  # type: ignore[method-assign]
        module.__dir__ = lambda: sorted({*vars(module), *_public(name)})  # type: ignore[method-assign]

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context
    ) -> Iterable[importlib.metadata.Distribution]:
        """See `importlib.metadata.DistributionFinder`."""
        if context.name is None or context.name.lower().replace("_", "-") == "liger-kernel":
            yield _Distribution()


def _public(module: str) -> list[str]:
    return [name for source in MODULES[module] for name in source.public()]


def _look_up(module: str, name: str) -> Any:
    if name == "__all__":
        return _public(module)
    for source in () if name.startswith("__") else MODULES[module]:
        if name in source.public():
            return getattr(importlib.import_module(source.module), name)
    if f"{module}.{name}" in MODULES:
        return importlib.import_module(f"{module}.{name}")
    raise AttributeError(
        f"module {module!r}, which is an alias of {_PACKAGE} by {__name__}, has no {name!r}."
    )


class _Distribution(importlib.metadata.Distribution):
    """What `importlib.metadata` says of liger-kernel."""

    def read_text(self, filename: str) -> str | None:
        return {
            "METADATA": f"Metadata-Version: 2.1\nName: liger-kernel\nVersion: {VERSION}\n",
            "top_level.txt": f"{_PACKAGE}\n",
        }.get(filename)

    def locate_file(self, path: Any) -> Any:
        return Path(__file__).parent / path
