"""How many kernels a compiled XLA program runs, counted in its text."""

from __future__ import annotations

import re

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%?[\w.-]+ = (?:\(.*?\)|\S+) ([\w-]+)\(")

NOTHING = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
"""Instructions that launch nothing. The second halves of asynchronous ones are left out too."""


def count(text: str) -> int:
    """Kernels and copies, those of a loop as often as it runs where XLA knows how often.

    Raises:
        ValueError: the text is not that of a compiled program.
    """
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = found[2]
            computations[current] = []
            if found[1]:
                entry = current
        elif line.startswith("}"):
            current = ""
        elif current:
            computations[current].append(line)
    if not entry:
        raise ValueError("The text has no ENTRY computation; pass jax.stages.Compiled.as_text().")

    def called(line: str, *attributes: str) -> list[str]:
        return [name for a in attributes for name in re.findall(rf"\b{a}=%?([\w.-]+)", line)]

    def total(name: str) -> int:
        kernels = 0
        for line in computations[name]:
            found = _INSTRUCTION.match(line)
            if found is None or found[1] in NOTHING or found[1].endswith("-done"):
                continue
            if found[1] == "while":
                times = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                kernels += int(times[1] if times else 1) * sum(map(total, called(line, "body", "condition")))
            elif found[1] == "call":
                kernels += sum(map(total, called(line, "to_apply")))
            elif found[1] == "conditional":
                branches = called(line, "true_computation", "false_computation")
                for group in re.findall(r"branch_computations=\{([^}]*)\}", line):
                    branches += re.findall(r"%?([\w.-]+)", group)
                kernels += max(map(total, branches))
            else:
                kernels += 1
        return kernels

    return total(entry)
