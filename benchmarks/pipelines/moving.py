"""Tiny pipelines of pictures that move, and of sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import transformers

from . import parts
from .diffusion_transformers import one
from .row import Row

BLOCKS_3D = {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "attention_head_dim": 4, "norm_num_groups": 4,
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "block_out_channels": (8, 16), "layers_per_block": 1,
    "sample_size": 32, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32,
}  # fmt: skip
Flow = diffusers.FlowMatchEulerDiscreteScheduler


def svd(_: Path) -> Any:
    """Stable Video Diffusion: from a picture."""
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=32, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), num_attention_heads=2,
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=32,
        projection_class_embeddings_input_dim=24, addition_time_embed_dim=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=[32, 64], latent_channels=4, down_block_types=["DownEncoderBlock2D"] * 2
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        **parts.LINEAR, interpolation_type="linear", prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002,
        timestep_spacing="leading", timestep_type="continuous", use_karras_sigmas=True, steps_offset=1,
    )  # fmt: skip
    return diffusers.StableVideoDiffusionPipeline(
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        image_encoder=parts.vision(size=224),
        feature_extractor=parts.pictures(224),
    )


def animated(folder: Path, kind: str, **changes: Any) -> Any:
    """Stable Diffusion with motion modules: AnimateDiff, and PIA, which takes a picture."""
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2,
        **changes,
    )  # fmt: skip
    return getattr(diffusers, kind)(
        vae=parts.vae(), text_encoder=parts.clip(), tokenizer=parts.tokenizer(folder), unet=parts.unet(),
        motion_adapter=parts.noisy(adapter), scheduler=parts.ddim(beta_schedule="linear"),
    )  # fmt: skip


def i2vgen(folder: Path) -> Any:
    """I2VGen-XL."""
    return diffusers.I2VGenXLPipeline(
        vae=parts.vae(), text_encoder=parts.clip(), tokenizer=parts.tokenizer(folder), image_encoder=parts.vision(),
        feature_extractor=parts.pictures(), scheduler=parts.ddim(),
        unet=parts.noisy(diffusers.I2VGenXLUNet(**{**BLOCKS_3D, "num_attention_heads": None})),
    )  # fmt: skip


def text_to_video(folder: Path) -> Any:
    """ModelScope's text to video."""
    return diffusers.TextToVideoSDPipeline(
        vae=parts.vae(), text_encoder=parts.clip(), tokenizer=parts.tokenizer(folder), scheduler=parts.ddim(),
        unet=parts.noisy(diffusers.UNet3DConditionModel(**BLOCKS_3D)),
    )  # fmt: skip


def four(kind: str) -> dict[str, Any]:
    """Four levels of blocks, each resampling less: an autoencoder of videos."""
    return {
        "down_block_types": (f"{kind}DownBlock3D",) * 4, "up_block_types": (f"{kind}UpBlock3D",) * 4,
        "block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2,
    }  # fmt: skip


def cogvideo(folder: Path) -> Any:
    """CogVideoX."""
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=32,
        num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2, max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(**four("CogVideoX"))
    return one(folder, "CogVideoXPipeline", transformer, vae=vae, scheduler=diffusers.CogVideoXDDIMScheduler())


def ltx(folder: Path) -> Any:
    """LTX-Video."""
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=1, caption_channels=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False), decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, timestep_conditioning=False, patch_size=1,
    )  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return one(folder, "LTXPipeline", transformer, vae=vae)


def allegro(folder: Path) -> Any:
    """Allegro."""
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1,
        cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=8, caption_channels=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLAllegro(**four("Allegro"))
    vae.enable_tiling()  # it decodes no other way
    return one(folder, "AllegroPipeline", transformer, vae=vae, scheduler=diffusers.DDIMScheduler())


def mochi(folder: Path) -> Any:
    """Mochi."""
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=1, pooled_projection_dim=16,
        in_channels=12, qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )  # fmt: skip
    return one(folder, "MochiPipeline", transformer, vae=vae)


def latte(folder: Path) -> Any:
    """Latte."""
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        video_length=2,
    )  # fmt: skip
    return one(folder, "LattePipeline", transformer, scheduler=diffusers.DDIMScheduler())


def wan(folder: Path) -> Any:
    """Wan."""
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=64, ffn_dim=32, num_layers=1, cross_attn_norm=True, rope_max_seq_len=32,
        qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return one(folder, "WanPipeline", transformer, vae=vae, text_encoder=parts.t5(kind="UMT5EncoderModel"))


def vocoder() -> Any:
    """HiFi-GAN: spectrograms become sound."""
    return transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3, 7], normalize_before=False,
            resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
        )
    )  # fmt: skip


CLAP_TEXT = {
    "hidden_size": 8, "intermediate_size": 37, "num_attention_heads": 1, "num_hidden_layers": 1,
    "vocab_size": parts.WORDS, "pad_token_id": parts.WORDS - 1, "max_position_embeddings": 300, "projection_dim": 8,
}  # fmt: skip
CLAP_SOUND = {
    "spec_size": 8, "window_size": 4, "num_mel_bins": 8, "intermediate_size": 37, "depths": [1, 1],
    "num_attention_heads": [1, 1], "num_hidden_layers": 1, "hidden_size": 192, "projection_dim": 8, "patch_size": 2,
    "patch_stride": 2, "patch_embed_input_channels": 4,
}  # fmt: skip
SOUND_UNET = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": (8, 16),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


