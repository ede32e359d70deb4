"""LoRA layers held against weights; LoRAs fused into torch modules; what is refused. No graph is exported here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ingot.benchmarks.shapes.train_lora import new_scenes, right
from ingot.exporters.deepcache import shallow_unet
from ingot.exporters.lora import fuse, fuse_again, restored
from ingot.exporters.rewrites import applied
from ingot.runtimes.errors import EngineError, InputError
from ingot.runtimes.loras import apply_loras, read_loras
from ingot.runtimes.loras.plan import plan
from ingot.runtimes.signature import Signature
from ingot.shapes import LORA_DIR, NEW_SHAPES, SHAPES, all_scenes, draw, score

from .conftest import Tiny
from .lora_cases import random_lora, with_parts


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def rel_l2(found: Any, wanted: Any) -> float:
    found, wanted = (np.asarray(value, dtype=np.float64) for value in (found, wanted))
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30))  # biases start as zeros


@pytest.fixture(scope="module")
def loras(tiny_sd: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    made = random_lora(tiny_sd.pipe, seed=5)
    return {"peft": made.peft(folder / "peft.safetensors"), "kohya": made.kohya(folder / "kohya.safetensors")}


# fused into torch modules, against diffusers and PEFT


@pytest.mark.parametrize("naming", ["peft", "kohya"])
def test_a_fused_lora_is_what_diffusers_and_peft_fuse(tiny_sd: Tiny, loras: dict[str, Path], naming: str) -> None:
    parts = {part: copy.deepcopy(getattr(tiny_sd.pipe, part)) for part in ("unet", "text_encoder")}
    with with_parts(tiny_sd.pipe, **copy.deepcopy(parts)) as pipe:
        pipe.load_lora_weights(loras[naming].parent, weight_name=loras[naming].name)
        pipe.fuse_lora(lora_scale=0.7)
        pipe.unload_lora_weights()
        theirs = {part: dict(getattr(pipe, part).named_parameters()) for part in parts}
    with with_parts(tiny_sd.pipe, **parts) as pipe:
        fused = fuse(pipe, [(loras[naming], 0.7)])
    changed = 0
    for part, module in parts.items():
        for name, parameter in module.named_parameters():
            assert rel_l2(parameter.detach(), theirs[part][name].detach()) < 1e-6, (
                name
            )  # float32, products in another order
            changed += not torch.equal(parameter, dict(getattr(tiny_sd.pipe, part).named_parameters())[name])
    assert changed > 30
    assert [(lora.file, lora.scale) for lora in fused] == [(str(loras[naming]), 0.7)]


def test_several_loras_add_up_and_a_scale_of_zero_changes_nothing(tiny_sd: Tiny, tmp_path: Path) -> None:
    first, second = (random_lora(tiny_sd.pipe, seed, ("unet",)) for seed in (6, 7))
    files = first.peft(tmp_path / "a.safetensors"), second.kohya(tmp_path / "b.safetensors")
    wanted = second.added("unet", first.added("unet", tiny_sd.pipe.unet, 0.5), -1.25)
    with with_parts(tiny_sd.pipe, unet=copy.deepcopy(tiny_sd.pipe.unet)) as pipe:
        before = {name: parameter.data for name, parameter in pipe.unet.named_parameters()}
        fuse(pipe, [(files[0], 0), (files[1], 0.0)])
        assert all(parameter.data_ptr() == before[name].data_ptr() for name, parameter in pipe.unet.named_parameters())
        fuse(pipe, [(files[0], 0.5), (files[1], -1.25)])
        for (name, found), (_, expected) in zip(pipe.unet.named_parameters(), wanted.named_parameters(), strict=True):
            assert rel_l2(found.detach(), expected.detach()) < 1e-6, name  # float32, two sums


def test_the_callers_own_pipeline_gets_its_weights_back(tiny_sd: Tiny, loras: dict[str, Path]) -> None:
    before = {name: p.clone() for name, p in tiny_sd.pipe.unet.named_parameters()}
    with restored(tiny_sd.pipe):
        fuse(tiny_sd.pipe, [(loras["peft"], 1.0)])
        assert any(not torch.equal(p, before[name]) for name, p in tiny_sd.pipe.unet.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in tiny_sd.pipe.unet.named_parameters())


def test_a_recorded_lora_that_is_another_file_by_now_is_refused(tiny_sd: Tiny, tmp_path: Path) -> None:
    made = random_lora(tiny_sd.pipe, 8, ("unet",))
    file = made.peft(tmp_path / "a.safetensors")
    with restored(tiny_sd.pipe):
        fused = fuse(tiny_sd.pipe, [(file, 1.0)])
    random_lora(tiny_sd.pipe, 9, ("unet",)).peft(file)
    with pytest.raises(InputError, match="another file by now"):
        fuse_again(tiny_sd.pipe, fused)


# the LoRA that ships with Shapes


def test_the_checker_tells_hearts_from_everything_else() -> None:
    rng = np.random.RandomState(3)
    everything = [*all_scenes()[::100], *new_scenes()[1][:50]]
    found = score(everything, [draw(scene, rng) for scene in everything], (*SHAPES, *NEW_SHAPES))
    assert found["all"] >= 0.98  # as it must be over the old shapes alone


def test_the_shipped_lora_draws_hearts_where_the_model_cannot(tiny_shapes: Tiny) -> None:
    scenes = new_scenes()[1][:5]  # captions that the training did not see
    before = right(tiny_shapes.pipe, scenes)["shape"]
    with restored(tiny_shapes.pipe):
        fuse(tiny_shapes.pipe, [(LORA_DIR / "heart.safetensors", 1.0)])
        after = right(tiny_shapes.pipe, scenes)["shape"]
    assert before <= 0.2
    assert after >= 0.8  # one picture of five may miss
    assert (LORA_DIR / "heart.safetensors").stat().st_size < 400_000


# finding weights


def test_fused_projections_get_the_changes_of_their_parts(tiny_sd: Tiny, loras: dict[str, Path]) -> None:
    """The rewrite fused_qkv: a graph has to_qkv and to_kv where the LoRA names to_q, to_k and to_v."""
    unet = tiny_sd.pipe.unet
    wanted = random_lora(tiny_sd.pipe, seed=5).added("unet", unet, 0.5)
    given = read_loras([(loras["kohya"], 0.5)])
    roles = {"unet": None, "text_encoder": None}
    with applied(("fused_qkv",), unet):
        fused = {name: p.detach().numpy().copy() for name, p in unet.named_parameters()}
    shapes = {"unet": {n: a.shape for n, a in fused.items()}, "text_encoder": shapes_of(tiny_sd.pipe.text_encoder)}
    for name in [
        name
        for name in shapes["unet"]
        if name.endswith(
            ("attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight", "attn2.to_k.weight", "attn2.to_v.weight")
        )
    ]:
        del shapes["unet"][name]  # a traced graph keeps the fused ones alone
    updates = plan(given, roles, shapes.__getitem__)["unet"]
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    own = dict(wanted.named_parameters())
    for whole, parts in {"attn1.to_qkv": ("to_q", "to_k", "to_v"), "attn2.to_kv": ("to_k", "to_v")}.items():
        found = updates[f"{block}.{whole}.weight"](fused[f"{block}.{whole}.weight"])
        laid = torch.cat([own[f"{block}.{whole.split('.')[0]}.{part}.weight"] for part in parts]).detach()
        assert rel_l2(found, laid) < 1e-6  # float32


def test_the_shallow_unet_of_deepcache_changes_with_the_whole_one(tiny_sd: Tiny, loras: dict[str, Path]) -> None:
    unet = tiny_sd.pipe.unet
    shapes = {
        "unet_shallow": shapes_of(shallow_unet(unet, 0)), "unet": shapes_of(unet), "text_encoder": shapes_of(tiny_sd.pipe.text_encoder),
    }  # fmt: skip
    found = plan(read_loras([(loras["kohya"], 1.0)]), shapes, shapes.__getitem__)
    assert set(found["unet_shallow"]) == set(found["unet"]) & set(shapes["unet_shallow"])
    assert 0 < len(found["unet_shallow"]) < len(found["unet"])


# what is refused


def test_a_lora_for_another_base_says_what_fits_and_what_does_not(
    tiny_sd: Tiny, tiny_sdxl: Tiny, tmp_path: Path
) -> None:
    file = random_lora(tiny_sdxl.pipe, 1, ("unet",)).kohya(tmp_path / "xl.safetensors")
    with pytest.raises(InputError, match="does not fit: ") as caught:
        fuse(tiny_sd.pipe, [(file, 1.0)])
    said = str(caught.value)
    for phrase in (
        "of its",
        "layers for the unet fit",
        "name no weight of it, such as lora_unet_down_blocks_1_att",
        "another shape",
        "another base",
    ):
        assert phrase in said, said  # fmt: skip
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    halves = {f"{key}.lora_down.weight": torch.zeros(4, 8), f"{key}.lora_up.weight": torch.zeros(8, 4)}
    save_file(halves, tmp_path / "flux.safetensors")
    with pytest.raises(InputError, match="0 of its 1 layers for the unet fit"):
        fuse(tiny_sd.pipe, [(tmp_path / "flux.safetensors", 1.0)])


def test_a_component_that_is_not_there_is_named(tiny_sd: Tiny, tmp_path: Path) -> None:
    pair = {
        "lora_te2_text_projection.lora_down.weight": torch.zeros(4, 32),
        "lora_te2_text_projection.lora_up.weight": torch.zeros(32, 4),
    }
    save_file(pair, tmp_path / "te2.safetensors")
    with pytest.raises(
        InputError, match=r"1 layers for text_encoder_2, .* there is none here; there are: .*text_encoder"
    ):
        fuse(tiny_sd.pipe, [(tmp_path / "te2.safetensors", 1.0)])


@pytest.mark.parametrize("scale", ["strong", None, True, float("nan"), float("inf"), [1.0]])
def test_a_scale_that_is_no_number_is_refused(loras: dict[str, Path], scale: Any) -> None:
    with pytest.raises(InputError, match="must be a number"):
        read_loras([(loras["peft"], scale)])


@pytest.mark.parametrize("given", ["style.safetensors", ["style.safetensors"], [("a", 1.0, 2)], [(1.0, "a")], 3])
def test_what_is_no_list_of_files_and_scales_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="loras are a list of"):
        read_loras(given)


class Fixed:
    """An engine whose weights are compiled into it, as those of Core ML and TensorRT are."""

    signature = Signature((), ())

    def run(self, inputs: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...


def test_engines_and_quantized_graphs_that_cannot_change_say_what_would_do(loras: dict[str, Path]) -> None:
    engines = {"unet": Fixed(), "text_encoder": Fixed()}
    with pytest.raises(
        EngineError, match=r"the text_encoder runs on Fixed, whose compiled weights cannot be changed; .*--lora"
    ):
        apply_loras(engines, [(loras["peft"], 1.0)])
    with pytest.raises(InputError, match=r"the text_encoder is quantized \(int8-dynamic\).*load a float precision"):
        apply_loras(engines, [(loras["peft"], 1.0)], quantized={"unet": "int8-dynamic", "text_encoder": "int8-dynamic"})
    assert apply_loras(engines, []) == frozenset()  # nothing is asked of them
