"""`ingot quantize --auto`: every scheme is made and measured here, component by component; what nothing beats stays.

The fastest that is good enough becomes what `ingot.load` takes when no precision is named; a graph that is not faster
than its float parent never does.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ingot.exporters.graph_file import GraphFile
from ingot.runtimes import engines
from ingot.runtimes.engines import Arrays, open_with
from ingot.runtimes.errors import EngineError, ExportError, InputError, ParityError
from ingot.runtimes.manifest import Graph, Manifest, Timing

from .frontier import Point, fastest, frontier
from .toolchains import needs_calls, toolchain
from .workbench import Work, Workbench, in_parts, no_call

if TYPE_CHECKING:
    from .quantize import Run

FLOOR_DB = 30.0  # of the pictures, for a default, where no floor is named
ROUNDS = 7
# Threads of ONNX Runtime wait for more work after a call without giving their cores up: another session's call directly
# after it took 57 ms where it takes 38 after a pause, or alone.
PAUSE_S = 0.05


@dataclass(frozen=True)
class Candidate:
    """A component in one scheme, as measured: alone against the float pictures, and beside its parent in time."""

    work: Work
    point: Point
    timing: Timing


def automatic(run: Run) -> Manifest:
    """Measure every engine and scheme of the request; the manifest with what is worth keeping."""
    manifest = run.manifest
    kept_any = False
    if not run.wanted.pairs:
        raise InputError(
            "nothing that quantizes for the bundle's engines is installed: pip install 'ingot[export,quantize]'"
        )
    for engine in dict.fromkeys(engine for engine, _ in run.wanted.pairs):
        if not _devices(engine):
            run.tell(f"{engine} is left out: nothing here runs it, so its speed cannot be measured")
            continue
        bench = run.bench(engine, "auto")
        chosen: dict[str, str] = {}
        for role in run.wanted.components:
            if role not in bench.used:
                run.tell(f"{role} is left out: the pipeline does not run it")
                continue
            found = _candidates(run, bench, role)
            kept = _frontier(run, bench, role, found)
            for candidate in kept:
                manifest = run.added(manifest, bench, "auto", [candidate.work], {role: candidate.work.keep})
                manifest = _timed(manifest, engine, candidate)
            best = fastest([candidate.point for candidate in kept], _floor(run))
            if best is not None:
                chosen[role] = best.name
            kept_any = kept_any or bool(kept)
        manifest = _defaults(run, bench, manifest, chosen)
    if not kept_any:
        raise InputError("no scheme is on the frontier of time, size and quality here: nothing was added")
    return manifest


def seconds(opened: Sequence[Any], calls: Sequence[Arrays], rounds: int = ROUNDS) -> list[float]:
    """The median seconds of a call of each engine, taking turns; the first call of each is not counted."""
    found: list[list[float]] = [[] for _ in opened]
    for number in range(rounds + 1):
        inputs = calls[number % len(calls)]
        for index, engine in enumerate(opened):
            fed = {spec.name: inputs[spec.name] for spec in engine.signature.inputs}
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            engine.run(fed)
            if number:
                found[index].append(time.perf_counter() - began)
    return [statistics.median(one) for one in found]


def machine() -> str:
    """The processor's name, for figures."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def _candidates(run: Run, bench: Workbench, role: str) -> list[Candidate]:
    found = []
    for scheme in toolchain(bench.engine).SCHEMES:
        if needs_calls(bench.engine, scheme) and run.wanted.calibration is None:
            run.tell(f"{role} {scheme} on {bench.engine} is not tried: it needs calibration prompts")
            continue
        if run.has(bench.engine, role, scheme) and not run.wanted.overwrite:
            run.tell(f"{role} {scheme} on {bench.engine} is there already; --overwrite measures it anew")
            continue
        try:
            work = bench.work(role, scheme, run.wanted.keep)
            if all(layer.name in work.keep for layer in work.layers):
                run.tell(f"{role} {scheme} on {bench.engine} is not tried: it has no layer for it")
                continue
            run.calibrate(bench, [work])
            found.append(_measured(run, bench, work))
        except (InputError, ExportError, EngineError, ParityError) as error:
            run.tell(f"{role} {scheme} on {bench.engine} is thrown away: {error}")
    return found


