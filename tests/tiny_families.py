"""Tiny random checkpoints of models without a UNet that reads prompts: pixels, classes, transformers, flows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from .tiny import tokenizer

LABELS = {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 2: "great white shark, white shark"}


def t5_tokenizer(length: int = 512) -> T5Tokenizer:
    """T5's tokens over printable ASCII and two words: padding 0, the end 1."""
    letters = [(chr(code), -5.0) for code in range(ord("!"), ord("~") + 1)]
    words = [("▁cat", -3.0), ("▁red", -3.0)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -2.0), *letters, *words]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=length)


def t5(width: int = 32) -> T5EncoderModel:
    """Its encoder, with weights large enough that words matter."""
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 37, "num_layers": 1, "num_heads": 2, "vocab_size": 100}
    return T5EncoderModel(T5Config(**sizes, initializer_factor=4.0))


def clip_config(width: int = 32) -> CLIPTextConfig:
    """For a CLIP text encoder of the tiny tokenizer."""
    return CLIPTextConfig(
        hidden_size=width, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=194,
        max_position_embeddings=77, projection_dim=width, bos_token_id=192, eos_token_id=193, pad_token_id=193,
    )  # fmt: skip


def vae(levels: int = 2, **changes: Any) -> AutoencoderKL:
    """Latents of a picture's sides halved once for each level but the first."""
    sizes = {
        "block_out_channels": (8,) * levels, "norm_num_groups": 4, "latent_channels": 4, "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels,
    }  # fmt: skip
    return AutoencoderKL(**{**sizes, **changes})


def pixels(**changes: Any) -> UNet2DModel:
    """A UNet without text."""
    sizes: dict[str, Any] = {
        "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DModel(**{**sizes, **changes})


def ddim(_: Path) -> DDIMPipeline:
    """An unconditional model of pictures wider than high, made with DDPM's scheduler, which the pipeline exchanges."""
    torch.manual_seed(11)
    return DDIMPipeline(unet=pixels(sample_size=(8, 16)), scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"))


def consistency(_: Path) -> ConsistencyModelPipeline:
    """A consistency model of ten classes."""
    torch.manual_seed(12)
    unet = pixels(num_class_embeds=10, attention_head_dim=4)
    return ConsistencyModelPipeline(unet=unet, scheduler=CMStochasticIterativeScheduler())


def dit(_: Path) -> DiTPipeline:
    """DiT, which predicts a variance too, with names for three of its thousand classes."""
    torch.manual_seed(13)
    transformer = DiTTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, attention_bias=True,
    )  # fmt: skip
    return DiTPipeline(transformer=transformer, vae=vae(), scheduler=DDIMScheduler(), id2label=LABELS)


def pixart_alpha(_: Path, sample_size: int = 128, levels: int = 2) -> PixArtAlphaPipeline:
    """PixArt-alpha as the models of 1024 pixels are: told of resolution and aspect."""
    torch.manual_seed(14)
    transformer = PixArtTransformer2DModel(
        sample_size=sample_size, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", solver_order=2)
    return PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(120), text_encoder=t5(), vae=vae(levels), transformer=transformer, scheduler=scheduler
    )


def pixart_256(folder: Path) -> PixArtAlphaPipeline:
    """The same as the models of 256 pixels are: 8 of them to a side of a latent, told nothing."""
    return pixart_alpha(folder, 32, 4)


def sd3(folder: Path) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3: two CLIPs, T5, and a flow whose noise levels are shifted by 3."""
    torch.manual_seed(15)
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4, pos_embed_max_size=24,
    )  # fmt: skip
    clips = [CLIPTextModelWithProjection(clip_config(16)) for _ in range(2)]
    words = tokenizer(folder / "tokenizer")
    return StableDiffusion3Pipeline(
        transformer=transformer, vae=vae(scaling_factor=1.5, shift_factor=0.06), text_encoder=clips[0], tokenizer=words,
        text_encoder_2=clips[1], tokenizer_2=words, text_encoder_3=t5(), tokenizer_3=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def sd3_without_t5(folder: Path) -> StableDiffusion3Pipeline:
    """The same without T5, and with levels that the picture's size shifts."""
    parts = dict(sd3(folder).components) | {"text_encoder_3": None, "tokenizer_3": None}
    parts["scheduler"] = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=512)
    return StableDiffusion3Pipeline(**parts)


def flux(folder: Path, *, told: bool = True) -> FluxPipeline:
    """FLUX.1-dev: told of guidance, levels shifted by the picture's size; a VAE of eight pixels to a latent."""
    torch.manual_seed(16)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=told,
    )  # fmt: skip
    return FluxPipeline(
        transformer=transformer, vae=vae(4, scaling_factor=0.4, shift_factor=0.1),
        text_encoder=CLIPTextModel(clip_config()), tokenizer=tokenizer(folder / "tokenizer"),
        text_encoder_2=t5(), tokenizer_2=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True) if told else FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def flux_schnell(folder: Path) -> FluxPipeline:
    """FLUX.1-schnell: told nothing, levels as they are."""
    return flux(folder, told=False)
