"""Devices: how each kind wants a graph to be run. A file here is a kind of device, its name the word that users type."""

from __future__ import annotations

from types import ModuleType

from ..errors import EngineError, InputError
from . import cpu, cuda, hpu, mps
from .policy import Policy, Wishes

KINDS: dict[str, ModuleType] = {"cuda": cuda, "mps": mps, "hpu": hpu, "cpu": cpu}  # the fastest first


def here() -> list[str]:
    """The devices that this machine has, the best first: `["cuda", "cuda:1", "cpu"]`."""
    return [device for kind in KINDS.values() for device in kind.present()]


def policy_for(device: str | None, wishes: Wishes) -> Policy:
    """How to run on a device, the best one here for None.

    Raises InputError for a name that is no device, EngineError for one that this machine lacks, naming those it has.
    """
    name = device or here()[0]
    kind = name.partition(":")[0]
    if kind not in KINDS:
        raise InputError(f"unknown device {device!r} for torch; available here: {', '.join(here())}")
    if name not in here() and name != f"{kind}:0":
        raise EngineError(
            f"torch has no device {name} on this machine; it has: {', '.join(here())}. {KINDS[kind].HOW_TO_GET}"
        )
    made: Policy = KINDS[kind].policy(name, wishes)
    return made


def report() -> dict[str, str]:
    """Each kind of device: what there is of it, or how to get it."""
    return {name: kind.about() if kind.present() else f"not here: {kind.HOW_TO_GET}" for name, kind in KINDS.items()}
