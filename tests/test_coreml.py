"""Core ML packages say what Apple's Swift package reads, and compute what the torch modules compute."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.frontend.milproto.load import load
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig

import ingot
from ingot.exporters import parity
from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.coreml_chunks import WEIGHTS, find_cut, split_package
from ingot.exporters.coreml_resources import SCRIPT, _write_script, resources
from ingot.exporters.coreml_safety import safety_component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.mil import open_package
from ingot.exporters.targets import coreml as target
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.engines import coreml as engine
from ingot.runtimes.errors import EngineError, ExportError, InputError
from ingot.runtimes.manifest import FILE_NAME
from ingot.runtimes.metrics import compare

from .test_onnx_target import random_inputs
from .tiny import UNET

# Relative L2. In float32 the evaluator adds in another order than torch: 1e-6 measured, up to 7e-6 in Shapes. In half
# precision, every value rounded: 0.8e-3 to 2e-3 measured on these models.
FLOAT32, FLOAT16 = 1e-5, 4e-3
Export = Callable[..., tuple[Component, GraphFile]]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Export:
    """A component of a tiny pipeline and its packages, each converted once a session: that takes seconds."""
    components: dict[str, dict[str, Component]] = {}
    graphs: dict[str, GraphFile] = {}

    def get(name: str, role: str, **options: Any) -> tuple[Component, GraphFile]:
        if name not in components:
            pipe = small_ddpm() if name == "ddpm" else request.getfixturevalue(f"tiny_{name}").pipe
            components[name] = {component.role: component for component in capture(pipe)}
        key = json.dumps([name, role, options])
        if key not in graphs:
            graphs[key] = target.export(components[name][role], tmp_path_factory.mktemp("graph") / role, **options)
        return components[name][role], graphs[key]

    return get


def small_ddpm() -> DDPMPipeline:
    """The smallest UNet that has a skip connection over a halving: what is hard about open sizes, and little else."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=8, add_attention=False,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    pipe = DDPMPipeline(unet=unet, scheduler=DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def shapes_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes for Core ML in float32: the export itself holds every package and the whole picture against diffusers."""
    return ingot.export(
        "shapes", tmp_path_factory.mktemp("coreml") / "shapes", to="coreml", dtype="float32", static=True, progress=False,
        options={"coreml": {"attention": "original"}},
    )  # fmt: skip


def opened(graph: GraphFile) -> Any:
    return target.open_for_parity(graph.path, graph.signature, graph.stored)


def error(component: Component, graph: GraphFile) -> float:
    """The worst relative L2 over the recorded calls that fit."""
    return parity.check(component, opened(graph).run, graph.dtype, signature=graph.signature).rel_l2


def packages(graph: GraphFile) -> list[Path]:
    return [graph.path.parent.parent / name for name in graph.stored["packages"]]


