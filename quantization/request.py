"""What a quantization was asked for, checked before anything is drawn or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import ExportError, InputError
from ingot.runtimes.pipelines import FAMILIES

from . import recipe as recipes
from .defaults import Checker, checker_of
from .gate import Floor
from .recipe import Recipe
from .scheme import SCHEMES
from .toolchains import check_options, needs_calls, require_scheme, toolchain
from .toolchains import scheme as scheme_of
from .trajectory import FLOATS, Plan


@dataclass(frozen=True)
class Request:
    """Pairs of engine and scheme, in order; the components, those that were named one by one, and the layers to leave."""

    pairs: tuple[tuple[str, str], ...]
    components: tuple[str, ...]
    named: frozenset[str]
    keep: tuple[str, ...]
    calibration: Plan | None
    calls: int
    floor: Floor
    options: dict[str, dict[str, Any]]
    recipes: tuple[Recipe, ...]
    overwrite: bool

    def recipe_for(self, engine: str, role: str, scheme: str) -> Recipe | None:
        """The recipe of a component, where there are recipes at all."""
        mine = (one for one in self.recipes if (one.engine, one.role) == (engine, role))
        return next((one for one in mine if one.quantization.asked == scheme), None)


def request(
    bundle: Bundle, scheme: str | Sequence[str] | None, to: str | Sequence[str] | None, components: Sequence[str] | None,
    keep: Sequence[str], calibrate: Sequence[str] | str | Path | None, floor: Floor, auto: bool, recipe: str | Path | None,
    calls: int, options: Mapping[str, Mapping[str, Any]] | None, plan: Plan, checker: Checker | None, overwrite: bool,
) -> Request:  # fmt: skip
    """The arguments of `quantize` as a request. Raises InputError for what cannot be done, saying what can."""
    if bundle.manifest.pipeline not in FAMILIES:
        raise InputError(
            f"quantization is measured on pictures, and Ingot cannot run {bundle.manifest.pipeline}; it runs: {', '.join(FAMILIES)}"
        )
    if sum((scheme is not None, auto, recipe is not None)) != 1:
        raise InputError("give one of: a scheme, auto, a recipe")
    if recipe is not None and keep:
        raise InputError("a recipe says itself which layers stay floats: give keep with a scheme, or the recipe alone")
    _check_plan(plan, calls)
    _check_floor(bundle, floor, checker)
    found = recipes.read(recipe) if recipe is not None else []
    engines = _engines(bundle, to)
    if auto:
        pairs = [(engine, name) for engine in engines for name in _has(engine)]
    elif found:
        pairs = list(dict.fromkeys((one.engine, one.quantization.asked) for one in found if one.engine in engines))
        if not pairs:
            raise InputError(
                f"the recipe is for {', '.join(dict.fromkeys(one.engine for one in found))}; the bundle has graphs for {', '.join(engines)}"
            )
    else:
        pairs = _pairs(engines, [scheme] if isinstance(scheme, str) else list(scheme or ()), named=to is not None)
    calibration = _calibration(calibrate, plan, found)
    if not auto:
        _require_calibration(pairs, calibration)
    roles = _components(bundle, components)
    made = {(engine, role, name) for engine, name in pairs for role in roles}
    if found:
        made = {(one.engine, one.role, one.quantization.scheme) for one in found if one.role in roles}
    if not overwrite and not auto:
        _refuse_present(bundle, made)
    for engine, given in (options or {}).items():
        if engine not in engines:
            raise InputError(f"options are given for {engine}, which is not among {', '.join(engines)}")
        check_options(engine, given)
    return Request(
        tuple(pairs), tuple(roles), frozenset(components or ()), tuple(keep), calibration, calls, floor,
        {name: dict(given) for name, given in (options or {}).items()}, tuple(found), overwrite,
    )  # fmt: skip


def _refuse_present(bundle: Bundle, made: set[tuple[str, str, str]]) -> None:
    present = {
        (g.engine, role, g.precision) for role, entry in bundle.manifest.components.items() for g in entry.graphs
    }
    twice = sorted({f"{engine} {name}" for engine, _, name in made & present})
    if twice:
        raise InputError(
            f"{bundle.path} has {', '.join(twice)} already; give --overwrite (overwrite=True) to make it anew"
        )


def _engines(bundle: Bundle, to: str | Sequence[str] | None) -> list[str]:
    """The engines named, or all that the bundle has float graphs for."""
    entries = bundle.manifest.components.values()
    held = list(dict.fromkeys(g.engine for entry in entries for g in entry.graphs if g.precision in FLOATS))
    if to is None:
        return held
    names = [to] if isinstance(to, str) else list(dict.fromkeys(to))
    for name in names:
        toolchain(name)  # unknown, or not installed
        if name not in held:
            raise InputError(
                f"{bundle.path} has no float graphs for {name}, from which quantized ones are made; it has: {', '.join(held) or 'none'}. "
                f"`ingot add {bundle.path} --to {name}` adds them"
            )
    return names


def _pairs(engines: Sequence[str], schemes: Sequence[str], *, named: bool) -> list[tuple[str, str]]:
    if not schemes:
        raise InputError(f"no scheme was named; there are: {', '.join(SCHEMES)}")
    found = []
    for name in schemes:
        scheme_of(name)
        able = [engine for engine in engines if name in _has(engine)]
        if named or not able:  # an engine that was named must have it
            for engine in engines:
                require_scheme(engine, name)
        found += [(engine, name) for engine in able]
    return list(dict.fromkeys(found))


def _has(engine: str) -> list[str]:
    try:
        return list(toolchain(engine).SCHEMES)
    except ExportError:
        return []


def _components(bundle: Bundle, names: Sequence[str] | None) -> list[str]:
    have = list(bundle.manifest.components)
    strange = [name for name in names or () if name not in have]
    if strange:
        raise InputError(f"{bundle.path} has no component {', '.join(map(repr, strange))}; it has: {', '.join(have)}")
    return list(names) if names else have


def _calibration(given: Sequence[str] | str | Path | None, plan: Plan, found: Sequence[Recipe]) -> Plan | None:
    if given is None:
        known = next((one.quantization.calibration for one in found if one.quantization.calibration), None)
        return recipes.plan_of(known) if known else None
    if isinstance(given, str | Path):
        try:
            lines = Path(given).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"calibration prompts cannot be read from {given} as UTF-8: {error}") from error
        given = [line.strip() for line in lines if line.strip()]
        source = " in that file"
    else:
        source = ""
    if not given or not all(isinstance(one, str) and one.strip() for one in given):
        raise InputError(f"there are no calibration prompts{source}; give some like those that the model will get")
    return Plan(tuple(given), plan.seed, plan.num_inference_steps, plan.guidance_scale, plan.height, plan.width)


def _require_calibration(pairs: Sequence[tuple[str, str]], calibration: Plan | None) -> None:
    static = sorted({name for engine, name in pairs if needs_calls(engine, name)})
    if static and calibration is None:
        raise InputError(
            f"{', '.join(static)} needs calibration prompts, like those that the model will get: --calibrate FILE with one on each "
            f"line (calibrate=[...]); int8-weights and int8-dynamic need none"
        )


def _check_plan(plan: Plan, calls: int) -> None:
    if not plan.prompts or not all(isinstance(one, str) for one in plan.prompts):
        raise InputError("damage is measured on pictures of prompts: give at least one")
    for name, value in (("num_inference_steps", plan.num_inference_steps), ("calls", calls)):
        if value < 1:
            raise InputError(f"{name}={value}: at least 1 is needed")


def _check_floor(bundle: Bundle, floor: Floor, checker: Checker | None) -> None:
    if floor.min_checker is None:
        return
    if not 0 <= floor.min_checker <= 1:
        raise InputError(f"min_checker={floor.min_checker:g}: it is a share of the pictures, from 0 to 1")
    if checker is None and checker_of(bundle) is None:
        raise InputError(
            "min_checker needs a checker: Shapes has one; for another model give checker=, a function of prompts and pictures"
        )
