"""LoRAs for tests: random matrices for a module's layers, written by either tool's names, and added by hand in torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK, ALPHA = 4, 2.0
# linear layers of both attentions, a 1 x 1 and 3 x 3 convolutions, a time projection, a downsampler
UNET = (
    "attn1.to_q", "attn1.to_v", "attn2.to_k", "attn2.to_out.0", "ff.net.0.proj", "proj_in", "resnets.0.conv1", "conv_shortcut",
    "time_emb_proj", "downsamplers.0.conv", "conv_in", "time_embedding.linear_1",
)  # fmt: skip
TEXT = ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


@dataclass(frozen=True)
class RandomLora:
    """Matrices (up, down) by component and module."""

    layers: dict[str, dict[str, tuple[Tensor, Tensor]]]

    def peft(self, file: Path) -> Path:
        """The file by PEFT's names, alpha folded into the matrices, which have none there."""
        named = {}
        for part, layers in self.layers.items():
            for module, (up, down) in layers.items():
                named[f"{part}.{module}.lora_A.weight"] = down
                named[f"{part}.{module}.lora_B.weight"] = up * (ALPHA / RANK)  # a power of 2: exact
        return _saved(named, file)

    def kohya(self, file: Path) -> Path:
        """The file by kohya's names, with an alpha each."""
        named = {}
        for part, layers in self.layers.items():
            for module, (up, down) in layers.items():
                flat = KOHYA[part] + ("text_model_" if part == "text_encoder" else "") + module.replace(".", "_")
                named |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
                named[f"{flat}.alpha"] = torch.tensor(ALPHA)
        return _saved(named, file)

    @torch.no_grad()
    def added(self, part: str, module: nn.Module, scale: float) -> nn.Module:
        """A copy of the module with W + scale * alpha / rank * up @ down: the oracle."""
        changed = copy.deepcopy(module)
        for name, (up, down) in self.layers[part].items():
            weight = changed.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            product = torch.einsum("or,r...->o...", up.flatten(1), down)
            weight += scale * ALPHA / RANK * product.reshape(weight.shape)
        return changed


def random_lora(pipe: Any, seed: int, parts: Sequence[str] = ("unet", "text_encoder")) -> RandomLora:
    """Matrices that change what a model answers by several per cent."""
    generator = torch.Generator().manual_seed(seed)
    endings = {"unet": UNET, "text_encoder": TEXT}
    return RandomLora({part: dict(_layers(getattr(pipe, part), endings[part], generator)) for part in parts})


def _layers(model: nn.Module, endings: Sequence[str], generator: torch.Generator) -> Iterator[tuple[str, Any]]:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and name.endswith(tuple(endings)):
            out, *rest = layer.weight.shape
            size = layer.weight[0].numel() ** -0.5
            down = torch.randn(RANK, *rest, generator=generator) * size
            up = torch.randn(out, RANK, *(1 for _ in rest[1:]), generator=generator)
            yield name.removeprefix("text_model."), (up, down)


def _saved(tensors: dict[str, Tensor], file: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


@contextmanager
def with_parts(pipe: Any, **parts: nn.Module) -> Iterator[Any]:
    """The pipeline with other modules for a while."""
    before = {name: getattr(pipe, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(pipe, name, part)
        yield pipe
    finally:
        for name, part in before.items():
            setattr(pipe, name, part)
