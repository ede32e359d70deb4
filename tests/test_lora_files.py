"""LoRA files: the safetensors reader, the names, the arithmetic of a layer, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ingot.runtimes.errors import InputError
from ingot.runtimes.loras.file import METADATA, read_lora
from ingot.runtimes.loras.names import DENOISER, Part, ldm_names, places, read_names, roles_of
from ingot.runtimes.loras.safetensors import open_safetensors

DOWN, UP, MID = "unet.conv.lora_A.weight", "unet.conv.lora_B.weight", "unet.conv.lora_mid.weight"


def rel_l2(found: Any, wanted: Any) -> float:
    found, wanted = (np.asarray(value, dtype=np.float64) for value in (found, wanted))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# the reader


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)
    held = {f"t{i}": (torch.randn(3, i + 1) * 9).to(kind) for i, kind in enumerate(kinds)} | {"one": torch.tensor(4.0)}
    save_file(held, tmp_path / "a.safetensors", metadata={"key": "value"})
    found = open_safetensors(tmp_path / "a.safetensors")
    assert found.metadata == {"key": "value"}
    assert set(found.entries) == set(held)
    for name, tensor in held.items():
        assert found.shape(name) == tuple(tensor.shape)
        np.testing.assert_array_equal(found.read(name), tensor.float().numpy())  # every kind widens exactly but float64


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\x10\0\0", "header would be"),
        (raw({"a": ONE}, bytes(8), length=1 << 62), "header would be"),
        (raw(b"not json", bytes(8)), "cannot be read"),
        (raw([1, 2]), "cannot be read"),
        (raw(b"[" * 100_000), "cannot be read"),
        (raw({"a": {**ONE, "data_offsets": [0, 80]}}, bytes(8)), "from byte 0 to 80 of 8"),
        (raw({"a": {**ONE, "data_offsets": [8, 0]}}, bytes(8)), "from byte 8 to 0 of 8"),
        (raw({"a": {**ONE, "data_offsets": [-8, 0]}}, bytes(8)), "cannot be read"),
        (raw({"a": {**ONE, "shape": [3]}}, bytes(8)), "has 8 bytes, and its shape .3. needs 12"),
        (raw({"a": {**ONE, "shape": [-2]}}, bytes(8)), "cannot be read"),
        (raw({"a": {**ONE, "shape": [1 << 40, 1 << 40]}}, bytes(8)), "needs"),
        (raw({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "data_offsets"),
        (raw({"a": ONE}, bytes(4)), "from byte 0 to 8 of 4"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_whole_safetensors_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "broken.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"not a whole safetensors file: .*{said}"):
        open_safetensors(file)


def test_pickles_missing_files_and_unknown_dtypes_say_what_would_do(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "style.ckpt")
    with pytest.raises(InputError, match="pickled weights can run any code"):
        read_lora(tmp_path / "style.ckpt")
    with pytest.raises(InputError, match=r"nowhere.safetensors cannot be read: No such file"):
        read_lora(tmp_path / "nowhere.safetensors")
    (tmp_path / "f8.safetensors").write_bytes(
        raw({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, b"ab")
    )
    with pytest.raises(InputError, match="a is F8_E4M3; Ingot reads F64, F32"):
        open_safetensors(tmp_path / "f8.safetensors").read("a")


# names

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
FLAT = BLOCK.replace(".", "_")
TEXT = "text_model.encoder.layers.0"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"unet.{BLOCK}.to_q.lora_A.weight", Part(DENOISER, f"{FLAT}_to_q", "down")),
        (f"unet.{BLOCK}.to_q.lora_B.weight", Part(DENOISER, f"{FLAT}_to_q", "up")),
        (f"unet.{BLOCK}.to_q.lora_A.default_0.weight", Part(DENOISER, f"{FLAT}_to_q", "down")),
        (f"base_model.model.{BLOCK}.to_q.lora_A.weight", Part(DENOISER, f"{FLAT}_to_q", "down")),
        (f"{BLOCK}.to_q.lora.up.weight", Part(DENOISER, f"{FLAT}_to_q", "up")),
        (f"unet.{BLOCK}.processor.to_out_lora.down.weight", Part(DENOISER, f"{FLAT}_to_out", "down")),
        (f"unet.{BLOCK}.to_q.alpha", Part(DENOISER, f"{FLAT}_to_q", "alpha")),
        (f"lora_unet_{FLAT}_to_out_0.lora_down.weight", Part(DENOISER, f"{FLAT}_to_out_0", "down")),
        (f"lora_unet_{FLAT}_to_out_0.alpha", Part(DENOISER, f"{FLAT}_to_out_0", "alpha")),
        ("lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight", Part(DENOISER, "down_blocks_0_resnets_0_conv1", "mid")),
        ("diffusion_model.input_blocks.1.1.proj_in.lora_A.weight", Part(DENOISER, "input_blocks_1_1_proj_in", "down")),
        (f"text_encoder.{TEXT}.mlp.fc1.lora_linear_layer.up.weight", Part("text_encoder", "text_model_encoder_layers_0_mlp_fc1", "up")),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", Part("text_encoder", "text_model_encoder_layers_0_mlp_fc1", "up")),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", Part("text_encoder", "text_model_encoder_layers_0_mlp_fc1", "alpha")),
        ("lora_te2_text_projection.lora_down.weight", Part("text_encoder_2", "text_projection", "down")),
        ("transformer.transformer_blocks.3.attn.to_k.lora_A.weight", Part(DENOISER, "transformer_blocks_3_attn_to_k", "down")),
    ],
)  # fmt: skip
def test_names_of_every_tool_are_understood(name: str, part: Part) -> None:
    assert read_names(Path("a"), [name]) == {name: part}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w2", "LoKr"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "DoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_B.bias", "LoRA of biases"),
        ("lora_unet_conv_in.diff", "full differences"),
    ],
)
def test_adapters_of_other_kinds_are_refused_by_their_names(name: str, kind: str) -> None:
    with pytest.raises(InputError, match=f"holds .*{kind}.*plain LoRA only"):
        read_names(Path("a"), [DOWN, UP, name])


@pytest.mark.parametrize("names", [["model.diffusion_model.input_blocks.0.0.weight"], ["<concept>"], []])
def test_a_file_of_other_tensors_is_no_lora(names: list[str]) -> None:
    with pytest.raises(InputError, match="is not a LoRA"):
        read_names(Path("a"), names)


def test_old_names_of_attention_and_both_layouts_of_clip_lead_to_the_same_weights() -> None:
    table = places([f"{BLOCK}.to_out.0.weight", "encoder.layers.0.self_attn.q_proj.weight"])
    assert table[f"{FLAT}_to_out"] == table[f"{FLAT}_to_out_0"]
    names = (
        "encoder_layers_0_self_attn_q_proj",
        "text_model_encoder_layers_0_self_attn_q_proj",
        "text_model_encoder_layers_0_self_attn_to_q",
    )
    assert {table[name].weight for name in names} == {"encoder.layers.0.self_attn.q_proj.weight"}  # fmt: skip
    older = places(["text_model.encoder.layers.0.self_attn.out_proj.weight"])
    assert older["encoder_layers_0_self_attn_to_out"].weight == "text_model.encoder.layers.0.self_attn.out_proj.weight"


def test_ldm_names_are_those_that_diffusers_maps_back(tiny_sdxl: Any) -> None:
    """kohya's files for SDXL name blocks as latent diffusion does: diffusers' own conversion of such names is the oracle."""
    unet = tiny_sdxl.pipe.unet
    linear = [
        name for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and name.startswith(("down_", "mid_", "up_"))
    ]  # fmt: skip
    checked = 0
    for module in linear:
        for other in ldm_names(module, unet.config.layers_per_block):
            key = f"lora_unet_{other.replace('.', '_')}"
            pair = {f"{key}.lora_down.weight": torch.zeros(2, 4), f"{key}.lora_up.weight": torch.zeros(4, 2)}
            if "samplers" in module and not _has_place(unet, module, other):
                continue  # of two possible numbers one is this model's
            found, _ = type(tiny_sdxl.pipe).lora_state_dict(pair, unet_config=unet.config)
            plain = {name.replace(".processor", "").replace("_lora.", ".lora.") for name in found}
            wanted = module.replace("to_out.0", "to_out")
            assert f"unet.{wanted}.lora.down.weight" in plain, (module, other, plain)
            checked += 1
    assert checked == len(linear) > 50


def _has_place(unet: Any, module: str, ldm: str) -> bool:
    block = unet.get_submodule(".".join(module.split(".")[:2]))
    behind = 2 if getattr(block, "attentions", None) else 1
    return "downsamplers" in module or ldm.split(".")[2] == str(behind)


def test_a_target_means_its_role_and_the_forms_of_it() -> None:
    roles = {"unet": 0, "unet_shallow": 0, "text_encoder": 0, "text_encoder_2": 0, "vae_decoder": 0}
    assert roles_of(DENOISER, roles) == ["unet", "unet_shallow"]
    assert roles_of("text_encoder", roles) == ["text_encoder"]
    assert roles_of("text_encoder_2", roles) == ["text_encoder_2"]
    assert roles_of(DENOISER, {"transformer": 0, "vae_decoder": 0}) == ["transformer"]
    assert roles_of("text_encoder_3", roles) == []


# layers


def lora(tmp_path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Any:
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, tmp_path / "l.safetensors", metadata=metadata or None
    )
    (layer,) = read_lora(tmp_path / "l.safetensors")
    return layer


def test_convolutions_change_as_two_convolutions_in_a_row(tmp_path: Path) -> None:
    torch.manual_seed(1)
    down, up, x = torch.randn(4, 6, 3, 3), torch.randn(8, 4, 1, 1), torch.randn(2, 6, 9, 9)
    layer = lora(tmp_path, {DOWN: down, UP: up, "unet.conv.alpha": torch.tensor(2.0)})
    assert layer.shape == (8, 6, 3, 3)
    wanted = 0.7 * 2 / 4 * F.conv2d(F.conv2d(x, down, padding=1), up)
    found = F.conv2d(x, torch.from_numpy(layer.delta(0.7)), padding=1)
    assert rel_l2(found, wanted) < 1e-6  # float32 sums in another order


def test_tucker_form_changes_as_three_convolutions_in_a_row(tmp_path: Path) -> None:
    torch.manual_seed(2)
    down, mid, up = torch.randn(4, 6, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(8, 4, 1, 1)
    x = torch.randn(2, 6, 9, 9)
    layer = lora(tmp_path, {DOWN: down, UP: up, "unet.conv.lora_mid.weight": mid})
    wanted = F.conv2d(F.conv2d(F.conv2d(x, down), mid, padding=1), up)
    assert layer.shape == (8, 6, 3, 3)
    assert rel_l2(F.conv2d(x, torch.from_numpy(layer.delta(1.0)), padding=1), wanted) < 1e-6  # as above


@pytest.mark.parametrize(
    ("settings", "strength"),
    [
        ({}, 1.0),
        ({"unet.lora_alpha": 8, "unet.r": 4}, 2.0),
        ({"unet.lora_alpha": 8, "unet.r": 4, "unet.use_rslora": True}, 4.0),
        ({"unet.lora_alpha": 8, "unet.r": 4, "unet.alpha_pattern": {"conv": 1}}, 0.25),
        ({"unet.lora_alpha": 8, "unet.r": 4, "unet.alpha_pattern": {"other.conv": 1}}, 2.0),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_alpha_of_pefts_settings(tmp_path: Path, settings: dict[str, Any], strength: float) -> None:
    tensors = {DOWN: torch.ones(4, 6), UP: torch.ones(8, 4)}
    assert lora(tmp_path, tensors, **{METADATA: json.dumps(settings)}).strength == strength


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({DOWN: (4, 6)}, "only one of up and down, such as that of unet.conv.lora_A.weight"),
        ({DOWN: (4, 6), UP: (8, 5)}, "no up and down of one rank"),
        ({DOWN: (4, 6), UP: (8,)}, "no up and down of one rank"),
        ({DOWN: (4, 6, 3, 3), UP: (8, 4, 3, 3)}, "no up and down of one rank"),
        ({DOWN: (4, 6), UP: (0, 4)}, "no up and down of one rank"),
        ({DOWN: (4, 0), UP: (8, 4)}, "no up and down of one rank"),
        ({DOWN: (0, 6), UP: (8, 0)}, r"not a whole safetensors file: .* has the shape \[0, 6\]"),
        ({DOWN: (4, 6, 0, 3), UP: (8, 4, 1, 1)}, "no up and down of one rank"),
        ({DOWN: (), UP: (8, 4)}, "no up and down of one rank"),
        (
            {DOWN: (4, 6, 1, 1), UP: (8, 4, 1, 1), MID: (4, 4, 3)},
            r"with unet.conv.lora_mid.weight of shape \[4, 4, 3\]",
        ),
        ({DOWN: (4, 6, 1, 1), UP: (8, 4, 1, 1), MID: (4, 5, 3, 3)}, "no up and down of one rank"),
        ({DOWN: (4, 6, 1, 1), UP: (8, 4, 1, 1), MID: (4, 4, 0, 3)}, "no up and down of one rank"),
        ({DOWN: (4, 6, 3, 3), UP: (8, 4, 1, 1), MID: (4, 4, 3, 3)}, "no up and down of one rank"),
        ({DOWN: (4, 6), UP: (8, 4), "unet.conv.alpha": (2,)}, "unet.conv.alpha is not one number"),
        ({DOWN: (4, 6), UP: (8, 4), "unet.conv.alpha": (0,)}, "unet.conv.alpha is not one number"),
        ({DOWN: (4, 6), UP: (8, 4), "unet.conv.alpha": (1, 0)}, "unet.conv.alpha is not one number"),
    ],
)
def test_halves_that_do_not_belong_together_are_refused(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        lora(tmp_path, {name: torch.ones(shape) for name, shape in tensors.items()})


def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finite number"):
        lora(tmp_path, {DOWN: torch.ones(4, 6), UP: torch.ones(8, 4), "unet.conv.alpha": torch.tensor(float("nan"))})


def test_an_alpha_may_be_an_array_of_one(tmp_path: Path) -> None:
    for shape in ((), (1,), (1, 1)):
        alpha = torch.full(shape, 2.0)
        assert lora(tmp_path, {DOWN: torch.ones(4, 6), UP: torch.ones(8, 4), "unet.conv.alpha": alpha}).strength == 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("[1]", "are no settings by name"),
        ("null", "are no settings by name"),
        ("8", "are no settings by name"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"unet.lora_alpha": null}', "do not say how strong"),
        ('{"unet.lora_alpha": [8]}', "do not say how strong"),
        ('{"unet.lora_alpha": "much"}', "do not say how strong"),
        ('{"unet.lora_alpha": 1' + "0" * 400 + "}", "do not say how strong"),
        ('{"unet.lora_alpha": NaN}', "no finite number"),
        ('{"unet.lora_alpha": Infinity}', "no finite number"),
        ('{"unet.alpha_pattern": [1]}', "do not say how strong"),
        ('{"unet.alpha_pattern": "conv"}', "do not say how strong"),
        ('{"unet.alpha_pattern": {"conv": null}}', "do not say how strong"),
    ],
)
def test_settings_that_are_none_are_refused(tmp_path: Path, settings: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        lora(tmp_path, {DOWN: torch.ones(4, 6), UP: torch.ones(8, 4)}, **{METADATA: settings})
