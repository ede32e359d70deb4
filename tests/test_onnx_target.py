"""Exported graphs compute what the torch modules compute, at sizes that no recording saw, under the model's names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from ingot.exporters import parity
from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.onnx_graph import TRACED
from ingot.exporters.onnx_weights import SHARED_FILE, share_weights
from ingot.exporters.targets import available, target
from ingot.exporters.targets.onnx import OnnxFile, export
from ingot.exporters.trace import graph_signature
from ingot.runtimes.errors import InputError, ParityError
from ingot.runtimes.metrics import compare, image_psnr

# Float32 kernels of torch and ONNX Runtime add in different orders: 1e-6 here, and the limit of a certificate is 1e-4.
TOLERANCE = 1e-5
# Between the two forms of a graph, both in float32 on ONNX Runtime: sums in another order. 7e-7 at most was measured.
FORM_TOLERANCE = 1e-6
Export = Callable[..., tuple[Component, OnnxFile]]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Export:
    """A component of a pipeline and its graph, each exported once a session."""
    components: dict[str, dict[str, Component]] = {}
    graphs: dict[Any, OnnxFile] = {}

    def get(name: str, role: str, **options: Any) -> tuple[Component, OnnxFile]:
        if name not in components:
            pipe = request.getfixturevalue(f"tiny_{name}").pipe
            components[name] = {component.role: component for component in capture(pipe)}
        key = name, role, *options.items()
        if key not in graphs:
            graphs[key] = export(components[name][role], tmp_path_factory.mktemp("graph") / role, **options)
        return components[name][role], graphs[key]

    return get


def run(path: Path, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {k: v.numpy() for k, v in inputs.items()}), strict=True))


def random_inputs(component: Component, **sizes: int) -> dict[str, torch.Tensor]:
    """Inputs of other sizes than any recording's: dims such as `height/4` evaluated, rounded up as convolutions do."""
    generator = torch.Generator().manual_seed(7)

    def size(dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        name, _, divisor = dim.partition("/")
        return -int(-Fraction(sizes[name], int(divisor or 1)) // 1)

    made = {}
    for spec in component.signature.inputs:
        shape = [size(dim) for dim in spec.shape]
        if spec.dtype == "int64":
            made[spec.name] = torch.randint(0, 190, shape, generator=generator)
        else:
            made[spec.name] = torch.randn(shape, generator=generator)
    return made | ({"timestep": torch.tensor(423.75)} if "timestep" in made else {})


ROLES = [
    ("sd", "text_encoder"), ("sd", "unet"), ("sd", "vae_decoder"), ("sd", "vae_encoder"),
    ("sdxl", "text_encoder_2"), ("sdxl", "unet"),
    ("controlnet", "controlnet"), ("controlnet", "unet"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_graph_equals_torch_at_a_size_that_no_recording_had(exported: Export, name: str, role: str) -> None:
    component, graph = exported(name, role)
    # 18x26 pixels are 9x13 latents: odd, where a UNet's skip connections must be fitted and not merely doubled.
    inputs = random_inputs(component, batch=3, height=18, width=26)
    assert all(inputs[n].shape != t.shape for call in component.calls for n, t in call.inputs.items() if t.dim())
    expected, found = component.run(inputs), run(graph.path, inputs)
    assert list(found) == list(expected)
    for output, tensor in expected.items():
        assert compare(tensor.numpy(), found[output]).rel_l2 < TOLERANCE, output


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_every_weight_has_its_name_and_its_value(exported: Export, name: str, role: str) -> None:
    component, graph = exported(name, role)
    weights = component.source.state_dict()
    used = {"vae_decoder": ("decoder.", "post_quant_conv."), "vae_encoder": ("encoder.", "quant_conv.")}.get(
        role, ("",)
    )
    assert set(graph.weights) == {weight for weight in weights if weight.startswith(used)}
    model = onnx.load(graph.path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for weight in graph.weights:
        value = weights[weight].numpy()
        noted = any(p.key == "ingot.transposed" and p.value == "1" for p in stored[weight].metadata_props)
        assert noted == (weight in graph.transposed)
        np.testing.assert_array_equal(
            numpy_helper.to_array(stored[weight]), value.T if noted else value, err_msg=weight
        )
    # What is left without a name is constants of the graph's own: shapes, scales, sinusoids.
    unnamed = [t for key, t in stored.items() if key not in graph.weights and t.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(t.dims)) for t in unnamed) < 0.01 * sum(p.numel() for p in weights.values())


def test_transposed_weights_are_noted_at_all(exported: Export) -> None:
    _, graph = exported("sd", "unet")
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight" in graph.transposed
    assert "conv_in.weight" not in graph.transposed


def test_certificates_hold_and_the_file_passes_the_checker(exported: Export) -> None:
    for name, role in ROLES:
        component, graph = exported(name, role)
        certificate = parity.check_file(component, "onnx", graph)[0]
        assert certificate.calls == len(component.calls)
        assert certificate.rel_l2 < TOLERANCE
        onnx.checker.check_model(str(graph.path))


def test_nothing_of_the_machine_is_left_in_the_file(exported: Export) -> None:
    _, graph = exported("sd", "unet")
    content = graph.path.read_bytes()
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content


def test_the_file_says_how_many_nodes_the_clean_up_left_out(exported: Export) -> None:
    _, graph = exported("sd", "unet")
    for path in (graph.path, *(form.path for form in graph.forms)):
        model = ir.load(path)
        assert int(model.metadata_props[TRACED]) > len(model.graph) > 0


def test_names_and_dimensions_on_disk(exported: Export) -> None:
    _, graph = exported("sd", "vae_decoder")
    session = ort.InferenceSession(str(graph.path), providers=["CPUExecutionProvider"])
    (source,), (result,) = session.get_inputs(), session.get_outputs()
    assert (source.name, source.shape) == ("latent_sample", ["batch", 4, "height/2", "width/2"])
    assert (result.name, result.shape) == ("sample", ["batch", 3, "height/2 * 2", "width/2 * 2"])
    _, unet = exported("sd", "unet")
    timestep = ort.InferenceSession(str(unet.path), providers=["CPUExecutionProvider"]).get_inputs()[1]
    assert (timestep.name, timestep.shape, timestep.type) == ("timestep", [], "tensor(float)")  # optimum feeds a scalar


def test_float16_graph_is_half_the_size_and_within_its_limit(exported: Export) -> None:
    component, graph = exported("sdxl", "unet", dtype="float16")
    dtypes = {spec.name: spec.dtype for spec in graph.signature.inputs}
    assert dtypes["sample"] == "float16"
    assert dtypes["timestep"] == "float32"
    assert parity.check_file(component, "onnx", graph)[0].rel_l2 < 3e-3  # 1e-3 measured
    _, full = exported("sdxl", "unet")
    assert stored_bytes(graph.path.parent) < 0.6 * stored_bytes(full.path.parent)
    assert next(component.source.parameters()).dtype == torch.float32
    assert set(graph.weights) == set(full.weights)


def test_a_vae_that_overflows_stays_float32(exported: Export) -> None:
    component, _ = exported("sdxl", "vae_decoder")
    assert graph_signature(component, "float16") == graph_signature(component, "float32")
    with pytest.raises(InputError, match="unknown precision 'int3'; available: bfloat16, float16, float32"):
        graph_signature(component, "int3")


def test_static_graph_has_numbers_for_dimensions(exported: Export) -> None:
    component, graph = exported("sd", "unet", static=True)
    shape = tuple(component.calls[0].inputs["sample"].shape)
    assert graph.signature.inputs[0].shape == shape
    assert tuple(ort.InferenceSession(str(graph.path)).get_inputs()[0].shape) == shape
    certificate = parity.check_file(component, "onnx", graph)[0]
    assert certificate.calls == 2  # both of the first recording; the second had another size
    assert graph.node_count < exported("sd", "unet")[1].node_count


FUSED = [  # and how many attentions there are
    ("sd", "text_encoder", 3), ("sd", "unet", 8), ("sd", "vae_decoder", 1), ("sd", "vae_encoder", 1),
    ("sdxl", "text_encoder_2", 3), ("sdxl", "unet", 8),
    ("controlnet", "controlnet", 4), ("controlnet", "unet", 8),
    ("shapes", "unet", 14),
]  # fmt: skip


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(path).graph)


@pytest.mark.parametrize(("name", "role", "attentions"), FUSED)
def test_in_the_tuned_form_every_attention_is_one_operator_and_the_answers_stay(
    exported: Export, name: str, role: str, attentions: int
) -> None:
    component, portable = exported(name, role)
    (form,) = portable.forms
    kinds = operators(form.path)
    assert kinds["MultiHeadAttention"] == attentions == operators(portable.path)["Softmax"]
    assert (kinds["Softmax"], kinds["IsNaN"]) == (0, 0)
    assert form.node_count == sum(kinds.values()) < (portable.node_count or 0)
    for sizes in ({"batch": 1, "height": 16, "width": 32}, {"batch": 3, "height": 18, "width": 26}):  # odd latents too
        inputs = random_inputs(component, **sizes)
        expected, found = run(portable.path, inputs), run(form.path, inputs)
        assert list(found) == list(expected)
        for output, array in expected.items():
            assert compare(array, found[output]).rel_l2 < FORM_TOLERANCE, output


def test_the_form_says_what_it_is_and_holds_its_certificate(exported: Export) -> None:
    component, portable = exported("sd", "unet")
    (form,) = portable.forms
    assert isinstance(form, OnnxFile)
    assert (form.form, form.stored, form.path.name) == ("onnxruntime", {"devices": ["cpu", "cuda"]}, "model_ort.onnx")
    assert (portable.form, portable.stored) == ("", {})
    assert (form.signature, form.weights) == (portable.signature, portable.weights)
    assert parity.check_file(component, "onnx", form)[0].rel_l2 < 1e-5  # against torch, as the portable graph
    domains = {entry.domain: entry.version for entry in onnx.load(form.path).opset_import}
    assert domains["com.microsoft"] == 1
    assert "com.microsoft" not in {entry.domain for entry in onnx.load(portable.path).opset_import}


def test_half_precision_and_fixed_sizes(exported: Export) -> None:
    component, half = exported("sdxl", "unet", dtype="float16")
    (form,) = half.forms
    assert operators(form.path)["MultiHeadAttention"] == 8
    assert parity.check_file(component, "onnx", form)[0].rel_l2 < 3e-3  # as the portable one in float16
    component, fixed = exported("sd", "unet", static=True)
    (form,) = fixed.forms
    assert operators(form.path)["MultiHeadAttention"] == 8
    assert parity.check_file(component, "onnx", form)[0].rel_l2 < 1e-5
    assert tuple(ort.InferenceSession(str(form.path)).get_inputs()[0].shape) == fixed.signature.inputs[0].shape


def test_large_weights_lie_beside_the_graph(exported: Export) -> None:
    component, graph = exported("sd", "text_encoder", external_bytes=0)
    assert [file.name for file in graph.extra_files] == ["model.onnx_data"]
    assert graph.path.stat().st_size < 100_000 < graph.extra_files[0].stat().st_size
    assert parity.check_file(component, "onnx", graph)[0].rel_l2 < TOLERANCE
    tensors = {v.name: v.const_value for v in ir.load(graph.path).graph.initializers.values()}
    moved = [name for name in graph.transposed if isinstance(tensors[name], ir.ExternalTensor)]
    assert moved
    assert all(tensors[name].metadata_props["ingot.transposed"] == "1" for name in moved)


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "inside"])
@pytest.mark.parametrize("folders", [("unet", "unet"), ("unet", "other")], ids=["one folder", "two folders"])
def test_a_weight_of_two_graphs_is_stored_once(
    exported: Export, tmp_path: Path, folders: tuple[str, str], beside: bool
) -> None:
    component, graph = exported("sd", "vae_encoder")
    paths = [tmp_path / folder / f"model{number}.onnx" for number, folder in enumerate(folders)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        ir.save(
            ir.external_data.load_to_model(ir.load(graph.path)),
            path,
            external_data=f"{path.name}_data" if beside else None,
        )
    before = [run(path, component.calls[0].inputs) for path in paths]
    alone = stored_bytes(graph.path.parent)
    assert stored_bytes(tmp_path) > 1.9 * alone
    shared = share_weights(paths)
    assert shared.saved_bytes > 0.9 * (alone - graph.node_count * 400)
    assert shared.files == tuple(sorted({path.parent / SHARED_FILE for path in paths}))
    assert stored_bytes(tmp_path) < 1.1 * alone + graph.node_count * 400  # a graph without weights is written twice
    for _ in range(2):
        for path, earlier in zip(paths, before, strict=True):
            later = run(path, component.calls[0].inputs)
            assert all(np.array_equal(later[name], array) for name, array in earlier.items())
        assert share_weights(paths).files == ()  # what is shared is left alone
    assert not list(tmp_path.rglob("*.new"))


def stored_bytes(folder: Path) -> int:
    """What the files of a folder take on disk, links counted once."""
    return sum({file.stat().st_ino: file.stat().st_size for file in folder.rglob("*") if file.is_file()}.values())


def test_graphs_without_a_common_weight_are_left_alone(exported: Export) -> None:
    paths = [exported("sd", "text_encoder")[1].path, exported("sd", "vae_encoder")[1].path]
    before = [path.read_bytes() for path in paths]
    assert share_weights(paths).files == ()
    assert [path.read_bytes() for path in paths] == before


def test_a_wrong_graph_is_named_with_how_wrong_it_is(exported: Export, tmp_path: Path) -> None:
    component, graph = exported("sd", "vae_encoder")
    model = onnx.load(graph.path)
    weight = next(t for t in model.graph.initializer if t.name == "encoder.conv_out.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    message = r"vae_encoder: output 'latent_parameters' of recorded call 0 is \d\.\d+e-04 .* the limit is 1e-04"
    with pytest.raises(ParityError, match=message):
        parity.check_file(component, "onnx", replace(graph, path=tmp_path / "model.onnx"))


def test_a_graph_that_answers_nan_is_wrong(exported: Export) -> None:
    component, _ = exported("sd", "vae_encoder")

    shape = component.calls[0].outputs["latent_parameters"].shape
    with pytest.raises(ParityError, match="inf"):
        parity.check(component, lambda _: {"latent_parameters": np.full(shape, np.nan, np.float32)}, "float32")


def test_an_unknown_target_is_answered_with_those_that_exist() -> None:
    assert "onnx" in available()
    assert target("onnx").export is export
    with pytest.raises(InputError, match=r"unknown target 'onx'; available: .*onnx"):
        target("onx")


def test_a_transformer_that_no_table_names(tmp_path: Path) -> None:
    from . import tiny

    for component in capture(tiny.pixart(tmp_path))[:2]:  # T5 and the diffusion transformer
        graph = export(component, tmp_path / component.role)
        assert parity.check_file(component, "onnx", graph)[0].rel_l2 < TOLERANCE


def test_metrics() -> None:
    a = np.array([3.0, 4.0])
    far = compare(a, np.array([3.0, 4.5]))
    assert (far.max_abs, far.rel_l2) == (0.5, 0.1)
    assert far.sqnr_db == pytest.approx(20.0, abs=1e-9)  # -20 log10(0.1)
    assert compare(a, a).sqnr_db == np.inf
    assert compare(a, a).cosine == pytest.approx(1.0, abs=1e-12)
    assert compare(a, np.array([3.0, np.inf])).rel_l2 == np.inf
    assert compare(a, a[:1]).rel_l2 == np.inf
    assert compare(np.array([-np.inf, 1.0]), np.array([-np.inf, 1.0])).rel_l2 == 0.0
    assert compare(np.zeros(2), np.zeros(2)).rel_l2 == 0.0
    black = np.zeros((1, 4, 4, 3), np.uint8)
    assert image_psnr(black, black + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)  # 20 log10(255)
    assert image_psnr(np.zeros((2, 2)), np.full((2, 2), 0.1)) == pytest.approx(20.0, abs=1e-6)
    with pytest.raises(ValueError, match="different shapes"):
        image_psnr(black, black[0])
