"""Tiny pipelines of two stages: a prior makes the features of a picture, a decoder the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers

from . import parts
from .row import Row


def _prior_parts(folder: Path) -> dict[str, Any]:
    return {
        "prior": parts.prior(), "image_encoder": parts.vision(), "text_encoder": parts.clip_projected(),
        "tokenizer": parts.tokenizer(folder), "image_processor": parts.pictures(),
        "scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
        ),
    }  # fmt: skip


def kandinsky(folder: Path) -> Any:
    """Kandinsky 2.1's decoder, with a multilingual text encoder."""
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    config = MCLIPConfig(
        numDims=32, transformerDimensions=16, hidden_size=16, intermediate_size=37, num_attention_heads=4,
        num_hidden_layers=2, vocab_size=parts.WORDS,
    )  # fmt: skip
    unet = parts.simple_unet(
        out_channels=8, addition_embed_type="text_image", encoder_hid_dim=16, encoder_hid_dim_type="text_image_proj"
    )
    return diffusers.KandinskyPipeline(
        text_encoder=MultilingualCLIP(config), tokenizer=parts.tokenizer(folder), unet=unet, scheduler=parts.ddim(),
        movq=parts.movq(),
    )  # fmt: skip


def kandinsky22(kind: str, channels: int = 4, hint: bool = False, movq: Any = None) -> Any:
    """Kandinsky 2.2's decoder."""
    unet = parts.simple_unet(
        in_channels=channels, out_channels=8, addition_embed_type="image_hint" if hint else "image", encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
    )  # fmt: skip
    return getattr(diffusers, kind)(unet=unet, scheduler=parts.ddim(), movq=movq or parts.movq())


def deep_movq() -> Any:
    """An autoencoder with the factor of 8 that the hint's layers have."""
    down, up = "DownEncoderBlock2D", "UpDecoderBlock2D"
    return parts.movq(
        block_out_channels=[32, 32, 64, 64], down_block_types=[down] * 3 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + [up] * 3,
    )  # fmt: skip


def kandinsky3(folder: Path) -> Any:
    """Kandinsky 3."""
    unet = diffusers.Kandinsky3UNet(
        in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3,
        block_out_channels=(8, 16), cross_attention_dim=4, encoder_hid_dim=32,
    )  # fmt: skip
    return diffusers.Kandinsky3Pipeline(
        tokenizer=parts.tokenizer(folder), text_encoder=parts.t5(), unet=unet, movq=parts.movq(),
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )  # fmt: skip


def unclip(folder: Path) -> Any:
    """unCLIP (Karlo): prior, decoder and two super-resolution UNets."""
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel

    upper = {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "in_channels": 6, "out_channels": 3, "sample_size": 32,
    }  # fmt: skip
    noise = {"variance_type": "fixed_small_log", "num_train_timesteps": 1000}
    return diffusers.UnCLIPPipeline(
        prior=parts.prior(), text_encoder=parts.clip_projected(), tokenizer=parts.tokenizer(folder),
        decoder=parts.simple_unet(in_channels=3, out_channels=6, class_embed_type="identity"),
        text_proj=UnCLIPTextProjModel(clip_embeddings_dim=32, time_embed_dim=32, cross_attention_dim=32),
        super_res_first=parts.plain_unet(**upper), super_res_last=parts.plain_unet(**upper),
        prior_scheduler=diffusers.UnCLIPScheduler(**noise, prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=diffusers.UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon"),
        super_res_scheduler=diffusers.UnCLIPScheduler(**noise, prediction_type="epsilon"),
    )  # fmt: skip


def stable_unclip(folder: Path) -> Any:
    """Stable unCLIP: a prior before Stable Diffusion, its answer as a class."""
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

    words = parts.tokenizer(folder)
    smooth = {"beta_schedule": "squaredcos_cap_v2"}
    return diffusers.StableUnCLIPPipeline(
        prior_tokenizer=words, prior_text_encoder=parts.clip_projected(), prior=parts.prior(),
        prior_scheduler=diffusers.DDPMScheduler(
            **smooth, variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=32),
        image_noising_scheduler=diffusers.DDPMScheduler(**smooth), tokenizer=words, text_encoder=parts.clip(),
        unet=parts.unet(class_embed_type="projection", projection_class_embeddings_input_dim=64),
        scheduler=parts.ddim(prediction_type="v_prediction"), vae=parts.vae(),
    )  # fmt: skip


def wuerstchen_prior(folder: Path) -> Any:
    """Wuerstchen's prior."""
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior

    return diffusers.WuerstchenPriorPipeline(
        tokenizer=parts.tokenizer(folder), text_encoder=parts.clip(), scheduler=diffusers.DDPMWuerstchenScheduler(),
        prior=WuerstchenPrior(c_in=2, c=8, depth=2, c_cond=32, c_r=8, nhead=2),
    )  # fmt: skip


def paella() -> Any:
    """The decoder of Wuerstchen's and Stable Cascade's latents."""
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    return PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2, embed_dim=16)


