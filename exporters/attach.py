"""`ingot.attach`: a diffusers pipeline of any class, run on a bundle's graphs.

    pipe = StableVideoDiffusionPipeline.from_pretrained(...)
    ingot.attach(pipe, "svd-bundle")   # its modules compute on an engine now
    pipe(image)                        # as before
    ingot.detach(pipe)                 # and as they were

What the bundle has a component for is replaced, at the places where capture records; everything else stays torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.choice import Precision, choose, pick
from ingot.runtimes.engines import Engine
from ingot.runtimes.errors import InputError
from ingot.runtimes.load import open_engine
from ingot.runtimes.manifest import ComponentEntry

from .attached import EngineMethod, module_with
from .bundle_writer import config_of, plain
from .recording import Place, places

_log = logging.getLogger("ingot")
_STATE = "_ingot_attached"  # on the pipeline, past its own __setattr__: what `Attached` holds
_PART_OF = "_ingot_part_of"  # on the pipelines inside of it: its class
# Differ between checkpoints of one architecture, or say how a file was written; no graph depends on them.
_NOT_COMPARED = ("_class_name", "_diffusers_version", "_name_or_path", "transformers_version", "dtype", "torch_dtype",
                 "architectures", "sample_size", "use_cache", "return_dict")  # fmt: skip
# Since then manifests say what a graph folds in.
_SCHEMA = 4


@dataclass(frozen=True)
class Attached:
    """What `attach` took from a pipeline, and the engines in its place.

    `originals` are modules by the pipeline that had them and their name there: a combined pipeline and the ones inside of it
    each hold their own.
    """

    originals: tuple[tuple[Any, str, Any], ...]
    engines: Mapping[str, Engine]

    def put_back(self) -> None:
        """Give every pipeline its own modules, past its own __setattr__, which writes its config."""
        for holder, name, original in self.originals:
            vars(holder)[name] = original
            vars(holder).pop(_PART_OF, None)


def attach(
    pipe: Any,
    bundle: str | Path | Bundle,
    *,
    engine: str | None = None,
    device: str | None = None,
    precision: Precision = None,
    components: Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """Replace the torch modules of a diffusers pipeline by a bundle's graphs, and return the pipeline.

    The modules that take their place have the same classes, attributes and calls; their weights stay torch's, so that
    `detach` can restore them and other pipelines that share them are not changed. `components` are roles of the bundle
    (unet, vae_decoder, …), all that the pipeline has a place for where it is None. `engine`, `device`, `precision` and
    `options` choose and open graphs as `ingot.load` does. What a graph cannot do (an argument that it was not made for, a
    size that it is fixed to, a gradient) raises InputError when it is asked for. Raises InputError for a bundle of another
    model or without these components, BundleError for one that was changed, EngineError as `ingot.load` does.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, hashes=False)
    before = attached(pipe)
    if before is None:
        _require_alone(pipe)
    else:  # put back where the new bundle does not fit
        held = [(holder, name, vars(holder)[name]) for holder, name, _ in before.originals]
        vars(pipe).pop(_STATE)
        before.put_back()
        try:
            attach(pipe, opened, engine=engine, device=device, precision=precision, components=components, **options)
        except BaseException:
            vars(pipe)[_STATE] = before
            for holder, name, module in held:
                vars(holder)[name] = module
                if holder is not pipe:
                    vars(holder)[_PART_OF] = type(pipe).__name__
            raise
        _close(before.engines)
        return pipe
    found = _wanted(opened, {place.role: place for place in places(pipe)}, components, type(pipe).__name__)
    _require_same_model(opened, found)
    roles = list(found)
    choice = choose(opened, roles, engine, device, precision)
    _log.info("%s: %s", opened.path, choice)
    if choice.device is not None and (device is not None or "providers" not in options):
        options["device"] = choice.device
    graphs = pick(opened, roles, choice.engine, precision, device=options.get("device"))
    opened.require(file for graph in graphs.values() for file in graph.files)
    engines: dict[str, Engine] = {}
    try:
        for role, graph in graphs.items():
            engines[role] = open_engine(opened, graph, **options)
    except BaseException:
        _close(engines)
        raise
    methods = {role: EngineMethod(found[role], opened.component(role), engines[role]) for role in roles}
    _put(pipe, found, methods, engines)
    return pipe


def detach(pipe: Any) -> Any:
    """Give a pipeline its own modules back and close the engines. One that has nothing attached stays as it is."""
    state = attached(pipe)
    if state is not None:
        vars(pipe).pop(_STATE)
        state.put_back()
        _close(state.engines)
    return pipe


