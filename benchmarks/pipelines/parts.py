"""Parts that the tiny pipelines share: random weights, made from configs, a few thousand parameters each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

WORDS = 194  # the vocabulary: ASCII, once more for the end of a word, two marks
WIDTH = 32  # of text features
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def tokenizer(folder: Path, length: int = 77) -> Any:
    """CLIP's, with letters for words."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = [("r", "e"), ("re", "d</w>"), ("a", "t</w>"), ("c", "at</w>")]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), BOS, EOS]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n")
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": EOS}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": length}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return transformers.CLIPTokenizer.from_pretrained(folder)


def clip_config(width: int = WIDTH, **changes: Any) -> Any:
    """A text encoder's config, whose end of text is the tokenizer's: with another the pooled output is taken elsewhere."""
    return transformers.CLIPTextConfig(
        **{
            "hidden_size": width, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2,
            "vocab_size": WORDS, "max_position_embeddings": 77, "projection_dim": width, "bos_token_id": WORDS - 2,
            "eos_token_id": WORDS - 1, "pad_token_id": WORDS - 1, **changes,
        }
    )  # fmt: skip


def clip(width: int = WIDTH, **changes: Any) -> Any:
    """CLIP's text encoder."""
    return transformers.CLIPTextModel(clip_config(width, **changes))


def clip_projected(width: int = WIDTH, **changes: Any) -> Any:
    """The same with its projection."""
    return transformers.CLIPTextModelWithProjection(clip_config(width, **changes))


def vision_config(width: int = WIDTH, size: int = 32) -> Any:
    """CLIP's image encoder's, for pictures of `size` pixels a side."""
    return transformers.CLIPVisionConfig(
        hidden_size=width, projection_dim=width, num_hidden_layers=2, num_attention_heads=4, image_size=size,
        intermediate_size=37, patch_size=size // 4,
    )  # fmt: skip


def vision(width: int = WIDTH, size: int = 32) -> Any:
    """CLIP's image encoder with its projection."""
    return transformers.CLIPVisionModelWithProjection(vision_config(width, size))


def pictures(size: int = 32) -> Any:
    """What prepares pictures for it."""
    return transformers.CLIPImageProcessor(crop_size={"height": size, "width": size}, size={"shortest_edge": size})


def t5(width: int = WIDTH, kind: str = "T5EncoderModel") -> Any:
    """T5's encoder."""
    config = transformers.UMT5Config if kind.startswith("U") else transformers.T5Config
    return getattr(transformers, kind)(
        config(d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4, vocab_size=WORDS)
    )


def vae(**changes: Any) -> Any:
    """An autoencoder whose pictures are twice as large as its latents."""
    return diffusers.AutoencoderKL(
        **{
            "block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 32,
            "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, **changes,
        }
    )  # fmt: skip


def deep_vae() -> Any:
    """Four levels: the factor of 8 that some pipelines count on."""
    return vae(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def flat_vae(channels: int = 4) -> Any:
    """Flow models' autoencoder: a shift beside the scale; latents as large as its pictures."""
    return vae(
        block_out_channels=(4,), norm_num_groups=1, latent_channels=channels, use_quant_conv=False, scaling_factor=1.5,
        use_post_quant_conv=False, shift_factor=0.06, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip


def movq(**changes: Any) -> Any:
    """Kandinsky's decoder, a VQ model normalized by the latents, in groups of 32 that no config changes."""
    return diffusers.VQModel(
        **{
            "block_out_channels": [32, 64], "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], "latent_channels": 4, "vq_embed_dim": 4,
            "norm_num_groups": 8, "norm_type": "spatial", "num_vq_embeddings": 12, **changes,
        }
    )  # fmt: skip


def unet(**changes: Any) -> Any:
    """Stable Diffusion's UNet with two levels, one of them with attention to the text."""
    return diffusers.UNet2DConditionModel(
        **{
            "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16,
            "in_channels": 4, "out_channels": 4, "cross_attention_dim": WIDTH, "attention_head_dim": 2,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), **changes,
        }
    )  # fmt: skip


def xl_unet(**changes: Any) -> Any:
    """Stable Diffusion XL's: pooled text and sizes go to the timestep."""
    return unet(
        **{
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": (2, 4),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 2 * WIDTH,
            "projection_class_embeddings_input_dim": 6 * 8 + WIDTH, **changes,
        }
    )  # fmt: skip


def simple_unet(**changes: Any) -> Any:
    """Kandinsky's, DeepFloyd IF's and unCLIP's UNet: it resamples inside its resnets."""
    return unet(
        **{
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "attention_head_dim": 4,
            "resnet_time_scale_shift": "scale_shift", **changes,
        }
    )  # fmt: skip


def plain_unet(**changes: Any) -> Any:
    """An unconditional UNet."""
    return diffusers.UNet2DModel(
        **{
            "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 4, **changes,
        }
    )  # fmt: skip


def prior(**changes: Any) -> Any:
    """unCLIP's prior."""
    return diffusers.PriorTransformer(
        **{"num_attention_heads": 2, "attention_head_dim": 12, "embedding_dim": WIDTH, "num_layers": 1, **changes}
    )


def noisy(module: nn.Module) -> Any:
    """The module with small noise in the place of all zeros, which untrained ControlNets and motion modules answer."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return module


def ddim(**changes: Any) -> Any:
    """DDIM on Stable Diffusion's schedule."""
    return diffusers.DDIMScheduler(**{**LINEAR, "steps_offset": 1, "clip_sample": False, **changes})


def seeded(number: int) -> None:
    """The same weights on every run."""
    torch.manual_seed(number)
