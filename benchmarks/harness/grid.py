"""What is asked for as data: the jobs of a grid, and the contestants of bundles, baselines and recipes."""

from __future__ import annotations

import inspect
import itertools
import json
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.choice import choose, engines_of
from ingot.runtimes.engines import available, check_types, engine
from ingot.runtimes.errors import EngineError, InputError, unknown
from ingot.runtimes.exchange import other_vae
from ingot.runtimes.load import load
from ingot.runtimes.pipelines import pipeline_class

from .. import contestants
from .record import Contestant, Job

INGOT = "ingot"
CPU = "cpu"  # the device where none is named: all contestants can run there
TILE = "tile"  # contestants/ingot.py's own
_OF_JOB = {
    "prompt", "height", "width", "threads", "num_inference_steps", "guidance_scale", "seed", "generator", "num_images_per_prompt",
}  # fmt: skip
_KEY = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*")


def jobs(
    sizes: Iterable[tuple[int, int]],
    batches: Iterable[int],
    steps: Iterable[int],
    threads: Iterable[int],
    **others: Any,
) -> list[Job]:
    """Every combination, the sizes outermost. Raises InputError for a number that is none of at least 1."""
    named = {"--batch": list(batches), "--steps": list(steps), "--threads": list(threads)}
    sizes = list(sizes)
    named["--sizes"] = [side for size in sizes for side in size]
    for name, values in named.items():
        wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, int) or value < 1]
        if wrong or not values:
            raise InputError(
                f"{name}: {', '.join(map(repr, wrong)) or 'nothing'} was given; whole numbers of at least 1 are needed"
            )
    grid = itertools.product(
        dict.fromkeys(sizes), *(dict.fromkeys(named[n]) for n in ("--batch", "--steps", "--threads"))
    )
    return [
        Job(height=height, width=width, batch=batch, steps=count, threads=cores, **others)
        for (height, width), batch, count, cores in grid
    ]


def baselines() -> list[str]:
    """Those that there are: a file in `contestants/` each."""
    found = (module.name for module in pkgutil.iter_modules(contestants.__path__))
    return sorted(
        name.replace("_", "-") for name in found if name not in ("measure", INGOT) and not name.startswith("_")
    )


def of_bundle(
    bundle: Bundle, engines: Sequence[str] | None, schemes: Sequence[str] | None, prefix: str = "", device: str = CPU
) -> list[Contestant]:
    """A contestant for each engine and precision of a bundle, or of those that are named.

    Engines that cannot run here are left out where none is named. Raises InputError for an engine that the bundle lacks,
    EngineError for an engine that cannot run here.
    """
    roles = required_roles(bundle)
    held = engines_of(bundle, roles)
    for name in engines or ():
        choose(bundle, roles, name)  # says what there is
        if why := absent(name, device):
            raise EngineError(f"--engines {name}: {why}")
    names = list(engines) if engines else [name for name in held if absent(name, device) is None]
    if not names:
        raise EngineError(f"nothing here runs {bundle.path}: " + "; ".join(f"{n}: {absent(n, device)}" for n in held))
    return [
        Contestant(
            name=f"{prefix}{name} {scheme}",
            kind=INGOT,
            model=str(bundle.path.absolute()),
            options={"engine": name, "precision": scheme, "device": device},
        )
        for name in names
        for scheme in precisions(bundle, name)
        if schemes is None or scheme in schemes
    ]


def check_schemes(bundles: Iterable[Bundle], engines: Sequence[str] | None, schemes: Sequence[str] | None) -> None:
    """Raise InputError for a scheme that no bundle has, for any engine or for those that are named."""
    has = {
        f"{bundle.path} for {name}": precisions(bundle, name)
        for bundle in bundles
        for name in engines_of(bundle, required_roles(bundle))
        if not engines or name in engines
    }
    known = {scheme for found in has.values() for scheme in found}
    if missing := [scheme for scheme in schemes or () if scheme not in known]:
        there = "; ".join(f"{where}: {', '.join(found)}" for where, found in has.items())
        raise InputError(f"--schemes: there is no {', '.join(missing)}; there is {there}")


