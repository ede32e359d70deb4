"""Schedulers: diffusers' classes of the same names and configs, in NumPy. A file each; this table maps the names."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import InputError, unknown
from .base import Scheduler, Step
from .config import Config, Source, read

if TYPE_CHECKING:
    from .consistency_models import CMStochasticIterativeScheduler
    from .ddim import DDIMScheduler
    from .ddpm import DDPMScheduler
    from .deis_multistep import DEISMultistepScheduler
    from .dpmsolver_multistep import DPMSolverMultistepScheduler
    from .dpmsolver_singlestep import DPMSolverSinglestepScheduler
    from .edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
    from .edm_euler import EDMEulerScheduler
    from .euler_ancestral_discrete import EulerAncestralDiscreteScheduler
    from .euler_discrete import EulerDiscreteScheduler
    from .flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from .flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
    from .heun_discrete import HeunDiscreteScheduler
    from .k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteScheduler
    from .k_dpm_2_discrete import KDPM2DiscreteScheduler
    from .lcm import LCMScheduler
    from .lms_discrete import LMSDiscreteScheduler
    from .pndm import PNDMScheduler
    from .sasolver import SASolverScheduler
    from .tcd import TCDScheduler
    from .unclip import UnCLIPScheduler
    from .unipc_multistep import UniPCMultistepScheduler

SCHEDULERS = {
    "CMStochasticIterativeScheduler": "consistency_models",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis_multistep",
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "DPMSolverSinglestepScheduler": "dpmsolver_singlestep",
    "EDMDPMSolverMultistepScheduler": "edm_dpmsolver_multistep",
    "EDMEulerScheduler": "edm_euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
    "EulerDiscreteScheduler": "euler_discrete",
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler_discrete",
    "FlowMatchHeunDiscreteScheduler": "flow_match_heun_discrete",
    "HeunDiscreteScheduler": "heun_discrete",
    "KDPM2AncestralDiscreteScheduler": "k_dpm_2_ancestral_discrete",
    "KDPM2DiscreteScheduler": "k_dpm_2_discrete",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms_discrete",
    "PNDMScheduler": "pndm",
    "SASolverScheduler": "sasolver",
    "TCDScheduler": "tcd",
    "UnCLIPScheduler": "unclip",
    "UniPCMultistepScheduler": "unipc_multistep",
}

__all__ = [
    "SCHEDULERS",
    "CMStochasticIterativeScheduler",
    "Config",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "Scheduler",
    "Step",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
    "from_config",
    "scheduler_class",
]


def scheduler_class(class_name: str) -> Any:
    """The scheduler of diffusers' class of this name. Raises InputError naming those that there are."""
    if class_name not in SCHEDULERS:
        raise unknown("scheduler", class_name, SCHEDULERS)
    return getattr(importlib.import_module(f"{__name__}.{SCHEDULERS[class_name]}"), class_name)


def from_config(config: Source, **overrides: Any) -> Scheduler:
    """The scheduler that diffusers' `scheduler_config.json` (a mapping, a file or its folder) describes.

    Raises InputError for a class that Ingot does not have or an option that it does not support.

    >>> from_config({"_class_name": "EulerDiscreteScheduler", "steps_offset": 1}).config.steps_offset
    1
    """
    values = read(config)
    if not isinstance(values.get("_class_name"), str):
        raise InputError("the scheduler config does not say which scheduler it is for: `_class_name` is missing")
    scheduler: Scheduler = scheduler_class(values["_class_name"]).from_config(values, **overrides)
    return scheduler


def __getattr__(name: str) -> Any:
    # a class is imported when it is first asked for: `from ingot.runtimes.schedulers import DDIMScheduler`
    if name in SCHEDULERS:
        return scheduler_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
