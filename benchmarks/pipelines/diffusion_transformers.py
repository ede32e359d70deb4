"""Tiny pipelines whose denoiser is a transformer, and unconditional ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import transformers

from . import parts
from .row import Row

Flow = diffusers.FlowMatchEulerDiscreteScheduler
PIXART = {
    "sample_size": 8, "num_layers": 1, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 3,
    "caption_channels": 32, "in_channels": 4, "cross_attention_dim": 24, "out_channels": 8, "attention_bias": True,
    "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False, "norm_eps": 1e-6,
}  # fmt: skip


def one(folder: Path, kind: str, transformer: Any, **more: Any) -> Any:
    """A pipeline with T5, an autoencoder and a transformer; `more` are further parts, or others in the place of these."""
    own = {
        "tokenizer": parts.tokenizer(folder), "text_encoder": parts.t5(), "vae": parts.vae(),
        "transformer": transformer, "scheduler": Flow(),
    }  # fmt: skip
    return getattr(diffusers, kind)(**{**own, **more})


def pixart(folder: Path, kind: str) -> Any:
    """PixArt, without sizes among its conditions."""
    transformer = diffusers.PixArtTransformer2DModel(**PIXART, use_additional_conditions=False)
    return one(folder, kind, transformer, scheduler=diffusers.DDIMScheduler())


def dit(_: Path) -> Any:
    """DiT on classes."""
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    return diffusers.DiTPipeline(transformer=transformer, vae=parts.vae(), scheduler=diffusers.DDIMScheduler())


def sd3(folder: Path, kind: str) -> Any:
    """Stable Diffusion 3 with its three text encoders."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    words = parts.tokenizer(folder)
    return one(
        folder, kind, transformer, tokenizer_2=words, tokenizer_3=words, text_encoder=parts.clip_projected(),
        text_encoder_2=parts.clip_projected(), text_encoder_3=parts.t5(64), vae=parts.flat_vae(),
    )  # fmt: skip


def flux_transformer(**changes: Any) -> Any:
    """FLUX's transformer: one block of each kind, guidance embedded."""
    return diffusers.FluxTransformer2DModel(
        **{
            "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True,
            "axes_dims_rope": [4, 4, 8], **changes,
        }
    )  # fmt: skip


def flux(folder: Path, kind: str, **more: Any) -> Any:
    """FLUX."""
    return one(
        folder, kind, flux_transformer(), tokenizer_2=parts.tokenizer(folder), text_encoder=parts.clip(),
        text_encoder_2=parts.t5(), vae=parts.flat_vae(1), **more,
    )  # fmt: skip


def hunyuan(folder: Path) -> Any:
    """Hunyuan-DiT: BERT and T5."""
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=24,
        activation_fn="gelu-approximate",
    )  # fmt: skip
    config = transformers.BertConfig(
        vocab_size=parts.WORDS, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=37
    )
    return one(
        folder, "HunyuanDiTPipeline", transformer, text_encoder=transformers.BertModel(config),
        text_encoder_2=parts.t5(), tokenizer_2=parts.tokenizer(folder, 256), scheduler=diffusers.DDPMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        vae=parts.deep_vae(),  # it counts on a factor of 8
    )  # fmt: skip


def gemma(kind: str, name: str) -> Any:
    """A Gemma with one or two layers."""
    config = getattr(transformers, kind)(
        head_dim=8, hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2,
        num_key_value_heads=2, vocab_size=parts.WORDS,
    )  # fmt: skip
    return getattr(transformers, name)(config)


def lumina(folder: Path) -> Any:
    """Lumina-Next."""
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=4, num_layers=1, num_attention_heads=1, num_kv_heads=1,
        multiple_of=16, norm_eps=1e-5, learn_sigma=True, qk_norm=True, cross_attention_dim=8, scaling_factor=1.0,
    )  # fmt: skip
    return one(folder, "LuminaPipeline", transformer, text_encoder=gemma("GemmaConfig", "GemmaModel"))


def lumina2(folder: Path) -> Any:
    """Lumina 2."""
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=1, num_attention_heads=1, num_kv_heads=1,
        multiple_of=16, norm_eps=1e-5, scaling_factor=1.0, axes_dim_rope=[4, 2, 2], cap_feat_dim=8,
    )  # fmt: skip
    return one(
        folder, "Lumina2Pipeline", transformer, text_encoder=gemma("Gemma2Config", "Gemma2Model"), vae=parts.flat_vae()
    )


def sana(folder: Path) -> Any:
    """Sana: linear attention, a deep-compression autoencoder."""
    blocks = ("ResBlock", "EfficientViTBlock")
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    return one(folder, "SanaPipeline", transformer, text_encoder=gemma("Gemma2Config", "Gemma2Model"), vae=vae)