def told_apart(paths: Sequence[str]) -> list[str]:
    """The shortest end of each path by which it differs from the others; nothing where it is alone."""
    if len(paths) < 2:
        return [""] * len(paths)
    ends = [Path(path).parts for path in paths]
    deepest = max(len(end) for end in ends)
    for depth in range(1, deepest + 1):
        found = ["/".join(end[-depth:]) for end in ends]
        if len(set(found)) == len(found):
            return found
    return list(paths)


def precisions(bundle: Bundle, engine_name: str) -> list[str]:
    """What the denoiser has for an engine, and the sets that were measured together, in the bundle's order."""
    graphs = bundle.component(denoiser(bundle)).graphs
    sets = [name.partition(" ")[2] for name in bundle.manifest.quality if name.startswith(f"{engine_name} ")]
    own = [graph.precision for graph in graphs if graph.engine == engine_name]
    found = dict.fromkeys([*own, *sets])
    roles = required_roles(bundle)
    return [name for name in found if engine_name in engines_of(bundle, roles, name)]


def required_roles(bundle: Bundle) -> list[str]:
    """The components that a bundle's pipeline cannot do without."""
    return [role for role in pipeline_class(bundle.manifest.pipeline).roles if role in bundle.manifest.components]


def denoiser(bundle: Bundle) -> str:
    """The role of the component that runs at every step. Raises InputError where there is none that is known."""
    found = next((role for role in ("unet", "transformer") if role in bundle.manifest.components), None)
    if found is None:
        raise InputError(f"{bundle.path} has no unet and no transformer: nothing of it runs in steps")
    return found


def absent(name: str, device: str = "") -> str | None:
    """Why this machine cannot run an engine on a device, or on any; None when it can."""
    try:
        here = engine(name).devices()
    except EngineError as error:
        return str(error)
    if not here:
        return f"the engine {name} has no device here"
    same = [one for one in here if device in ("", one, f"{one}:0", f"{one}.0")]
    return (
        None
        if same
        else f"the engine {name} has no device {device} here; it has {', '.join(here)}; --device names another"
    )


