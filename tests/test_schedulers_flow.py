"""Flow matching: the noise levels, their shifts, and the solvers that know them, held against diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ingot.runtimes import schedulers

from .scheduler_options import ENDS
from .scheduler_oracle import STEP_RTOL, compare, fitting, having, options_of, scipy_or_stand_in

__all__ = ["scipy_or_stand_in"]  # a fixture of this file too

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOWS: list[tuple[dict[str, Any], dict[str, Any]]] = [  # options, and arguments of a run
    ({}, {}), ({"flow_shift": 3.0}, {}), ({"flow_shift": 3.0, "final_sigmas_type": "sigma_min"}, {}),
    ({"solver_order": 3, "predictor_order": 3}, {}), ({"use_dynamic_shifting": True}, {"mu": 0.9}),
    ({"prediction_type": "epsilon"}, {}), ({"prediction_type": "sample", "flow_shift": 0.5}, {}),
    ({"algorithm_type": "sde-dpmsolver++"}, {}),
]  # fmt: skip


@pytest.mark.parametrize("name", having("use_flow_sigmas"))
def test_flow_matching_agrees_with_diffusers(name: str) -> None:
    kinds = getattr(schedulers, name).choices.get("algorithm_type", ())
    for options, run in FLOWS:
        if options.get("algorithm_type", "dpmsolver++") not in (*kinds, "dpmsolver++") or set(run) - {"mu"}:
            continue
        if run and "use_dynamic_shifting" not in options_of(name):
            continue
        for steps in (1, 4, 20):
            # DEIS subtracts what the noise adds to a sample times the ratio of the alphas, 250 from the first level: 4e-5
            tolerance = 1e-4 if name == "DEISMultistepScheduler" else STEP_RTOL
            case = fitting(name, {**FLOW, **options})
            compare(name, case, steps, run=run, step_rtol=tolerance, chain_rtol=2 * tolerance)


def test_unipc_on_a_flow_takes_every_shift_that_the_flow_schedulers_take() -> None:
    given = np.linspace(1, 1 / 6, 6).tolist()
    for options, run in (
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 1.7}),
        ({"use_dynamic_shifting": True, "shift_terminal": 0.05}, {"mu": 0.6}),
        ({"flow_shift": 5.0, "shift_terminal": 0.05}, {"mu": 0.6}),
        ({"use_karras_sigmas": True}, {}),
        ({"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 50.0}, {}),
    ):
        for end in ENDS:
            compare("UniPCMultistepScheduler", {**FLOW, **options, **end}, 6, run=run)
            if not options.get("use_karras_sigmas"):
                run_of_sigmas = {**run, "sigmas": np.array(given)}
                compare("UniPCMultistepScheduler", {**FLOW, **options, **end}, None, run=run_of_sigmas)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_flow_matching_shifts_by_the_size_of_the_picture(kind: str) -> None:
    base = {"use_dynamic_shifting": True, "time_shift_type": kind}
    sigmas = np.linspace(1, 1 / 7, 7).tolist()  # FLUX gives its own
    for options in ({}, {"shift_terminal": 0.02}, {"use_karras_sigmas": True}, {"invert_sigmas": True}):
        for mu in (0.5, 1.15):
            for steps, run in ((7, {}), (None, {"sigmas": sigmas}), (None, {"timesteps": [1000.0, 750.5, 250.25]})):
                compare("FlowMatchEulerDiscreteScheduler", {**base, **options}, steps, run={**run, "mu": mu})
