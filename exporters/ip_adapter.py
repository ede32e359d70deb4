"""IP-Adapter's scale as an input of the UNet's graph, where diffusers keeps a Python number in each attention processor.

    y = attention(q, K c, V c) + s[adapter, layer] attention(q, K' p, V' p)

With s = 0 the adapter is off, as in diffusers, which skips it then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0
from torch import Tensor, nn

from ingot.runtimes.errors import ExportError

from .axes import Axes
from .component import Call, Component, FlatModule, Slot, signature_of
from .onnx_names import input_name, output_name

KINDS = (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0)
SCALE = "ip_adapter_scale"
SECOND = 0.5  # of the scales, for every other call that a graph is held against


def adapters(unet: Any) -> int:
    """How many IP-Adapters a denoiser was given with `load_ip_adapter`."""
    return next((len(processor.scale) for processor in _processors(unet).values()), 0)


def scales_of(unet: Any) -> Tensor:
    """The scales as they are set: (adapters, layers). Raises ExportError for one scale for each picture, as masks have."""
    found = [processor.scale for processor in _processors(unet).values()]
    if any(not isinstance(scale, int | float) for scales in found for scale in scales):
        raise ExportError("an IP-Adapter's scales are numbers for a graph, not lists, as masks want them")
    return torch.tensor(found, dtype=torch.float32).T.contiguous()


def with_scale_input(component: Component, axes: tuple[Axes, Axes]) -> Component:
    """The component with `ip_adapter_scale` as an input, if it is a UNet with IP-Adapters."""
    scales = scales_of(component.source) if _processors(component.source) else None
    if scales is None:
        return component
    flat = component.module
    layers = tuple(name.removesuffix(".processor") for name in _processors(component.source))
    scaled = Scaled(layers, tuple(map(tuple, scales.tolist())))
    module = FlatModule(component.source, scaled, {**flat.template, SCALE: Slot(SCALE)}, (*flat.input_names, SCALE))
    calls = []
    for number, call in enumerate(component.calls):
        inputs = {**call.inputs, SCALE: scales * (SECOND if number % 2 else 1)}
        answered = module.named_outputs(*inputs.values())
        role = component.role
        calls.append(Call(inputs, {output_name(role, name, inputs): tensor for name, tensor in answered.items()}))
    assert [input_name(component.role, name) for name in module.input_names] == list(calls[0].inputs)
    signature = signature_of(calls[0], calls[-1], axes)
    return dataclasses.replace(component, module=module, calls=tuple(calls), signature=signature, traces={})


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A UNet's forward that takes the scales, (adapters, layers), as a tensor.

    `layers` are the adapted attentions in the scales' order; of DeepCache's shallow UNet some are missing. `scale` is what was
    set when the UNet was exported.
    """

    layers: tuple[str, ...]
    scale: tuple[tuple[float, ...], ...]

    def __call__(self, unet: Any, *, ip_adapter_scale: Tensor | None, **arguments: Any) -> Any:
        """The UNet's own answer. No scale: none of the adapted layers is left in it."""
        if ip_adapter_scale is None:
            with _unprojected(unet):
                return unet(**arguments)
        with _scaled(unet, self.layers, ip_adapter_scale):
            return unet(**arguments)

    @property
    def config(self) -> Mapping[str, Any]:
        """What the manifest says of it beside the UNet's own config."""
        return {SCALE: {"layers": list(self.layers), "scale": [list(row) for row in self.scale]}}


class _Factor:
    """A tensor that multiplies, and is not asked whether it is 0: a processor would skip the adapter for good then."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __mul__(self, other: Tensor) -> Tensor:
        return self.value * other


@contextmanager
def _scaled(unet: Any, layers: tuple[str, ...], scale: Tensor) -> Iterator[None]:
    found = _processors(unet)
    before = {name: processor.scale for name, processor in found.items()}
    try:
        for number, layer in enumerate(layers):
            processor = found.get(f"{layer}.processor")
            if processor is not None:
                processor.scale = [_Factor(row[number]) for row in scale]
        yield
    finally:
        for name, scales in before.items():
            found[name].scale = scales


@contextmanager
def _unprojected(unet: Any) -> Iterator[None]:
    """Without the projection of pictures, whose embeddings are not given."""
    before = unet.encoder_hid_proj
    unet.encoder_hid_proj = None
    try:
        yield
    finally:
        unet.encoder_hid_proj = before


def _processors(module: nn.Module) -> dict[str, Any]:
    """The processors of IP-Adapters by name, in the module's order."""
    every: Mapping[str, Any] = getattr(module, "attn_processors", {})
    return {name: processor for name, processor in every.items() if isinstance(processor, KINDS)}
