"""Tiny pipelines of Stable Diffusion's kind, their tasks and their controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import transformers

from . import parts
from .row import Row


def one(folder: Path, kind: str, *, without: tuple[str, ...] = (), channels: int = 4, **more: Any) -> Any:
    """A pipeline with one CLIP text encoder; `more` are further parts, or others in the place of these."""
    own = {
        "vae": parts.vae(), "text_encoder": parts.clip(), "tokenizer": parts.tokenizer(folder),
        "unet": parts.unet(in_channels=channels), "scheduler": parts.ddim(), "safety_checker": None,
        "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip
    given = {**own, **more}
    return getattr(diffusers, kind)(**{name: part for name, part in given.items() if name not in without})


def two(folder: Path, kind: str, *, channels: int = 4, **more: Any) -> Any:
    """Stable Diffusion XL's parts."""
    words = parts.tokenizer(folder)
    own = {
        "vae": parts.vae(), "text_encoder": parts.clip(), "text_encoder_2": parts.clip_projected(hidden_act="gelu"),
        "tokenizer": words, "tokenizer_2": words, "unet": parts.xl_unet(in_channels=channels),
        "scheduler": diffusers.EulerDiscreteScheduler(**parts.LINEAR, timestep_spacing="leading"),
    }  # fmt: skip
    return getattr(diffusers, kind)(**{**own, **more})


def _plain(kind: str, **changes: Any) -> Row:
    return Row(lambda folder: one(folder, kind, **changes))


_NO_CHECKER = ("safety_checker", "feature_extractor", "requires_safety_checker")


def depth(folder: Path) -> Any:
    """Depth to image, with a depth estimator."""
    config = transformers.DPTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37,
        backbone_out_indices=(0, 1, 2, 3), fusion_hidden_size=16, neck_hidden_sizes=[8, 8, 16, 16],
    )  # fmt: skip
    return one(
        folder, "StableDiffusionDepth2ImgPipeline", channels=5, without=("safety_checker", "requires_safety_checker"),
        depth_estimator=transformers.DPTForDepthEstimation(config),
        feature_extractor=transformers.DPTImageProcessor(size={"height": 32, "width": 32}),
    )  # fmt: skip


def upscale(folder: Path) -> Any:
    """The upscaler: the small picture beside the latents, its noise level as a class."""
    return one(
        folder, "StableDiffusionUpscalePipeline", channels=7, without=("requires_safety_checker",),
        unet=parts.unet(in_channels=7, num_class_embeds=1000), low_res_scheduler=diffusers.DDPMScheduler(),
    )  # fmt: skip


def latent_upscale(folder: Path) -> Any:
    """The latent upscaler: Fourier features of the timestep, blocks of the k-diffusion kind."""
    down, up = "KCrossAttnDownBlock2D", "KCrossAttnUpBlock2D"
    unet = diffusers.UNet2DConditionModel(
        act_fn="gelu", attention_head_dim=8, norm_num_groups=None, block_out_channels=[32, 32, 64, 64],
        time_cond_proj_dim=160, conv_in_kernel=1, conv_out_kernel=1, cross_attention_dim=32, in_channels=8, out_channels=5,
        down_block_types=("KDownBlock2D", down, down, down), up_block_types=(up, up, up, "KUpBlock2D"), mid_block_type=None,
        only_cross_attention=False, resnet_time_scale_shift="scale_shift", time_embedding_type="fourier",
        timestep_post_act="gelu",
    )  # fmt: skip
    return one(
        folder, "StableDiffusionLatentUpscalePipeline", without=_NO_CHECKER, unet=unet, vae=parts.deep_vae(),
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="sample"),
    )  # fmt: skip


def variation(folder: Path) -> Any:
    """Image variations: CLIP's image encoder in the place of text."""
    return one(
        folder, "StableDiffusionImageVariationPipeline", without=("text_encoder", "tokenizer"),
        image_encoder=parts.vision(), feature_extractor=parts.pictures(),
    )  # fmt: skip


