"""Real trajectories of a bundle: what each component is asked while pictures are made, and the pictures.

They are made by the bundle's own float graphs, so neither the checkpoint nor PyTorch is needed. What they asked is
calibration data; what they gave is what every quantized set is held against, with equal seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.exporters.parity import open_in_bundle
from ingot.runtimes import engines
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.choice import PREFERENCE, engines_of
from ingot.runtimes.engines import Arrays, Engine
from ingot.runtimes.errors import EngineError, ExportError, InputError
from ingot.runtimes.load import build
from ingot.runtimes.manifest import Graph
from ingot.runtimes.pipelines import FAMILIES
from ingot.runtimes.pipelines.denoiser import SHALLOW

FLOATS = ("float32", "float16", "bfloat16")
Open = Callable[[Bundle, Graph], Engine]


@dataclass(frozen=True)
class Plan:
    """What to draw: a picture of each prompt, the first with `seed`, the next with `seed` + 1. The size is in pixels,
    None for the model's own."""

    prompts: tuple[str, ...]
    seed: int = 0
    num_inference_steps: int = 20
    guidance_scale: float = 4.0
    height: int | None = None
    width: int | None = None
    batch: int = 4  # pictures at once: what bounds the memory


@dataclass
class Trajectory:
    """What came of a plan: each component's calls, the last latents and the pictures, (prompts, height, width, 3) in
    0..1. `prompts` are the pictures', each of the plan's once for every pass. `calls` and `answers` are empty where nobody
    asked for them."""

    plan: Plan
    prompts: tuple[str, ...]
    latents: NDArray[Any]
    pictures: NDArray[Any]
    calls: dict[str, list[Arrays]] = field(default_factory=dict)
    answers: dict[str, list[Arrays]] = field(default_factory=dict)


class Recorder:
    """An engine that keeps what it is asked and answers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.signature = engine.signature
        self.most_rows = getattr(engine, "most_rows", None)
        self.pad = getattr(engine, "pad", False)
        self.calls: list[Arrays] = []
        self.answers: list[Arrays] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run and remember."""
        found = self.engine.run(inputs)
        self.calls.append({name: np.array(array) for name, array in inputs.items()})
        self.answers.append(found)
        return found

    def close(self) -> None:
        """Close the engine; what was recorded stays."""
        self.engine.close()


def reference_graphs(bundle: Bundle) -> dict[str, Graph]:
    """The graphs that stand for the model: floats, of the best engine that runs here, else of one that is emulated.

    Raises InputError for a pipeline that Ingot cannot run, or a bundle without float graphs.
    """
    if bundle.manifest.pipeline not in FAMILIES:
        raise InputError(
            f"quantization is measured on pictures, and Ingot cannot run {bundle.manifest.pipeline}; it runs: {', '.join(FAMILIES)}"
        )
    roles = list(bundle.manifest.components)
    names = engines_of(bundle, roles)
    order = [name for name, device in PREFERENCE if name in names and device in _devices(name)]
    for name in dict.fromkeys([*order, *names]):
        graphs = {role: _float_graph(bundle, role, name) for role in roles}
        if all(graphs.values()):
            return {role: graph for role, graph in graphs.items() if graph is not None}
    raise InputError(f"{bundle.path} has no engine with float graphs of every component; `ingot add` adds them")


def float_graph(bundle: Bundle, role: str, engine: str) -> Graph:
    """The float graph of a component that an engine's quantized ones are made from: the form that is first.

    Raises InputError naming the engines that the bundle has.
    """
    graph = _float_graph(bundle, role, engine)
    if graph is None:
        have = ", ".join(dict.fromkeys(g.engine for g in bundle.component(role).graphs if g.precision in FLOATS))
        raise InputError(
            f"{bundle.path} has no float graph of {role} for {engine}; it has them for: {have or 'none'}. "
            f"`ingot add {bundle.path} --to {engine}` adds them"
        )
    return graph


def draw(
    bundle: Bundle,
    graphs: Mapping[str, Graph],
    plan: Plan,
    *,
    record: Sequence[str] = (),
    open_graph: Open | None = None,
    latents: NDArray[Any] | None = None,
) -> Trajectory:
    """Carry out a plan with these graphs, keeping the calls of the components in `record`; final `latents` that are given
    are only decoded."""
    recorders: dict[str, Recorder] = {}

    def opened(bundle: Bundle, graph: Graph) -> Engine:
        role = next(name for name, one in graphs.items() if one is graph)
        engine = (open_graph or open_in_bundle)(bundle, graph)
        if role not in record:
            return engine
        recorders[role] = Recorder(engine)
        return recorders[role]

    ends, pictures = [], []
    passes = intervals(graphs)
    with build(bundle, graphs=graphs, open_graph=opened) as pipe:
        for number, interval in enumerate(passes):
            for start in range(0, len(plan.prompts), plan.batch):
                part = slice(start, min(start + plan.batch, len(plan.prompts)))
                given = None if latents is None else latents[number * len(plan.prompts) :][part]
                ends.append(_ends(pipe, plan, part, interval) if given is None else given)
                pictures.append(pipe.decode(ends[-1]))
    return Trajectory(
        plan,
        plan.prompts * len(passes),
        np.concatenate(ends),
        np.concatenate(pictures),
        {role: one.calls for role, one in recorders.items()},
        {role: one.answers for role, one in recorders.items()},
    )


def intervals(graphs: Mapping[str, Graph]) -> tuple[int, ...]:
    """How often the whole denoiser runs, once for every pass over the prompts: a bundle with DeepCache is measured with
    it, too, at every second step."""
    return (1, 2) if SHALLOW in graphs else (1,)


def _ends(pipe: Any, plan: Plan, part: slice, interval: int) -> NDArray[Any]:
    """The final latents of some of the prompts. Raises InputError for a pipeline that wants more than prompts."""
    try:
        return _drawn(pipe, plan, part, interval)
    except InputError as error:
        raise InputError(
            f"quantization is measured on pictures of prompts alone, which {pipe.class_name} does not make: {error}"
        ) from error


def _drawn(pipe: Any, plan: Plan, part: slice, interval: int) -> NDArray[Any]:
    made: NDArray[Any] = pipe(
        list(plan.prompts[part]), num_inference_steps=plan.num_inference_steps, guidance_scale=plan.guidance_scale,
        height=plan.height, width=plan.width, seed=[plan.seed + i for i in range(part.start, part.stop)],
        output_type="latent", progress=False, **({} if interval == 1 else {"cache_interval": interval}),
    ).images  # fmt: skip
    return made


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly over all of them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, most - 1))] for i in range(most)]


def _float_graph(bundle: Bundle, role: str, engine: str) -> Graph | None:
    graphs = [g for g in bundle.component(role).graphs if g.engine == engine and g.precision in FLOATS]
    return graphs[0] if graphs else None


def _devices(name: str) -> list[str]:
    try:
        return engines.engine(name).devices()
    except (EngineError, ExportError, InputError):
        return []
