"""Every kernel at the shapes of real models, for the checks that need no GPU and for `python -m liger aot`.

An op family contributes one function that yields calls: shapes, options and the gradients asked for. What such a
call launches is found by running the op's own algorithm on arrays without memory.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from liger.device import Device
from liger.launch import Launch
from liger.op import Needs, Op
from liger.plan import Planned, dense, launches
from liger_triton import cross_entropy, linear_cross_entropy, rms_norm, rope, swiglu

BF16, FP32 = "bfloat16", "float32"


class Entry(NamedTuple):
    """One launch of the catalogue.

    Attributes:
        name: CALL/KERNEL.
        launch: the launch.
        extents: for each input, the elements from its first to its last one, gaps included.
    """

    name: str
    launch: Launch
    extents: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    """An op's forward and backward pass; `needs` None: the gradients of all floating operands."""

    name: str
    op: Op
    options: Any
    operands: tuple[Planned | None, ...]
    needs: Needs | None = None

    def entries(self, device: Device) -> Iterator[Entry]:
        needs = self.needs or tuple(
            array is not None and operand.differentiable
            for operand, array in zip(self.op.operands, self.operands, strict=True)
        )
        for launch, arrays in launches(self.op, self.options, self.operands, needs, device):
            yield Entry(f"{self.name}/{launch.name}", launch, tuple(a.extent for a in arrays))


def catalogue(device: Device) -> list[Entry]:
    """All launches, each once, planned for the device."""
    entries: dict[Launch, Entry] = {}
    names: Counter[str] = Counter()
    for family in FAMILIES:
        for call in family():
            for entry in call.entries(device):
                if entry.launch not in entries:
                    names[entry.name] += 1
                    n = names[entry.name]
                    name = entry.name if n == 1 else f"{entry.name}-{n}"
                    entries[entry.launch] = entry._replace(name=name)
    return list(entries.values())


def find(name: str, device: Device) -> Entry:
    """The launch of this name.

    Raises:
        KeyError: there is none.
    """
    for entry in catalogue(device):
        if entry.name == name:
            return entry
    raise KeyError(f"The catalogue has no launch named {name!r}.")