def example(folder: Path) -> Any:
    """Paint by Example."""
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder

    return one(
        folder, "PaintByExamplePipeline", channels=9, without=("text_encoder", "tokenizer"),
        image_encoder=PaintByExampleImageEncoder(parts.vision_config(), proj_size=parts.WIDTH),
        feature_extractor=parts.pictures(),
    )  # fmt: skip


def controlled(folder: Path, kind: str, nets: int = 1, **more: Any) -> Any:
    """With ControlNets, whose residuals are noise and not zero."""
    unet = more.pop("unet", None) or parts.unet()
    made = [
        parts.noisy(diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)))
        for _ in range(nets)
    ]
    return one(folder, kind, unet=unet, controlnet=made[0] if nets == 1 else made, **more)


def controlled_xl(folder: Path, kind: str) -> Any:
    """Stable Diffusion XL with a ControlNet."""
    unet = parts.xl_unet()
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    return two(folder, kind, unet=unet, controlnet=parts.noisy(net))


def adapter(**changes: Any) -> Any:
    """A T2I-Adapter for pictures of any size."""
    sizes = {"channels": [8, 16], "downscale_factor": 2, "adapter_type": "full_adapter"}
    return parts.noisy(diffusers.T2IAdapter(in_channels=3, num_res_blocks=1, **{**sizes, **changes}))


def xl_adapter(folder: Path) -> Any:
    """Stable Diffusion XL of three levels with one, which halves the picture as often as the XL kind does."""
    cross = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    unet = parts.xl_unet(
        block_out_channels=(8, 16, 16), down_block_types=("DownBlock2D", cross[0], cross[0]),
        up_block_types=(cross[1], cross[1], "UpBlock2D"), attention_head_dim=(2, 4, 4),
    )  # fmt: skip
    own = adapter(adapter_type="full_adapter_xl", channels=[8, 16, 16, 16], downscale_factor=4)
    return two(folder, "StableDiffusionXLAdapterPipeline", unet=unet, adapter=own)


def blip(folder: Path) -> Any:
    """BLIP-Diffusion: a Q-Former turns a picture of the subject and its name into tokens of the prompt."""
    from diffusers.pipelines.deprecated.blip_diffusion.modeling_blip2 import Blip2QFormerModel
    from diffusers.pipelines.deprecated.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel

    words = folder / "bert"
    words.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (words / "vocab.txt").write_text("\n".join(tokens) + "\n")
    seen = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.Blip2Config(
        vision_config={**seen, "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu"},
        qformer_config={**seen, "vocab_size": 100, "cross_attention_frequency": 1, "encoder_hidden_size": 32},
        num_query_tokens=4, tokenizer=str(words),
    )  # fmt: skip
    return one(
        folder, "BlipDiffusionPipeline", without=_NO_CHECKER, qformer=Blip2QFormerModel(config),
        text_encoder=ContextCLIPTextModel(parts.clip_config()),
        image_processor=diffusers.pipelines.deprecated.blip_diffusion.blip_image_processing.BlipImageProcessor(
            size={"height": 32, "width": 32}
        ),
    )  # fmt: skip


def marigold(folder: Path) -> Any:
    """Depth by diffusion."""
    return one(
        folder, "MarigoldDepthPipeline", channels=8, without=_NO_CHECKER, prediction_type="depth", scale_invariant=True,
        shift_invariant=True, scheduler=parts.ddim(prediction_type="v_prediction"),
    )  # fmt: skip


def consistent(folder: Path, kind: str) -> Any:
    """A latent consistency model: guidance is an input."""
    return one(folder, kind, unet=parts.unet(time_cond_proj_dim=16), scheduler=diffusers.LCMScheduler(**parts.LINEAR))


