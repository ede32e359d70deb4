"""DeepCache: the UNet as two components over the same weights, of which a loop runs the cheap one at most steps.

    full:     out, F = unet(x_t, t, c)                F: what enters the up path where skip connection b joins it
    shallow:  out = shallow(x_s, s, c, F)             the outermost layers alone, F from an earlier step t

Branch b counts the skip connections: 0 is that of the input convolution. The shallow one computes what the skips 0..b
need on the way down and the b + 1 layers (a resnet, with its attention where it has one) that consume them on the way up.
Features deep in the UNet change slowly from step to step; with F of the same step the shallow answer is the full one.

Source: Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free", 2023 (arXiv 2312.00858), section 3.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, UpBlock2D
from torch import Tensor, nn

from ingot.runtimes.errors import InputError

from .axes import Axes
from .component import Call, Component, FlatModule, Slot, signature_of
from .onnx_names import input_name, output_name
from .rewrites import those_that_apply

ROLE, SHALLOW = "unet", "unet_shallow"
FEATURES = "deep_features"
BRANCH = "deep_cache_branch"  # in the shallow component's config, for whoever adds to the bundle
Method = str | Callable[..., Any]
DOWN, UP = (CrossAttnDownBlock2D, DownBlock2D), (CrossAttnUpBlock2D, UpBlock2D)


def split(components: Sequence[Component], branch: int, axes: tuple[Axes, Axes]) -> list[Component]:
    """The components with the UNet that also answers its deep features, and behind it the shallow one.

    `axes` are the sizes of the recordings. Raises InputError where there is no UNet of Stable Diffusion's kind, where it
    takes a ControlNet's residuals, or for a branch that it does not have.
    """
    unet = next((component for component in components if component.role == ROLE), None)
    require_branch(unet and unet.source, branch)
    assert unet is not None
    residuals = [name for name in unet.module.input_names if "residual" in name]
    if residuals:
        raise InputError(
            "deep_cache cannot be given with a ControlNet or adapter: their residuals change every step, and reach "
            f"layers that it skips ({residuals[0]} and others); leave it out"
        )
    full = _full(unet, branch, axes)
    pair = [full, _shallow(full, branch, axes)]
    return [part for component in components for part in (pair if component is unet else [component])]


def require_branch(unet: Any, branch: int) -> None:
    """Raise InputError for what is no UNet of Stable Diffusion's kind, or has no such branch."""
    if not isinstance(unet, UNet2DConditionModel):
        kind = "nothing of that role" if unet is None else type(unet).__name__
        raise InputError(f"deep_cache is for a UNet2DConditionModel, and this pipeline has {kind}: leave it out")
    strange = [type(b).__name__ for b in unet.down_blocks if type(b) not in DOWN]
    strange += [type(b).__name__ for b in unet.up_blocks if type(b) not in UP]
    if strange:
        raise InputError(f"deep_cache knows no blocks of the kind {', '.join(sorted(set(strange)))}: leave it out")
    if isinstance(branch, bool) or not isinstance(branch, int) or not 0 <= branch < branches(unet):
        raise InputError(
            f"deep_cache={branch!r}: this UNet has the branches 0 (the outermost, cheapest) to {branches(unet) - 1}"
        )


def branches(unet: Any) -> int:
    """How many branches a UNet has: one for each skip connection, less the innermost, which would spare nothing but the
    middle."""
    return len(_consumers(unet)) - 1


def _consumers(unet: Any) -> list[tuple[int, int]]:
    """Block and resnet on the way up, in order: the last consumes skip 0."""
    return [(i, j) for i, block in enumerate(unet.up_blocks) for j in range(len(block.resnets))]


# The full one


def _full(component: Component, branch: int, axes: tuple[Axes, Axes]) -> Component:
    flat = component.module
    module = FlatModule(component.source, Full(branch, flat.method), flat.template, flat.input_names)
    calls = tuple(_answered(module, call.inputs) for call in component.calls)
    return dataclasses.replace(
        component, module=module, calls=calls, signature=signature_of(calls[0], calls[-1], axes), traces={}
    )


@dataclasses.dataclass(frozen=True)
class Full:
    """A UNet's forward that answers `deep_features`, too: (batch, channels, height, width) of the branch's level."""

    branch: int
    method: Method = "forward"  # what answers without them

    def __call__(self, unet: Any, **arguments: Any) -> dict[str, Any]:
        """The UNet's own answer, and the features."""
        with _entering(unet, self.branch) as features:
            return {"sample": _answer(self.method, unet, arguments).sample, FEATURES: features[0]}

    @property
    def config(self) -> Mapping[str, Any]:
        """What the manifest says of the method."""
        found: Mapping[str, Any] = getattr(self.method, "config", {})
        return found


def _answer(method: Method, unet: Any, arguments: Mapping[str, Any]) -> Any:
    return unet(**arguments) if isinstance(method, str) else method(unet, **arguments)


@contextmanager
def _entering(unet: Any, branch: int) -> Iterator[list[Tensor]]:
    """Keep what enters the consumer of skip `branch`, before the skip joins it."""
    block, index = _consumers(unet)[-1 - branch]
    up = unet.up_blocks[block]
    kept: list[Tensor] = []
    if index == 0:
        hook = up.register_forward_pre_hook(lambda _, __, given: kept.append(given["hidden_states"]), with_kwargs=True)
    else:
        before = (getattr(up, "attentions", None) or up.resnets)[index - 1]
        hook = before.register_forward_hook(lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out))
    try:
        yield kept
    finally:
        hook.remove()


# The shallow one


