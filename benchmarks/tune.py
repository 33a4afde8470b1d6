"""`python -m benchmarks tune`: the fastest geometry of launches on the GPU at hand, for the table that is shipped.

Of every launch of `liger_triton.catalogue.tunables`, all geometries are compiled, those that spill or whose results
differ from the rule's are left out, and the others are timed in turn on the device. One that beats the rule by more
than `--margin` in every repetition enters `liger/geometry/ARCHITECTURE.json`; otherwise the rule stays, and an older
entry is removed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.turns import rounds
from liger import geometry
from liger.aot import compile_launch
from liger.device import Device
from liger.launch import Launch, Spec
from liger_torch.backend import DTYPES, backend_for
from liger_triton.catalogue.tunables import Tunable, tunables

ELEMENTS = 2**25
"""Of a matrix: 64 MiB in 16 bits, so that no call finds its operands in the cache."""

REPETITIONS = 3
SAMPLES = 9
"""Calls per repetition."""


def _device() -> Device | None:
    if not torch.cuda.is_available():
        return None
    return backend_for(torch.device("cuda", 0)).device


def _compile(device: Device, index: int, layout: Any) -> str | None:
    """Compile, into Triton's disk cache, what a geometry leads to; what is wrong with it."""
    from triton.runtime.jit import MockTensor

    def array(spec: Spec) -> MockTensor:
        return MockTensor(DTYPES[spec.dtype])

    tunable = tunables(device)[index]
    try:
        for launch in tunable.timed(layout, ELEMENTS // tunable.size):
            launch.kernel.warmup(
                *map(array, launch.inputs),
                *launch.integers,
                *map(array, launch.outputs),
                grid=launch.grid,
                **dict(launch.constants),
                num_warps=launch.num_warps,
                num_stages=launch.num_stages,
                enable_fp_fusion=True,
            )
        for launch in tunable.variants(layout, ELEMENTS // tunable.size):
            if spilled := compile_launch(launch, device).spill_bytes:
                return f"a variant spills {spilled} bytes"
    except Exception as failure:  # one geometry that does not compile is no reason to lose the others
        return f"{type(failure).__name__}: {failure}"
    return None


class Candidate:
    """One geometry, ready to run: a launch whose partial sums the launch after it adds up, if there is one."""

    def __init__(self, launches: Sequence[Launch], inputs: Sequence[torch.Tensor]) -> None:
        self.launches = launches
        self.inputs = inputs
        self.spills = 0

    def __call__(self) -> list[torch.Tensor]:
        """The results, partial sums excepted."""
        results: list[torch.Tensor] = []
        given = self.inputs
        for i, launch in enumerate(self.launches):
            outputs = [torch.empty(s.shape, dtype=DTYPES[s.dtype], device="cuda") for s in launch.outputs]
            compiled = launch.kernel[launch.grid](
                *given,
                *launch.integers,
                *outputs,
                **dict(launch.constants),
                num_warps=launch.num_warps,
                num_stages=launch.num_stages,
                enable_fp_fusion=True,
            )
            self.spills += compiled.n_spills
            following = self.launches[i + 1 :]
            partial = [
                o
                for o in outputs
                if following and tuple(o.shape) == following[0].inputs[0].shape and o.numel()
            ]
            results += [o for o in outputs if o.numel() and all(o is not p for p in partial)]
            if partial:
                given = (partial[0], partial[-1])
        return results


def _draw(spec: Spec) -> torch.Tensor:
    return torch.randn(spec.shape, device="cuda").to(DTYPES[spec.dtype])


def agree(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Whether two geometries computed the same, up to the order of their sums."""
    for a, b in zip(found, expected, strict=True):
        a, b = a.double(), b.double()
        if not (a - b).norm() <= torch.finfo(found[0].dtype).eps * b.norm():
            return False
    return True


def microseconds(candidates: Mapping[Any, Candidate], samples: int) -> dict[Any, float]:
    """The median time on the device of each, all of them in turn, each round in another order."""
    order = rounds(dict.fromkeys(candidates, samples))
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for layout in order:
            candidates[layout]()
        torch.cuda.synchronize()
    events = [e for e in found.profiler.kineto_results.events() if e.device_type() == DeviceType.CUDA]
    durations = [d for _, d in sorted((e.start_ns(), e.duration_ns()) for e in events if e.duration_ns())]
    kernels = [len(candidates[layout].launches) for layout in order]
    assert len(durations) == sum(kernels), "the profiler lost launches"
    times: dict[Any, list[float]] = {layout: [] for layout in candidates}
    left = iter(durations)
    for layout, n in zip(order, kernels, strict=True):
        times[layout].append(sum(itertools.islice(left, n)) / 1e3)
    return {layout: sorted(values)[samples // 2] for layout, values in times.items()}


def fastest(tunable: Tunable, layouts: Sequence[Any], margin: float) -> tuple[Any | None, dict[Any, float]]:
    """The geometry that beats the rule by more than `margin` each time, if any does; and the times of all."""
    n_rows = ELEMENTS // tunable.size
    inputs = [_draw(spec) for spec in tunable.timed(tunable.rule, n_rows)[0].inputs]
    expected = Candidate(tunable.timed(tunable.rule, n_rows), inputs)()
    candidates = {}
    for layout in layouts:
        candidate = Candidate(tunable.timed(layout, n_rows), inputs)
        try:
            found = candidate()
        except Exception as failure:  # as when compiling
            print(f"  {layout}: {type(failure).__name__}: {failure}")
            continue
        if layout == tunable.rule or (candidate.spills == 0 and agree(found, expected)):
            candidates[layout] = candidate
    first = microseconds(candidates, 3)
    close = sorted(candidates, key=first.__getitem__)[:8]
    chosen = {layout: candidates[layout] for layout in dict.fromkeys([*close, tunable.rule])}
    runs = [microseconds(chosen, SAMPLES) for _ in range(REPETITIONS)]
    times = {layout: sorted(run[layout] for run in runs)[REPETITIONS // 2] for layout in chosen}
    best = min(times, key=times.__getitem__)
    wins = all(run[best] * (1 + margin) < run[tunable.rule] for run in runs)
    return (best if wins else None), times


def updated(table: geometry.Table, tunable: Tunable, best: Any | None) -> geometry.Table:
    """The table with an entry for `tunable`, or without one."""
    new = {name: {width: dict(sizes) for width, sizes in widths.items()} for name, widths in table.items()}
    sizes = new.setdefault(tunable.name, {}).setdefault(f"{8 * tunable.itemsize}-bit", {})
    sizes.pop(str(tunable.size), None)
    if best is not None:
        sizes[str(tunable.size)] = best._asdict()
    return {
        name: {
            width: dict(sorted(s.items(), key=lambda item: int(item[0]))) for width, s in widths.items() if s
        }
        for name, widths in new.items()
        if any(widths.values())
    }


def text(table: geometry.Table) -> str:
    """The table as JSON, one entry per line."""

    def block(found: Mapping[str, Any], indent: str, inner: Callable[[Any, str], str]) -> str:
        lines = ",\n".join(
            f"{indent}  {json.dumps(key)}: {inner(value, indent + '  ')}" for key, value in found.items()
        )
        return "{\n" + lines + f"\n{indent}}}"

    def entry(value: Any, indent: str) -> str:
        return json.dumps(value)

    return (
        block(table, "", lambda widths, i: block(widths, i, lambda sizes, j: block(sizes, j, entry))) + "\n"
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to tune."""
    parser.add_argument("launch", nargs="*", help="names of launches or parts of them; all by default")
    parser.add_argument(
        "--margin", type=float, default=0.02, help="share of the time by which the rule is to be beaten"
    )
    parser.add_argument("--dry", action="store_true", help="measure, and leave the table as it is")


def run(options: argparse.Namespace) -> int:
    """Tune, and write the table."""
    # Forked before this process touches the GPU; the compilers' results are found in Triton's disk cache.
    with multiprocessing.get_context("fork").Pool(max((os.cpu_count() or 2) - 1, 1)) as pool:
        device = pool.apply(_device)
        if device is None:
            raise SystemExit("benchmarks tune needs a GPU; run it where there is one.")
        chosen = [
            (index, tunable)
            for index, tunable in enumerate(tunables(device))
            if not options.launch or any(part in tunable.title for part in options.launch)
        ]
        if not chosen:
            names = sorted({t.name for t in tunables(device)})
            raise SystemExit(
                f"No launch has one of {options.launch} in its name; there are {', '.join(names)}."
            )
        work = [(device, index, layout) for index, tunable in chosen for layout in tunable.candidates]
        problems = pool.starmap(_compile, work, chunksize=1)
    usable: dict[int, list[Any]] = {index: [] for index, _ in chosen}
    for (_, index, layout), problem in zip(work, problems, strict=True):
        if problem is None:
            usable[index].append(layout)
    name = geometry.architecture(device)
    table = geometry.table(name)
    for index, tunable in chosen:
        best, times = fastest(tunable, usable[index], options.margin)
        print(
            f"{tunable.title}: rule {tuple(tunable.rule)} {times[tunable.rule]:.1f} us; kept",
            tuple(best or ()),
        )
        for layout, time in sorted(times.items(), key=lambda item: item[1]):
            print(f"  {tuple(layout)} {time:.1f} us")
        table = updated(table, tunable, best)
        if not options.dry:  # at once: what was measured is not lost if a later launch fails
            (geometry.FOLDER / f"{name}.json").write_text(text(table))
    return 0
