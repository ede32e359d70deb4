"""What `ingot bench` is asked for, checked whole before anything runs."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import InputError, unknown
from ingot.runtimes.pipelines import pipeline_class
from ingot.runtimes.schedulers import scheduler_class
from ingot.shapes import MODEL_DIR

from . import grid
from . import sizes as of_sizes
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
    device: str = grid.CPU,
    command: str = "",
) -> Request:
    """The request of these options: see `run.bench`. Raises InputError, BundleError and EngineError for what cannot be."""
    opened = _opened(bundles)
    first = next(iter(opened.values()))
    _check_numbers(rounds, calls, timeout, seed, guidance_scale)
    destination = _destination(output, overwrite)
    source = str(model) if model is not None else first.manifest.provenance.source
    entrants = _entrants(opened, engines, schemes, baseline, contestant, source, environments, device)
    name = scheduler or str(first.manifest.scheduler["_class_name"])
    scheduler_class(name)
    jobs = grid.jobs(
        sizes or [of_sizes.own_size(first)], batch, steps, threads or [cores()], guidance_scale=float(guidance_scale), scheduler=name,
        seed=seed, prompts=read_prompts(prompts, of_shapes=resolved(first.manifest.provenance.source) == str(MODEL_DIR)),
    )  # fmt: skip
    places = {str(bundle.path.absolute()): bundle for bundle in opened.values()}
    for one in entrants:
        for job in jobs if one.kind == grid.INGOT else ():
            of_sizes.check_size(places[one.model], one, job)
    if clip is not None or fid is not None:
        from .scorers import check_scorers

        check_scorers(clip, fid)
    return Request(
        jobs=tuple(jobs), contestants=tuple(entrants), latents=of_sizes.latents(first), reference=_reference(reference, entrants),
        rounds=rounds, calls=calls, timeout=timeout, title=title or f"Ingot: {first.path.name}", command=command,
        output=destination, work=_work(work), environments=None if environments is None else Path(environments),
        clip=None if clip is None else Path(clip), fid=fid,
    )  # fmt: skip


def resolved(model: str) -> str:
    """Where a checkpoint lies: a folder's absolute path, Shapes' own, or the name as it is. Bundles have absolute paths from
    the start: one may be called as Shapes is."""
    if model == SHAPES:
        return str(MODEL_DIR)
    return str(Path(model).absolute()) if Path(model).exists() else model


def _opened(paths: Sequence[str | Path]) -> dict[str, Bundle]:
    """The bundles by their paths as given, every file of them hashed."""
    if not paths:
        raise InputError("no bundle was given: ingot bench BUNDLE")
    opened = {str(Path(path).absolute()): Bundle.open(path) for path in paths}
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
    recipes: Sequence[str], source: str, environments: str | Path | None, device: str,
) -> list[Contestant]:  # fmt: skip
    """Baselines first, then the bundles' own, then recipes."""
    if strange := [name for name in baseline if name not in grid.baselines()]:
        raise unknown("baseline", strange[0], grid.baselines())
    grid.check_engine_names(engines)
    peers = [Contestant(name=name, kind=name, model=source) for name in dict.fromkeys(baseline)]
    found = [_with_python(one, environments, device) for one in peers]
    if engines or schemes or not recipes:
        grid.check_schemes(opened.values(), engines, schemes)
        for bundle, name in zip(opened.values(), grid.told_apart([*opened]), strict=True):
            found += grid.of_bundle(bundle, engines, schemes, f"{name} " if name else "", device)
    own = [grid.of_recipe(*grid.recipe(text), opened, source, device) for text in recipes]
    found += [_with_python(one, environments, device) if one.kind in grid.baselines() else one for one in own]
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two contestants are named {twice[0]!r}; names tell them apart in the report")
    return found


def _with_python(one: Contestant, environments: str | Path | None, device: str) -> Contestant:
    """A baseline with the interpreter that runs it: its environment's, or for diffusers Ingot's own."""
    from .prepare import EXPORTERS, FORMATS, WEIGHT, check_weights, checkpoint_folder

    module = importlib.import_module(f"ingot.benchmarks.contestants.{one.kind.replace('-', '_')}")
    known = {*getattr(module, "OPTIONS", ()), *(["weights"] if one.kind in FORMATS else [])}
    if wrong := sorted(set(one.options) - known):
        raise InputError(
            f"--contestant {one.name}: {one.kind} has no option {', '.join(wrong)}; it has {', '.join(sorted(known))}"
        )
    options = one.options if device == grid.CPU else {"device": device, **one.options}
    if "device" in set(options) - known:
        raise InputError(f"--device {device}: the baseline {one.kind} is run on cpu only; leave it out, or --device")
    try:
        checkpoint_folder(one.model)
    except InputError as error:
        raise InputError(f"{error}; --model CHECKPOINT names another") from None
    if one.kind in FORMATS:
        check_weights(one.kind, str(one.options.get("weights", WEIGHT)))
        exporter = EXPORTERS[FORMATS[one.kind]]
        try:
            interpreter(exporter, environments)
        except InputError as error:
            raise InputError(
                f"{one.kind} reads what {exporter} exports, and {error}" if exporter != one.kind else str(error)
            ) from None
    return msgspec.structs.replace(one, python=interpreter(one.kind, environments), options=options)


def interpreter(kind: str, environments: str | Path | None) -> str:
    """The Python that runs a baseline; "" is Ingot's own. Raises InputError where its environment is missing, and where it is
    half-made or of older pins.

    diffusers runs in ours where it has no environment: it then imports what else is installed here, such as torchao, and
    takes longer to.
    """
    from .environments import FOLDER, environment_of, python_of

    folder = FOLDER if environments is None else Path(environments)
    own = all(importlib.util.find_spec(name) for name in ("diffusers", "torch", "transformers"))
    absent = environments is None and not (folder / environment_of(kind)).exists()
    return "" if kind.startswith("diffusers") and own and absent else str(python_of(kind, folder))


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