def features(package: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs as a package declares them: name to (dtype, shape)."""
    description = ct.utils.load_spec(str(package)).description

    def arrays(ports: Any) -> dict[str, Any]:
        found = {port.name: port.type.multiArrayType for port in ports}
        return {name: (engine.DTYPES[array.dataType], tuple(array.shape)) for name, array in found.items()}

    return arrays(description.input), arrays(description.output)


# --- what is computed


def test_shapes_passes_as_a_whole(shapes_bundle: Path) -> None:
    manifest = Bundle.open(shapes_bundle).manifest
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
    exported: Export, name: str, role: str, options: dict[str, Any]
) -> None:
    component, graph = exported(name, role, **options)
    assert graph.dtype == options["dtype"]
    assert error(component, graph) < {"float32": FLOAT32, "float16": FLOAT16}[graph.dtype]


@pytest.mark.parametrize(("name", "role"), [("sd", "vae_decoder"), ("sd", "text_encoder"), ("ddpm", "unet")])
def test_a_range_of_sizes_holds_for_those_that_no_recording_had(exported: Export, name: str, role: str) -> None:
    dtype = "float32" if role == "vae_decoder" else "float16"
    component, graph = exported(name, role, dtype=dtype)
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


def test_phases_stay_exact_in_half_precision(exported: Export) -> None:
    """Half precision holds 946.42 radians to 0.25: 4.0e-3 was measured with the phases in it, 1.7e-3 with them kept out."""
    component, graph = exported("ddpm", "unet", dtype="float16")
    inputs = random_inputs(component, batch=2, height=8, width=8) | {"timestep": torch.tensor(946.42)}
    found = opened(graph).run({key: value.numpy() for key, value in inputs.items()})
    (output,) = found
    assert compare(component.run(inputs)[output].numpy(), found[output]).rel_l2 < 2.5e-3


def test_a_list_of_sizes_takes_those_and_no_others(exported: Export) -> None:
    component, graph = exported("sd", "vae_decoder", dtype="float32", sizes=[[16, 16], [8, 32], [16, 16]])
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


def test_a_range_is_kept(exported: Export) -> None:
    _, graph = exported("sd", "vae_decoder", dtype="float32")
    assert graph.stored["ranges"] == {"batch": (1, 8), "height/2": (4, 512), "width/2": (8, 512)}
    assert opened(graph).most_rows == 8
    with pytest.raises(InputError, match=r"'latent_sample' has width/2 = 4; the package takes 8 to 512"):
        opened(graph).run({"latent_sample": np.zeros((1, 4, 4, 4), np.float32)})


# --- what Apple's Swift package reads


def test_names_and_layouts_are_those_of_apples_swift_package(shapes_bundle: Path) -> None:
    unet = shapes_bundle / "unet" / "Unet.mlpackage"
    inputs, outputs = features(unet)
    batch, channels, height, width = inputs["sample"][1]
    assert inputs["timestep"] == ("float32", (batch,))
    assert inputs["encoder_hidden_states"] == ("float32", (batch, 96, 1, 77))
    assert outputs == {"noise_pred": ("float32", (batch, channels, height, width))}
    text, states = features(shapes_bundle / "text_encoder" / "TextEncoder.mlpackage")
    assert text == {"input_ids": ("float32", (1, 77))}
    assert {"last_hidden_state", "pooled_outputs", "hidden_embeds"} < set(states)
    assert [list(side) for side in features(shapes_bundle / "vae_decoder" / "VAEDecoder.mlpackage")] == [
        ["z"],
        ["image"],
    ]
    assert [list(side) for side in features(shapes_bundle / "vae_encoder" / "VAEEncoder.mlpackage")] == [
        ["x"],
        ["latent"],
    ]


def test_names_of_sdxl_and_controlnet(exported: Export) -> None:
    inputs, outputs = features(packages(exported("sdxl", "unet", dtype="float32", static=True)[1])[0])
    assert set(inputs) == {"sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"}
    assert (inputs["time_ids"], inputs["text_embeds"]) == (("float32", (2, 6)), ("float32", (2, 32)))
    _, graph = exported("sdxl", "text_encoder_2", dtype="float32", static=True)
    assert packages(graph)[0].name == "TextEncoder2.mlpackage"
    assert graph.stored["outputs"]["hidden_states.2"] == "hidden_embeds"  # the last but one of four
    assert graph.stored["outputs"]["text_embeds"] == "pooled_outputs"
    residuals = [f"additional_residual_{index}" for index in range(5)]
    _, graph = exported("controlnet", "controlnet", dtype="float32", static=True)
    inputs, outputs = features(packages(graph)[0])
    assert {"sample", "timestep", "encoder_hidden_states", "controlnet_cond"} < set(inputs)
    assert sorted(outputs) == residuals
    assert {dtype for dtype, _ in outputs.values()} == {"float32"}  # ControlNet.swift reads them as such
    description = ct.utils.load_spec(str(packages(graph)[0])).description
    assert [port.name for port in description.input if port.type.isOptional] == ["conditioning_scale"]
    _, graph = exported("controlnet", "unet", dtype="float32", static=True, chunks=2)
    assert [package.name for package in packages(graph)] == [
        "ControlledUnetChunk1.mlpackage",
        "ControlledUnetChunk2.mlpackage",
    ]
    taken = [features(package)[0] for package in packages(graph)]
    assert set(residuals) < taken[0].keys() | taken[1].keys()


def test_half_precision_packages_take_half_precision_and_give_float32(exported: Export) -> None:
    _, graph = exported("ddpm", "unet", dtype="float16")
    inputs, outputs = features(packages(graph)[0])
    assert {name: dtype for name, (dtype, _) in inputs.items()} == {"sample": "float16", "timestep": "float32"}
    assert {spec.name: spec.dtype for spec in graph.signature.inputs} == {"sample": "float16", "timestep": "float32"}
    assert [dtype for dtype, _ in outputs.values()] == [spec.dtype for spec in graph.signature.outputs] == ["float32"]
    _, encoder = exported("sd", "vae_encoder", dtype="float16", static=True)
    weights = sum(
        p.numel() for p in exported("sd", "vae_encoder", dtype="float16", static=True)[0].source.encoder.parameters()
    )
    assert (packages(encoder)[0] / WEIGHTS).stat().st_size < 2.5 * weights


def test_nothing_of_the_machine_is_left_in_a_package(shapes_bundle: Path) -> None:
    files = [file for file in (shapes_bundle / "unet" / "Unet.mlpackage").rglob("*") if file.is_file()]
    assert sorted(file.name for file in files) == ["Manifest.json", "model.mlmodel", "weight.bin"]
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) & 0o044 == 0o044
        content = file.read_bytes() if file.name != "weight.bin" else b""
        assert str(Path.cwd()).encode() not in content
        assert b".py" not in content


def test_the_resources_folder(shapes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    made = resources(shapes_bundle, tmp_path / "Resources")
    names = sorted(path.name for path in made.folder.iterdir())
    models = ["TextEncoder", "Unet", "VAEDecoder", "VAEEncoder"]
    assert names == [*(f"{name}.mlpackage" for name in models), "compile.sh", "merges.txt", "vocab.json"]
    assert not made.compiled
    assert made.notes == (
        f"there is no xcrun here, so {made.folder} holds .mlpackage files: run `sh {made.folder}/compile.sh` on a Mac with Xcode",
    )
    script = (made.folder / "compile.sh").read_text()
    assert [line for line in script.splitlines() if "Unet" in line] == [
        "xcrun coremlcompiler compile Unet.mlpackage .",
        "rm -r -- Unet.mlpackage",
    ]
    assert open_package(made.folder / "Unet.mlpackage").operations
    with pytest.raises(InputError, match="exists"):
        resources(shapes_bundle, tmp_path / "Resources")


EVIL = "$(touch stolen); touch stolen;'.mlpackage"


def test_the_script_runs_nothing_that_a_name_says(tmp_path: Path) -> None:
    made, programs = tmp_path / "made", tmp_path / "programs"
    for package in (made / EVIL, made / "controlnet" / EVIL, made / "Unet.mlpackage" / EVIL):
        package.mkdir(parents=True)
    programs.mkdir()
    (programs / "xcrun").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (programs / "xcrun").chmod(0o755)
    _write_script(made)
    done = subprocess.run(
        ["/bin/sh", str(made / SCRIPT)], env={"PATH": f"{programs}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )  # fmt: skip
    packages = (("Unet.mlpackage", "."), (EVIL, "."), (f"controlnet/{EVIL}", "controlnet"))
    expected = sorted(f"coremlcompiler|compile|{name}|{place}|" for name, place in packages)
    assert sorted(f"coremlcompiler|{one}" for one in done.stdout.split("coremlcompiler|")[1:]) == expected
    assert sorted(path.name for path in made.rglob("*")) == [SCRIPT, "controlnet"]


@pytest.mark.parametrize("name", ["../../../outside.mlpackage", "/etc", EVIL])
def test_resources_copy_nothing_from_outside_of_a_bundle(shapes_bundle: Path, tmp_path: Path, name: str) -> None:
    bundle = shutil.copytree(shapes_bundle, tmp_path / "bundle")
    manifest = bundle / FILE_NAME
    changed = json.loads(manifest.read_text())
    for entry in changed["components"].values():
        entry["graphs"][0]["options"]["packages"] = [name]
    manifest.write_text(json.dumps(changed))
    with pytest.raises(EngineError, match="no name of a Core ML package in a bundle"):
        resources(bundle, tmp_path / "Resources")
    assert not (tmp_path / "Resources").exists()


def test_the_safety_checkers_package_has_a_packages_name(shapes_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(shapes_bundle, tmp_path / "bundle")
    (bundle / "safety_checker" / EVIL).mkdir(parents=True)
    with pytest.raises(EngineError, match="no name of a Core ML package in a bundle"):
        resources(bundle, tmp_path / "Resources")


COMPILER = """#!/bin/sh
# stands in for Apple's: one folder for each package
[ "$1 $2" = "coremlcompiler compile" ] || exit 2
[ -z "$FAIL" ] || { echo "no such op" >&2; exit 1; }
/bin/mkdir -p "$4/$(/usr/bin/basename "$3" .mlpackage).mlmodelc"
"""


def test_resources_are_compiled_where_xcrun_is(
    shapes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xcrun").write_text(COMPILER)
    (tmp_path / "xcrun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    made = resources(shapes_bundle, tmp_path / "Resources")
    assert made.compiled
    assert made.notes == ()
    assert sorted(path.name for path in made.folder.glob("*.ml*")) == [
        f"{name}.mlmodelc" for name in ("TextEncoder", "Unet", "VAEDecoder", "VAEEncoder")
    ]
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(ExportError, match=r"could not compile TextEncoder.mlpackage: no such op"):
        resources(shapes_bundle, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_script_compiles_in_place(shapes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setenv("PATH", "/nowhere")
        made = resources(shapes_bundle, tmp_path / "Resources")
    (tmp_path / "xcrun").write_text(COMPILER)
    (tmp_path / "xcrun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    subprocess.run(["sh", str(made.folder / "compile.sh")], check=True)
    assert not list(made.folder.glob("*.mlpackage"))
    assert len(list(made.folder.glob("*.mlmodelc"))) == 4


def test_resources_of_a_bundle_without_core_ml(shapes_bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(shapes_bundle, tmp_path / "other")
    manifest = (other / "ingot.json").read_text().replace('"engine": "coreml"', '"engine": "onnx"')
    (other / "ingot.json").write_text(manifest)
    with pytest.raises(InputError, match=r"no Core ML graphs, it has onnx: `ingot add .* --to coreml` adds them"):
        resources(other, tmp_path / "Resources")


def test_the_safety_checker_judges_as_diffusers_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config={}, projection_dim=8)).eval()
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(checker, name).data.normal_()

    class Pipe:
        safety_checker = checker

    component = safety_component(Pipe)
    assert component is not None
    graph = target.export(
        component, tmp_path / "safety_checker", dtype="float32", static=True, deployment_target="macos13"
    )
    assert error(component, graph) < FLOAT32
    inputs, outputs = features(packages(graph)[0])
    assert inputs["images"] == ("float32", (1, 512, 512, 3))
    assert set(inputs) == {"clip_input", "images", "adjustment"}
    assert set(outputs) == {"filtered_images", "has_nsfw_concepts", "concept_scores"}
    verdicts = []
    for threshold in (-1.0, 1.0):  # a cosine is above the one and below the other
        checker.concept_embeds_weights.data.fill_(threshold)
        again = safety_component(Pipe)
        assert again is not None
        call = again.calls[0]
        _, flagged = checker.forward_onnx(call.inputs["clip_input"], call.inputs["images"].clone())
        assert bool(call.outputs["has_nsfw_concepts"]) == bool(flagged)
        assert bool((call.outputs["filtered_images"] == 0).all()) == bool(flagged)
        verdicts.append(bool(flagged))
    assert verdicts == [True, False]
    assert safety_component(object()) is None


# --- two halves


def weight_bytes(package: Path) -> int:
    return (package / WEIGHTS).stat().st_size


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_two_halves_compute_what_the_whole_does(
    exported: Export, shapes_bundle: Path, tmp_path: Path, dtype: str
) -> None:
    if dtype == "float32":
        entry = Bundle.open(shapes_bundle).component("unet").graphs[0]
        whole, signature, stored = shapes_bundle / entry.files[0], entry.signature, entry.options
    else:
        _, graph = exported("sd", "vae_encoder", dtype="float16", static=True)
        whole, signature, stored = graph.path, graph.signature, graph.stored
    copy = shutil.copytree(whole.parent, tmp_path / whole.parent.name)
    halves = [tmp_path / "First.mlpackage", tmp_path / "Second.mlpackage"]
    split_package(copy, halves)
    assert not copy.exists()
    sizes = [weight_bytes(half) for half in halves]
    assert sum(sizes) < 1.02 * weight_bytes(whole.parent)
    assert 0.4 < sizes[0] / sum(sizes) < 0.6
    generator = np.random.default_rng(0)
    inputs = {spec.name: generator.uniform(0, 2, spec.shape).astype(spec.dtype) for spec in signature.inputs}
    expected = target.open_for_parity(whole, signature, stored).run(inputs)
    both = {**stored, "packages": [half.name for half in halves]}
    found = target.open_for_parity(halves[0] / "Manifest.json", signature, both).run(inputs)
    for name, array in expected.items():
        # the same operations on the same weights; where one begins anew, torch may choose another kernel
        assert compare(array, found[name]).rel_l2 <= (1e-6 if dtype == "float32" else 0), name
    whole_operations, *halved = (open_package(file).operations for file in (whole, *halves))
    assert sum(halved, Counter()) - whole_operations <= Counter(cast=2 * len(features(halves[0])[1]))
    assert not whole_operations - sum(halved, Counter())
    for half in halves:  # coremltools' own readers take them: description, program, every weight
        model = ct.models.MLModel(str(half), skip_model_load=True)
        spec = model.get_spec()
        assert load(spec, spec.specificationVersion, model.weights_dir).functions["main"].operations


def test_a_cut_needs_something_to_cut() -> None:
    with pytest.raises(ExportError, match="a program of 0 operations and 0 bytes of weights cannot be split"):
        find_cut([], [])


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