def _measured(run: Run, bench: Workbench, work: Work) -> Candidate:
    file = bench.cast(work)
    damage = bench.damage({work.role: file})
    timing = _timing(run, bench, work, file)
    size = sum(path.stat().st_size for path in (file.path, *file.extra_files)) / 1e6
    point = Point(work.scheme, timing.seconds / timing.float_seconds, size, damage.psnr_db)
    run.tell(f"{work.role} {work.scheme} on {bench.engine}: {point}")
    return Candidate(work, point, timing)


def _timing(run: Run, bench: Workbench, work: Work, file: GraphFile) -> Timing:
    """Beside the float parent, each as its engine opens it when nothing is said."""
    parent = work.graph
    opened = [
        open_with(bench.engine, run.old.file(parent.files[0]), parent.signature, parent.options, {}),
        open_with(bench.engine, file.path, file.signature, file.stored, {}),
    ]
    try:
        own = [part for call in bench.reference.calls[work.role] for part in in_parts(file.signature, call)]
        if not own:
            raise InputError(no_call(work.role, bench.engine, file.signature, "recorded"))
        parent_s, own_s = seconds(opened, own[: ROUNDS + 1])
    finally:
        for engine in opened:
            engine.close()
    return Timing(seconds=own_s, float_seconds=parent_s, machine=machine())


def _frontier(run: Run, bench: Workbench, role: str, found: Sequence[Candidate]) -> list[Candidate]:
    if not found:
        return []
    graph = found[0].work.graph
    size = sum(run.old.manifest.files[name].size for name in graph.files) / 1e6
    parent = Point(graph.precision, 1.0, size, float("inf"))
    kept, why = frontier([parent, *(candidate.point for candidate in found)])
    for name, reason in why.items():
        run.tell(f"{role} {name} on {bench.engine} is thrown away: {reason}")
    return [candidate for candidate in found if candidate.point in kept]


def _timed(manifest: Manifest, engine: str, candidate: Candidate) -> Manifest:
    """The manifest with a candidate's time in its graph."""

    def timed(graph: Graph) -> Graph:
        if graph.quantization is None or (graph.engine, graph.precision) != (engine, candidate.work.scheme):
            return graph
        recipe = msgspec.structs.replace(graph.quantization, timing=candidate.timing)
        return msgspec.structs.replace(graph, quantization=recipe)

    return _regraphed(manifest, candidate.work.role, lambda graphs: tuple(map(timed, graphs)))


def _defaults(run: Run, bench: Workbench, manifest: Manifest, chosen: Mapping[str, str]) -> Manifest:
    """Put the chosen graphs first, as far as the pictures of all together are good enough."""
    wanted = dict(chosen)
    while wanted:
        works = [bench.work(role, scheme, run.wanted.keep) for role, scheme in wanted.items()]
        run.calibrate(bench, works)
        files = {work.role: bench.cast(work) for work in works}
        damage = bench.damage(files)
        if damage.psnr_db >= _floor(run) and run.wanted.floor.holds(damage):
            break
        alone = {work.role: bench.damage({work.role: files[work.role]}).psnr_db for work in works}
        worst = min(alone, key=lambda role: alone[role])
        run.tell(f"{worst} stays in floats by default: all together are {damage}")
        del wanted[worst]
    if not wanted:
        run.tell(f"{bench.engine}: no quantized graph is the default")
        return manifest
    for role, scheme in wanted.items():
        manifest = _regraphed(
            manifest, role, lambda graphs, s=scheme: tuple(sorted(graphs, key=lambda g: (g.engine, g.precision) != (bench.engine, s)))
        )  # fmt: skip
    run.tell(
        f"{bench.engine} runs by default "
        + ", ".join(f"{role} in {name}" for role, name in wanted.items())
        + f": {damage}"
    )
    quality = run.quality(damage, wanted)
    return msgspec.structs.replace(manifest, quality={**manifest.quality, f"{bench.engine} auto": quality})


def _regraphed(manifest: Manifest, role: str, change: Any) -> Manifest:
    entry = manifest.components[role]
    entry = msgspec.structs.replace(entry, graphs=change(entry.graphs))
    return msgspec.structs.replace(manifest, components={**manifest.components, role: entry})


def _floor(run: Run) -> float:
    return FLOOR_DB if run.wanted.floor.min_psnr is None else run.wanted.floor.min_psnr


def _devices(engine: str) -> list[str]:
    try:
        return engines.engine(engine).devices()
    except EngineError:
        return []
