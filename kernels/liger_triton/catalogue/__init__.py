"""Every kernel at the shapes of real models, for the checks that need no GPU and for `python -m liger aot`.

An op family contributes one function that yields calls: shapes, options and the gradients asked for. What such a
call launches is found by running the op's own algorithm on arrays without memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from liger.device import Device
from liger.launch import Launch
from liger_triton.catalogue import (
    activations,
    divergences,
    embedding,
    gates,
    logprobs,
    losses,
    norms,
    position,
    quantised,
)
from liger_triton.catalogue.call import Call, Entry

__all__ = ["Call", "Entry", "catalogue", "find"]

FAMILIES: tuple[Callable[[], Iterator[Call]], ...] = (
    norms.rms_norms,
    norms.layer_norms,
    norms.group_norms,
    position.ropes,
    position.ropes_at_positions,
    position.mropes,
    position.qk_norm_ropes,
    gates.swiglus,
    gates.geglus,
    gates.relu_squareds,
    activations.softmaxes,
    embedding.embeddings,
    quantised.int2_matmuls,
    losses.cross_entropies,
    losses.linear_cross_entropies,
    logprobs.token_logprobs,
    logprobs.linear_logprobs_calls,
    divergences.divergences,
    divergences.linear_jsds,
)


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
