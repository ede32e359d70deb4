"""Which scheme each component gets when one is asked for the whole model, and what damage is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from ingot.runtimes.bundle import Bundle

Checker = Callable[[Sequence[str], NDArray[Any]], float]
"""From prompts and pictures, (count, height, width, 3) in 0..1, to the share that is right."""

# Text encoders are a small part of the time and all of the meaning, and their activations have outliers: weights only. A
# VAE in 4 bits shows it in every pixel. Components in neither row get what is asked.
TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder", "safety_checker")
PICTURE = ("vae_decoder", "vae_encoder", "vae_decode", "vae_encode", "movq")
INSTEAD: Mapping[str, Mapping[str, str]] = {
    "text": {"int8-static": "int8-weights", "int8-hybrid": "int8-weights", "int4-weights": "int8-weights",
             "palette-4": "palette-8", "palette-6": "palette-8", "fp8": "int8-weights"},
    "picture": {"int4-weights": "int8-weights", "palette-4": "palette-8", "palette-6": "palette-8", "int8-hybrid": "int8-weights"},
}  # fmt: skip

# Pictures that damage is measured on when nobody names prompts, for models whose training nobody here knows.
PROMPTS = (
    "a photograph of a lighthouse on a cliff at sunset",
    "a portrait of an old sailor with a white beard, oil on canvas",
    "a red bicycle leaning against a blue wall",
    "a bowl of ripe fruit on a wooden table, soft window light",
)
SHAPES_COUNT = 16


def component_scheme(role: str, scheme: str, has: Sequence[str]) -> str | None:
    """The scheme of a component when `scheme` is asked for all, out of those that its toolchain has; None: it stays."""
    kind = "text" if role in TEXT else "picture" if role in PICTURE else ""
    own = INSTEAD.get(kind, {}).get(scheme, scheme)
    return own if own in has else scheme if kind == "" and scheme in has else None


def is_shapes(bundle: Bundle) -> bool:
    """Whether a bundle was cast from the model that ships with Ingot."""
    return bundle.manifest.provenance.source == "shapes"


def evaluation_prompts(bundle: Bundle) -> tuple[str, ...]:
    """Prompts that damage is measured on: for Shapes, captions that it never saw."""
    if not is_shapes(bundle):
        return PROMPTS
    from ingot.shapes import split

    return tuple(scene.caption for scene in split()[1][:SHAPES_COUNT])


def checker_of(bundle: Bundle) -> Checker | None:
    """The model's own checker, where it has one: Shapes'."""
    if not is_shapes(bundle):
        return None
    from ingot.shapes import score

    def check(prompts: Sequence[str], pictures: NDArray[Any]) -> float:
        return score(prompts, (pictures * 255).round().astype("uint8"))["all"]

    return check