def _shallow(full: Component, branch: int, axes: tuple[Axes, Axes]) -> Component:
    unet = shallow_unet(full.source, branch)
    named = dict(zip(full.module.input_names, (spec.name for spec in full.signature.inputs), strict=True))
    template = {**full.module.template, FEATURES: Slot(FEATURES)}
    given = [({**call.inputs, FEATURES: call.outputs[FEATURES]}) for call in full.calls]
    names = (*full.module.input_names, FEATURES)
    method = Shallow(full.module.method.method if isinstance(full.module.method, Full) else "forward")
    everything = FlatModule(unet, method, template, names)
    used = _used(everything, [given[0][named.get(name, name)] for name in names])
    module = FlatModule(unet, method, _without(template, set(names) - set(used)), used)
    calls = tuple(_answered(module, {named.get(n, n): tensors[named.get(n, n)] for n in used}) for tensors in given)
    own = those_that_apply(full.rewrites, unet)
    return Component(SHALLOW, unet, module, calls, signature_of(calls[0], calls[-1], axes), rewrites=own)


def shallow_unet(unet: Any, branch: int) -> Any:
    """The UNet with its outermost layers only. They are the UNet's own modules, weights included, under their own names."""
    view = _view(unet)
    view._modules["down_blocks"] = _down(unet, branch)
    view._modules["mid_block"] = _Entrance()
    view._modules["up_blocks"] = _up(unet, branch)
    # load_ip_adapter sets it as an attribute, which is no item of the config
    projected = {"encoder_hid_dim_type": unet.config.encoder_hid_dim_type}
    vars(view)["_internal_dict"] = FrozenDict({**unet.config, **projected, BRANCH: branch})
    return view


@dataclasses.dataclass(frozen=True)
class Shallow:
    """The answer of a `shallow_unet` that is given the features of an earlier step; `method` is the UNet's own way to answer."""

    method: Method = "forward"

    def __call__(self, unet: Any, *, deep_features: Tensor, **arguments: Any) -> dict[str, Any]:
        """The prediction."""
        unet.mid_block.held.append(deep_features)
        try:
            return {"sample": _answer(self.method, unet, arguments).sample}
        finally:
            unet.mid_block.held.clear()


class _Entrance(nn.Module):
    """Stands where the deep layers were, and answers what they answered at an earlier step."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Tensor] = []

    def forward(self, *_: Any) -> Tensor:
        """The features, whatever comes in."""
        return self.held[0]


def _down(unet: Any, branch: int) -> nn.ModuleList:
    """The blocks that make the skips 1 to `branch`; skip 0 is the input convolution's."""
    blocks = {}
    left = branch
    for name, block in unet.down_blocks.named_children():
        if not left:
            break
        layers = min(left, len(block.resnets))
        left -= layers
        sampled = bool(left and block.downsamplers)
        left -= sampled
        blocks[name] = _cut(block, range(layers), sampler=None if sampled else "downsamplers")
    return _list(blocks)


def _up(unet: Any, branch: int) -> nn.ModuleList:
    """The blocks that consume the skips `branch` to 0."""
    kept: dict[int, list[int]] = {}
    for block, index in _consumers(unet)[-1 - branch :]:
        kept.setdefault(block, []).append(index)
    return _list({str(block): _cut(unet.up_blocks[block], indices) for block, indices in kept.items()})


def _cut(block: Any, indices: Sequence[int], sampler: str | None = None) -> Any:
    """A block with some of its layers, and without its sampler if that is named."""
    view = _view(block)
    for name in ("resnets", "attentions"):
        layers = getattr(block, name, None)
        if layers is not None:
            view._modules[name] = _list({str(index): layers[index] for index in indices})
    if sampler:
        view._modules.pop(sampler, None)
        vars(view)[sampler] = None
    return view


def _view(module: Any) -> Any:
    """A module of its own, with the same submodules and parameters."""
    view = copy.copy(module)
    vars(view)["_modules"] = dict(module._modules)
    return view


def _list(modules: dict[str, nn.Module]) -> nn.ModuleList:
    """A list whose members keep their numbers in the whole, and with them the names of their weights."""
    found = nn.ModuleList()
    found._modules.update(modules)
    return found


def _used(module: FlatModule, tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """The inputs that the answer depends on: SDXL's outermost layers do not attend to the prompt. Integers count as used."""
    inputs = [tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for tensor in tensors]
    floats = [tensor for tensor in inputs if tensor.requires_grad]
    with torch.enable_grad():
        (answer,) = module(*inputs)
        slopes = torch.autograd.grad(answer.sum(), floats, allow_unused=True)
    unused = {id(tensor) for tensor, slope in zip(floats, slopes, strict=True) if slope is None}
    return tuple(name for name, tensor in zip(module.input_names, inputs, strict=True) if id(tensor) not in unused)


def _without(template: Any, names: set[str]) -> Any:
    """The template with nothing for these inputs."""
    if isinstance(template, Slot):
        return None if template.name in names else template
    if isinstance(template, dict):
        return {key: _without(item, names) for key, item in template.items()}
    if isinstance(template, list | tuple):
        return [_without(item, names) for item in template]
    return template


def _answered(module: FlatModule, inputs: dict[str, Tensor]) -> Call:
    """A call by the graph's names, which are the UNet's for both."""
    by_name = {input_name(ROLE, name): name for name in module.input_names}
    ordered = {name: inputs[name] for name in by_name}
    answers = module.named_outputs(*ordered.values())
    return Call(ordered, {output_name(ROLE, name, ordered): tensor for name, tensor in answers.items()})
