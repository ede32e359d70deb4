"""What `ingot generate` was asked for, as the arguments of a pipeline's call."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

from ingot.runtimes.errors import InputError

from .saving import read_embeds

STEPS = 20  # of a model with prompts; others take their own


def arguments(
    options: argparse.Namespace, prompts: list[str], pictures: Mapping[str, Any], pipe: Any
) -> dict[str, Any]:
    """The call for so many prompts or classes, `--count` pictures of each. Raises InputError for an option that the pipeline
    has no argument for."""
    known = {field.name for field in dataclasses.fields(pipe.call_type)}
    embeds = read_embeds(options.embeds)
    if "image_embeds" in known and not embeds:
        raise InputError(f"no embeddings were given, of which {pipe.class_name} makes pictures: --embeds FILE")
    if "prompt" in known and not prompts:
        raise InputError('no prompt was given: ingot generate BUNDLE "PROMPT", or --prompts FILE')
    height, width = options.size or (None, None)
    classes = [int(name) if name.isdigit() else name for name in options.classes for _ in range(options.count)]
    steps = STEPS if options.steps is None and "prompt" in known else options.steps
    asked: dict[str, Mapping[str, Any]] = {
        "PROMPT": {"prompt": prompts or None}, "--class": {"class_labels": classes or None},
        "--negative": {"negative_prompt": options.negative}, "--guidance": {"guidance_scale": options.guidance},
        "--guidance-start": {"guidance_start": options.guidance_start or None},
        "--guidance-end": {"guidance_end": None if options.guidance_end == 1 else options.guidance_end},
        "--cache-interval": {"cache_interval": None if options.cache_interval == 1 else options.cache_interval},
        "--size": {"height": height, "width": width},
        "--weighted": {"prompt_weighting": options.weighted or None},
        "--long-prompts": {"long_prompts": options.long_prompts or None},
        "--clip-skip": {"clip_skip": options.clip_skip},
        "--steps": {"num_inference_steps": steps},
        "--image, --mask, --strength or --control-image": pictures, "--embeds": embeds,
        "--control-scale": {_scale_of(pipe): one_or_all(options.control_scales)},
    }  # fmt: skip
    call: dict[str, Any] = {}
    for option, values in asked.items():
        given = {name: value for name, value in values.items() if value is not None}
        if missing := set(given) - known:
            raise InputError(f"{option} is not for {pipe.class_name}, which has no {', '.join(sorted(missing))}")
        call |= given
    if "num_images_per_prompt" in known:
        rows = [len(prompts), *map(len, embeds.values())]
        if pipe.makes == "embeddings" and options.negative is not None:
            rows.append(2 * len(prompts))  # those of negative prompts are drawn too
        total, counted = max(rows) * options.count, {"num_images_per_prompt": options.count}
    else:
        total = len(classes) or options.count
        counted = {"batch_size": total} if "batch_size" in known else {}
    return {**call, **counted, "seed": [options.seed + i for i in range(total)]}


def one_or_all(given: list[Any]) -> Any:
    """An option that may stand several times: what it was given once, else all of it; None where it does not stand."""
    return given[0] if len(given) == 1 else given or None


def _scale_of(pipe: Any) -> str:
    """What the pipeline's call names the scale of what reads control pictures."""
    return "adapter_conditioning_scale" if "adapter" in pipe.engines else "controlnet_conditioning_scale"
