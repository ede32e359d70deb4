"""Tiny random checkpoints, made from configs with fixed seeds: the same weights on every run, a second to build."""

from __future__ import annotations

import inspect
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
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImageVariationPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
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


def tokenizer(folder: Path, pad: str = EOS) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is printable ASCII and a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = [("r", "e"), ("re", "d</w>"), ("a", "t</w>"), ("c", "at</w>")]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), BOS, EOS]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n")
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": pad, "unk_token": EOS}
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


def sdxl_refiner(folder: Path) -> StableDiffusionXLImg2ImgPipeline:
    """Stable Diffusion XL's refiner: the second text encoder alone, an aesthetic score in place of the target's size."""
    torch.manual_seed(5)
    refined = {"cross_attention_dim": 32, "projection_class_embeddings_input_dim": 5 * 8 + 32}
    return StableDiffusionXLImg2ImgPipeline(
        vae=_vae(force_upcast=True),
        text_encoder=None,
        text_encoder_2=CLIPTextModelWithProjection(_text_config(32)),
        tokenizer=None,
        tokenizer_2=tokenizer(folder / "tokenizer_2"),
        unet=UNet2DConditionModel(**{**SDXL_UNET, **refined}),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="leading",
            steps_offset=1,
        ),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def sdxl_inpaint(folder: Path) -> StableDiffusionXLInpaintPipeline:
    """Stable Diffusion XL made for inpainting: mask and masked picture as further channels."""
    return StableDiffusionXLInpaintPipeline(**_sdxl_with(folder, 9), add_watermarker=False)


def sdxl_edit(folder: Path) -> StableDiffusionXLInstructPix2PixPipeline:
    """InstructPix2Pix with Stable Diffusion XL: the picture to edit as further channels."""
    return StableDiffusionXLInstructPix2PixPipeline(**_sdxl_with(folder, 8), add_watermarker=False)


def _sdxl_with(folder: Path, channels: int) -> dict[str, Any]:
    parts = sdxl(folder).components
    parts = {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    torch.manual_seed(6)
    return {**parts, "unet": UNet2DConditionModel(**{**SDXL_UNET, "in_channels": channels})}


def _v_prediction() -> DDIMScheduler:
    """Stable Diffusion 2's own."""
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False,
        prediction_type="v_prediction", set_alpha_to_one=False,
    )  # fmt: skip


def sd2(folder: Path) -> StableDiffusionPipeline:
    """Stable Diffusion 2: velocities, a text encoder with gelu that pads with "!", linear projections, heads by level."""
    torch.manual_seed(5)
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(64)),
        tokenizer=tokenizer(folder / "tokenizer", pad="!"),
        unet=UNet2DConditionModel(
            **{**UNET, "cross_attention_dim": 64, "attention_head_dim": (2, 4), "use_linear_projection": True},
            upcast_attention=True,
        ),
        scheduler=_v_prediction(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd_distilled(folder: Path) -> StableDiffusionPipeline:
    """A variant distilled smaller, as BK-SDM's: no middle block, attention at every level, another order of blocks."""
    lists = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    parts = sd(folder).components
    torch.manual_seed(6)
    parts["unet"] = UNet2DConditionModel(**{**UNET, **lists, "mid_block_type": None})
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def inpaint(folder: Path) -> StableDiffusionInpaintPipeline:
    """A checkpoint made for inpainting: its UNet takes mask and masked picture behind the latents."""
    return _task(StableDiffusionInpaintPipeline, folder, in_channels=9)


def pix2pix(folder: Path) -> StableDiffusionInstructPix2PixPipeline:
    """InstructPix2Pix: the picture's latents behind the noise."""
    return _task(StableDiffusionInstructPix2PixPipeline, folder, in_channels=8)


def lcm(folder: Path) -> LatentConsistencyModelPipeline:
    """A latent consistency model: guidance is an input of its UNet."""
    return _task(LatentConsistencyModelPipeline, folder, {"scheduler": LCMScheduler()}, time_cond_proj_dim=32)


def depth(folder: Path) -> StableDiffusionDepth2ImgPipeline:
    """Depth to image, with an estimator that looks at pictures of 32 pixels."""
    torch.manual_seed(7)
    config = DPTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37,
        backbone_out_indices=(0, 1, 2, 3), neck_hidden_sizes=(16, 16, 32, 32), fusion_hidden_size=16, is_hybrid=False,
    )  # fmt: skip
    parts = {
        "depth_estimator": DPTForDepthEstimation(config).eval(),
        "feature_extractor": DPTImageProcessor(size={"height": 32, "width": 32}),
    }
    return _task(StableDiffusionDepth2ImgPipeline, folder, parts, in_channels=5)


def variation(folder: Path) -> StableDiffusionImageVariationPipeline:
    """Variations of a picture: an image encoder in place of the text's."""
    torch.manual_seed(9)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, projection_dim=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )  # fmt: skip
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    parts = {"image_encoder": CLIPVisionModelWithProjection(config), "feature_extractor": CLIPImageProcessor(**size)}
    return _task(StableDiffusionImageVariationPipeline, folder, parts)


def upscaler(folder: Path) -> StableDiffusionUpscalePipeline:
    """Stable Diffusion's upscaler: the small picture behind the latents, its noise level a class, velocities."""
    parts = {"low_res_scheduler": DDPMScheduler(beta_schedule="scaled_linear"), "scheduler": _v_prediction()}
    sizes = {"in_channels": 7, "num_class_embeds": 1000, "sample_size": 32}
    return _task(StableDiffusionUpscalePipeline, folder, parts, max_noise_level=350, **sizes)


def _task(
    kind: Any, folder: Path, parts: dict[str, Any] | None = None, max_noise_level: int | None = None, **unet: Any
) -> Any:
    """A pipeline of this class with Stable Diffusion's parts, but a UNet of its own."""
    known = {"vae", "text_encoder", "tokenizer", "scheduler"}
    signature = inspect.signature(kind.__init__).parameters
    own = {name: part for name, part in sd(folder).components.items() if name in known and name in signature}
    own |= parts or {}
    torch.manual_seed(8)
    options: dict[str, Any] = {"unet": UNet2DConditionModel(**{**UNET, **unet})}
    options |= {name: None for name in ("safety_checker", "feature_extractor") if name in signature and name not in own}
    options |= {"requires_safety_checker": False} if "requires_safety_checker" in signature else {}
    options |= {} if max_noise_level is None else {"max_noise_level": max_noise_level}
    return kind(**own, **options)
