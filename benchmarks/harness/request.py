"""What `ingot bench` is asked for, checked whole before anything runs."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import InputError, unknown
from ingot.runtimes.manifest import Graph
from ingot.runtimes.pipelines import pipeline_class
from ingot.runtimes.schedulers import scheduler_class
from ingot.shapes import MODEL_DIR

from . import grid
from .machine import cores
from .prompts import read_prompts
from .record import Contestant, Job

STEPS, GUIDANCE = 20, 7.5
SHAPES = "shapes"  # what a bundle of the model that ships names as its source


@dataclass(frozen=True)
class Request:
    """Everything that a run needs. Models are named as the user did; `resolved` says where they lie."""

    jobs: tuple[Job, ...]
    contestants: tuple[Contestant, ...]
    latents: tuple[int, int]  # channels, and pixels to a side of one
    reference: str
    rounds: int
    calls: int
    timeout: float  # seconds, of a process
    title: str
    command: str
    output: Path | None
    work: Path  # where baselines' exports are kept
    environments: Path | None
    clip: Path | None
    fid: str | None


def make(
    bundles: Sequence[str | Path],
    *,
    engines: Sequence[str] | None = None,
    schemes: Sequence[str] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    batch: Sequence[int] = (1,),
    steps: Sequence[int] = (STEPS,),
    threads: Sequence[int] | None = None,
    guidance_scale: float = GUIDANCE,
    scheduler: str | None = None,
    seed: int = 0,
    baseline: Sequence[str] = (),
    model: str | Path | None = None,
    contestant: Sequence[str] = (),
    reference: str | None = None,
    prompts: str | Path | Sequence[str] | None = None,
    rounds: int = 3,
    calls: int = 3,
    title: str = "",
    environments: str | Path | None = None,
    work: str | Path | None = None,
    clip: str | Path | None = None,
    fid: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    timeout: float = 3600.0,
    command: str = "",
) -> Request:
    """The request of these options: see `run.bench`. Raises InputError, BundleError and EngineError for what cannot be."""
    opened = _opened(bundles)
    first = next(iter(opened.values()))
    _check_numbers(rounds, calls, timeout, seed, guidance_scale)
    destination = _destination(output, overwrite)
    source = str(model) if model is not None else first.manifest.provenance.source
    entrants = _entrants(opened, engines, schemes, baseline, contestant, source, environments)
    name = scheduler or str(first.manifest.scheduler["_class_name"])
    scheduler_class(name)
    jobs = grid.jobs(
        sizes or [_own_size(first)], batch, steps, threads or [cores()], guidance_scale=float(guidance_scale), scheduler=name,
        seed=seed, prompts=read_prompts(prompts, of_shapes=resolved(first.manifest.provenance.source) == str(MODEL_DIR)),
    )  # fmt: skip
    for one in entrants:
        for job in jobs if one.kind == grid.INGOT else ():
            _check_size(opened[one.model], one, job)
    if clip is not None or fid is not None:
        from .scorers import check_scorers

        check_scorers(clip, fid)
    return Request(
        jobs=tuple(jobs), contestants=tuple(entrants), latents=_latents(first), reference=_reference(reference, entrants),
        rounds=rounds, calls=calls, timeout=timeout, title=title or f"Ingot: {first.path.name}", command=command,
        output=destination, work=_work(work), environments=None if environments is None else Path(environments),
        clip=None if clip is None else Path(clip), fid=fid,
    )  # fmt: skip


def resolved(model: str) -> str:
    """Where a model lies: a folder's absolute path, Shapes' own, or the name as it is."""
    if model == SHAPES:
        return str(MODEL_DIR)
    return str(Path(model).absolute()) if Path(model).exists() else model


def _opened(paths: Sequence[str | Path]) -> dict[str, Bundle]:
    """The bundles by their paths as given, every file of them hashed."""
    if not paths:
        raise InputError("no bundle was given: ingot bench BUNDLE")
    opened = {str(Path(path)): Bundle.open(path) for path in paths}
    for bundle in opened.values():
        family = pipeline_class(bundle.manifest.pipeline)
        if "prompt" not in getattr(getattr(family, "call_type", None), "__dataclass_fields__", {}):
            raise InputError(
                f"{bundle.path} is a {bundle.manifest.pipeline}: ingot bench measures pictures from prompts alone"
            )
        grid.denoiser(bundle)
    return opened


def _entrants(
    opened: Mapping[str, Bundle], engines: Sequence[str] | None, schemes: Sequence[str] | None, baseline: Sequence[str],
    recipes: Sequence[str], source: str, environments: str | Path | None,
) -> list[Contestant]:  # fmt: skip
    """Baselines first, then the bundles' own, then recipes."""
    if strange := [name for name in baseline if name not in grid.baselines()]:
        raise unknown("baseline", strange[0], grid.baselines())
    grid.check_engine_names(engines)
    found = [Contestant(name=name, kind=name, model=source) for name in dict.fromkeys(baseline)]
    if engines or schemes or not recipes:
        for bundle in opened.values():
            prefix = f"{bundle.path.name} " if len(opened) > 1 else ""
            found += grid.of_bundle(bundle, engines, schemes, prefix)
    found += [grid.of_recipe(*grid.recipe(text), opened, source) for text in recipes]
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two contestants are named {twice[0]!r}; names tell them apart in the report")
    return [_with_python(one, environments) if one.kind in grid.baselines() else one for one in found]


