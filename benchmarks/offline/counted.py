"""Bytes that small calls move forward and backward, counted in Triton's interpreter, over the formula's least.

The cases are those of tests/interpreter/test_traffic.py, one for every form of every op, in float32. Products of
matrices are not counted.
"""

from __future__ import annotations

import json
import sys

from benchmarks.offline.section import Figures, Line, Section, Words, elsewhere, growth
from benchmarks.options import asked


def measure(words: Words) -> Figures:
    """Bytes by the case's name, counted in a process of its own: Triton is imported as an interpreter."""
    environment = {
        "TRITON_INTERPRET": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore::RuntimeWarning",  # of numpy, about masked elements
    }
    return elsewhere("benchmarks.offline.counted", words, environment)


def interpreted(words: Words) -> Figures:
    """Count in this process."""
    from counted import HELD, RUNS, count, figures

    runs = [(f"{case.name}-{dtype}", case, dtype) for case, dtype in RUNS]
    return {
        name: figures(case, dtype, count(case, dtype))
        for name, case, dtype in runs
        if name in HELD and asked(name, words)
    }


def show(name: str, line: Line) -> str:
    """KB, and as a multiple of the least."""
    share = "" if name.startswith("linear_") else f"{line['counted'] / line['least']:5.2f}"
    return f"{name:64s} {line['counted'] / 1e3:10.1f} KB {share}"


SECTION = Section(
    name="counted",
    title="Bytes of small calls, counted in the interpreter, and as a multiple of the least",
    measure=measure,
    complain=growth("counted"),
    show=show,
)

if __name__ == "__main__":
    print(json.dumps(interpreted(sys.argv[1:])))
