"""OpenVINO graphs compute what the torch modules compute, under the model's names, whatever they are opened with."""

from __future__ import annotations

import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import openvino as ov
import pytest
import torch

from ingot.exporters import parity
from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.openvino_graph import build
from ingot.exporters.openvino_lower import lowered
from ingot.exporters.targets.openvino import export, finish
from ingot.exporters.trace import graph_signature, trace
from ingot.runtimes.engines import _openvino, open_with
from ingot.runtimes.engines.openvino import (
    PARITY_OPTIONS,
    OpenVinoEngine,
    computing_precisions,
    devices,
    open_graph,
    report,
)
from ingot.runtimes.errors import EngineError, InputError
from ingot.runtimes.metrics import compare
from ingot.runtimes.signature import Signature, TensorSpec

# Float32 kernels of torch and OpenVINO add in different orders: 3e-6 at most here, and a certificate's limit is 1e-4.
TOLERANCE = 1e-5
Export = Callable[..., tuple[Component, GraphFile]]
ROLES = [
    ("sd", "text_encoder"), ("sd", "unet"), ("sd", "vae_decoder"), ("sd", "vae_encoder"),
    ("sdxl", "text_encoder_2"), ("sdxl", "unet"),
    ("controlnet", "controlnet"), ("controlnet", "unet"),
]  # fmt: skip


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Export:
    """A component of a tiny pipeline and its graph, each exported once a session."""
    components: dict[str, dict[str, Component]] = {}
    graphs: dict[Any, GraphFile] = {}

    def get(name: str, role: str, **options: Any) -> tuple[Component, GraphFile]:
        if name not in components:
            pipe = request.getfixturevalue(f"tiny_{name}").pipe
            components[name] = {component.role: component for component in capture(pipe)}
        options = {"dtype": "float32", **options}
        key = name, role, *options.items()
        if key not in graphs:
            graphs[key] = export(components[name][role], tmp_path_factory.mktemp("graph") / role, **options)
        return components[name][role], graphs[key]

    return get


def open_exactly(graph: GraphFile, **options: Any) -> OpenVinoEngine:
    return open_graph(graph.path, graph.signature, stored=graph.stored, **PARITY_OPTIONS, **options)


def random_inputs(component: Component, seed: int = 7, **sizes: int) -> dict[str, torch.Tensor]:
    """Inputs of other sizes than any recording's: dims such as `height/4` evaluated, rounded up as convolutions do."""
    generator = torch.Generator().manual_seed(seed)

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


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def layers(file: Path) -> list[ET.Element]:
    return ET.parse(file).getroot().findall("layers/layer")


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_graph_equals_torch_at_recorded_sizes_and_at_another(exported: Export, name: str, role: str) -> None:
    component, graph = exported(name, role)
    certificate = parity.check_file(component, "openvino", graph)[0]
    assert certificate.calls == len(component.calls)
    assert certificate.rel_l2 < TOLERANCE
    # 18x26 pixels are 9x13 latents: odd, where a UNet's skip connections must be fitted and not merely doubled. The
    # timestep 423.75 is a fraction, which the file's own integer input would lose.
    inputs = random_inputs(component, batch=3, height=18, width=26)
    assert all(inputs[n].shape != t.shape for call in component.calls for n, t in call.inputs.items() if t.dim())
    expected, found = component.run(inputs), open_exactly(graph).run(arrays(inputs))
    assert list(found) == list(expected)
    for output, tensor in expected.items():
        assert compare(tensor.numpy(), found[output]).rel_l2 < TOLERANCE, output


@pytest.mark.parametrize(("name", "role"), [("sd", "text_encoder"), ("sdxl", "unet"), ("sd", "vae_decoder")])
def test_float16_stores_half_and_takes_float32(exported: Export, name: str, role: str) -> None:
    component, graph = exported(name, role, dtype="float16")
    assert graph.dtype == "float16"
    assert {spec.dtype for spec in graph.signature.inputs} <= {"float32", "int64"}
    assert 1e-5 < parity.check_file(component, "openvino", graph)[0].rel_l2 < 5e-3  # 3e-3 measured, the limit is 1e-2
    weights = [one.path.with_suffix(".bin").stat().st_size for one in (graph, exported(name, role)[1])]
    assert weights[0] < 0.55 * weights[1]  # sizes and indices are integers


