"""Every geometry of the shipped tables compiles for its architecture without spills."""

from __future__ import annotations

import pytest

from liger import geometry
from liger.aot import compile_launch
from liger.device import PRESETS, Device
from liger_triton.catalogue.tunables import Tunable, tunables

CASES = [
    (device, tunable)
    for name, device in PRESETS.items()
    if geometry.table(name)
    for tunable in tunables(device)
    if tunable.chosen(device) != tunable.rule
]


@pytest.mark.parametrize(("device", "tunable"), CASES, ids=[tunable.title for _, tunable in CASES])
def test_the_table_compiles_without_spills(device: Device, tunable: Tunable) -> None:
    chosen = tunable.chosen(device)
    for launch in (*tunable.timed(chosen, 8191), *tunable.variants(chosen, 8191)):
        report = compile_launch(launch, device)
        assert report.spill_bytes == 0
        assert report.shared_bytes <= device.shared_bytes
