"""Schedulers: diffusers' classes of the same names and configs, in NumPy. A file each; this table maps the names."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import InputError, unknown
from .base import Scheduler, Step
from .config import Config, Source, read

if TYPE_CHECKING:
    from .ddim import DDIMScheduler
    from .ddpm import DDPMScheduler
    from .dpmsolver_multistep import DPMSolverMultistepScheduler
    from .euler_ancestral_discrete import EulerAncestralDiscreteScheduler
    from .euler_discrete import EulerDiscreteScheduler
    from .lcm import LCMScheduler
    from .lms_discrete import LMSDiscreteScheduler
    from .pndm import PNDMScheduler
    from .unipc_multistep import UniPCMultistepScheduler

SCHEDULERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
    "EulerDiscreteScheduler": "euler_discrete",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms_discrete",
    "PNDMScheduler": "pndm",
    "UniPCMultistepScheduler": "unipc_multistep",
}

__all__ = [
    "SCHEDULERS",
    "Config",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "Scheduler",
    "Step",
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