def test_a_vae_that_overflows_stays_float32_on_every_device(exported: Export) -> None:
    _, graph = exported("sdxl", "vae_decoder", dtype="float16")
    assert (graph.dtype, graph.stored) == ("float32", {"keep_float32": True})
    options = dict.fromkeys(("performance_hint", "streams", "threads", "precision", "cache_dir"))
    assert _openvino.configuration("GPU", **options, keep_float32=True) == {"INFERENCE_PRECISION_HINT": "f32"}
    assert _openvino.configuration("GPU", **options, keep_float32=False) == {}
    assert exported("sdxl", "unet", dtype="float16")[1].stored == {}


@pytest.mark.parametrize("lower", [pytest.param(name, id=name) for name in ("bfloat16", "float16")])
def test_what_the_cpu_computes_by_itself_is_certified(exported: Export, lower: str) -> None:
    if lower not in computing_precisions():
        able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        pytest.skip(f"this CPU has no instructions for {lower}: {', '.join(able)}")
    for role in ("text_encoder", "unet", "vae_decoder"):
        component, graph = exported("sd", role)
        exact, others = parity.check_file(component, "openvino", graph)
        assert exact.rel_l2 < others[lower].rel_l2 < parity.LIMITS[lower]


def test_lower_precisions_are_those_that_the_cpu_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reports:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "BF16", "INT8"]

    monkeypatch.setattr("ingot.runtimes.engines.openvino.core", Reports)
    assert computing_precisions() == {"bfloat16": {"inference_precision": "bf16"}}


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_weights_and_ports_have_the_models_names(exported: Export, name: str, role: str) -> None:
    component, graph = exported(name, role)
    model = ov.Core().read_model(graph.path)
    assert [port.get_any_name() for port in model.inputs] == [spec.name for spec in component.signature.inputs]
    assert [port.get_any_name() for port in model.outputs] == [spec.name for spec in component.signature.outputs]
    found = {node.get_friendly_name(): node for node in model.get_ops()}
    part = {"vae_decoder": "decoder.", "vae_encoder": "encoder."}.get(role, "")
    checked = 0
    for path, module in component.source.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and path.startswith(part):
            kind = "MatMul" if isinstance(module, torch.nn.Linear) else "Convolution"
            np.testing.assert_array_equal(found[f"{path}.weight"].data, module.weight.numpy(force=True))
            assert found[f"{path}/{kind}"].get_type_name() == kind
            checked += 1
    assert checked > 12


def test_the_ports_that_optimum_and_genai_know(exported: Export) -> None:
    unet, decoder = (ov.Core().read_model(exported("sd", role)[1].path) for role in ("unet", "vae_decoder"))
    assert [port.get_any_name() for port in unet.inputs] == ["sample", "timestep", "encoder_hidden_states"]
    assert [port.get_any_name() for port in unet.outputs] == ["out_sample"]
    assert [port.get_any_name() for port in (*decoder.inputs, *decoder.outputs)] == ["latent_sample", "sample"]
    assert [str(port.get_partial_shape()) for port in unet.inputs] == ["[?,4,?,?]", "[?]", "[?,77,32]"]
    assert unet.input("timestep").get_element_type() == ov.Type.i64
    assert unet.input("sample").get_element_type() == ov.Type.f32


def test_nothing_of_the_machine_is_left_in_the_file(exported: Export) -> None:
    content = exported("sd", "unet")[1].path.read_bytes()
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content


def test_rules_make_the_graph_that_decompositions_make(exported: Export) -> None:
    component, _ = exported("sd", "text_encoder")
    signature = graph_signature(component)
    kinds = [
        Counter(node.get_type_name() for node in build(trace(component), signature, quick=quick).get_ops())
        for quick in (True, False)
    ]
    assert kinds[0] == kinds[1]


