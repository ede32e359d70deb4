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
    _refuse(name, kind, wishes)
    if (kind if name == f"{kind}:0" else name) not in here():
        raise EngineError(
            f"torch has no device {name} on this machine; it has: {', '.join(here())}. {KINDS[kind].HOW_TO_GET}"
        )
    made: Policy = KINDS[kind].policy(name, wishes)
    return made


ONLY = {
    "tf32": "cuda",
    "lazy": "hpu",
    "hpu_graphs": "hpu",
    "gaudi_config": "hpu",
}  # wishes that other kinds cannot obey


def _refuse(name: str, kind: str, wishes: Wishes) -> None:
    """Raise InputError for what was asked of a device that has no such thing; tf32=False is so everywhere."""
    wrong = {wish: only for wish, only in ONLY.items() if kind != only and getattr(wishes, wish) is not None}
    if wishes.tf32 is False:
        wrong.pop("tf32", None)
    if wrong:
        told = "; ".join(f"{wish} is for device={only!r}" for wish, only in wrong.items())
        raise InputError(f"{told}, and this graph is opened on {name}: leave it out, or choose that device")


def report() -> dict[str, str]:
    """Each kind of device: what there is of it, or how to get it."""
    return {name: kind.about() if kind.present() else f"not here: {kind.HOW_TO_GET}" for name, kind in KINDS.items()}
