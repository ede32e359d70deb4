"""Quantizing a bundle: graphs are added beside what it has, each with its recipe and its damage. Start reading here."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from ingot.exporters.atomic import atomic_folder
from ingot.exporters.bundle_writer import save_manifest, versions
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.relink import described, relink, without
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import InputError
from ingot.runtimes.manifest import Addition, Certificate, Graph, Manifest, Quality, Quantization
from ingot.runtimes.metrics import compare, decibels
from ingot.runtimes.parity_data import load_calls

from . import recipe as recipes
from .auto import automatic
from .defaults import Checker, checker_of, component_scheme, evaluation_prompts
from .gate import Floor, choose
from .request import Request, request
from .toolchains import needs_calls, toolchain
from .trajectory import Plan, Trajectory, draw, reference_graphs
from .workbench import Damage, Work, Workbench, calibration_calls

QUANTIZES = 3  # the first schema that keeps recipes; of what came later an older bundle has nothing
WORST_PARITY = 1e-2  # the least that a quantized graph's certificate allows another machine


def quantize(
    bundle: str | Path,
    scheme: str | Sequence[str] | None = None,
    *,
    to: str | Sequence[str] | None = None,
    components: Sequence[str] | str | None = None,
    keep: Sequence[str] | str = (),
    calibrate: Sequence[str] | str | Path | None = None,
    prompts: Sequence[str] | str | None = None,
    min_psnr: float | None = None,
    min_checker: float | None = None,
    auto: bool = False,
    recipe: str | Path | None = None,
    num_inference_steps: int = 20,
    guidance_scale: float = 4.0,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    calls: int = 32,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    checker: Checker | None = None,
    overwrite: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> Path:
    """Add quantized graphs to a bundle and return its path. The bundle's own float graphs are the source: no checkpoint
    is needed.

    `scheme` is one or several of int8-dynamic, int8-weights, int4-weights, int8-static, int8-hybrid, fp16, bf16,
    palette-8, palette-6, palette-4, fp8, as far as each engine has them. `to` names engines (those of the bundle that have
    the scheme), `components` roles (all; text encoders and VAEs get what `quantization.defaults` has for them), `keep`
    layers that stay floats, by name or pattern. `calibrate` are the prompts of the trajectories that static schemes find
    their ranges on, a list, or a file with one on each line; `calls` of each component are used. Damage is measured on
    pictures of `prompts` (captions that Shapes never saw; for other models four that ship) with `num_inference_steps`,
    `guidance_scale`, `height`, `width` (pixels) and `seed`, the next picture with `seed` + 1. `min_psnr` (dB) and
    `min_checker` (0 to 1, by `checker(prompts, pictures)`, which Shapes has of its own) are the floor that the largest
    set of layers is searched for. `auto` measures every scheme that needs no choice of yours on this machine and keeps
    what is on the frontier of time, size and quality. `recipe` repeats what was done to another bundle. `options` are a
    toolchain's by the engine's name. Until everything has passed, the bundle stays as it was.

    Raises InputError for what cannot be asked, a floor that cannot be held among it, ExportError for a toolchain or a disk
    that cannot, ParityError for a graph that answers no numbers.

    >>> import ingot                                                                 # doctest: +SKIP
    >>> ingot.quantize("shapes-bundle", "int8-weights", to="openvino", min_psnr=30)  # doctest: +SKIP
    >>> pipe = ingot.load("shapes-bundle", engine="openvino", precision="int8-weights")  # doctest: +SKIP
    """
    old = Bundle.open(Path(bundle).resolve())
    prompts, components, keep = _listed(prompts), _listed(components), _listed(keep) or ()
    plan = Plan(
        tuple(prompts) if prompts is not None else evaluation_prompts(old), seed, num_inference_steps, guidance_scale, height, width
    )  # fmt: skip
    floor = Floor(min_psnr, min_checker)
    wanted = request(
        old, scheme, to, components, keep, calibrate, floor, auto, recipe, calls, options, plan, checker, overwrite
    )
    with atomic_folder(old.path, overwrite=True) as folder:
        run = Run(old, folder, wanted, plan, checker or checker_of(old), tqdm.write if progress else _silent)
        manifest = automatic(run) if auto else run.schemes()
        shutil.rmtree(run.scratch, ignore_errors=True)
        save_manifest(folder, run.finished(manifest, command))
        Bundle.open(folder)  # the old bundle goes only when the new one can be trusted
    return Path(bundle)


@dataclass
class Run:
    """One call of `quantize`: the old bundle, the folder that will take its place, and what was drawn so far."""

    old: Bundle
    folder: Path
    wanted: Request
    plan: Plan
    checker: Checker | None
    tell: Callable[[str], None]
    drawn: dict[tuple[Plan, bool], Trajectory] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        """Where candidates lie."""
        return self.folder / ".candidates"

    def __post_init__(self) -> None:
        """Take all of the old bundle over; what is made anew takes its place later."""
        self.manifest = relink(self.old, self.folder, lambda _: True)

    def schemes(self) -> Manifest:
        """Every engine and scheme that was asked for; the manifest with the new graphs."""
        manifest = self.manifest
        for engine, scheme in self.wanted.pairs:
            bench = self.bench(engine, scheme)
            works = self.works(bench, scheme, manifest)
            self.tell(f"{engine} {scheme}: " + ", ".join(f"{work.role} {work.scheme}" for work in works))
            self.calibrate(bench, works)
            chosen = choose(bench, works, self.wanted.floor, self.tell)
            mine = [work for work in works if work.role in chosen.files]
            manifest = self.added(manifest, bench, scheme, mine, chosen.kept)
            quality = self.quality(chosen.damage, {r: f.dtype for r, f in {**bench.base, **chosen.files}.items()})
            self.tell(f"{engine} {scheme}: {chosen.damage}")
            manifest = msgspec.structs.replace(manifest, quality={**manifest.quality, f"{engine} {scheme}": quality})
        return manifest

    def has(self, engine: str, role: str, precision: str) -> bool:
        """Whether the old bundle has such a graph."""
        graphs = self.old.component(role).graphs
        return any((graph.engine, graph.precision) == (engine, precision) for graph in graphs)

    def bench(self, engine: str, name: str) -> Workbench:
        """A workbench for one engine, on the trajectory of the evaluation; its options are the recipe's where one is
        repeated, but for those that are given."""
        graphs = reference_graphs(self.old)
        mine = (
            one.quantization for one in self.wanted.recipes if (one.engine, one.quantization.asked) == (engine, name)
        )
        options = {**next((one.options for one in mine), {}), **self.wanted.options.get(engine, {})}
        return Workbench(
            self.old, engine, self.scratch / f"{engine}-{name}", options, self.reference(), graphs, {}, self.checker
        )

    def reference(self) -> Trajectory:
        """The evaluation by the float graphs, with every component's calls and answers."""
        return self.trajectory(self.plan)

    def trajectory(self, plan: Plan) -> Trajectory:
        """A plan carried out by the float graphs, once."""
        if (plan, True) not in self.drawn:
            graphs = reference_graphs(self.old)
            engine = next(iter(graphs.values())).engine
            self.tell(
                f"drawing {len(plan.prompts)} pictures in {plan.num_inference_steps} steps with the float graphs of {engine}"
            )
            self.drawn[plan, True] = draw(self.old, graphs, plan, record=list(graphs))
        return self.drawn[plan, True]

    def works(self, bench: Workbench, scheme: str, manifest: Manifest) -> list[Work]:
        """What is to be quantized of each component. One that gets another scheme than the rest, and has it, is taken as
        it is. Raises InputError for a pattern that names no layer of any."""
        has = toolchain(bench.engine).SCHEMES
        found = []
        for role in self.wanted.components:
            recipe = self.wanted.recipe_for(bench.engine, role, scheme)
            if self.wanted.recipes and recipe is None:
                continue
            own = recipe.quantization.scheme if recipe else component_scheme(role, scheme, list(has))
            own = scheme if role in self.wanted.named and not recipe else own
            if own is None:
                self.tell(f"{role} stays as it is: {scheme} is not for it")
                continue
            if needs_calls(bench.engine, own) and role not in bench.used and role != "vae_encoder":
                self.tell(f"{role} stays as it is: the pipeline does not run it, so nothing calibrates {own}")
                continue
            there = [g for g in manifest.components[role].graphs if (g.engine, g.precision) == (bench.engine, own)]
            if own != scheme and there and not recipe:
                self.tell(f"{role} has {own} already, which is taken as it is")
                bench.base[role] = graph_file(role, there[0], self.folder)
                continue
            if self.wanted.floor.given and role not in bench.used:
                self.tell(f"{role} stays as it is: the pipeline does not run it, so no picture tells what it costs")
                continue
            work = bench.work(role, own, recipe.quantization.keep if recipe else self.wanted.keep)
            if recipe:
                recipes.require_same_model(recipe, work)
            if any(layer.name not in work.keep for layer in work.layers):
                found.append(work)
            else:
                self.tell(f"{role} stays as it is: it has no layer for {own}")
        self.require_patterns(bench, found)
        if not found:
            raise InputError(
                f"{scheme} on {bench.engine} finds nothing to quantize in {', '.join(self.wanted.components)}"
            )
        return found

    def require_patterns(self, bench: Workbench, works: Sequence[Work]) -> None:
        """Raise InputError for a pattern of `keep` that fits no layer."""
        from .workbench import matching

        for pattern in self.wanted.keep:
            if not any(matching(work.layers, [pattern]) for work in works):
                some = ", ".join(layer.name for work in works for layer in work.layers[:3])
                raise InputError(f"keep={pattern!r} names no layer on {bench.engine}; layers are: {some}, …")

    def calibrate(self, bench: Workbench, works: Sequence[Work]) -> None:
        """Give the workbench the calls that static schemes are calibrated with."""
        roles = {work.role: self.most_calls(work) for work in works if needs_calls(bench.engine, work.scheme)}
        if not roles:
            return
        plan = self.wanted.calibration
        assert plan is not None  # the request was refused otherwise
        bench.calls = calibration_calls(self.trajectory(plan), roles, self.old)

    def most_calls(self, work: Work) -> int:
        """Calls to calibrate a component with: as many as its recipe says, where one is repeated."""
        mine = (one.quantization for one in self.wanted.recipes if one.role == work.role)
        known = (one.calibration.calls for one in mine if one.scheme == work.scheme and one.calibration)
        return next(known, self.wanted.calls)

    def added(
        self,
        manifest: Manifest,
        bench: Workbench,
        asked: str,
        works: Sequence[Work],
        kept: Mapping[str, frozenset[str]],
    ) -> Manifest:
        """The manifest with these graphs, whose files are put into the bundle in place of those it had."""
        for work in works:
            manifest = without(manifest, self.folder, bench.engine, work.role, work.scheme)
            file = bench.cast(work, kept[work.role])
            graph = self.certified(bench, asked, work, file, kept[work.role])
            done = len(work.layers) - len(kept[work.role])
            sqnr = graph.quantization and graph.quantization.sqnr_db
            self.tell(
                f"{work.role} on {bench.engine}: {file.dtype}, {megabytes(file):.1f} MB, {done} of {len(work.layers)} layers, "
                + ("equal" if sqnr is None else f"SQNR {sqnr:.1f} dB over a trajectory")
            )
            entry = manifest.components[work.role]
            entry = msgspec.structs.replace(entry, graphs=(*entry.graphs, graph))
            manifest = msgspec.structs.replace(manifest, components={**manifest.components, work.role: entry})
        return manifest

    def certified(self, bench: Workbench, asked: str, work: Work, file: GraphFile, kept: frozenset[str]) -> Graph:
        """The manifest's entry of a candidate, its files put in their place."""
        sqnr = bench.trajectory_sqnr(work.role, file)
        parity = self.parity(bench, work, file)
        home = bench.folder / file.path.relative_to(bench.folder).parts[0]
        names = []
        for path in (file.path, *file.extra_files):
            name = path.relative_to(home)
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            place(path, self.folder / name)
            names.append(name.as_posix())
        plan, calibrated = self.wanted.calibration, needs_calls(bench.engine, work.scheme)
        size = (
            self.reference().pictures.shape[1:3]
            if not calibrated or plan is None
            else self.trajectory(plan).pictures.shape[1:3]
        )
        return Graph(
            engine=bench.engine, precision=work.scheme, files=tuple(names), signature=file.signature, nodes=file.node_count,
            parity=parity, options=file.stored, form=file.form, rewrites=work.graph.rewrites,
            quantization=Quantization(
                asked=asked, scheme=work.scheme, source=work.graph.precision, fingerprint=work.fingerprint, layers=len(work.layers),
                keep=tuple(sorted(kept)), options=recipes.plain(dict(bench.options)), sqnr_db=finite(sqnr),
                calibration=recipes.calibration_of(plan, (size[0], size[1]), len(bench.calls[work.role])) if calibrated and plan else None,
            ),
        )  # fmt: skip

    def parity(self, bench: Workbench, work: Work, file: GraphFile) -> Certificate | None:
        """What the graph answers to the bundle's stored calls; None where none of them has its size."""
        data = self.old.component(work.role).parity_data
        pairs = [call for call in (load_calls(self.old.file(data)) if data else []) if file.signature.admits(call[0])]
        if not pairs:
            return None
        engine = bench.open(file)
        try:
            worst = [
                compare(outputs[name], found)
                for inputs, outputs in pairs
                for name, found in engine.run({s.name: inputs[s.name] for s in file.signature.inputs}).items()
            ]
        finally:
            engine.close()
        rel_l2 = max(one.rel_l2 for one in worst)
        return Certificate(
            calls=len(pairs), max_abs=max(one.max_abs for one in worst), rel_l2=rel_l2, limit=max(WORST_PARITY, 2 * rel_l2),
            sqnr_db=decibels(rel_l2) if rel_l2 else None,
        )  # fmt: skip

    def quality(self, damage: Damage, graphs: dict[str, str]) -> Quality:
        """Damage as the manifest keeps it."""
        reference = self.reference()
        height, width = reference.pictures.shape[1:3]
        return Quality(
            graphs=graphs, latents_sqnr_db=finite(damage.latents_sqnr_db), psnr_db=finite(damage.psnr_db), ssim=damage.ssim,
            checker=damage.checker, checker_float=self.checker(reference.prompts, reference.pictures) if self.checker else None,
            prompts=len(reference.prompts), seed=self.plan.seed, num_inference_steps=self.plan.num_inference_steps,
            guidance_scale=self.plan.guidance_scale, height=height, width=width,
        )  # fmt: skip

    def finished(self, manifest: Manifest, command: str | None) -> Manifest:
        """The manifest with an entry for every file, and with what was done now."""
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        before = [graph for entry in self.old.manifest.components.values() for graph in entry.graphs]
        graphs = [graph for entry in manifest.components.values() for graph in entry.graphs if graph not in before]
        targets = tuple(dict.fromkeys(f"{graph.engine} {graph.precision}" for graph in graphs))
        addition = Addition(targets=targets, created=created, command=command, versions=versions())
        origin = manifest.provenance
        return msgspec.structs.replace(
            manifest, schema=max(QUANTIZES, manifest.schema), files=described(self.folder, manifest.files),
            provenance=msgspec.structs.replace(origin, additions=(*origin.additions, addition)),
        )  # fmt: skip


def _listed(names: Sequence[str] | str | None) -> list[str] | None:
    """Names as a list; one that comes alone is a list of one."""
    return None if names is None else [names] if isinstance(names, str) else list(names)


def finite(decibel: float) -> float | None:
    """Decibels for the manifest: None where nothing differed."""
    return float(decibel) if np.isfinite(decibel) else None


def place(file: Path, name: Path) -> None:
    """The file under another name too: a link where the file system has them, else a copy."""
    try:
        os.link(file, name)
    except FileExistsError:  # never through it: it may be another bundle's
        raise
    except OSError:
        shutil.copyfile(file, name)


def graph_file(role: str, graph: Graph, folder: Path) -> GraphFile:
    """A graph of a bundle's folder as toolchains answer it."""
    path, *extra = (folder / name for name in graph.files)
    return GraphFile(
        role, path, tuple(extra), graph.precision, False, graph.signature, graph.nodes, graph.options, graph.form
    )


def megabytes(file: GraphFile) -> float:
    """What a graph's files weigh."""
    return sum(path.stat().st_size for path in (file.path, *file.extra_files)) / 1e6


def _silent(_: str) -> None:
    return