class Ramp(torch.nn.Module):
    """Positions over a number of sizes, in place, as PixArt's embedding has them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(x.shape[1], dtype=torch.float32).div_(x.shape[1] / 3)


def test_a_program_that_no_rule_covers_is_decomposed() -> None:
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Ramp(), (torch.ones(2, 5),), dynamic_shapes={"x": free})
    assert lowered(program) is None
    spec = TensorSpec("x", "float32", ("batch", "width"))
    model = build(program, Signature((spec,), (TensorSpec("y", "float32", spec.shape),)))
    found = ov.Core().compile_model(model, "CPU")({"x": np.ones((3, 7), np.float32)})["y"]
    np.testing.assert_allclose(found, np.ones((3, 1)) * np.arange(7) / (7 / 3), rtol=1e-6)  # one rounding


def test_static_graph_has_numbers_everywhere(exported: Export) -> None:
    component, graph = exported("sd", "unet", static=True)
    model = ov.Core().read_model(graph.path)
    assert not model.is_dynamic()
    assert graph.signature.inputs[0].shape == tuple(component.calls[0].inputs["sample"].shape)
    certificate = parity.check_file(component, "openvino", graph)[0]
    assert certificate.calls == 2  # both of the first recording; the second had another size
    assert certificate.rel_l2 < TOLERANCE


@pytest.mark.parametrize(("name", "role"), [("sd", "vae_decoder"), ("controlnet", "unet")])
def test_sizes_fix_a_graph_by_the_names_of_its_dimensions(exported: Export, name: str, role: str) -> None:
    component, graph = exported(name, role)
    free, fixed = open_exactly(graph), open_exactly(graph, sizes={"batch": 2, "height": 18, "width": 26})
    inputs = random_inputs(component, batch=2, height=18, width=26)
    assert [spec.shape for spec in fixed.signature.inputs] == [tuple(tensor.shape) for tensor in inputs.values()]
    for output, array in free.run(arrays(inputs)).items():
        again = fixed.run(arrays(inputs))[output]
        assert compare(array, again).rel_l2 < TOLERANCE  # another shape, other kernels
        assert again.shape == next(spec for spec in fixed.signature.outputs if spec.name == output).shape
    with pytest.raises(InputError, match=r"has shape \[3, .* not \[2, "):
        fixed.run(arrays(random_inputs(component, batch=3, height=18, width=26)))
    part = open_exactly(graph, sizes={"batch": 2})
    assert [part.signature.inputs[0].shape[axis] for axis in (0, 2)] == [2, free.signature.inputs[0].shape[2]]


def test_products_of_sizes_are_evaluated() -> None:
    shape = ("batch", "3*height*width/64", "tokens", 5)
    signature = Signature((TensorSpec("x", "float32", shape),), ())
    assert _openvino.resized(signature, {"height": 20, "width": 16}).inputs[0].shape == ("batch", 15, "tokens", 5)
    assert _openvino.resized(signature, {"tokens": 7, "batch": 1}).inputs[0].shape == (1, shape[1], 7, 5)
    with pytest.raises(InputError, match="unknown size 'depth'; available: batch, height, tokens, width"):
        _openvino.resized(signature, {"depth": 3})
    with pytest.raises(InputError, match="sizes: batch=0: a whole number of at least 1"):
        _openvino.resized(signature, {"batch": 0})


@pytest.mark.parametrize("sizes", [{}, {"batch": 2, "height": 8, "width": 12}], ids=["dynamic", "static"])
def test_outputs_belong_to_the_caller_on_every_thread(exported: Export, sizes: dict[str, int]) -> None:
    component, graph = exported("sd", "vae_decoder")
    engine = open_exactly(graph, sizes=sizes, threads=1)
    given = [arrays(random_inputs(component, seed, batch=2, height=8, width=12)) for seed in range(8)]
    alone = [engine.run(inputs)["sample"] for inputs in given]
    kept = [array.copy() for array in alone]
    found: dict[int, list[np.ndarray]] = {}

    def work(number: int) -> None:
        found[number] = [engine.run(inputs)["sample"] for inputs in given]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for outputs in (alone, *found.values()):
        assert all(np.array_equal(array, before) for array, before in zip(outputs, kept, strict=True))
        assert all(array.flags.writeable and array.flags.c_contiguous for array in outputs)
    assert not any(np.array_equal(kept[0], array) for array in kept[1:])
    assert 1 <= len(engine._idle) <= 4  # as many requests as runs at once, and no more


def test_inputs_that_cannot_be_shared_are_copied(exported: Export) -> None:
    component, graph = exported("sd", "vae_decoder")
    engine = open_exactly(graph)
    inputs = arrays(random_inputs(component, batch=2, height=8, width=12))
    expected = engine.run(inputs)["sample"]
    latents = inputs["latent_sample"]
    turned = np.ascontiguousarray(latents.T).T
    frozen = latents.copy()
    frozen.flags.writeable = False
    for array in (turned, frozen, latents.astype(np.float64)):
        np.testing.assert_array_equal(engine.run({"latent_sample": array})["sample"], expected)


def test_compiled_graphs_are_found_again_in_a_cache_folder(exported: Export, tmp_path: Path) -> None:
    component, graph = exported("sd", "unet")
    inputs = arrays(random_inputs(component, batch=2, height=16, width=24))
    first = open_exactly(graph, cache_dir=tmp_path).run(inputs)["out_sample"]
    blobs = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.blob")}
    assert len(blobs) == 1
    engine = open_exactly(graph, cache_dir=tmp_path)
    assert engine._compiled is not None
    assert engine._compiled.get_property("LOADED_FROM_CACHE") is True
    np.testing.assert_array_equal(engine.run(inputs)["out_sample"], first)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.blob")} == blobs


def test_options_reach_the_device(exported: Export) -> None:
    _, graph = exported("sd", "vae_decoder")
    engine = open_graph(
        graph.path, graph.signature, performance_hint="throughput", streams=1, threads=1, inference_precision="f32",
        properties={"ENABLE_HYPER_THREADING": False},
    )  # fmt: skip
    expected = {
        "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1",
        "INFERENCE_PRECISION_HINT": "<Type: 'float32'>", "ENABLE_HYPER_THREADING": "False",
    }  # fmt: skip
    assert engine._compiled is not None
    found = {name: str(engine._compiled.get_property(name)).rpartition(".")[2] for name in expected}
    assert found == expected
    auto = open_graph(graph.path, graph.signature, device="AUTO", performance_hint="latency")
    assert auto._compiled is not None
    assert auto._compiled.get_property("EXECUTION_DEVICES") == ["CPU"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"performance_hint": "fast"}, "unknown performance_hint 'fast'; available: cumulative_throughput, latency"),
        ({"inference_precision": "f8"}, "unknown inference_precision 'f8'; available: bf16, f16, f32"),
        ({"streams": 0}, "streams=0: a whole number of at least 1 is needed"),
        ({"threads": 0}, "threads=0: a whole number of at least 1 is needed"),
        ({"sizes": {"depth": 8}}, "unknown size 'depth'; available: batch, height, width"),
        ({"arena": True}, "unknown option for the engine openvino 'arena'; available: cache_dir, device, "),
    ],
)
def test_options_that_cannot_be_used(exported: Export, options: dict[str, Any], message: str) -> None:
    _, graph = exported("sd", "vae_decoder")
    with pytest.raises(InputError, match=message):
        open_with("openvino", graph.path, graph.signature, graph.stored, options)


def test_a_precision_that_the_cpu_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    monkeypatch.setattr(_openvino, "core", Old)
    with pytest.raises(InputError, match="inference_precision='bf16': this CPU computes in f32"):
        _openvino._require_precision("CPU", "bf16")


@pytest.mark.parametrize("device", ["tpu", "gpu.7", "auto:tpu", "auto:cpu,tpu", "hetero:cpu"])
def test_a_device_that_is_not_here_is_answered_with_those_that_are(exported: Export, device: str) -> None:
    _, graph = exported("sd", "vae_decoder")
    message = f"OpenVINO has no device '{device}' here; it has: .*cpu.*, and auto, which picks among them"
    with pytest.raises(EngineError, match=message):
        open_graph(graph.path, graph.signature, device=device)


def test_devices_and_report() -> None:
    assert devices()[-2:] == ["cpu", "auto"]
    found = report()
    assert found["version"] == ov.__version__
    assert found["cpu"]
    assert all(
        value.startswith("not here: an Intel ") for name, value in found.items() if name not in ("version", *devices())
    )


def test_a_closed_graph_says_so(exported: Export) -> None:
    component, graph = exported("sd", "vae_decoder")
    engine = open_exactly(graph)
    inputs = arrays(random_inputs(component, batch=1, height=8, width=8))
    engine.run(inputs)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="this graph was closed; open it again"):
        engine.run(inputs)


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(EngineError, match=r"OpenVINO 20.* cannot open .*openvino_model.xml on CPU: "):
        open_graph(tmp_path / "openvino_model.xml", Signature((), ()))


def test_opening_and_running_loads_no_torch(exported: Export) -> None:
    _, graph = exported("sd", "vae_decoder")
    code = (
        "import sys, pathlib, msgspec, numpy as np; from ingot.runtimes.engines.openvino import open_graph;"
        "from ingot.runtimes.signature import Signature; signature = msgspec.json.decode(sys.argv[2], type=Signature);"
        "engine = open_graph(pathlib.Path(sys.argv[1]), signature);"
        "engine.run({'latent_sample': np.zeros((1, 4, 4, 4), np.float32)}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, graph.path, msgspec.json.encode(graph.signature)], check=True)


def test_tokenizers_are_written_for_genai_too(tiny_sd: Any, tmp_path: Path) -> None:
    import openvino_tokenizers  # noqa: F401  # registers the operators of a tokenizer's graph

    finish(tmp_path, tiny_sd.pipe, {})
    tokenizer = ov.Core().compile_model(tmp_path / "tokenizer" / "openvino_tokenizer.xml", "CPU")
    for text in ("a cat", "A  cat, and re-at!", "", "cat " * 100):
        expected = tiny_sd.pipe.tokenizer(text, truncation=True, max_length=77)["input_ids"]
        found = tokenizer([text])["input_ids"][0].tolist()
        assert found[: len(expected)] == expected
        assert set(found[len(expected) :]) <= {tiny_sd.pipe.tokenizer.pad_token_id}
        assert len(found) <= 77


def test_without_openvino_tokenizers_a_warning_says_what_to_install(
    tiny_sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)
    with pytest.warns(UserWarning, match=r"GenAI will not read this bundle.*pip install 'openvino-tokenizers==20"):
        finish(tmp_path, tiny_sd.pipe, {})
    assert not list(tmp_path.iterdir())


def test_a_scaled_group_norm_of_a_fixed_size_can_be_opened() -> None:
    """Kandinsky's, DeepFloyd IF's: OpenVINO 2026.4.1 ends the process where it compiles the product as it is traced."""
    from openvino import opset14 as operators

    from ingot.exporters.openvino_repairs import add_scaled

    shapes = [2, 16, 4, 4], [2, 16, 1, 1]
    x, scale = (operators.parameter(shape, np.float32) for shape in shapes)
    weight, bias = (operators.constant(np.full(16, value, np.float32)) for value in (1.5, 0.25))
    norm = operators.group_normalization(x, weight, bias, 4, 1e-5)
    one = operators.constant(np.ones((1, 1, 1, 1), np.float32))
    model = ov.Model([operators.multiply(norm, operators.add(scale, one)).output(0)], [x, scale])
    add_scaled(model)
    kinds = {node.get_type_name(): node for node in model.get_ops()}
    product = kinds["Multiply"].inputs()
    assert "Add" not in {port.get_source_output().get_node().get_type_name() for port in product}
    given = [np.random.RandomState(seed).standard_normal(shape).astype(np.float32) for seed, shape in enumerate(shapes)]
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)[0]
    weights = (torch.full((16,), value) for value in (1.5, 0.25))
    expected = torch.nn.functional.group_norm(torch.from_numpy(given[0]), 4, *weights, 1e-5) * (1 + given[1])
    np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE, rtol=0)
