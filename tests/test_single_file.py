"""One-file checkpoints: the layout of the first Stable Diffusion releases, read by diffusers with a folder's configs.

The file is made here from the tiny folder by renaming its tensors the other way, so that what comes back is known.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ingot
from ingot import ExportError
from ingot.exporters.checkpoint import load_checkpoint

State = dict[str, torch.Tensor]
PROMPT = {"prompt": "a red cat", "num_inference_steps": 1, "height": 32, "width": 32}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_RULES = [
    (r"(down|up)_blocks\.(\d+)\.resnets\.", r"\1.\2.block."),
    (r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r"\1.\2.\3sample."),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
]


def ldm_unet_key(key: str, layers: int, upsampled_after_attention: set[int]) -> str:
    """The block lists of the layout are flat: a resnet with its attention is one entry, as is a downsampler."""
    for new, old in UNET_ENDS.items():
        if key.startswith(new + "."):
            return old + key.removeprefix(new)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key):
        kind, number, rest = found[1], int(found[2]), found[3]
        place = f"middle_block.{2 * number if kind == 'resnets' else 1}."
    elif found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
        kind, rest = found[3], found[5]
        entry = int(found[2]) * (layers + 1) + int(found[4])
        number = 0 if kind == "resnets" else 1
        place = f"input_blocks.{entry + 1}.{number}." if found[1] == "down" else f"output_blocks.{entry}.{number}."
    elif found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", key):
        return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{found[2]}"
    elif found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.(.*)", key):
        block = int(found[1])
        return f"output_blocks.{block * (layers + 1) + layers}.{1 + (block in upsampled_after_attention)}.{found[2]}"
    else:
        raise AssertionError(f"no rule for {key}")
    name, _, last = rest.rpartition(".")
    return place + (f"{RESNET[name]}.{last}" if kind == "resnets" else rest)


def ldm_vae_entry(key: str, value: torch.Tensor, blocks: int) -> tuple[str, torch.Tensor]:
    """Decoder blocks count from the picture inwards; the attention's matrices are 1x1 convolutions."""
    attention = ".attentions." in key and value.ndim == 2
    for new, old in VAE_RULES:
        key = re.sub(new, old, key)
    key = re.sub(r"\bup\.(\d+)", lambda found: f"up.{blocks - 1 - int(found[1])}", key)
    return key, value[:, :, None, None] if attention else value


def ldm_state(pipe: Any, dtype: torch.dtype = torch.float32) -> State:
    """The pipeline's weights as one flat dictionary in the layout of the first releases."""
    attended = {i for i, kind in enumerate(pipe.unet.config.up_block_types) if kind.startswith("CrossAttn")}
    layers, blocks = pipe.unet.config.layers_per_block, len(pipe.vae.config.up_block_types)
    state: State = {}
    for key, value in pipe.unet.state_dict().items():
        state[f"model.diffusion_model.{ldm_unet_key(key, layers, attended)}"] = value
    for key, value in pipe.vae.state_dict().items():
        old, tensor = ldm_vae_entry(key, value, blocks)
        state[f"first_stage_model.{old}"] = tensor
    text = "cond_stage_model.transformer.text_model."
    for key, value in pipe.text_encoder.state_dict().items():
        state[text + key.removeprefix("text_model.")] = value  # transformers 5 has dropped the prefix
    state = {key: value.to(dtype).clone().contiguous() for key, value in state.items()}
    # published files hold these too
    return {**state, text + "embeddings.position_ids": torch.arange(77)[None], "betas": torch.linspace(0, 1, 1000)}


