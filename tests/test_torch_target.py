"""The torch target writes what the model computes, at every size, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ingot.exporters import parity
from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets.torch import export
from ingot.runtimes.engines._torch_archive import Archive
from ingot.runtimes.engines._torch_attention import slice_attention
from ingot.runtimes.engines._torch_graph import read_program
from ingot.runtimes.errors import InputError
from ingot.runtimes.signature import Signature

from .test_onnx_target import random_inputs
from .torch_cases import TOLERANCE, Export, arrays, micro, opened, worst


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Export:
    """A component of a tiny pipeline and its graph, each exported once."""
    components: dict[str, dict[str, Component]] = {"micro": {"micro": micro()}}
    graphs: dict[Any, GraphFile] = {}

    def get(name: str, role: str, **options: Any) -> tuple[Component, GraphFile]:
        if name not in components:
            pipe = request.getfixturevalue(f"tiny_{name}").pipe
            components[name] = {component.role: component for component in capture(pipe)}
        key = name, role, *options.items()
        if key not in graphs:
            graphs[key] = export(components[name][role], tmp_path_factory.mktemp("graph") / role, **options)
        return components[name][role], graphs[key]

    return get


ROLES = [
    ("sd", "text_encoder"), ("sd", "unet"), ("sd", "vae_decoder"), ("sd", "vae_encoder"),
    ("sdxl", "unet"),
    ("controlnet", "controlnet"), ("controlnet", "unet"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_program_equals_torch_at_recorded_sizes_and_at_one_that_no_recording_had(
    exported: Export, name: str, role: str
) -> None:
    component, graph = exported(name, role)
    certificate, others = parity.check_file(component, "torch", graph)
    assert (certificate.calls, others) == (len(component.calls), {})
    assert certificate.rel_l2 < TOLERANCE
    engine = opened(graph)
    # 18x26 pixels are 9x13 latents: odd, where a UNet's skip connections must be fitted and not merely doubled. A batch of
    # 1 lies outside what torch.export promises (it takes a dimension of 1 for a constant), and is what everybody runs.
    for batch in (3, 1):
        inputs = random_inputs(component, batch=batch, height=18, width=26)
        assert worst(component.run(inputs), engine.run(arrays(inputs))) < TOLERANCE


@pytest.mark.parametrize(
    ("role", "dtype", "outside"),
    [("unet", "bfloat16", "float32"), ("text_encoder", "float16", "float16")],
)
def test_half_precision_stays_within_its_limit(exported: Export, role: str, dtype: str, outside: str) -> None:
    component, graph = exported("sd", role, dtype=dtype)
    certificate, _ = parity.check_file(component, "torch", graph)
    assert 1e-6 < certificate.rel_l2 < {"bfloat16": 1e-1, "float16": 1e-2}[dtype] == certificate.limit
    assert graph.dtype == dtype
    assert {spec.dtype for spec in graph.signature.outputs} == {outside}
    weights = Archive(graph.path).tensors().values()
    assert {t.dtype for t in weights if t.is_floating_point()} == {getattr(torch, dtype)}


def test_a_batch_past_the_range_that_was_traced(exported: Export) -> None:
    component, graph = exported("sd", "vae_decoder")  # torch noted at most 63 rows: diffusers copies from 64 on
    inputs = random_inputs(component, batch=65, height=8, width=4)
    assert worst(component.run(inputs), opened(graph).run(arrays(inputs))) < TOLERANCE


def test_a_static_program_keeps_its_numbers(exported: Export) -> None:
    component, graph = exported("micro", "micro", static=True)
    assert graph.signature.inputs[0].shape == (2, 4, 6, 10)
    certificate, _ = parity.check_file(component, "torch", graph)
    assert certificate.calls == 1
    with pytest.raises(InputError, match=r"'x' has shape \[3, 4, 6, 10\], not \[2, 4, 6, 10\]"):
        opened(graph).run(arrays({"x": torch.zeros(3, 4, 6, 10), "timestep": torch.tensor(1.0)}))


def test_the_file_holds_what_is_used_and_nothing_of_the_machine(exported: Export) -> None:
    for role, used in (("vae_decoder", "decoder."), ("vae_encoder", "encoder.")):
        component, graph = exported("sd", role)
        weights = component.source.state_dict()
        names = {name.removeprefix("source.") for name in Archive(graph.path).tensors()}
        quant = "post_quant_conv." if role == "vae_decoder" else "quant_conv."
        assert names == {name for name in weights if name.startswith((used, quant))}
        for name, tensor in Archive(graph.path).tensors().items():
            assert torch.equal(tensor, weights[name.removeprefix("source.")]), name
        content = graph.path.read_bytes()
        assert str(Path.cwd()).encode() not in content
        assert b".py" not in content
        assert b"diffusers" not in content


def test_the_file_is_one_that_torch_itself_opens(exported: Export) -> None:
    component, graph = exported("sd", "text_encoder")
    inputs = random_inputs(component, batch=3)
    found = torch.export.load(graph.path).module()(*inputs.values())
    for tensor, array in zip(found, opened(graph).run(arrays(inputs)).values(), strict=True):
        np.testing.assert_array_equal(tensor.detach().numpy(), array)


def test_a_process_without_diffusers_runs_it(exported: Export, tmp_path: Path) -> None:
    component, graph = exported("sd", "unet")
    np.savez(tmp_path / "inputs.npz", **arrays(component.calls[0].inputs))
    script = f"""
