"""What steers a latent model beside its prompt: ControlNets, T2I-Adapters, IP-Adapters, each where the bundle has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ..errors import InputError
from ..images import size_of
from .base import Parts
from .call import IMAGE_TO_IMAGE, INPAINTING, Call
from .common import Condition
from .control_net import NETS, control_nets
from .controls import Batch
from .denoiser import Control
from .ip_adapter import ENCODER, IPAdapters, Prompted
from .t2i_adapter import ADAPTERS, multiple_of, t2i_adapters

ROLES = (*NETS, *ADAPTERS, ENCODER)
# In these classes of diffusers `image` is the control picture.
IMAGE_IS_CONTROL = (
    "StableDiffusionAdapterPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLAdapterPipeline",
    "StableDiffusionXLControlNetPipeline",
)
OF_PICTURES = ("ip_adapter_image", "ip_adapter_image_embeds", "ip_adapter_scale")


class Reader(NamedTuple):
    """A kind of model that reads control pictures: the first one's role, its arguments, and how a bundle gets it."""

    kind: str
    role: str
    arguments: tuple[str, ...]
    export: str


READERS = (
    Reader(
        "ControlNet",
        NETS[0],
        ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end", "guess_mode"),
        "export a pipeline with one, such as StableDiffusionControlNetPipeline",
    ),
    Reader(
        "T2I-Adapter",
        ADAPTERS[0],
        ("adapter_conditioning_scale", "adapter_conditioning_factor"),
        "export a pipeline with one, such as StableDiffusionAdapterPipeline",
    ),
)
# What diffusers' classes with a control take where nothing is said, and the same task without one takes otherwise.
CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionControlNetImg2ImgPipeline": {"controlnet_conditioning_scale": 0.8},
    "StableDiffusionControlNetInpaintPipeline": {"controlnet_conditioning_scale": 0.5},
    "StableDiffusionXLControlNetInpaintPipeline": {"guidance_scale": 5.0},
    "StableDiffusionXLControlNetImg2ImgPipeline": {"controlnet_conditioning_scale": 0.8, "strength": 0.8},
}


@dataclass(frozen=True)
class Steered:
    """The controls of one call, and what they add to its conditions."""

    controls: tuple[Control, ...] = ()
    prompted: Prompted | None = None

    def condition(self, condition: Condition, *, guided: bool) -> Condition:
        """A condition with a picture's embeddings, for every prompt the same."""
        if self.prompted is None:
            return condition
        added = self.prompted.guided if guided else self.prompted.unguided
        of_all = {name: array.repeat(len(condition.embeds), axis=0) for name, array in added.items()}
        return Condition(condition.embeds, {**condition.others, **of_all})


class Steering:
    """What one bundle can be steered by."""

    def __init__(self, parts: Parts, denoiser: str) -> None:
        self._parts = parts
        self.pictures = IPAdapters(parts, denoiser)

    def read(self, call: Call) -> None:
        """Settle what is the control picture, and the class's own defaults. Raises InputError for what lacks a picture, or a
        model in this bundle that reads it."""
        name = self._parts.class_name
        started = call.mask_image is not None or call.strength is not None
        if name in IMAGE_IS_CONTROL and call.control_image is None and not started:
            call.control_image, call.image = call.image, None
        self._require(call)
        call.fill(CLASS_DEFAULTS.get(name, {}))

    def default_size(self, call: Call, multiple: int) -> tuple[int, int] | None:
        """(height, width) of the picture that sets a steered call's size where none is named, cut to what the models take."""
        if call.control_image is None or call.task == IMAGE_TO_IMAGE:
            return None
        first = call.image if call.task == INPAINTING else call.control_image
        while isinstance(first, list | tuple) and first:
            first = first[0]
        if ADAPTERS[0] in self._parts.engines:
            multiple = math.lcm(multiple, multiple_of(self._parts))
        height, width = (side // multiple * multiple or multiple for side in size_of(first, name="control_image"))
        return height, width

    def of(self, call: Call, batch: Batch) -> Callable[[], Steered]:
        """What makes the controls of a call. Raises InputError here, before a graph runs, for pictures, numbers and sizes
        that do not fit."""
        controls: list[Control] = []
        if call.control_image is not None:
            nets = NETS[0] in self._parts.engines
            controls.append((control_nets if nets else t2i_adapters)(call, self._parts, batch))
        if not self.pictures:
            return partial(Steered, tuple(controls))
        read = self.pictures.read(call)

        def steered() -> Steered:
            prompted = read()
            return Steered((*controls, prompted), prompted)

        return steered

    def set_ip_adapter_scale(self, scale: object) -> None:
        """See `IPAdapters.scales`. Raises InputError for a bundle without."""
        self._require_pictures(["set_ip_adapter_scale"])
        self.pictures.set_scale(scale)

    def _require(self, call: Call) -> None:
        """Hold what a call names against what the bundle has, and against the picture that it wants."""
        if said := _said(call, OF_PICTURES):
            self._require_pictures(said)
        for reader in READERS:
            said = _said(call, reader.arguments)
            if said and reader.role not in self._parts.engines:
                raise InputError(f"{', '.join(said)}: this bundle has no {reader.kind}; {reader.export}")
            if said and call.control_image is None:
                raise InputError(f"{', '.join(said)} without control_image, the picture to steer by")
        if call.control_image is not None and not any(reader.role in self._parts.engines for reader in READERS):
            raise InputError(
                f"control_image was given, and this bundle has neither {READERS[0].kind} nor {READERS[1].kind}: {READERS[0].export}"
            )
        name = self._parts.class_name
        plain = name.replace("ControlNet", "").replace("Adapter", "")
        if call.control_image is None and plain != name:
            raise InputError(
                f"{name} steers by a picture: give control_image; load(..., pipeline={plain!r}) does without"
            )

    def _require_pictures(self, said: Sequence[str]) -> None:
        if not self.pictures:
            raise InputError(
                f"{', '.join(said)}: this bundle's denoiser was not made for pictures as prompts; export a pipeline after "
                "its load_ip_adapter(...)"
            )


def _said(call: Call, names: Sequence[str]) -> list[str]:
    """The arguments of these that a call gives."""
    return [name for name in names if getattr(call, name) is not None and getattr(call, name) is not False]