def _with_python(one: Contestant, environments: str | Path | None) -> Contestant:
    """A baseline with the interpreter that runs it: its environment's, or for diffusers Ingot's own."""
    from .prepare import checkpoint_folder

    module = importlib.import_module(f"ingot.benchmarks.contestants.{one.kind.replace('-', '_')}")
    known = {*getattr(module, "OPTIONS", ()), "weights"}
    if wrong := sorted(set(one.options) - known):
        raise InputError(
            f"--contestant {one.name}: {one.kind} has no option {', '.join(wrong)}; it has {', '.join(sorted(known))}"
        )
    try:
        checkpoint_folder(one.model)
    except InputError as error:
        raise InputError(f"{error}; --model CHECKPOINT names another") from None
    return msgspec.structs.replace(one, python=interpreter(one.kind, environments))


def interpreter(kind: str, environments: str | Path | None) -> str:
    """The Python that runs a baseline; "" is Ingot's own. Raises InputError where its environment is missing.

    diffusers runs in ours where it has no environment: it then imports what else is installed here, such as torchao, and
    takes longer to.
    """
    from .environments import FOLDER, python_of

    try:
        return str(python_of(kind, FOLDER if environments is None else environments))
    except InputError:
        own = all(importlib.util.find_spec(name) for name in ("diffusers", "torch", "transformers"))
        if kind.startswith("diffusers") and own and environments is None:
            return ""
        raise


def _reference(name: str | None, entrants: Sequence[Contestant]) -> str:
    """The contestant that ratios and quality are held against: the one named, the first baseline (diffusers before others),
    or the first in floats."""
    if name is not None:
        if name not in [one.name for one in entrants]:
            raise unknown("contestant for --reference", name, [one.name for one in entrants])
        return name
    others = [one for one in entrants if one.kind in grid.baselines()]
    floats = [one for one in entrants if str(one.options.get("precision", "")).startswith("float")]
    return min([*others], key=lambda one: one.kind != "diffusers", default=(floats or [*entrants])[0]).name


def _destination(output: str | Path | None, overwrite: bool) -> Path | None:
    """Where the report goes. Raises InputError for a place that has something else."""
    if output is None:
        return None
    path = Path(output)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; --overwrite replaces the report in it, or name another folder with -o")
    if path.exists() and not (path.is_dir() and ((path / "report.json").exists() or not any(path.iterdir()))):
        raise InputError(f"{path} exists and is no report of `ingot bench`: name another folder with -o")
    if not path.absolute().parent.is_dir():
        raise InputError(
            f"the folder {path.absolute().parent} does not exist; -o must name a folder to make in one that does"
        )
    return path


def _work(work: str | Path | None) -> Path:
    """Exports of baselines are kept for the next report: they take minutes and gigabytes."""
    if work is not None:
        return Path(work)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ingot" / "bench"


def _check_numbers(rounds: int, calls: int, timeout: float, seed: int, guidance: float) -> None:
    for name, value, least in (("--rounds", rounds, 1), ("--calls", calls, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} {value}: at least {least} is needed")
    if not timeout > 0:
        raise InputError(f"--timeout {timeout}: seconds above 0 are needed")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"--seed {seed}: a whole number of at least 0 is needed")
    if not abs(guidance) < float("inf"):
        raise InputError(f"--guidance-scale {guidance}: a number is needed")


def _vae(bundle: Bundle) -> Mapping[str, Any]:
    entry = bundle.manifest.components.get("vae_decoder")
    return entry.config if entry else {}


def _latents(bundle: Bundle) -> tuple[int, int]:
    config = _vae(bundle)
    return int(config.get("latent_channels", 4)), 2 ** (len(config.get("block_out_channels", "four")) - 1)


def _own_size(bundle: Bundle) -> tuple[int, int]:
    """(height, width) in pixels that a static bundle was made for, else what the model was trained at."""
    factor = _latents(bundle)[1]
    entry = bundle.component(grid.denoiser(bundle))
    side = entry.config.get("sample_size") or 64
    sides = [side, side] if isinstance(side, int) else list(side)
    fixed = _fixed(entry.graphs[0], factor)
    height, width = (own or int(trained) * factor for own, trained in zip(fixed, sides, strict=True))
    return height, width


def _fixed(graph: Graph, factor: int) -> tuple[int | None, int | None]:
    """(height, width) in pixels that a denoiser's graph was exported for; None where it takes any."""
    shape = next((spec.shape for spec in graph.signature.inputs if len(spec.shape) == 4), ("", "", "", ""))
    height, width = (dim * factor if isinstance(dim, int) else None for dim in shape[2:])
    return height, width


def _check_size(bundle: Bundle, one: Contestant, job: Job) -> None:
    """Raise InputError for a size that the model, or a static graph of the contestant's engine, does not take."""
    asked, factor = f"--sizes {job.height}x{job.width}", _latents(bundle)[1]
    entry = bundle.component(grid.denoiser(bundle))
    multiple = factor * (entry.config.get("patch_size") or 1)
    for name, value in (("height", job.height), ("width", job.width)):
        if value % multiple:
            below = value // multiple * multiple
            raise InputError(f"{asked}: {name} {value} is not a multiple of {multiple}; {below or multiple} would do")
    for graph in entry.graphs:
        if graph.engine != one.options.get("engine"):
            continue
        height, width = _fixed(graph, factor)
        if (height or job.height, width or job.width) != (job.height, job.width):
            raise InputError(
                f"{asked}: {bundle.path} was exported for {one.name} with the static size {height}x{width}"
            )
