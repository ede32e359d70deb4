"""Run a diffusers pipeline and keep what its components were called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .component import answer_leaves
from .dummies import Sizes, call_inputs

# They judge or stamp the finished picture; nothing downstream depends on them.
LEFT_OUT = ("safety_checker", "watermark", "watermarker")
MAX_CALLS = 2
# What pipelines call of a module, and how the component's role is made of the module's name. All others run as they are.
METHODS = {
    "forward": "{}",
    "encode": "{}_encoder",
    "decode": "{}_decoder",
    "get_text_features": "{}_text_features",
    "get_image_features": "{}_image_features",
    "get_audio_features": "{}_audio_features",
}
# Modules that only call others, by what they keep them in: MultiControlNetModel, MultiAdapter.
SEVERAL = ("nets", "adapters")


@dataclass(frozen=True)
class Place:
    """Where a component is found in a pipeline: a method of its `part`, or of one of the modules inside that part."""

    role: str
    part: str
    module: nn.Module
    method: str
    inside: tuple[str, int] | None = None


@dataclass(frozen=True)
class RawCall:
    """One call as the pipeline made it: arguments by parameter name, and the tensors of its answer in order."""

    arguments: dict[str, Any]
    outputs: list[tuple[str, Tensor]]


@dataclass
class Recorded:
    """A module, which of its methods was called, and the calls of one run."""

    source: nn.Module
    method: str
    calls: list[RawCall]


def record(pipe: Any, sizes: Sizes, inputs: Mapping[str, Any]) -> dict[str, Recorded]:
    """Run the pipeline once and return what each component was asked, by role, in the order of first use.

    An autoencoder counts as two components. Where the pipeline does not encode, it is asked to, for a random image.
    """
    seen: dict[str, Recorded] = {}
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(quietly(pipe))
        busy: set[int] = set()
        for place in places(pipe):
            stack.enter_context(_watched(place, seen, busy))
        pipe(**call_inputs(pipe, sizes, inputs))
        _encode_too(getattr(pipe, "vae", None), sizes, seen)
    return seen


def places(pipe: Any) -> list[Place]:
    """Every place that a component of the pipeline may be recorded at, and attached at."""
    found: dict[tuple[int, str], Place] = {}
    for name, module in pipe.components.items():
        if not isinstance(module, nn.Module) or name in LEFT_OUT:
            continue
        for place in _places_of(name, module):
            # one module under two names, as combined pipelines have them, is one component
            found.setdefault((id(place.module), place.method), place)
    return list(found.values())


def _places_of(name: str, module: nn.Module) -> Iterator[Place]:
    several = next((key for key in SEVERAL if isinstance(getattr(module, key, None), nn.ModuleList)), None)
    if several is None:
        for method, role in METHODS.items():
            if hasattr(type(module), method):
                yield Place(role.format(name), name, module, method)
    else:
        for index, one in enumerate(getattr(module, several)):
            yield Place(name if index == 0 else f"{name}_{index + 1}", name, one, "forward", (several, index))


def _encode_too(vae: Any, sizes: Sizes, seen: dict[str, Recorded]) -> None:
    """Have an autoencoder of pictures encode one, where the pipeline only decodes: image-to-image needs it."""
    decoded = seen.get("vae_decoder")
    if decoded is None or "vae_encoder" in seen or not hasattr(vae, "encode"):
        return
    latents = next((value for value in decoded.calls[0].arguments.values() if isinstance(value, Tensor)), None)
    if latents is None or latents.dim() != 4 or "num_frames" in decoded.calls[0].arguments:
        return
    shape = sizes.batch, vae.config.in_channels, sizes.height, sizes.width
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(sizes.index))
    vae.encode(noise * 2 - 1)


@contextmanager
def _watched(place: Place, seen: dict[str, Recorded], busy: set[int]) -> Iterator[None]:
    """Record a place's calls; those that a module makes of itself meanwhile, such as `forward` from another method, are
    part of its answer."""
    module, method = place.module, place.method
    original: Callable[..., Any] = getattr(module, method)
    signature = inspect.signature(original)

    def watched(*args: Any, **kwargs: Any) -> Any:
        if id(module) in busy:
            return original(*args, **kwargs)
        recorded = seen.setdefault(place.role, Recorded(module, method, []))
        keep = len(recorded.calls) < MAX_CALLS
        # Cloned before the call: schedulers and pipelines change latents in place.
        arguments = _cloned(bound(signature, args, kwargs)) if keep else {}
        busy.add(id(module))
        try:
            result = original(*args, **kwargs)
        finally:
            busy.discard(id(module))
        if keep:
            recorded.calls.append(RawCall(arguments, [(name, t.detach().clone()) for name, t in answer_leaves(result)]))
        return result

    # pipelines look at the parameters of what they call
    watched.__signature__ = signature  # type: ignore[attr-defined]  # functions take any attribute
    # On the instance, under the name that nn.Module.__call__ looks up: works for forward, decode and encode alike.
    before = vars(module).get(method)  # a hook of somebody's
    setattr(module, method, watched)
    try:
        yield
    finally:
        delattr(module, method)
        if before is not None:
            setattr(module, method, before)


def bound(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by parameter name, those of `**kwargs` among them. Raises TypeError as the call would."""
    arguments = signature.bind(*args, **kwargs).arguments
    extra = [name for name, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD]
    return {key: value for key, value in arguments.items() if key not in extra} | dict(
        *(arguments.get(name, {}) for name in extra)
    )


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _cloned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cloned(item) for item in value]
    return value


@contextmanager
def quietly(pipe: Any) -> Iterator[None]:
    """No progress bar, no safety checker, no watermark, for the time of a recording."""
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    # Past the pipeline's own __setattr__, which would strike them from its config for good.
    left_out = {name: vars(pipe)[name] for name in LEFT_OUT if vars(pipe).get(name) is not None}
    pipe.set_progress_bar_config(**{**bar, "disable": True})
    vars(pipe).update(dict.fromkeys(left_out))
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**bar)
        vars(pipe).update(left_out)