def aura(folder: Path) -> Any:
    """AuraFlow."""
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, out_channels=4,
        pos_embed_max_size=256,
    )  # fmt: skip
    return one(folder, "AuraFlowPipeline", transformer, text_encoder=parts.t5(kind="UMT5EncoderModel"))


def chroma(folder: Path) -> Any:
    """Chroma."""
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=[4, 4, 8], approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=16,
    )  # fmt: skip
    return one(folder, "ChromaPipeline", transformer, vae=parts.flat_vae(1))


def amused(folder: Path) -> Any:
    """aMUSEd: tokens of pictures, unmasked step by step."""
    transformer = diffusers.UVit2DModel(
        hidden_size=8, cond_embed_dim=8, micro_cond_encode_dim=2, micro_cond_embed_dim=10, encoder_hidden_size=8,
        vocab_size=32, codebook_size=8, in_channels=8, block_out_channels=8, num_res_blocks=1, downsample=True,
        upsample=True, block_num_heads=1, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
    )  # fmt: skip
    vqvae = diffusers.VQModel(
        block_out_channels=[8], latent_channels=8, norm_num_groups=8, num_vq_embeddings=8, sample_size=8,
        mid_block_add_attention=False, lookup_from_codebook=True,
    )  # fmt: skip
    return diffusers.AmusedPipeline(
        vqvae=vqvae, tokenizer=parts.tokenizer(folder), transformer=transformer,
        text_encoder=parts.clip_projected(8, num_attention_heads=1),
        scheduler=diffusers.AmusedScheduler(mask_token_id=31),
    )  # fmt: skip


def plain(kind: str, scheduler: Any, **changes: Any) -> Row:
    """An unconditional UNet on pixels and a scheduler, made when the pipeline is."""
    return Row(lambda _: getattr(diffusers, kind)(unet=parts.plain_unet(**changes), scheduler=scheduler()))


ROWS = {
    "DiTPipeline": Row(dit),
    "PixArtAlphaPipeline": Row(lambda folder: pixart(folder, "PixArtAlphaPipeline")),
    "PixArtSigmaPipeline": Row(lambda folder: pixart(folder, "PixArtSigmaPipeline")),
    "StableDiffusion3Pipeline": Row(lambda folder: sd3(folder, "StableDiffusion3Pipeline")),
    "StableDiffusion3Img2ImgPipeline": Row(lambda folder: sd3(folder, "StableDiffusion3Img2ImgPipeline")),
    "FluxPipeline": Row(lambda folder: flux(folder, "FluxPipeline")),
    "FluxImg2ImgPipeline": Row(lambda folder: flux(folder, "FluxImg2ImgPipeline")),
    "HunyuanDiTPipeline": Row(hunyuan),
    "LuminaPipeline": Row(lumina),
    "Lumina2Pipeline": Row(lumina2),
    "SanaPipeline": Row(sana),
    "AuraFlowPipeline": Row(aura),
    "ChromaPipeline": Row(chroma),
    "AmusedPipeline": Row(amused),
    "DDPMPipeline": plain("DDPMPipeline", diffusers.DDPMScheduler),
    "DDIMPipeline": plain("DDIMPipeline", diffusers.DDIMScheduler),
    "PNDMPipeline": Row(
        plain("PNDMPipeline", diffusers.PNDMScheduler).build,
        inputs={"num_inference_steps": 8},
    ),
    "ScoreSdeVePipeline": plain("ScoreSdeVePipeline", diffusers.ScoreSdeVeScheduler),
    "KarrasVePipeline": plain("KarrasVePipeline", diffusers.KarrasVeScheduler),
    "ConsistencyModelPipeline": plain(
        "ConsistencyModelPipeline", lambda: diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
    ),
    "RePaintPipeline": Row(
        plain("RePaintPipeline", diffusers.RePaintScheduler).build,
        inputs={
            "image": lambda sizes: picture(sizes),
            "mask_image": lambda sizes: (picture(sizes).mean(1, keepdim=True) > 0).float(),
            "jump_length": 1,
            "jump_n_sample": 1,
        },
    ),
    "LDMSuperResolutionPipeline": Row(
        lambda _: diffusers.LDMSuperResolutionPipeline(
            vqvae=parts.movq(
                latent_channels=3, vq_embed_dim=3, norm_type="group", down_block_types=["DownEncoderBlock2D"] * 2,
                up_block_types=["UpDecoderBlock2D"] * 2,
            ),
            unet=parts.plain_unet(in_channels=6), scheduler=diffusers.DDIMScheduler(),
        ),
        inputs={"image": lambda sizes: picture(sizes, sizes.height, sizes.width)},
    ),
}  # fmt: skip


def picture(sizes: Any, height: int = 8, width: int = 8) -> Any:
    """Random pixels in -1..1, (batch, 3, height, width)."""
    import torch

    return torch.rand((sizes.batch, 3, height, width), generator=torch.Generator().manual_seed(sizes.index)) * 2 - 1
