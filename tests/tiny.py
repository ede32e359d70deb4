"""Tiny random checkpoints, made from configs with fixed seeds: the same weights on every run, a second to build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
UNET: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
}
SDXL_UNET: dict[str, Any] = {
    **UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 1),
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
    "cross_attention_dim": 64,
}


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is printable ASCII and a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = [("r", "e"), ("re", "d</w>"), ("a", "t</w>"), ("c", "at</w>")]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), BOS, EOS]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n")
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": EOS}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


def _text_config(size: int) -> CLIPTextConfig:
    # eos_token_id must be the tokenizer's: with CLIP's historic default of 2 the pooled output is taken elsewhere.
    return CLIPTextConfig(
        hidden_size=size,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        vocab_size=194,
        max_position_embeddings=77,
        projection_dim=size,
        bos_token_id=192,
        eos_token_id=193,
        pad_token_id=193,
        hidden_act="quick_gelu" if size == 32 else "gelu",
    )


def _vae(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        **{
            "block_out_channels": (32, 64),
            "norm_num_groups": 16,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "latent_channels": 4,
            "sample_size": 32,
            **changes,
        }
    )


def sd(folder: Path) -> StableDiffusionPipeline:
    """Stable Diffusion: one text encoder, 0.6 M parameters, pictures twice as large as the latents."""
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(32)),
        tokenizer=tokenizer(folder / "tokenizer"),
        unet=UNet2DConditionModel(**UNET),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(folder: Path) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: two text encoders, the second pooled and projected, time ids, linear projections."""
    torch.manual_seed(1)
    words = tokenizer(folder / "tokenizer")
    return StableDiffusionXLPipeline(
        vae=_vae(force_upcast=True),
        text_encoder=CLIPTextModel(_text_config(32)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(32)),
        tokenizer=words,
        tokenizer_2=words,
        unet=UNet2DConditionModel(**SDXL_UNET),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="leading"
        ),
        add_watermarker=False,
    )


def controlnet(folder: Path) -> StableDiffusionControlNetPipeline:
    """Stable Diffusion with a ControlNet whose zero convolutions hold noise, so that its residuals are not all zero."""
    base = sd(folder)
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32))
    torch.manual_seed(2)
    for name, parameter in net.named_parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.02)
        assert "controlnet" not in name or parameter.abs().sum() > 0
    return StableDiffusionControlNetPipeline(**base.components, controlnet=net.eval(), requires_safety_checker=False)


def pixart(folder: Path) -> PixArtSigmaPipeline:
    """PixArt-Sigma: a diffusion transformer with T5, a family that no table of ours names."""
    torch.manual_seed(3)
    size = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 1, "num_heads": 4, "vocab_size": 194}
    return PixArtSigmaPipeline(
        tokenizer=tokenizer(folder / "tokenizer"),
        text_encoder=T5EncoderModel(T5Config(**size)),
        vae=_vae(),
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            use_additional_conditions=False,
        ),
        scheduler=DDIMScheduler(),
    )


def ddpm(_: Path) -> DDPMPipeline:
    """An unconditional UNet that works on pixels: no text, no VAE."""
    torch.manual_seed(4)
    unet = UNet2DModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return DDPMPipeline(unet=unet, scheduler=DDPMScheduler())