def _rms_norms() -> Iterator[_Call]:
    # An odd number of rows: the last tile is never full.
    def call(
        name: str, n_rows: int, hidden: int, dtype: str, weight_dtype: str | None = "", **options: Any
    ) -> _Call:
        x = dense((n_rows, hidden), dtype)
        weight = None if weight_dtype is None else dense((hidden,), weight_dtype or dtype)
        return _Call(f"rms_norm-{name}", rms_norm.RMS_NORM, rms_norm.Options(**options), (x, weight))

    def add(name: str, n_rows: int, hidden: int, dtype: str) -> _Call:
        x = dense((n_rows, hidden), dtype)
        operands = (x, x, dense((hidden,), dtype))
        needs = (True, False, True)  # the two summands share one gradient
        return _Call(f"add_rms_norm-{name}", rms_norm.ADD_RMS_NORM, rms_norm.Options(), operands, needs)

    for hidden in (64, 128, 256, 512, 1000, 1001, 2048, 4096, 8192, 12288, 16384, 20000, 70000):
        yield call(f"{hidden}-bf16", max(8191, 2**25 // hidden - 1), hidden, BF16)
    for hidden in (128, 256, 512, 4096, 8192, 16384, 70000):
        yield call(f"{hidden}-fp32", max(8191, 2**25 // hidden - 1), hidden, FP32)
    yield call("4096-no-weight", 8191, 4096, BF16, None)
    yield call("4096-fp32-weight", 8191, 4096, BF16, FP32)
    yield call("4096-gemma", 8191, 4096, BF16, casting="gemma", offset=1.0)
    yield call("4096-one-row", 1, 4096, BF16)
    yield dataclasses.replace(call("4096-frozen-weight", 8191, 4096, BF16), needs=(True, False))
    yield dataclasses.replace(call("4096-frozen-input", 8191, 4096, BF16), needs=(False, True))
    yield _Call(  # a slice of a wider array
        "rms_norm-4096-strided",
        rms_norm.RMS_NORM,
        rms_norm.Options(),
        (Planned((8191, 4096), BF16, (6144, 1)), dense((4096,), BF16)),
    )
    for hidden in (4096, 8192, 16384, 20000):
        yield add(f"{hidden}-bf16", 8191, hidden, BF16)
    yield add("16384-fp32", 8191, 16384, FP32)
    yield add("4096-beyond-2**31", 2**19 + 999, 4096, BF16)
    yield add("20000-beyond-2**31", 107_500, 20000, BF16)


def _ropes() -> Iterator[_Call]:
    def call(
        name: str,
        head_dim: int,
        rotary_dim: int,
        dtype: str = BF16,
        batch: int = 4,
        seq: int = 4096,
        **options: Any,
    ) -> _Call:
        q, k = (dense((batch, seq, heads, head_dim), dtype) for heads in (32, 8))
        table = dense((1, seq, rotary_dim), dtype)
        return _Call(f"rope-{name}", rope.ROPE, rope.Options(**options), (q, k, table, table))

    for head_dim in (64, 128):
        yield call(f"{head_dim}", head_dim, head_dim)
        yield call(f"{head_dim}-interleaved", head_dim, head_dim, interleaved=True)
    yield call("128-fp32", 128, 128, FP32)
    yield call("128-partial-64", 128, 64)
    yield call("128-partial-64-interleaved", 128, 64, interleaved=True)
    yield call("80-partial-32", 80, 32)
    yield call("128-beyond-2**31", 128, 128, batch=3, seq=2**19 // 3 + 9)
    packed = 48 * 128  # q, k and v side by side, as one projection gives them
    strides = (4096 * packed, packed, 128, 1)
    table = dense((4, 4096, 128), FP32)
    yield _Call(
        "rope-128-packed",
        rope.ROPE,
        rope.Options(),
        (Planned((4, 4096, 32, 128), BF16, strides), Planned((4, 4096, 8, 128), BF16, strides), table, table),
    )
    # (batch, heads, seq, head_dim) transposed, as Hugging Face models hand it over.
    for name, batch, seq in (("transposed", 4, 4096), ("transposed-beyond-2**31", 1, 600_000)):
        q, k = (Planned((batch, seq, n, 128), BF16, (n * seq * 128, 128, seq * 128, 1)) for n in (32, 8))
        table = dense((batch, seq, 128), FP32)
        yield _Call(f"rope-128-{name}", rope.ROPE, rope.Options(), (q, k, table, table))


def _swiglus() -> Iterator[_Call]:
    def call(name: str, n_rows: int, width: int, dtype: str = BF16, packed: bool = False) -> _Call:
        gate = dense((n_rows, 2 * width if packed else width), dtype)
        return _Call(f"swiglu-{name}", swiglu.SWIGLU, swiglu.Options(), (gate, None if packed else gate))

    for width in (64, 1001, 11008, 14336):
        yield call(f"{width}-bf16", 8191, width)
    yield call("14336-fp32", 8191, 14336, FP32)
    yield call("14336-packed", 8191, 14336, packed=True)
    yield call("1001-packed", 8191, 1001, packed=True)
    yield call("14336-beyond-2**31", 149_900, 14336)
    yield call("14336-packed-beyond-2**31", 149_900, 14336, packed=True)
    yield dataclasses.replace(call("14336-frozen-up", 8191, 14336), needs=(True, False))


_EVERYTHING: dict[str, Any] = {
    "label_smoothing": 0.1,
    "z_loss": 1e-4,
    "softcap": 30.0,
    "scale": 0.5,
    "token_scaling": True,
    "return_accuracy": True,
    "return_predicted": True,
}


def _cross_entropies() -> Iterator[_Call]:
    def call(
        name: str, n_rows: int, vocab: int, dtype: str = BF16, labels: str = "int64", weighted: bool = False,
        **options: Any,
    ) -> _Call:  # fmt: skip
        operands = (
            dense((n_rows, vocab), dtype),
            dense((n_rows,), labels),
            dense((vocab,), FP32) if weighted else None,
        )
        return _Call(
            f"cross_entropy-{name}", cross_entropy.CROSS_ENTROPY, cross_entropy.Options(**options), operands
        )

    for vocab in (1000, 32000, 128256, 128257, 256000):
        yield call(f"{vocab}-bf16", 4096, vocab)
    yield call("128256-fp32", 4096, 128256, FP32)
    yield call("128256-everything", 4096, 128256, weighted=True, return_z_loss=True, **_EVERYTHING)
    yield call("128256-fp32-everything", 4096, 128256, FP32, weighted=True, **_EVERYTHING)
    yield call("128256-none", 4096, 128256, labels="int32", reduction="none", softcap=30.0)
    yield call("128256-beyond-2**31", 16_800, 128256)


def _linear_cross_entropies() -> Iterator[_Call]:
    def call(
        name: str, vocab: int, n_rows: int = 8192, dtype: str = BF16, biased: bool = False, hidden: int = 4096,
        **options: Any,
    ) -> _Call:  # fmt: skip
        operands = (
            dense((n_rows, hidden), dtype),
            dense((vocab, hidden), dtype),
            dense((n_rows,), "int64"),
            dense((vocab,), dtype) if biased else None,
            dense((vocab,), FP32) if biased else None,
            None,
            None,
        )
        return _Call(
            f"linear_cross_entropy-{name}",
            linear_cross_entropy.LINEAR_CROSS_ENTROPY,
            linear_cross_entropy.Options(**options),
            operands,
        )

    for vocab in (32000, 128256, 128257, 256000):
        yield call(f"{vocab}-bf16", vocab)
    yield call("128256-fp32", 128256, dtype=FP32)
    yield call("128256-everything", 128256, biased=True, **_EVERYTHING)
    yield call("128256-none", 128256, reduction="none")
    yield call(
        "128256-none-everything", 128256, biased=True, reduction="none", return_z_loss=True, **_EVERYTHING
    )
    yield call("32000-beyond-2**31", 32000, n_rows=2**19 + 9)
    yield call("128256-one-chunk-beyond-2**31", 128256, n_rows=16_800, chunk_bytes=2**33, reduction="none")


FAMILIES: tuple[Callable[[], Iterator[_Call]], ...] = (
    _rms_norms,
    _ropes,
    _swiglus,
    _cross_entropies,
    _linear_cross_entropies,
)