def attached(pipe: Any) -> Attached | None:
    """What `attach` took from a pipeline, and the engines in its place; None where there is nothing."""
    state: Attached | None = vars(pipe).get(_STATE)
    return state


def attached_roles(pipe: Any) -> tuple[str, ...]:
    """The components of a pipeline that run on an engine."""
    state = attached(pipe)
    return () if state is None else tuple(state.engines)


def _require_alone(pipe: Any) -> None:
    """Refuse a pipeline whose modules another one has had replaced, or has inside of it: each would put back the other's."""
    others = [type(one).__name__ for one in _pipelines(pipe) if attached(one) is not None]
    others += filter(None, [vars(pipe).get(_PART_OF)])
    if others:
        raise InputError(
            f"a {type(pipe).__name__} cannot be attached while the {others[0]} around it or in it is: detach that"
        )


def _wanted(
    bundle: Bundle, known: Mapping[str, Place], components: Sequence[str] | None, pipeline: str
) -> dict[str, Place]:
    """The places of the components to attach, by role."""
    held = bundle.manifest.components
    if bundle.manifest.schema < _SCHEMA:
        raise InputError(
            f"{bundle.path} was written before bundles kept what their graphs fold in (schema {bundle.manifest.schema}, "
            f"{_SCHEMA} is needed): export it again"
        )
    if isinstance(components, str):
        raise InputError(f"components={components!r}: a list of roles is needed, such as [{components!r}]")
    roles = list(components) if components is not None else [role for role in held if role in known]
    if strange := [role for role in roles if role not in held]:
        raise InputError(f"components: {bundle.path} has no {', '.join(strange)}; it has: {', '.join(held)}")
    if strange := [role for role in roles if role not in known]:
        raise InputError(f"components: a {pipeline} has no place for {', '.join(strange)}; it has: {', '.join(known)}")
    if not roles:
        raise InputError(
            f"nothing of {bundle.path} ({', '.join(held)}) has a place in a {pipeline} ({', '.join(known)})"
        )
    return {role: known[role] for role in roles}


def _require_same_model(bundle: Bundle, found: Mapping[str, Place]) -> None:
    """Refuse graphs of another architecture, naming every difference; what the weights are worth nothing here can say."""
    problems = [problem for role, place in found.items() for problem in _differences(bundle.component(role), place)]
    if problems:
        raise InputError(f"{bundle.path} was made from another model: {'; '.join(problems)}")


def _differences(entry: ComponentEntry, place: Place) -> list[str]:
    kind = type(place.module).__name__
    if kind != entry.class_name:
        return [f"{place.role} is a {entry.class_name} there and a {kind} here"]
    here, there = plain(config_of(place.module)), entry.config
    names = [name for name in there if name in here and name not in _NOT_COMPARED]
    unequal = [f"{place.role}'s {n} is {there[n]!r} there and {here[n]!r} here" for n in names if there[n] != here[n]]
    count = sum(parameter.numel() for parameter in place.module.parameters())
    if not unequal and count != entry.parameters:
        unequal = [f"{place.role} has {entry.parameters} parameters there and {count} here"]
    return unequal


def _put(
    pipe: Any, found: Mapping[str, Place], methods: Mapping[str, EngineMethod], engines: dict[str, Engine]
) -> None:
    """Change the pipeline: one replacement for each of its parts, under every name and in every pipeline inside of it, past
    its own __setattr__, which writes its config."""
    by_part: dict[str, list[str]] = {}
    for role, place in found.items():
        by_part.setdefault(place.part, []).append(role)
    originals = [
        (holder, name, part)
        for original in (vars(pipe)[name] for name in by_part)
        for holder in _pipelines(pipe)
        for name, part in vars(holder).items()
        if part is original
    ]
    replacements = {
        id(vars(pipe)[name]): module_with(vars(pipe)[name], [(found[role], methods[role]) for role in roles])
        for name, roles in by_part.items()
    }
    for holder, name, original in originals:
        vars(holder)[name] = replacements[id(original)]
        if holder is not pipe:
            vars(holder)[_PART_OF] = type(pipe).__name__
    vars(pipe)[_STATE] = Attached(tuple(originals), engines)


def _pipelines(pipe: Any) -> Iterator[Any]:
    """A pipeline, and those that it is combined of, such as `prior_pipe` and `decoder_pipe`."""
    yield pipe
    for part in vars(pipe).values():
        if isinstance(part, DiffusionPipeline):
            yield from _pipelines(part)


def _close(engines: Mapping[str, Engine]) -> None:
    for one in engines.values():
        one.close()