ROWS = {
    "StableDiffusionPipeline": _plain("StableDiffusionPipeline"),
    "StableDiffusionImg2ImgPipeline": _plain("StableDiffusionImg2ImgPipeline"),
    "StableDiffusionInpaintPipeline": _plain("StableDiffusionInpaintPipeline", channels=9),
    "StableDiffusionDepth2ImgPipeline": Row(depth),
    "StableDiffusionInstructPix2PixPipeline": _plain("StableDiffusionInstructPix2PixPipeline", channels=8),
    "StableDiffusionUpscalePipeline": Row(upscale),
    "StableDiffusionLatentUpscalePipeline": Row(latent_upscale),
    "StableDiffusionImageVariationPipeline": Row(variation),
    "StableDiffusionPanoramaPipeline": _plain("StableDiffusionPanoramaPipeline"),
    "StableDiffusionSAGPipeline": Row(
        lambda folder: one(folder, "StableDiffusionSAGPipeline"),
        torch_only={"unet": "self-attention guidance reads the attention maps inside the UNet while it runs"},
    ),
    "StableDiffusionAttendAndExcitePipeline": Row(
        lambda folder: one(folder, "StableDiffusionAttendAndExcitePipeline"),
        inputs={
            "prompt": lambda sizes: ["a red cat"] * sizes.batch,
            "token_indices": lambda sizes: [[2, 3]] * sizes.batch,
            "attn_res": lambda sizes: (sizes.height // 2, sizes.width // 2),
            "max_iter_to_alter": 1,
            "thresholds": {0: 0.0},
        },
        torch_only={"unet": "it follows gradients through the UNet's attention maps, which a graph does not have"},
    ),
    "SemanticStableDiffusionPipeline": Row(
        lambda folder: one(folder, "SemanticStableDiffusionPipeline"),
        inputs={"editing_prompt": ["snow"], "edit_warmup_steps": 0},
    ),
    "PaintByExamplePipeline": Row(example),
    "BlipDiffusionPipeline": Row(
        blip,
        inputs={
            "reference_image": lambda sizes: parts_image(sizes),
            "source_subject_category": lambda sizes: ["cat"] * sizes.batch,
            "target_subject_category": lambda sizes: ["dog"] * sizes.batch,
        },
    ),
    "MarigoldDepthPipeline": Row(marigold),
    "LatentConsistencyModelPipeline": Row(lambda folder: consistent(folder, "LatentConsistencyModelPipeline")),
    "LatentConsistencyModelImg2ImgPipeline": Row(
        lambda folder: consistent(folder, "LatentConsistencyModelImg2ImgPipeline")
    ),
    "StableDiffusionControlNetPipeline": Row(lambda folder: controlled(folder, "StableDiffusionControlNetPipeline", 2)),
    "StableDiffusionControlNetImg2ImgPipeline": Row(
        lambda folder: controlled(folder, "StableDiffusionControlNetImg2ImgPipeline")
    ),
    "StableDiffusionControlNetInpaintPipeline": Row(
        lambda folder: controlled(folder, "StableDiffusionControlNetInpaintPipeline")
    ),
    "StableDiffusionAdapterPipeline": Row(
        lambda folder: one(folder, "StableDiffusionAdapterPipeline", adapter=adapter())
    ),
    "StableDiffusionXLPipeline": Row(lambda folder: two(folder, "StableDiffusionXLPipeline")),
    "StableDiffusionXLImg2ImgPipeline": Row(lambda folder: two(folder, "StableDiffusionXLImg2ImgPipeline")),
    "StableDiffusionXLInpaintPipeline": Row(lambda folder: two(folder, "StableDiffusionXLInpaintPipeline")),
    "StableDiffusionXLInstructPix2PixPipeline": Row(
        lambda folder: two(folder, "StableDiffusionXLInstructPix2PixPipeline", channels=8)
    ),
    "StableDiffusionXLControlNetPipeline": Row(
        lambda folder: controlled_xl(folder, "StableDiffusionXLControlNetPipeline")
    ),
    "StableDiffusionXLControlNetImg2ImgPipeline": Row(
        lambda folder: controlled_xl(folder, "StableDiffusionXLControlNetImg2ImgPipeline")
    ),
    "StableDiffusionXLAdapterPipeline": Row(xl_adapter),
}


def parts_image(sizes: Any) -> Any:
    """One picture of the subject for all prompts."""
    from PIL import Image

    return Image.new("RGB", (sizes.width, sizes.height), (200, 40, 60))
