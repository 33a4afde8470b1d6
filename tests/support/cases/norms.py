"""RMSNorm, with and without a residual."""

from __future__ import annotations

import dataclasses

from cases.case import Case, normal, together
from liger_triton import rms_norm


def cases() -> list[Case]:
    cases = []
    for shape in ((1, 8), (3, 5, 33), (7, 256), (2, 1000), (0, 16), (2, 0, 16)):
        h = shape[-1]
        cases.append(
            Case(
                f"rms_norm-{shape}",
                rms_norm.RMS_NORM,
                rms_norm.Options(),
                together(normal(*shape), normal(h)),
            )
        )
    wide = 20_001
    for casting, offset in (("llama", 0.0), ("gemma", 1.0), ("none", 0.0)):
        options = rms_norm.Options(eps=1e-5, offset=offset, casting=casting)
        for n, h in ((9, 100), (3, wide)):
            name = f"{casting}-{offset}-{h}"
            cases += [
                Case(f"rms_norm-{name}", rms_norm.RMS_NORM, options, together(normal(n, h), normal(h))),
                Case(
                    f"add_rms_norm-{name}",
                    rms_norm.ADD_RMS_NORM,
                    options,
                    together(normal(n, h), normal(n, h), normal(h)),
                ),
            ]
    cases += [
        Case("rms_norm-no-weight", rms_norm.RMS_NORM, rms_norm.Options(), together(normal(9, 100), None)),
        Case(
            "add_rms_norm-no-weight",
            rms_norm.ADD_RMS_NORM,
            rms_norm.Options(),
            together(normal(9, 100), normal(9, 100), None),
        ),
    ]
    # Before and after the weight, and of x + residual.
    roundings = {"rms_norm": 2, "add_rms_norm": 3}
    return [dataclasses.replace(case, roundings=roundings[case.op.name]) for case in cases]