def recipe(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME=FILE.py` or `NAME: key=value, ...`: the name and what it says; a file is its `kind`. Values are JSON where they
    are that, else text. Raises InputError for what is neither."""
    before, equals, after = text.partition("=")
    if ":" not in before and equals and after.strip().endswith(".py"):
        return before.strip(), {"kind": after.strip()}
    name, colon, rest = text.partition(":")
    if not colon or not name.strip():
        raise InputError(f"--contestant {text!r} is neither NAME=FILE.py nor 'NAME: key=value, ...'")
    return name.strip(), _pairs(rest, text)


def of_recipe(
    name: str, said: Mapping[str, Any], bundles: Mapping[str, Bundle], model: str | None, device: str = CPU
) -> Contestant:
    """The contestant of a recipe. `kind` is a file or a baseline, Ingot where it is not said; `bundle` one of the bundles,
    the first where it is not said. Raises InputError for a name that nothing takes, and says what there is."""
    values = dict(said)
    kind = str(values.pop("kind", INGOT))
    if kind.endswith(".py"):
        if not Path(kind).is_file():
            raise InputError(f"--contestant {name}: there is no file {kind}")
        model = _named_bundle(name, values, bundles)
        values = values if device == CPU else {"device": device, **values}
        return Contestant(name=name, kind=kind, model=model, options=values)
    if kind != INGOT:
        if kind not in baselines():
            raise unknown("baseline", kind, baselines())
        return Contestant(name=name, kind=kind, model=model or "", options=values)
    bundle = bundles[_named_bundle(name, values, bundles)]
    given = values.pop("engine", None)
    device = str(values.pop("device", device))
    chosen = choose(bundle, required_roles(bundle), given, device, values.get("precision")).engine
    if why := absent(chosen, device):
        raise EngineError(f"--contestant {name}: {why}")
    options, call = _sorted_out(name, values, bundle, chosen)
    options = {"engine": chosen, **options, "device": device}
    return Contestant(name=name, kind=INGOT, model=str(bundle.path.absolute()), options=options, call=call)


def _sorted_out(
    name: str, values: Mapping[str, Any], bundle: Bundle, used: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `ingot.load` and the engine take, and what a call takes."""
    family = pipeline_class(values.get("pipeline") or bundle.manifest.pipeline)
    opening = engine(used).open_graph
    of_load = set(inspect.signature(load).parameters) - {"path", "options", "engine"} | {TILE}
    of_engine = set(inspect.signature(opening).parameters) - {"file", "signature", "stored"}
    of_call = set(inspect.signature(family.call_type).parameters)
    if ours := sorted(set(values) & _OF_JOB):
        raise InputError(
            f"--contestant {name}: {', '.join(ours)}: every contestant gets the same; run the command twice to compare"
        )
    options = {key: value for key, value in values.items() if key in of_load | of_engine}
    call = {key: value for key, value in values.items() if key not in options}
    if strange := sorted(set(call) - of_call):
        raise InputError(
            f"--contestant {name}: nothing takes {', '.join(strange)}; loading takes bundle, engine, {', '.join(sorted(of_load))}; "
            f"{used} takes {', '.join(sorted(of_engine))}; a call takes {', '.join(sorted(of_call - _OF_JOB))}"
        )
    check_types(opening, {key: value for key, value in options.items() if key in of_engine}, f"--contestant {name}")
    _require(name, options, call, bundle)
    return options, call


def _require(name: str, options: Mapping[str, Any], call: Mapping[str, Any], bundle: Bundle) -> None:
    """Hold a recipe against its bundle. Raises InputError, BundleError."""
    from ingot.runtimes.pipelines.denoiser import SHALLOW

    if {"cache_interval", "cache_schedule"} & set(call) and SHALLOW not in bundle.manifest.components:
        raise InputError(
            f"--contestant {name}: cache_interval and cache_schedule need DeepCache's {SHALLOW}, which {bundle.path} does not "
            "have: export it with --deep-cache 0"
        )
    if "vae" in options:
        Bundle.open(options["vae"])
        other_vae(bundle, options["vae"])


def _named_bundle(name: str, values: dict[str, Any], bundles: Mapping[str, Bundle]) -> str:
    """Takes `bundle` out of a recipe: its path among those that were given, however it is written."""
    asked = values.pop("bundle", next(iter(bundles)))
    found = next((path for path in bundles if Path(path).resolve() == Path(str(asked)).resolve()), None)
    if found is None:
        raise InputError(f"--contestant {name}: bundle={asked} is none of those that were given: {', '.join(bundles)}")
    return found


def _pairs(text: str, whole: str) -> dict[str, Any]:
    """`a=1, b={"unet": "int8-static"}, c=words` as a mapping."""
    found: dict[str, Any] = {}
    at = 0
    while text[at:].strip():
        key = _KEY.match(text, at)
        if key is None:
            raise InputError(f"--contestant {whole!r}: {text[at:].strip()!r} is not key=value")
        found[key.group(1)], at = _value(text, key.end())
    return found


def _value(text: str, start: int) -> tuple[Any, int]:
    """A value and where the next pair begins: JSON up to a comma, else all up to the next comma."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
        rest = text[end:].lstrip()
        if not rest or rest.startswith(","):
            return value, len(text) - len(rest) + 1
    except ValueError:
        pass
    comma = text.find(",", start)
    end = len(text) if comma < 0 else comma
    return text[start:end].strip(), end + 1


def check_engine_names(engines: Sequence[str] | None) -> None:
    """Raise InputError for a name that is no engine's."""
    for name in engines or ():
        if name not in available():
            raise unknown("engine", name, available())
