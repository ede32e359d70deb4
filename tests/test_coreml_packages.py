"""Core ML packages say what Apple's Swift package reads: names, types, the safety checker, and the two halves of a large one."""

from __future__ import annotations

import shutil
import stat
from collections import Counter
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.frontend.milproto.load import load
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig

from ingot.exporters.coreml_chunks import WEIGHTS, find_cut, split_package
from ingot.exporters.coreml_safety import safety_component
from ingot.exporters.mil import open_package
from ingot.exporters.targets import coreml as target
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import ExportError
from ingot.runtimes.metrics import compare

from .coreml_packages import FLOAT32, Export, error, features, packages


def test_names_and_layouts_are_those_of_apples_swift_package(coreml_shapes: Path) -> None:
    unet = coreml_shapes / "unet" / "Unet.mlpackage"
    inputs, outputs = features(unet)
    batch, channels, height, width = inputs["sample"][1]
    assert inputs["timestep"] == ("float32", (batch,))
    assert inputs["encoder_hidden_states"] == ("float32", (batch, 96, 1, 77))
    assert outputs == {"noise_pred": ("float32", (batch, channels, height, width))}
    text, states = features(coreml_shapes / "text_encoder" / "TextEncoder.mlpackage")
    assert text == {"input_ids": ("float32", (1, 77))}
    assert {"last_hidden_state", "pooled_outputs", "hidden_embeds"} < set(states)
    assert [list(side) for side in features(coreml_shapes / "vae_decoder" / "VAEDecoder.mlpackage")] == [
        ["z"],
        ["image"],
    ]
    assert [list(side) for side in features(coreml_shapes / "vae_encoder" / "VAEEncoder.mlpackage")] == [
        ["x"],
        ["latent"],
    ]


def test_names_of_sdxl_and_controlnet(coreml_export: Export) -> None:
    inputs, outputs = features(packages(coreml_export("sdxl", "unet", dtype="float32", static=True)[1])[0])
    assert set(inputs) == {"sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"}
    assert (inputs["time_ids"], inputs["text_embeds"]) == (("float32", (2, 6)), ("float32", (2, 32)))
    _, graph = coreml_export("sdxl", "text_encoder_2", dtype="float32", static=True)
    assert packages(graph)[0].name == "TextEncoder2.mlpackage"
    assert graph.stored["outputs"]["hidden_states.2"] == "hidden_embeds"  # the last but one of four
    assert graph.stored["outputs"]["text_embeds"] == "pooled_outputs"
    residuals = [f"additional_residual_{index}" for index in range(5)]
    _, graph = coreml_export("controlnet", "controlnet", dtype="float32", static=True)
    inputs, outputs = features(packages(graph)[0])
    assert {"sample", "timestep", "encoder_hidden_states", "controlnet_cond"} < set(inputs)
    assert sorted(outputs) == residuals
    assert {dtype for dtype, _ in outputs.values()} == {"float32"}  # ControlNet.swift reads them as such
    description = ct.utils.load_spec(str(packages(graph)[0])).description
    assert [port.name for port in description.input if port.type.isOptional] == ["conditioning_scale"]
    _, graph = coreml_export("controlnet", "unet", dtype="float32", static=True, chunks=2)
    assert [package.name for package in packages(graph)] == [
        "ControlledUnetChunk1.mlpackage",
        "ControlledUnetChunk2.mlpackage",
    ]
    taken = [features(package)[0] for package in packages(graph)]
    assert set(residuals) < taken[0].keys() | taken[1].keys()


def test_half_precision_packages_take_half_precision_and_give_float32(coreml_export: Export) -> None:
    _, graph = coreml_export("ddpm", "unet", dtype="float16")
    inputs, outputs = features(packages(graph)[0])
    assert {name: dtype for name, (dtype, _) in inputs.items()} == {"sample": "float16", "timestep": "float32"}
    assert {spec.name: spec.dtype for spec in graph.signature.inputs} == {"sample": "float16", "timestep": "float32"}
    assert [dtype for dtype, _ in outputs.values()] == [spec.dtype for spec in graph.signature.outputs] == ["float32"]
    _, encoder = coreml_export("sd", "vae_encoder", dtype="float16", static=True)
    weights = sum(
        p.numel()
        for p in coreml_export("sd", "vae_encoder", dtype="float16", static=True)[0].source.encoder.parameters()
    )
    assert (packages(encoder)[0] / WEIGHTS).stat().st_size < 2.5 * weights


def test_nothing_of_the_machine_is_left_in_a_package(coreml_shapes: Path) -> None:
    files = [file for file in (coreml_shapes / "unet" / "Unet.mlpackage").rglob("*") if file.is_file()]
    assert sorted(file.name for file in files) == ["Manifest.json", "model.mlmodel", "weight.bin"]
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) & 0o044 == 0o044
        content = file.read_bytes() if file.name != "weight.bin" else b""
        assert str(Path.cwd()).encode() not in content
        assert b".py" not in content


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
    coreml_export: Export, coreml_shapes: Path, tmp_path: Path, dtype: str
) -> None:
    if dtype == "float32":
        entry = Bundle.open(coreml_shapes).component("unet").graphs[0]
        whole, signature, stored = coreml_shapes / entry.files[0], entry.signature, entry.options
    else:
        _, graph = coreml_export("sd", "vae_encoder", dtype="float16", static=True)
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
