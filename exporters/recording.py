"""Run a diffusers pipeline and keep what its components were called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .component import tensor_leaves
from .dummies import Sizes, call_inputs

# They judge or stamp the finished picture; nothing downstream depends on them.
LEFT_OUT = ("safety_checker", "watermark")
MAX_CALLS = 2


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
        for role, module, method in _methods(pipe):
            stack.enter_context(_watched(role, module, method, seen))
        pipe(**call_inputs(pipe.__call__, sizes, inputs))
        vae = getattr(pipe, "vae", None)
        if vae is not None and hasattr(vae, "encode") and "vae_encoder" not in seen:
            noise = torch.rand(_image_shape(vae, sizes), generator=torch.Generator().manual_seed(sizes.index))
            vae.encode(noise * 2 - 1)
    return seen


def _methods(pipe: Any) -> Iterator[tuple[str, nn.Module, str]]:
    for name, module in pipe.components.items():
        if not isinstance(module, nn.Module) or name in LEFT_OUT:
            continue
        if hasattr(module, "encode") and hasattr(module, "decode"):
            yield f"{name}_encoder", module, "encode"
            yield f"{name}_decoder", module, "decode"
        else:
            yield name, module, "forward"


def _image_shape(vae: Any, sizes: Sizes) -> tuple[int, int, int, int]:
    return sizes.batch, vae.config.in_channels, sizes.height, sizes.width


@contextmanager
def _watched(role: str, module: nn.Module, method: str, seen: dict[str, Recorded]) -> Iterator[None]:
    original: Callable[..., Any] = getattr(module, method)
    signature = inspect.signature(original)

    def watched(*args: Any, **kwargs: Any) -> Any:
        recorded = seen.setdefault(role, Recorded(module, method, []))
        keep = len(recorded.calls) < MAX_CALLS
        # Cloned before the call: schedulers and pipelines change latents in place.
        arguments = _cloned(_arguments(signature, args, kwargs)) if keep else {}
        result = original(*args, **kwargs)
        if keep:
            recorded.calls.append(RawCall(arguments, [(name, t.detach().clone()) for name, t in tensor_leaves(result)]))
        return result

    # On the instance, under the name that nn.Module.__call__ looks up: works for forward, decode and encode alike.
    setattr(module, method, watched)
    try:
        yield
    finally:
        delattr(module, method)


def _arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs).arguments
    extra = [name for name, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD]
    return {key: value for key, value in bound.items() if key not in extra} | dict(
        *(bound.get(name, {}) for name in extra)
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