def wuerstchen(folder: Path) -> Any:
    """Wuerstchen's decoder."""
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt

    decoder = WuerstchenDiffNeXt(
        c_cond=32, c_hidden=[32], nhead=[-1], blocks=[2], level_config=["CT"], clip_embd=32, inject_effnet=[False]
    )
    return diffusers.WuerstchenDecoderPipeline(
        tokenizer=parts.tokenizer(folder), text_encoder=parts.clip(), decoder=decoder, vqgan=paella(),
        scheduler=diffusers.DDPMWuerstchenScheduler(), latent_dim_scale=4.0,
    )  # fmt: skip


def cascade_prior(folder: Path) -> Any:
    """Stable Cascade's prior."""
    prior = diffusers.models.StableCascadeUNet(
        conditioning_dim=32, block_out_channels=(32, 32), num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1), switch_level=(False,), clip_image_in_channels=32, clip_text_in_channels=32,
        clip_text_pooled_in_channels=32, dropout=(0.1, 0.1),
    )  # fmt: skip
    return diffusers.StableCascadePriorPipeline(
        tokenizer=parts.tokenizer(folder), text_encoder=parts.clip_projected(), prior=prior,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    )  # fmt: skip


def cascade(folder: Path) -> Any:
    """Stable Cascade's decoder."""
    plain, wide = ["SDCascadeResBlock", "SDCascadeTimestepBlock"], "SDCascadeAttnBlock"
    decoder = diffusers.models.StableCascadeUNet(
        in_channels=4, out_channels=4, conditioning_dim=32, block_out_channels=[16, 32], num_attention_heads=[-1, 2],
        down_num_layers_per_block=[1, 1], up_num_layers_per_block=[1, 1], down_blocks_repeat_mappers=[1, 1],
        up_blocks_repeat_mappers=[2, 1], block_types_per_layer=[plain, [*plain, wide]], switch_level=None,
        clip_text_pooled_in_channels=32, effnet_in_channels=16, dropout=[0.1, 0.1],
    )  # fmt: skip
    return diffusers.StableCascadeDecoderPipeline(
        decoder=decoder, tokenizer=parts.tokenizer(folder), text_encoder=parts.clip_projected(), vqgan=paella(),
        scheduler=diffusers.DDPMWuerstchenScheduler(), latent_dim_scale=4.0,
    )  # fmt: skip


def floyd(folder: Path, kind: str, channels: int = 3, **changes: Any) -> Any:
    """DeepFloyd IF."""
    more = {"image_noising_scheduler": diffusers.DDPMScheduler()} if "SuperResolution" in kind else {}
    unet = parts.simple_unet(
        in_channels=channels, out_channels=6, encoder_hid_dim=32, addition_embed_type="text",
        addition_embed_type_num_heads=2, cross_attention_norm="group_norm", act_fn="gelu", **changes,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", thresholding=True, variance_type="learned_range"
    )
    return getattr(diffusers, kind)(
        tokenizer=parts.tokenizer(folder), text_encoder=parts.t5(), unet=unet, scheduler=scheduler, watermarker=None,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, **more,
    )  # fmt: skip


