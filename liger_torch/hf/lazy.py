"""Logits that are not computed unless something other than a cross entropy asks for them.

An output layer may return `LazyLogits` in the place of its logits. They record what is done to them where the fused
loss can follow it (a cast, a slice of the tokens, a view of them as rows, a factor, a softcap), and a cross entropy of
them is computed from the hidden states. Everything else, known to this file or not, gets the real logits: the output
layer is called, and what was recorded is done to its result, the same calls in the same order. Since that may be in
place, all of one forward pass become real together, before anything happens to one of them.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from liger_torch.autograd import autocasting
from liger_torch.hf.hooks import gathers


class Source(Protocol):
    """Where lazy logits come from."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the output layer returns."""
        ...

    def loss(
        self, logits: LazyLogits, target: torch.Tensor, weight: torch.Tensor | None, **options: Any
    ) -> torch.Tensor:
        """The cross entropy of rows of logits, with the options that torch's own takes."""
        ...


class Family:
    """The lazy logits of one forward pass.

    Attributes:
        source: computes them, or the loss in their place.
        used_by: the name of what has asked for the real ones; empty as long as nothing has.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.used_by = source, ""
        self._members: list[weakref.ref[LazyLogits]] = []

    def add(self, member: LazyLogits) -> None:
        """Let it become real with the others."""
        self._members.append(weakref.ref(member))

    def compute(self, name: str) -> None:
        """Compute all that exist; a parent comes before what was made of it."""
        self.used_by = self.used_by or name
        members, self._members = self._members, []
        for reference in members:
            member = reference()
            if member is not None:
                member.computed()


class LazyLogits(torch.Tensor):
    """Logits (..., vocab) in the place of which there are hidden states (..., hidden).

    Attributes:
        hidden: those of the same tokens.
        factor: of the output layer's result.
        softcap: the factor of its tanh; None without one.
    """

    hidden: torch.Tensor
    factor: float
    softcap: float | None
    _family: Family
    _origin: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
    _value: torch.Tensor | None
    _context: _Context

    @staticmethod
    def __new__(
        cls,
        family: Family,
        hidden: torch.Tensor,
        vocab_size: int,
        dtype: torch.dtype,
        requires_grad: bool,
    ) -> LazyLogits:
        """The output layer's, before anything is done to them."""
        self: LazyLogits = torch.Tensor._make_wrapper_subclass(
            cls,
            (*hidden.shape[:-1], vocab_size),
            dtype=dtype,
            device=hidden.device,
            requires_grad=requires_grad,
        )
        if requires_grad:
            with torch._C.DisableTorchFunctionSubclass():
                self.register_hook(_refuse_gradient)
        self.hidden, self.factor, self.softcap = hidden, 1.0, None
        self._family, self._origin, self._value = family, (family.source.logits, (hidden,), {}), None
        self._context = _Context(hidden.device.type)
        family.add(self)
        return self

    def computed(self) -> torch.Tensor:
        """The logits, computed the first time."""
        if self._value is None:
            function, args, kwargs = self._origin
            with self._context():
                self._value = function(*(_computed(arg) for arg in args), **kwargs)
        return self._value

    @property
    def scale(self) -> float:
        """The factor of logits that are softcap * tanh(scale * logits / softcap)."""
        return self.factor if self.softcap is None else self.factor * self.softcap

    @property
    def is_computed(self) -> bool:
        """Whether they have been computed."""
        return self._value is not None

    @property
    def may_be_followed(self) -> bool:
        """Not with gradients switched on or off since: a loss of what was cut off must not go back through it."""
        return self._value is None and self._context.gradients == torch.is_grad_enabled()

    def _then(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        hidden: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
        factor: float = 1.0,
        tanh: bool = False,
    ) -> LazyLogits:
        """What a call makes of them."""
        made = LazyLogits(
            self._family,
            self.hidden if hidden is None else hidden,
            self.shape[-1],
            dtype or self.dtype,
            self.requires_grad,
        )
        made.factor, made.softcap = self.factor, 1.0 if tanh else self.softcap
        if made.softcap is None:
            made.factor *= factor
        else:
            made.softcap *= factor
        made._origin = function, args, kwargs
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record the call, or do it to the real logits."""
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        lazy = args[0] if args else None
        if isinstance(lazy, LazyLogits) and lazy.may_be_followed:
            follow = _FOLLOWED.get(func)
            found = None if follow is None else follow(lazy, func, args, kwargs)
            if found is not None:
                return found
        for each in pytree.tree_leaves((args, kwargs)):
            if isinstance(each, LazyLogits):
                each._family.compute(getattr(func, "__name__", str(func)))
        return func(*pytree.tree_map(_computed, args), **pytree.tree_map(_computed, kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Below autograd it is too late: computed here, the logits would have no gradient."""
        raise RuntimeError(f"{func} was given logits that are not computed. {_HELP}")


