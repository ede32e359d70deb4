"""Tiny random checkpoints that are steered by pictures: ControlNets, T2I-Adapters, IP-Adapters."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.models.embeddings import IPAdapterPlusImageProjection, MultiIPAdapterImageProjection
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from . import tiny

EDGE = 16  # pixels to a side of what the image encoder sees


def net(unet: Any, seed: int, **config: Any) -> ControlNetModel:
    """A ControlNet whose zero convolutions hold noise, so that its residuals are not all zero."""
    made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    made.register_to_config(**config)
    torch.manual_seed(seed)
    for parameter in made.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def control_net(folder: Path) -> StableDiffusionControlNetPipeline:
    """Stable Diffusion with one."""
    base = tiny.sd(folder)
    return _with(StableDiffusionControlNetPipeline, base, controlnet=net(base.unet, 2))


def two_nets(folder: Path) -> StableDiffusionControlNetPipeline:
    """Stable Diffusion with two."""
    base = tiny.sd(folder)
    return _with(StableDiffusionControlNetPipeline, base, controlnet=[net(base.unet, 2), net(base.unet, 5)])


def pooling_net(folder: Path) -> StableDiffusionControlNetPipeline:
    """Stable Diffusion with one that answers means over the picture, as those that shuffle do."""
    base = tiny.sd(folder)
    made = net(base.unet, 2, global_pool_conditions=True)
    return _with(StableDiffusionControlNetPipeline, base, controlnet=made)


def inpainting_net(folder: Path) -> StableDiffusionControlNetInpaintPipeline:
    """An inpainting checkpoint of 9 channels with a ControlNet of 4."""
    base, made = tiny.inpaint(folder), net(tiny.sd(folder).unet, 2)
    return _with(StableDiffusionControlNetInpaintPipeline, base, controlnet=made)


def xl_net(folder: Path) -> StableDiffusionXLControlNetPipeline:
    """Stable Diffusion XL with two."""
    base = tiny.sdxl(folder)
    nets = [net(base.unet, 2), net(base.unet, 5)]
    return StableDiffusionXLControlNetPipeline(**base.components, controlnet=nets, add_watermarker=False)


def adapter(seed: int, kind: str = "full_adapter", **config: Any) -> T2IAdapter:
    """One for the tiny UNet's two levels."""
    torch.manual_seed(seed)
    sizes = {"in_channels": 3, "channels": [32, 64], "num_res_blocks": 1, "downscale_factor": 2}
    return T2IAdapter(**{**sizes, **config}, adapter_type=kind).eval()


def t2i_adapter(folder: Path) -> StableDiffusionAdapterPipeline:
    """Stable Diffusion with one."""
    return _with(StableDiffusionAdapterPipeline, tiny.sd(folder), adapter=adapter(6))


def two_adapters(folder: Path) -> StableDiffusionAdapterPipeline:
    """Stable Diffusion with two that read grey pictures."""
    made = [adapter(6, in_channels=1), adapter(7, in_channels=1)]
    return _with(StableDiffusionAdapterPipeline, tiny.sd(folder), adapter=made)


def xl_adapter(folder: Path) -> StableDiffusionXLAdapterPipeline:
    """Stable Diffusion XL of three levels with one, whose last features are the middle block's."""
    base = tiny.sdxl(folder)
    torch.manual_seed(8)
    three = {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 1, 1),
    }
    unet = UNet2DConditionModel(**{**tiny.SDXL_UNET, **three})
    made = adapter(6, "full_adapter_xl", channels=[32, 64, 64, 64], downscale_factor=4)
    parts = {**base.components, "unet": unet, "adapter": made}
    return StableDiffusionXLAdapterPipeline(**parts)


def ip_weights(unet: Any, width: int, seed: int) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter's weights as its authors publish them, for embeddings of so many numbers."""
    torch.manual_seed(seed)
    layers = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    attentions = [unet.get_submodule(name) for name in layers]
    shapes = [(attention.to_k.out_features, attention.to_k.in_features) for attention in attentions]
    own = {
        f"{2 * number + 1}.to_{letter}_ip.weight": torch.randn(shape) / shape[1] ** 0.5
        for number, shape in enumerate(shapes)
        for letter in "kv"
    }
    text = unet.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(4 * text, width),
        "proj.bias": torch.randn(4 * text),
        "norm.weight": torch.ones(text),
        "norm.bias": torch.zeros(text),
    }
    return {"image_proj": projection, "ip_adapter": own}


def image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP's, of two layers."""
    torch.manual_seed(9)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16, projection_dim=24, num_hidden_layers=2, num_attention_heads=2, image_size=EDGE, intermediate_size=20,
            patch_size=4, initializer_range=0.5,
        )
    ).eval()  # fmt: skip


def prompted(folder: Path, count: int = 1) -> StableDiffusionPipeline:
    """Stable Diffusion with IP-Adapters."""
    pipe = _with(
        StableDiffusionPipeline, tiny.sd(folder), image_encoder=image_encoder(),
        feature_extractor=CLIPImageProcessor(size=EDGE, crop_size=EDGE),
    )  # fmt: skip
    states = [ip_weights(pipe.unet, 24, 10 + number) for number in range(count)]
    pipe.unet._load_ip_adapter_weights(states, low_cpu_mem_usage=False)
    pipe.set_ip_adapter_scale([0.7] * count)
    return pipe


def ip_adapter(folder: Path) -> StableDiffusionPipeline:
    """Stable Diffusion with one."""
    return prompted(folder)


def two_ip_adapters(folder: Path) -> StableDiffusionPipeline:
    """Stable Diffusion with two."""
    return prompted(folder, 2)


def ip_adapter_plus(folder: Path) -> StableDiffusionPipeline:
    """Stable Diffusion with one that reads the encoder's hidden states, of four queries."""
    pipe = prompted(folder)
    torch.manual_seed(12)
    sizes = {
        "embed_dims": 16,
        "output_dims": 32,
        "hidden_dims": 24,
        "depth": 1,
        "dim_head": 8,
        "heads": 2,
        "num_queries": 4,
    }
    pipe.unet.encoder_hid_proj = MultiIPAdapterImageProjection([IPAdapterPlusImageProjection(**sizes).eval()])
    return pipe


def _with(kind: Any, base: Any, **parts: Any) -> Any:
    taken = inspect.signature(kind).parameters
    own = {name: part for name, part in base.components.items() if name in taken}
    made = kind(**{**own, **parts}, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made
