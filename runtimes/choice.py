"""Which engine runs a bundle on this machine, and on which device, when the caller does not say."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .bundle import Bundle, describe_graph
from .engines import available, engine
from .errors import EngineError, InputError, unknown
from .manifest import Graph

Precision = str | Mapping[str, str] | None
"""For every component that has it, or by role."""

# The first that the bundle has a graph for and the machine can run. Accelerators before processors; on those in the
# order measured in benchmarks/README.md. Devices that are not here (an Intel GPU or NPU) are used when they are named.
PREFERENCE = (
    ("tensorrt", "cuda"),
    ("onnx", "cuda"),
    ("torch", "cuda"),
    ("coreml", "all"),
    ("torch", "hpu"),
    ("torch", "mps"),
    ("openvino", "cpu"),
    ("onnx", "cpu"),
    ("torch", "cpu"),
)


@dataclass(frozen=True)
class Choice:
    """An engine, a device of it (None: the engine's own default), and why."""

    engine: str
    device: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.engine}{f' on {self.device}' if self.device else ''} ({self.reason})"


def choose(
    bundle: Bundle,
    roles: Sequence[str],
    name: str | None = None,
    device: str | None = None,
    precision: Precision = None,
) -> Choice:
    """What the caller named, completed by what the machine has.

    Raises InputError for an engine that the bundle has no graphs for, EngineError when nothing here can run it, each
    naming what there is.
    """
    _require_roles(bundle, precision)
    held = engines_of(bundle, roles, precision)
    if name is not None and name not in available():
        raise unknown("engine", name, available())
    asked = " ".join(filter(None, (name, _text(precision))))
    if asked and (name not in held if name else not held):
        adds = f". `ingot add {bundle.path} --to {name}` adds them" if name else ""
        raise InputError(f"{bundle.path} has no graphs for {asked}; it has: {_held(bundle)}{adds}")
    wanted = [name] if name is not None else held
    if device is not None and len(wanted) == 1:
        # what it cannot do, its engine says best
        return Choice(wanted[0], device, "as asked" if name else "the only engine of the bundle")
    refused: list[str] = []
    for candidate, place in PREFERENCE:
        if candidate not in wanted or (device is not None and not _same(device, place)):
            continue
        problem = _problem(candidate, place)
        if problem is None:
            reason = "the engine as asked" if name else "the only engine of the bundle" if held == [candidate] else ""
            return Choice(candidate, device or place, reason or "; ".join([*refused, f"first of {', '.join(held)}"]))
        refused.append(f"{candidate} on {place}: {problem}")
    if device is not None:
        return _by_device(wanted, device, refused)
    if len(wanted) == 1:  # its engine says best why it cannot run here
        return Choice(wanted[0], None, "as asked" if name else "the only engine of the bundle")
    raise EngineError(f"nothing here runs {bundle.path}: {'; '.join(refused) or 'its components share no engine'}")


def engines_of(bundle: Bundle, roles: Sequence[str], precision: Precision = None) -> list[str]:
    """The engines that every one of these components has a graph for, in the bundle's order, and that have the precision
    for all of those that were named with one, or for one component at least."""
    held = [bundle.component(role).graphs for role in roles]
    names = list(dict.fromkeys(graph.engine for graph in held[0])) if held else []
    names = [name for name in names if all(any(graph.engine == name for graph in graphs) for graphs in held)]
    if precision is None:
        return names

    if isinstance(precision, str):
        sets = bundle.manifest.quality
        return [
            name
            for name in names
            if f"{name} {precision}" in sets or any(_has(bundle, role, name, precision) for role in roles)
        ]
    return [name for name in names if all(_has(bundle, role, name, wanted) for role, wanted in precision.items())]