_HELP = (
    "Pass skip_logits=False to the model, or patch it with fused_linear_cross_entropy=False, and please report the "
    "model."
)


def _refuse_gradient(gradient: torch.Tensor) -> None:
    raise RuntimeError(f"An autograd function was given logits that were not computed. {_HELP}")


def _computed(value: Any) -> Any:
    return value.computed() if isinstance(value, LazyLogits) else value


class _Context:
    """What a call depends on beside its arguments, so that it can be made up for later."""

    def __init__(self, device: str) -> None:
        self.gradients, self.device = torch.is_grad_enabled(), device
        self.autocast = autocasting(device)
        self.dtype = torch.get_autocast_dtype(device) if self.autocast else None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        autocast: Any = contextlib.nullcontext()
        if self.device != "meta":
            autocast = torch.autocast(self.device, self.dtype, enabled=self.autocast)
        with torch.set_grad_enabled(self.gradients), autocast:
            yield


# ---- what can be followed; each returns None where it cannot be


def _named(*names: str) -> list[Any]:
    """The methods of Tensor and functions of torch that have these names."""
    return [getattr(owner, name) for name in names for owner in (torch.Tensor, torch) if hasattr(owner, name)]


_METADATA = {
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "is_cuda", "is_meta", "layout", "requires_grad", "_base")
} | set(_named("size", "dim", "numel", "is_floating_point", "__len__", "get_device"))


def _cast(lazy: LazyLogits, func: Any, args: Any, kwargs: Any) -> LazyLogits | None:
    """`.float()`, `.to(dtype)`, `.to(device)`, `.contiguous()`; the loss is computed in float32 whatever the dtype."""
    dtype = torch.float32 if func is torch.Tensor.float else lazy.dtype
    for value in (*args[1:], *kwargs.values()):
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, torch.Tensor):
            if value.device != lazy.device:
                return None
            dtype = value.dtype
        elif (isinstance(value, str | torch.device) and torch.device(value) != lazy.device) or type(
            value
        ) is int:
            return None
    if not dtype.is_floating_point or (dtype == torch.float64 and lazy.hidden.dtype != torch.float64):
        return None
    return lazy._then(func, args, kwargs, dtype=dtype)


def _times(lazy: LazyLogits, func: Any, args: Any, kwargs: Any) -> LazyLogits | None:
    number = _factor(args, kwargs)
    return lazy._then(func, args, {}, factor=number) if number > 0 else None


def _over(lazy: LazyLogits, func: Any, args: Any, kwargs: Any) -> LazyLogits | None:
    number = _factor(args, kwargs)
    return lazy._then(func, args, {}, factor=1 / number) if number > 0 else None


def _factor(args: Any, kwargs: Any) -> float:
    """The one number that follows; 0 for anything else."""
    return args[1] if len(args) == 2 and not kwargs and type(args[1]) in (int, float) else 0.0


