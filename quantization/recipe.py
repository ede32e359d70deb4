"""Recipes: what was quantized and what was left, so that it can be done again, on this bundle or another of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import InputError
from ingot.runtimes.manifest import Calibration, Quantization

from .trajectory import Plan
from .workbench import Work


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One quantized graph's recipe: for which engine and component."""

    engine: str
    role: str
    quantization: Quantization


def recipes_of(bundle: Bundle) -> list[Recipe]:
    """The recipes of a bundle's quantized graphs."""
    return [
        Recipe(engine=graph.engine, role=role, quantization=graph.quantization)
        for role, entry in bundle.manifest.components.items()
        for graph in entry.graphs
        if graph.quantization is not None
    ]


def read(path: str | Path) -> list[Recipe]:
    """The recipes in a bundle's folder, or in a file that `ingot inspect BUNDLE --recipes` printed.

    Raises InputError for a path that holds none.
    """
    place = Path(path)
    if place.is_dir():
        found = recipes_of(Bundle.open(place, hashes=False))
    else:
        try:
            found = msgspec.json.decode(place.read_bytes(), type=list[Recipe])
        except OSError as error:
            raise InputError(f"the recipe {place} cannot be read: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise InputError(
                f"{place} holds no recipe: {error}; `ingot inspect BUNDLE --recipes` prints those of a bundle"
            ) from error
    if not found:
        raise InputError(f"{place} has no quantized graphs, so no recipe; `ingot quantize` makes them")
    return found


def dump(recipes: list[Recipe]) -> str:
    """Recipes as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(recipes), indent=1).decode()


def require_same_model(recipe: Recipe, work: Work) -> None:
    """Raise InputError for a recipe whose layers are not this model's."""
    if recipe.quantization.fingerprint != work.fingerprint:
        strange = sorted(set(recipe.quantization.keep) - {layer.name for layer in work.layers})
        raise InputError(
            f"the recipe for {recipe.role} is of another model: it knows {recipe.quantization.layers} layers"
            f"{f', {strange[0]} among them,' if strange else ''} and this one has {len(work.layers)}, "
            f"or others of the same number; quantize this one with its own search"
        )


def plan_of(calibration: Calibration) -> Plan:
    """What a calibration drew."""
    return Plan(
        calibration.prompts, calibration.seed, calibration.num_inference_steps, calibration.guidance_scale,
        calibration.height, calibration.width,
    )  # fmt: skip


def calibration_of(plan: Plan, size: tuple[int, int], calls: int) -> Calibration:
    """What a plan drew, for the manifest; the size in pixels."""
    return Calibration(
        prompts=plan.prompts, seed=plan.seed, num_inference_steps=plan.num_inference_steps, guidance_scale=plan.guidance_scale,
        height=size[0], width=size[1], calls=calls,
    )  # fmt: skip


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """A toolchain's options as the manifest keeps them."""
    found: dict[str, Any] = msgspec.to_builtins(options)
    return found
