"""The commands of `python -m benchmarks`, and how `all` calls each of them."""

from __future__ import annotations

import dataclasses

from benchmarks.groups import GROUPS
from benchmarks.models.parts import PARTS
from benchmarks.offline import SECTIONS


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        text: what it does, for --help.
        module: what implements it, with `arguments(parser)` and `run(options) -> exit status`; by default
            benchmarks.NAME.
        parts: the arguments with which `all` calls it, a process for each; none where it is no part of `all`.
        gpu: whether it needs one; without, `all` says that it was left out.
        seconds: after which `all` ends a part.
    """

    text: str
    module: str = ""
    parts: tuple[tuple[str, ...], ...] = ((),)
    gpu: bool = True
    seconds: float = 600.0


# In the order in which `all` runs them; the report comes last.
COMMANDS = {
    "offline": Command(
        "what ops move and hold, without a GPU, compared with what is kept",
        parts=tuple((section,) for section in SECTIONS),
        gpu=False,
        seconds=3600.0,  # one compiles every launch for every target, by as many processes as there are cores
    ),
    "run": Command("time a group of ops beside their peers", parts=tuple((group,) for group in GROUPS)),
    "host": Command("what eager calls cost the host, beyond what autograd does"),
    "memory": Command(
        "peak memory of an op and its peers, each in a fresh process",
        parts=(
            ("linear_cross_entropy",),
            ("linear_logprobs", "linear_jsd"),
            ("dpo", "grpo", "cross_entropy 4096x"),
        ),
    ),
    "models": Command("train whole models beside their peers", parts=PARTS),
    "jax": Command(
        "time the ops on JAX beside XLA's own formulas, optax and tokamax",
        module="benchmarks.jax_side.run",
        parts=tuple(
            (*words, "--seconds", "540")  # and the entry that has been begun, of ten minutes
            for words in (
                ("norms",),
                ("losses",),
                ("linear_cross_entropy",),
                ("linear_logprobs",),
                ("gates", "position"),
                ("divergences", "tables"),
            )
        ),
    ),
    "tune": Command("the fastest geometry of launches, into the table that is shipped", parts=()),
    "aims": Command(
        "hold what the entries aim at, for the report", module="benchmarks.aimed", parts=(), gpu=False
    ),
    "merge": Command("add the rows of other folders of results", parts=(), gpu=False),
    "report": Command("tables and plots of the rows that are kept", gpu=False),
    "all": Command("every command that measures, then the report", parts=()),
}


def module_of(name: str) -> str:
    """Where a command is implemented."""
    return COMMANDS[name].module or f"benchmarks.{name}"
