"""One case in a process of its own: `python -m benchmarks.models.worker CASE`.

It imports what it needs, waits for a line on its standard input, and then takes the device. The result is the last line
that it prints.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import traceback

from benchmarks.models.case import Case, Result, ran_out_of_memory
from benchmarks.models.pool import MARK
from benchmarks.nvml import Monitor


def import_all(case: Case) -> None:
    """What takes long and needs no device."""
    if case.is_flax:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        importlib.import_module("benchmarks.models.flax_decoder")
        return
    if case.what == "longest":  # whether a context fits must not depend on how the free memory is divided
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    importlib.import_module("benchmarks.models.step")
    importlib.import_module("benchmarks.models.arms").prepare(case)


def result_of(case: Case) -> Result:
    """What comes of a case; to run out of memory or to fail is a result as well."""
    try:
        if case.is_flax:
            from benchmarks.models import flax_decoder

            return flax_decoder.curve(case) if case.what == "curve" else flax_decoder.measured(case)
        from benchmarks.models import longest, step

        step.limit_memory(case)
        run = {"step": step.measured, "curve": step.curve, "longest": longest.measured}[case.what]
        return run(case)
    except Exception as failure:
        traceback.print_exc()
        return _failed(case, failure)


def _note(failure: Exception) -> str:
    if ran_out_of_memory(failure):
        return "out of memory"
    return f"failed: {type(failure).__name__}: {str(failure)[:200]}"


def _failed(case: Case, failure: Exception) -> Result:
    if case.is_flax:
        return Result(case, note=_note(failure))
    from benchmarks.models import step

    peak, reserved = step.peaks()
    return Result(case, peak_gb=peak, reserved_gb=reserved, note=_note(failure))


def machine() -> dict[str, object]:
    """The device, and what there is to say of it."""
    import torch

    if not torch.cuda.is_available():
        return {"device": "CPU", "hardware": {}}
    memory = torch.cuda.get_device_properties(0).total_memory
    hardware = {"memory": f"{memory / 1e9:.1f} GB", **Monitor().hardware()}
    return {"device": torch.cuda.get_device_name(), "hardware": hardware}


def main() -> None:
    """Run the case of the command line."""
    case = Case(**json.loads(sys.argv[1]))
    import_all(case)
    if not sys.stdin.readline():  # nobody wants it any more
        return
    result = result_of(case)
    print(f"{MARK}{json.dumps({'machine': machine(), 'result': dataclasses.asdict(result)})}", flush=True)


if __name__ == "__main__":
    main()