def _sound(folder: Path) -> dict[str, Any]:
    return {
        "vae": parts.vae(in_channels=1, out_channels=1), "tokenizer": parts.tokenizer(folder), "scheduler": parts.ddim(),
        "vocoder": vocoder(),
    }  # fmt: skip


def _classes(width: int) -> dict[str, Any]:
    return {
        "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": width,
        "class_embeddings_concat": True,
    }  # fmt: skip


def audioldm(folder: Path) -> Any:
    """AudioLDM: CLAP's text features as a class."""
    text = transformers.ClapTextModelWithProjection(transformers.ClapTextConfig(**CLAP_TEXT))
    return diffusers.AudioLDMPipeline(**_sound(folder), text_encoder=text, unet=parts.unet(**SOUND_UNET, **_classes(8)))


def clap(width: int) -> Any:
    """CLAP with both its halves."""
    return transformers.ClapModel(
        transformers.ClapConfig(text_config=CLAP_TEXT, audio_config=CLAP_SOUND, projection_dim=width)
    )


def musicldm(folder: Path) -> Any:
    """MusicLDM."""
    return diffusers.MusicLDMPipeline(
        **_sound(folder), text_encoder=clap(16), feature_extractor=transformers.ClapFeatureExtractor(),
        unet=parts.unet(**SOUND_UNET, **_classes(16)),
    )  # fmt: skip


def audioldm2(folder: Path) -> Any:
    """AudioLDM 2: CLAP and T5, and a language model that writes tokens after them."""
    language = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_head=1, n_layer=1, vocab_size=parts.WORDS, n_positions=400)
    )
    # the pipeline tells what to feed to which encoder by the tokenizers' classes
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    roberta = transformers.RobertaTokenizer(
        vocab={token: number for number, token in enumerate([*marks, "\u0120", *letters])},
        merges=[],
        model_max_length=77,
    )
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in letters)]
    sentencepiece = transformers.T5Tokenizer(vocab=scored, extra_ids=0, model_max_length=77)
    language.config.max_new_tokens = 4
    return diffusers.AudioLDM2Pipeline(
        **{**_sound(folder), "tokenizer": roberta}, text_encoder=clap(16), text_encoder_2=parts.t5(),
        tokenizer_2=sentencepiece,
        projection_model=diffusers.AudioLDM2ProjectionModel(
            text_encoder_dim=16, text_encoder_1_dim=32, langauge_model_dim=16
        ),
        language_model=language, feature_extractor=transformers.ClapFeatureExtractor(),
        unet=diffusers.AudioLDM2UNet2DConditionModel(
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16, attention_head_dim=2,
            in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=((None, 16, 32),) * 2,
        ),
    )  # fmt: skip


def dance(_: Path) -> Any:
    """Dance Diffusion: a UNet over samples of sound."""
    unet = diffusers.UNet1DModel(
        block_out_channels=(32, 32, 64), extra_in_channels=64, sample_size=512, sample_rate=16000, in_channels=2,
        out_channels=2, flip_sin_to_cos=True, use_timestep_embedding=False, time_embedding_type="fourier",
        mid_block_type="UNetMidBlock1D", down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    )  # fmt: skip
    return diffusers.DanceDiffusionPipeline(unet=unet, scheduler=diffusers.IPNDMScheduler())


def stable_audio(folder: Path) -> Any:
    """Stable Audio."""
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    transformer = diffusers.StableAudioDiTModel(
        sample_size=8, in_channels=3, num_layers=1, attention_head_dim=4, num_key_value_attention_heads=2,
        out_channels=3, cross_attention_dim=4, time_proj_dim=8, global_states_input_dim=8, cross_attention_input_dim=4,
        num_attention_heads=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=3,
        audio_channels=2, channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip
    return diffusers.StableAudioPipeline(
        vae=vae, text_encoder=parts.t5(), tokenizer=parts.tokenizer(folder, 25), transformer=transformer,
        projection_model=StableAudioProjectionModel(text_encoder_dim=32, conditioning_dim=4, min_value=0, max_value=32),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_schedule="exponential"),
    )  # fmt: skip


ROWS = {
    "StableVideoDiffusionPipeline": Row(svd),
    "AnimateDiffPipeline": Row(lambda folder: animated(folder, "AnimateDiffPipeline")),
    "PIAPipeline": Row(lambda folder: animated(folder, "PIAPipeline", conv_in_channels=9)),
    # its clip_skip reaches for a module that transformers 5 does not have
    "I2VGenXLPipeline": Row(i2vgen, inputs={"clip_skip": None}),
    "TextToVideoSDPipeline": Row(text_to_video),
    "CogVideoXPipeline": Row(cogvideo, inputs={"max_sequence_length": 16}),
    "LTXPipeline": Row(ltx, inputs={"max_sequence_length": 16}),
    "AllegroPipeline": Row(allegro, inputs={"max_sequence_length": 16}),
    "MochiPipeline": Row(mochi, inputs={"max_sequence_length": 16}),
    "LattePipeline": Row(latte),
    "WanPipeline": Row(wan, inputs={"max_sequence_length": 16}),
    "AudioLDMPipeline": Row(audioldm),
    "MusicLDMPipeline": Row(musicldm),
    "AudioLDM2Pipeline": Row(audioldm2),
    "DanceDiffusionPipeline": Row(dance),
    "StableAudioPipeline": Row(stable_audio),
}
