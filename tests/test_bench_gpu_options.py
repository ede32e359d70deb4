"""What makes diffusers faster, as contestants take it: each option does what it says, on a tiny Stable Diffusion XL."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch._inductor.config
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0
from torchao.quantization import Int8Tensor

from ingot.benchmarks import full_size_xl
from ingot.benchmarks.contestants import _diffusers_options as options_of
from ingot.benchmarks.contestants import diffusers as plain
from ingot.benchmarks.contestants import diffusers_compile
from ingot.benchmarks.contestants.measure import Clock, Task
from ingot.runtimes.metrics import compare, image_psnr

pytestmark = pytest.mark.usefixtures("torch_settings")

SIDE, STEPS, SEED = 32, 2, 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ladder") / "tiny"
    full_size_xl.save(folder, "tiny")
    return folder


@pytest.fixture(scope="module")
def task(checkpoint: Path) -> Callable[..., Task]:
    def make(**options: Any) -> Task:
        return Task(
            kind="diffusers", model=str(checkpoint), options=options, call={}, height=SIDE, width=SIDE, batch=1, steps=STEPS,
            guidance_scale=5.0, scheduler="EulerDiscreteScheduler", threads=1, seed=SEED, prompts=["a lighthouse"], noise="",
            calls=0, spawned=time.monotonic(),
        )  # fmt: skip

    return make


def called(module: Any, task: Task) -> tuple[Any, np.ndarray, np.ndarray]:
    """The pipeline, its picture and its latents."""
    opened = module.open_model(task, Clock())
    picture = opened(*task.of_call(0), lambda: None)
    assert opened.latents is not None
    return opened, picture, opened.latents


@pytest.fixture(scope="module")
def reference(task: Callable[..., Task]) -> tuple[Any, np.ndarray, np.ndarray]:
    """diffusers in float32 as it comes."""
    return called(plain, task())


def attentions(opened: Any) -> list[Attention]:
    modules = [*opened._pipe.unet.modules(), *opened._pipe.vae.modules()]
    return [module for module in modules if isinstance(module, Attention)]


def test_the_checkpoint_has_the_same_weights_each_time() -> None:
    one, two = (full_size_xl.pipeline("tiny").unet.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_attention_math_takes_sdpa_out_of_every_attention(task: Callable[..., Task], reference: Any) -> None:
    opened, picture, latents = called(plain, task(attention="math"))
    assert {type(one.processor) for one in attentions(reference[0])} == {AttnProcessor2_0}
    assert {type(one.processor) for one in attentions(opened)} == {AttnProcessor}
    assert opened.notes == ["attention as products and a softmax, without SDPA"]
    assert compare(reference[2], latents).rel_l2 < 1e-5  # float32's own rounding
    assert image_psnr(reference[1], picture) > 60


def test_fuse_qkv_fuses_every_attention_and_computes_the_same(task: Callable[..., Task], reference: Any) -> None:
    opened, picture, latents = called(plain, task(fuse_qkv=True))
    for one in attentions(opened):
        assert one.fused_projections
        assert type(one.processor) is FusedAttnProcessor2_0
        assert hasattr(one, "to_kv" if one.is_cross_attention else "to_qkv")
    assert {one.is_cross_attention for one in attentions(opened)} == {True, False}
    assert compare(reference[2], latents).rel_l2 < 1e-5
    assert image_psnr(reference[1], picture) > 60


def test_channels_last_lays_out_every_convolution(task: Callable[..., Task], reference: Any) -> None:
    opened, _, latents = called(plain, task(channels_last=True))
    for part in (opened._pipe.unet, opened._pipe.vae):
        weights = [module.weight for module in part.modules() if isinstance(module, torch.nn.Conv2d)]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert compare(reference[2], latents).rel_l2 < 1e-5


def test_int8_replaces_the_linear_layers_that_the_filter_names(task: Callable[..., Task], reference: Any) -> None:
    opened, picture, latents = called(plain, task(quantize="int8-dynamic"))
    linear = {
        name: module
        for part in (opened._pipe.unet, opened._pipe.vae)
        for name, module in part.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    for name, module in linear.items():
        assert isinstance(module.weight, Int8Tensor) == ("time_emb" not in name and "add_embedding" not in name), name
    done = sum(isinstance(module.weight, Int8Tensor) for module in linear.values())
    assert opened.notes == [f"int8 weights and activations in {done} of {len(linear)} linear layers, by torchao"]
    assert opened.packages[-1] == "torchao"
    assert 1e-5 < compare(reference[2], latents).rel_l2 < 0.05
    assert 30 < image_psnr(reference[1], picture) < 90


def test_the_filter_of_int8_is_the_published_one_but_for_single_rows() -> None:
    def worth(inputs: int, outputs: int, name: str = "to_out.0") -> bool:
        return options_of.is_worth_it(name, torch.nn.Linear(inputs, outputs, device="meta"))

    assert worth(640, 2560)
    assert worth(17, 1280)
    assert not worth(16, 1280)
    assert not worth(640, 5120)
    assert not worth(1280, 1280, "down_blocks.0.resnets.0.time_emb_proj")


def test_compiled_with_the_other_options_is_what_runs(
    task: Callable[..., Task], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's own arithmetic; the inductor's settings are set, where it compiles."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {"backend": "eager", "fullgraph": True, "cache": True, "channels_last": True, "fuse_qkv": True}
    opened, _, latents = called(diffusers_compile, task(**options))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # the UNet, the decoder
    assert opened.notes[-1] == "compiled code from torch's cache, where it has it"
    assert compare(reference[2], latents).rel_l2 < 1e-5

    monkeypatch.setattr(torch._inductor.config, "epilogue_fusion", True)
    diffusers_compile.open_model(task(mode="max-autotune", cache=True, inductor={"epilogue_fusion": False}), Clock())
    assert torch._inductor.config.epilogue_fusion is False


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (plain, {"attention": "flash"}, "attention='flash'; there is sdpa, math"),
        (plain, {"quantize": "int4"}, "quantize='int4'; there is int8-dynamic"),
        (plain, {"fuse_qkv": "yes"}, "fuse_qkv='yes': true or false is needed"),
        (plain, {"fuse_qkv": True, "attention": "math"}, "fused projections attend by SDPA; leave one out"),
        (plain, {"tf32": True}, "tf32=true is for NVIDIA's GPUs, and the device is cpu"),
        (diffusers_compile, {"mode": "fastest"}, "mode='fastest'; there is default, reduce-overhead, max-autotune"),
        (diffusers_compile, {"backend": "nothing"}, "backend='nothing'; torch has "),
        (diffusers_compile, {"fullgraph": 1}, "fullgraph=1: true or false is needed"),
        (diffusers_compile, {"backend": "eager", "mode": "default"}, "mode: only the backend inductor has that"),
        (diffusers_compile, {"inductor": {"no_such": 1}}, "has no setting no_such"),
        (diffusers_compile, {"inductor": "conv_1x1_as_mm"}, "is not a mapping such as"),
    ],
)
def test_what_cannot_be_is_refused(
    task: Callable[..., Task], module: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        module.open_model(task(**options), Clock())


def test_int8_without_torchao_and_a_gpu_that_is_not_here_say_so(
    task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device=cuda: torch .* finds no NVIDIA GPU here"):
        plain.open_model(task(device="cuda", tf32=True), Clock())
    monkeypatch.setattr(options_of.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="quantize needs torchao, which this Python does not have: pip install"):
        plain.open_model(task(quantize="int8-dynamic"), Clock())
