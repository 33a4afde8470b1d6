"""Bytes that every call of the catalogue moves, planned for an H200, beside the least that any implementation moves.

That formulas and launches agree with what kernels do is tested in the interpreter. Matrix products are not counted. An
op that looks up rows of a table, or is asked for few of its gradients, may move less than that least, which counts
arrays whole.
"""

from __future__ import annotations

from benchmarks.offline.section import Figures, Line, Section, Words, growth
from benchmarks.options import asked
from liger.device import H200
from liger.launch import Spec
from liger.plan import least_bytes, passes
from liger_triton.catalogue import FAMILIES


def measure(words: Words) -> Figures:
    """Launches, bytes forward and backward, and the least forward and backward."""
    found: Figures = {}
    for call in (call for family in FAMILIES for call in family() if asked(call.name, words)):
        forward, backward = passes(
            call.op, call.options, call.operands, call.asked, H200, call.constant, call.parts
        )
        specs = [None if a is None else Spec(a.shape, a.dtype) for a in call.operands]
        least = least_bytes(call.op, call.options, specs, call.asked)
        found[call.name] = {
            "launches": len(forward) + len(backward),
            "forward": sum(launch.traffic for launch, _ in forward),
            "backward": sum(launch.traffic for launch, _ in backward),
            "least_forward": least[0],
            "least_backward": least[1],
        }
    return found


def _of(name: str, moved: int, least: int) -> str:
    share = f"{moved / least:.2f}" if least and not name.startswith("linear_") else ""
    return f"{moved / 1e6:11.1f} MB {share:>5s}"


def show(name: str, line: Line) -> str:
    """Launches; MB forward and backward, and as multiples of the least."""
    forward, backward = (_of(name, line[side], line[f"least_{side}"]) for side in ("forward", "backward"))
    return f"{name:52s} {line['launches']:3d} launches {forward} {backward}"


SECTION = Section(
    name="traffic",
    title="Bytes that kernels move forward and backward, and as a multiple of the least",
    measure=measure,
    complain=growth("launches", "forward", "backward"),
    show=show,
)