def pick(
    bundle: Bundle,
    roles: Sequence[str],
    engine: str | None,
    precision: Precision = None,
    *,
    form: str | None = None,
    device: str | None = None,
) -> dict[str, Graph]:
    """The graph of each component. A precision that is the name of a set measured together means that set; components
    without the precision get their first float graph, as they had it when the set was measured. Raises InputError naming
    what there is."""
    floats = isinstance(precision, str)
    if isinstance(precision, str):
        known = bundle.manifest.quality.get(f"{engine} {precision}")
        precision = (known.graphs if known else {}) or dict.fromkeys(roles, precision)
        wanted = {role: name for role, name in precision.items() if _has(bundle, role, engine, name)}
    else:
        wanted = dict(precision or {})
    if floats:
        others = {role: _first_float(bundle, role, engine) for role in roles if role not in wanted}
        wanted |= {role: name for role, name in others.items() if name is not None}
    return {role: _graph(bundle, role, engine, wanted.get(role), form, device) for role in roles}


def _first_float(bundle: Bundle, role: str, engine: str | None) -> str | None:
    graphs = bundle.component(role).graphs
    return next((g.precision for g in graphs if engine in (None, g.engine) and g.quantization is None), None)


def _require_roles(bundle: Bundle, precision: Precision) -> None:
    named = [] if precision is None or isinstance(precision, str) else list(precision)
    have = bundle.manifest.components
    if strange := [role for role in named if role not in have]:
        raise InputError(
            f"precision names {', '.join(strange)}, which {bundle.path} has not; it has: {', '.join(have)}"
        )


def _has(bundle: Bundle, role: str, engine: str | None, precision: str) -> bool:
    graphs = bundle.manifest.components[role].graphs if role in bundle.manifest.components else ()
    return any(engine in (None, graph.engine) and graph.precision == precision for graph in graphs)


def _graph(
    bundle: Bundle, role: str, engine: str | None, precision: str | None, form: str | None, device: str | None
) -> Graph:
    """A form is asked of the components that have it."""
    forms = {g.form for g in bundle.component(role).graphs if g.engine == engine}
    return bundle.graph(role, engine, precision, form=form if form in forms else None, device=device)


def _by_device(names: Sequence[str], device: str, refused: list[str]) -> Choice:
    """A device that is not in the table: the first engine of the bundle that has it."""
    have = []
    for name in names:
        try:
            devices = engine(name).devices()
        except EngineError as error:
            refused.append(str(error))
            continue
        if any(_same(device, place) for place in devices):
            return Choice(name, device, "the device as asked")
        have.append(f"{name} {', '.join(devices) or 'none'}")
    raise InputError(
        f"no engine of this bundle has the device {device!r} here; devices: {'; '.join(have) or 'none'}"
        + (f". {'; '.join(refused)}" if refused else "")
    )


def _problem(name: str, device: str) -> str | None:
    """Why an engine cannot use a device here; None when it can."""
    if not _plausible(device):
        return "not on this machine"
    try:
        devices = engine(name).devices()
    except EngineError as error:
        return str(error)
    return None if device in devices else f"it has {', '.join(devices) or 'no device'} here"


def _plausible(device: str) -> bool:
    """Whether it is worth importing a toolchain, torch's seconds, to ask it for this device."""
    if device == "cuda":
        return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists() or shutil.which("nvidia-smi") is not None
    if device in ("mps", "all"):
        return sys.platform == "darwin" and (device == "all" or platform.machine() == "arm64")
    if device == "hpu":
        return importlib.util.find_spec("habana_frameworks") is not None
    return True


def _same(device: str, place: str) -> bool:
    """`cuda:1` is a `cuda`, `gpu.0` a `gpu`."""
    device = device.lower()
    heads = [name.replace(".", ":").partition(":")[0] for name in (device, place)]
    return device == place or (device in heads and heads[0] == heads[1]) or heads[0] == place


def _held(bundle: Bundle) -> str:
    graphs = (graph for entry in bundle.manifest.components.values() for graph in entry.graphs)
    return ", ".join(dict.fromkeys(map(describe_graph, graphs))) or "none"


def _text(precision: Precision) -> str | None:
    if precision is None or isinstance(precision, str):
        return precision
    return ", ".join(f"{role} {name}" for role, name in precision.items())