def ldm(folder: Path) -> Any:
    """Latent Diffusion, the first of them, which counts on an autoencoder's factor of 8."""
    return diffusers.LDMTextToImagePipeline(
        vqvae=parts.deep_vae(), bert=parts.clip(), tokenizer=parts.tokenizer(folder), unet=parts.unet(),
        scheduler=parts.ddim(),
    )  # fmt: skip


def shap_e(folder: Path) -> Any:
    """Shap-E: the prior makes the weights of a field, which a renderer shows from all sides."""
    from diffusers.pipelines.shap_e import ShapERenderer

    prior = parts.prior(
        attention_head_dim=16, embedding_dim=32, num_embeddings=32, embedding_proj_dim=32, time_embed_dim=64,
        clip_embed_dim=64, additional_embeddings=0, time_embed_act_fn="gelu", norm_in_type="layer",
        encoder_hid_proj_type=None, added_emb_type=None,
    )  # fmt: skip
    renderer = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=32, d_hidden=8, n_output=12,
        background=(0.1, 0.1, 0.1),
    )  # fmt: skip
    scheduler = diffusers.HeunDiscreteScheduler(
        beta_schedule="exp", num_train_timesteps=1024, prediction_type="sample", use_karras_sigmas=True,
        clip_sample=True, clip_sample_range=1.0,
    )  # fmt: skip
    return diffusers.ShapEPipeline(
        prior=prior, text_encoder=parts.clip_projected(), tokenizer=parts.tokenizer(folder), scheduler=scheduler,
        shap_e_renderer=renderer,
    )  # fmt: skip


ROWS = {
    "KandinskyPriorPipeline": Row(lambda folder: diffusers.KandinskyPriorPipeline(**_prior_parts(folder))),
    "KandinskyPipeline": Row(kandinsky),
    "KandinskyV22PriorPipeline": Row(lambda folder: diffusers.KandinskyV22PriorPipeline(**_prior_parts(folder))),
    "KandinskyV22Pipeline": Row(lambda _: kandinsky22("KandinskyV22Pipeline")),
    "KandinskyV22Img2ImgPipeline": Row(lambda _: kandinsky22("KandinskyV22Img2ImgPipeline")),
    "KandinskyV22ControlnetPipeline": Row(
        lambda _: kandinsky22("KandinskyV22ControlnetPipeline", 8, hint=True, movq=deep_movq())
    ),
    "Kandinsky3Pipeline": Row(kandinsky3),
    "UnCLIPPipeline": Row(unclip),
    "StableUnCLIPPipeline": Row(stable_unclip),
    "WuerstchenPriorPipeline": Row(wuerstchen_prior),
    "WuerstchenDecoderPipeline": Row(wuerstchen),
    "StableCascadePriorPipeline": Row(cascade_prior),
    "StableCascadeDecoderPipeline": Row(cascade),
    "IFPipeline": Row(lambda folder: floyd(folder, "IFPipeline")),
    "IFImg2ImgPipeline": Row(lambda folder: floyd(folder, "IFImg2ImgPipeline")),
    "IFSuperResolutionPipeline": Row(
        lambda folder: floyd(folder, "IFSuperResolutionPipeline", 6, class_embed_type="timestep")
    ),
    "LDMTextToImagePipeline": Row(ldm, inputs={"guidance_scale": 3.0}),
    "ShapEPipeline": Row(
        shap_e,
        inputs={"output_type": "latent"},
        torch_only={"shap_e_renderer": "it draws rays at random while it renders; latents are compared, before it"},
    ),
}