import sys
for name in ("diffusers", "transformers", "accelerate", "safetensors", "onnx"):
    sys.modules[name] = None
import msgspec, numpy as np
from pathlib import Path
from ingot.runtimes.signature import Signature
from ingot.runtimes.engines.torch import open_graph
signature = msgspec.json.decode({bytes(json.dumps(_plain(graph.signature)), "utf8")!r}, type=Signature)
engine = open_graph(Path({str(graph.path)!r}), signature, stored={graph.stored!r}, device="cpu")
np.savez({str(tmp_path / "outputs.npz")!r}, **engine.run(dict(np.load({str(tmp_path / "inputs.npz")!r}))))
assert not any(name.split(".")[0] in ("diffusers", "transformers") and module for name, module in sys.modules.items())
assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules  # a second each
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)
    assert worst(component.calls[0].outputs, dict(np.load(tmp_path / "outputs.npz"))) < TOLERANCE


def _plain(signature: Signature) -> Any:
    import msgspec

    return msgspec.to_builtins(signature)


def test_programs_move_with_the_constants_that_they_make(exported: Export) -> None:
    for name, role in (("sd", "text_encoder"), ("sd", "unet"), ("micro", "micro")):
        component, graph = exported(name, role)
        module = read_program(Archive(graph.path), device="meta")
        call = component.calls[0]
        found = module(*(tensor.to("meta") for tensor in call.inputs.values()))
        # an operator that mixed devices would have raised: meta tensors do not meet those of the CPU
        assert [(t.device.type, t.shape) for t in found] == [("meta", t.shape) for t in call.outputs.values()]


def test_channels_last_is_a_layout_only(exported: Export) -> None:
    component, graph = exported("sd", "unet")
    inputs = random_inputs(component, batch=2, height=18, width=26)
    engine = opened(graph, channels_last=True)
    found = engine.run(arrays(inputs))
    assert worst(component.run(inputs), found) < TOLERANCE
    assert found["out_sample"].flags.c_contiguous
    weight = next(t for t in engine._call.buffers() if t.dim() == 4 and t.shape[2] == 3)  # type: ignore[union-attr]  # a module
    assert weight.is_contiguous(memory_format=torch.channels_last)
    _, stored = exported("micro", "micro", channels_last=True)
    assert opened(stored).policy.channels_last  # as the maker of the bundle chose
    assert not opened(stored, channels_last=False).policy.channels_last


def test_a_unet_in_slices(exported: Export) -> None:
    component, graph = exported("sd", "unet")
    assert slice_attention(read_program(Archive(graph.path)), 0) == 8  # self and cross, in four transformer blocks
    call = component.calls[0]
    assert worst(call.outputs, opened(graph, attention="sliced").run(arrays(call.inputs))) < TOLERANCE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onnx"}, "unknown torch format 'onnx'; available: aoti, exported"),
        ({"format": "aoti", "device": "mps"}, "unknown device for compiled code 'mps'; available: cpu, cuda"),
        ({"format": "aoti", "channels_last": True}, "AOTInductor lays out convolutions by itself"),
        ({"channels_last": "yes"}, "channels_last='yes': true or false"),
        ({"device": "cuda"}, r"for torch\.format=aoti; a \.pt2 program runs on every device"),
    ],
)
def test_target_options_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(micro(), tmp_path / "micro", **options)
    assert not (tmp_path / "micro").exists()


def test_a_model_that_writes_in_place_is_stored_without(tmp_path: Path) -> None:
    """PixArt's transformer adds and divides in place, and its T5 ends in a dropout."""
    from . import tiny

    for component in capture(tiny.pixart(tmp_path))[:2]:
        written = export(component, tmp_path / component.role, dtype="float32")
        # 0 was measured; one operator summed in another order would be 1e-7
        assert parity.check_file(component, "torch", written)[0].rel_l2 < 1e-6