@pytest.fixture(scope="module")
def single(tiny_sd: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    save_file(ldm_state(tiny_sd.pipe), file)
    return file


def test_the_layout_is_that_of_the_published_files(single: Path) -> None:
    """Names as Stable Diffusion 1.5 has them, so that a mistake of ours and diffusers' leniency cannot cancel out."""
    state = load_file(single)
    assert {
        "model.diffusion_model.time_embed.0.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.0.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.middle_block.2.out_layers.3.bias",
        "model.diffusion_model.output_blocks.0.0.skip_connection.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.down.0.block.0.norm1.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.encoder.mid.block_1.conv1.weight",
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight",
        "first_stage_model.decoder.up.1.upsample.conv.weight",
        "first_stage_model.post_quant_conv.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.k_proj.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    } <= set(state)
    assert state["first_stage_model.decoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_weight_of_the_file_arrives(
    tiny_sd: Any, tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where) or [])
    file = tmp_path / "tiny.safetensors"
    save_file(ldm_state(tiny_sd.pipe, dtype), file)
    # weights other than the file's in the config's folder: were they taken, nothing else would tell
    config = tmp_path / "config"
    other = load_checkpoint(tiny_sd.folder).pipe
    for name in ("unet", "vae", "text_encoder"):
        for parameter in getattr(other, name).parameters():
            parameter.data.add_(1.0)
    other.save_pretrained(config)
    loaded = load_checkpoint(file, config=config)
    assert not asked, "a local config must do without the network"
    assert (loaded.source, loaded.revision, type(loaded.pipe)) == (str(file), None, type(tiny_sd.pipe))
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(loaded.pipe, name).state_dict(), getattr(tiny_sd.pipe, name).state_dict()
        assert set(ours) == set(theirs)
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value.to(dtype).float(), rtol=0, atol=0, msg=f"{name}.{key}")


def test_it_draws_what_the_folder_draws(tiny_sd: Any, single: Path) -> None:
    pictures = []
    for checkpoint in (load_checkpoint(single, config=tiny_sd.folder), load_checkpoint(tiny_sd.folder)):
        checkpoint.pipe.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        pictures.append(checkpoint.pipe(**PROMPT, generator=noise, output_type="np").images)
    np.testing.assert_array_equal(*pictures)


def test_it_exports_to_a_bundle_that_opens(tiny_sd: Any, single: Path, tmp_path: Path) -> None:
    # the export itself holds its picture against diffusers' from the same weights
    bundle = ingot.export(single, tmp_path / "bundle", config=tiny_sd.folder, progress=False)
    picture = ingot.load(bundle)(**PROMPT, seed=0, output_type="np", progress=False).images
    assert picture.shape == (1, 32, 32, 3)
    assert picture.std() > 0
    assert ingot.Bundle.open(bundle).manifest.pipeline == "StableDiffusionPipeline"


@pytest.mark.parametrize("kind", ["random keys", "no safetensors"])
def test_a_file_of_something_else_is_refused_and_nothing_stays(tiny_sd: Any, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "other.safetensors"
    if kind == "random keys":
        save_file({"layer.0.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)}, file)
    else:
        file.write_bytes(b"\xff\xfe no header" * 9)
    with pytest.raises(ExportError, match=re.escape(str(file))):
        ingot.export(file, tmp_path / "bundle", config=tiny_sd.folder, progress=False)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("lost", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
@pytest.mark.parametrize("how", ["all", "one"])
def test_what_the_file_lacks_is_not_made_up(tiny_sd: Any, single: Path, tmp_path: Path, lost: str, how: str) -> None:
    """diffusers builds each model before it looks for weights; a gap must not pass as a model with noise in it, nor be
    filled from the folder, which has weights under the same names."""
    state = load_file(single)
    gone = {key for key in state if key.startswith(lost)}
    if how == "one":  # any but CLIP's position embedding, by which diffusers tells that there is a text encoder
        gone = {max(key for key in gone if key.endswith("norm.weight"))}
    file = tmp_path / "short.safetensors"
    save_file({key: value for key, value in state.items() if key not in gone}, file)
    with pytest.raises(ExportError, match=f"{re.escape(str(file))}: .*(lacks|missing)"):
        load_checkpoint(file, config=tiny_sd.folder)


def test_without_a_config_and_the_hub_the_error_names_the_option(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="give --config"):
        load_checkpoint(single)