def _tanh(lazy: LazyLogits, func: Any, args: Any, kwargs: Any) -> LazyLogits | None:
    """c * tanh(z / c), whose last factor has not come yet."""
    return None if kwargs or lazy.softcap is not None else lazy._then(func, args, {}, tanh=True)


def _view(lazy: LazyLogits, func: Any, args: Any, kwargs: Any) -> LazyLogits | None:
    """Other axes for the tokens; the vocabulary stays the last one."""
    shape = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
    if kwargs or not shape or not all(isinstance(size, int) for size in shape):
        return None
    *lead, last = shape
    n_tokens = lazy.hidden.shape[:-1].numel()
    if last != lazy.shape[-1] and (last != -1 or torch.Size(lead).numel() != n_tokens):
        return None
    return lazy._then(func, args, {}, hidden=lazy.hidden.reshape(*lead, lazy.hidden.shape[-1]))


def _flatten(lazy: LazyLogits, func: Any, args: Any, kwargs: Any) -> LazyLogits | None:
    """Axes of the tokens made one."""
    given = {**dict(zip(("start_dim", "end_dim"), args[1:], strict=False)), **kwargs}
    start, end = given.pop("start_dim", 0), given.pop("end_dim", -1)
    if given or type(start) is not int or type(end) is not int or end % lazy.ndim == lazy.ndim - 1:
        return None
    return lazy._then(func, args, kwargs, hidden=lazy.hidden.flatten(start, end))


def _index(lazy: LazyLogits, func: Any, args: Any, kwargs: Any) -> LazyLogits | None:
    """Some of the tokens: slices, integers, or one mask or list of indices."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if len(index) == 1 and isinstance(index[0], torch.Tensor):
        taken = {torch.bool: index[0].ndim, torch.int64: 1}.get(index[0].dtype, lazy.ndim)
        return lazy._then(func, args, {}, hidden=lazy.hidden[index]) if taken < lazy.ndim else None
    if not all(each is Ellipsis or type(each) in (slice, int) for each in index):
        return None
    if Ellipsis in index:
        at = index.index(Ellipsis)
        missing = lazy.ndim - (len(index) - 1)
        index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
    if len(index) > lazy.ndim or Ellipsis in index:
        return None
    if len(index) == lazy.ndim:
        index, last = index[:-1], index[-1]
        vocab_size = lazy.shape[-1]
        if not isinstance(last, slice) or last.indices(vocab_size) != (0, vocab_size, 1):
            return None
    return lazy._then(func, args, {}, hidden=lazy.hidden[index])


def _hook(lazy: LazyLogits, func: Any, args: Any, kwargs: Any) -> RemovableHandle | None:
    """FSDP's, by which it has a module's weight in the backward pass; the call that computes the loss gets its own."""
    return RemovableHandle(OrderedDict()) if gathers(args[1]) else None


def _cross_entropy(lazy: LazyLogits, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    return _loss(lazy, *args[1:], **kwargs)


def _loss(
    lazy: LazyLogits,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor | None:
    """As `torch.nn.functional.cross_entropy`."""
    if size_average is not None or reduce is not None:
        return None
    # In rows: of probabilities, of classes in the middle and of a single row the shapes are others.
    if target.shape != lazy.shape[:-1] or target.ndim != 1:
        return None
    return lazy._family.source.loss(
        lazy,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


_FOLLOWED: dict[Any, Callable[[LazyLogits, Any, Any, Any], Any]] = {
    F.cross_entropy: _cross_entropy,
    torch.Tensor.__getitem__: _index,
    torch.Tensor.register_hook: _hook,
    **dict.fromkeys(_named("float", "to", "contiguous"), _cast),
    **dict.fromkeys(_named("mul", "multiply"), _times),
    **dict.fromkeys(_named("div", "true_divide"), _over),
    **dict.fromkeys(_named("tanh"), _tanh),
    **dict.fromkeys(_named("view", "reshape"), _view),
    **dict.fromkeys(_named("flatten"), _flatten),
}
