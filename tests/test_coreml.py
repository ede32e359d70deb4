"""Core ML packages compute what the torch modules compute, at every size that they were made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.targets import coreml as target
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import InputError
from ingot.runtimes.metrics import compare

from .coreml_packages import FLOAT16, FLOAT32, Export, error, opened, packages
from .test_onnx_target import random_inputs
from .tiny import UNET


def test_shapes_passes_as_a_whole(coreml_shapes: Path) -> None:
    manifest = Bundle.open(coreml_shapes).manifest
    for role, entry in manifest.components.items():
        (graph,) = entry.graphs
        assert graph.parity is not None
        assert graph.parity.rel_l2 < FLOAT32, role
        assert graph.parity.calls >= 1
        assert graph.options["attention"] == "original"
    picture = manifest.parity["coreml"]
    assert picture.psnr_db is None or picture.psnr_db > 90  # 117 dB measured: errors of 6e-6, two steps


@pytest.mark.parametrize(
    ("name", "role", "options"),
    [
        ("sdxl", "unet", {"dtype": "float32", "static": True}),
        ("sdxl", "text_encoder_2", {"dtype": "float32", "static": True}),
        ("controlnet", "controlnet", {"dtype": "float32", "static": True}),
        ("controlnet", "unet", {"dtype": "float32", "static": True, "chunks": 2}),
        ("sd", "vae_decoder", {"dtype": "float32"}),
        ("sd", "vae_encoder", {"dtype": "float16", "static": True}),
        ("sd", "text_encoder", {"dtype": "float16"}),
        ("ddpm", "unet", {"dtype": "float16"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_packages_compute_what_the_model_computes(
    coreml_export: Export, name: str, role: str, options: dict[str, Any]
) -> None:
    component, graph = coreml_export(name, role, **options)
    assert graph.dtype == options["dtype"]
    assert error(component, graph) < {"float32": FLOAT32, "float16": FLOAT16}[graph.dtype]


@pytest.mark.parametrize(("name", "role"), [("sd", "vae_decoder"), ("sd", "text_encoder"), ("ddpm", "unet")])
def test_a_range_of_sizes_holds_for_those_that_no_recording_had(coreml_export: Export, name: str, role: str) -> None:
    dtype = "float32" if role == "vae_decoder" else "float16"
    component, graph = coreml_export(name, role, dtype=dtype)
    assert not graph.static
    # odd sizes of latents too, where skip connections are cut to fit
    for batch, height, width in ((1, 18, 26), (3, 30, 34)):
        inputs = random_inputs(component, batch=batch, height=height, width=width)
        expected = component.run(inputs)
        found = opened(graph).run({key: value.numpy() for key, value in inputs.items()})
        for output, tensor in expected.items():
            limit = FLOAT32 if dtype == "float32" else FLOAT16
            assert compare(tensor.numpy(), found[output]).rel_l2 < limit, output


def test_attention_two_halvings_down_holds_for_a_range_of_sizes(tiny_sd: Any, tmp_path: Path) -> None:
    """The sizes there are quotients, of which coremltools 9.0 makes floats that its slices and reshapes do not take."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNET | {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("UpBlock2D",) * 3,
        "mid_block_type": None,
    })  # fmt: skip
    pipe = StableDiffusionPipeline(**tiny_sd.pipe.components | {"unet": unet}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    component = next(part for part in capture(pipe) if part.role == "unet")
    graph = target.export(component, tmp_path / "unet", dtype="float32")
    assert not graph.static
    inputs = random_inputs(component, batch=3, height=36, width=52)  # odd sizes of latents at the lower levels
    found = opened(graph).run({key: value.numpy() for key, value in inputs.items()})
    for output, tensor in component.run(inputs).items():
        # relative L2, ten times Shapes' limit: twice the depth
        assert compare(tensor.numpy(), found[output]).rel_l2 < 1e-4, output


def test_phases_stay_exact_in_half_precision(coreml_export: Export) -> None:
    """Half precision holds 946.42 radians to 0.25: 4.0e-3 was measured with the phases in it, 1.7e-3 with them kept out."""
    component, graph = coreml_export("ddpm", "unet", dtype="float16")
    inputs = random_inputs(component, batch=2, height=8, width=8) | {"timestep": torch.tensor(946.42)}
    found = opened(graph).run({key: value.numpy() for key, value in inputs.items()})
    (output,) = found
    assert compare(component.run(inputs)[output].numpy(), found[output]).rel_l2 < 2.5e-3


def test_a_list_of_sizes_takes_those_and_no_others(coreml_export: Export) -> None:
    component, graph = coreml_export("sd", "vae_decoder", dtype="float32", sizes=[[16, 16], [8, 32], [16, 16]])
    assert graph.signature.inputs[0].shape == (1, 4, "height/2", "width/2")
    assert graph.stored["shapes"] == {"latent_sample": ((1, 4, 4, 16), (1, 4, 8, 8))}  # the recorded one first
    (declared,) = ct.utils.load_spec(str(packages(graph)[0])).description.input
    listed = declared.type.multiArrayType.enumeratedShapes.shapes
    assert sorted(tuple(shape.shape) for shape in listed) == [(1, 4, 4, 16), (1, 4, 8, 8)]
    assert error(component, graph) < FLOAT32
    inputs = random_inputs(component, batch=1, height=16, width=16)
    found = opened(graph).run({key: value.numpy() for key, value in inputs.items()})
    assert compare(component.run(inputs)["sample"].numpy(), found["sample"]).rel_l2 < FLOAT32
    with pytest.raises(InputError, match=r"\[1, 4, 4, 4\]; the package takes \[1, 4, 4, 16\] or \[1, 4, 8, 8\]"):
        opened(graph).run({"latent_sample": np.zeros((1, 4, 4, 4), np.float32)})


def test_a_range_is_kept(coreml_export: Export) -> None:
    _, graph = coreml_export("sd", "vae_decoder", dtype="float32")
    assert graph.stored["ranges"] == {"batch": (1, 8), "height/2": (4, 512), "width/2": (8, 512)}
    assert opened(graph).most_rows == 8
    with pytest.raises(InputError, match=r"'latent_sample' has width/2 = 4; the package takes 8 to 512"):
        opened(graph).run({"latent_sample": np.zeros((1, 4, 4, 4), np.float32)})


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "unknown dtype for the target coreml 'bfloat16'; available: float16, float32"),
        ({"attention": "flash"}, "unknown attention 'flash'; available: original, split_einsum, split_einsum_v2"),
        ({"attention": "split_einsum"}, "takes no ranges of sizes: export with --static.*attention='original'"),
        ({"attention": "split_einsum_v2", "sizes": [[8, 32], [16, 32]]}, "parts of one size: export with --static"),
        ({"deployment_target": "iOS14"}, "unknown deployment_target 'iOS14'; available: iOS15, .*macOS13"),
        ({"compute_units": "NPU"}, "unknown compute_units 'NPU'; available: ALL"),
        ({"chunks": 3}, r"chunks=3: a package is written whole \(1\) or in two \(2\)"),
        ({"chunks": 2}, "chunks=2 needs one size.*--static"),
        ({"static": True, "sizes": [[8, 8], [16, 16]]}, "a static package has one size"),
        ({"sizes": [[64, 64], [96, 64]]}, r"leave out the size that unet is recorded at.*height/2 = 4, width/2 = 16"),
        ({"sizes": [[8, 32], [9, 32]]}, "9x32 pixels are no size of this model: height/2 is not a whole number"),
        ({"sizes": [512, 512]}, r"pairs of height and width in pixels, such as \[\[512, 512\], \[768, 512\]\], not 512"),
        ({"sizes": "512x512"}, "pairs of height and width"),
        ({"largest": 8}, "largest=8 pixels are fewer than unet was recorded with"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_had(
    tiny_components: dict[str, Component], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        target.export(tiny_components["unet"], tmp_path / "unet", **options)
    assert not list(tmp_path.iterdir())


def test_one_list_of_sizes_below_ios18(tiny_controlnet: Any, tmp_path: Path) -> None:
    components = {component.role: component for component in capture(tiny_controlnet.pipe)}
    with pytest.raises(
        InputError, match=r"2 inputs that change with the size \(sample, controlnet_cond\).*deployment_target=iOS18"
    ):
        target.export(components["controlnet"], tmp_path, sizes=[[4, 16], [8, 16]])


@pytest.fixture(scope="module")
def tiny_components(tiny_sd: Any) -> dict[str, Component]:
    return {component.role: component for component in capture(tiny_sd.pipe)}
