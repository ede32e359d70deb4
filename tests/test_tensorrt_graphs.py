"""The ONNX graphs that TensorRT gets: operators and types by its parser's list, and bfloat16 computed on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from ingot.exporters import parity
from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets import tensorrt as target
from ingot.exporters.tensorrt_emulation import emulated, open_emulated
from ingot.exporters.tensorrt_operators import _LIST, OPERATORS, problems
from ingot.exporters.trace import trace
from ingot.runtimes.errors import ExportError
from ingot.runtimes.signature import Signature, TensorSpec
from ingot.shapes import MODEL_DIR

# Every family, in one half precision or the other: bfloat16 where it asks most of the list. Static ones are written in half
# of the time, and what is dynamic in a UNet is so in the first one too.
GRAPHS = [
    ("sd", "text_encoder", "bfloat16", False), ("sd", "unet", "bfloat16", False), ("sd", "vae_encoder", "bfloat16", False),
    ("sdxl", "unet", "float16", True), ("controlnet", "controlnet", "float16", True), ("shapes", "vae_decoder", "bfloat16", True),
]  # fmt: skip
COUNT = 158
ROUNDED = 2.0**-8  # bfloat16 keeps 8 bits: half a unit in the last place is at most this much of a value


@pytest.fixture(scope="module")
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A component and its graph for TensorRT, each made once."""
    components: dict[str, dict[str, Component]] = {}
    graphs: dict[Any, GraphFile] = {}

    def get(name: str, role: str, dtype: str, static: bool = False) -> tuple[Component, GraphFile]:
        if name not in components:
            pipe = shapes() if name == "shapes" else request.getfixturevalue(f"tiny_{name}").pipe
            components[name] = {component.role: component for component in capture(pipe)}
        component, key = components[name][role], (name, role, dtype, static)
        if key not in graphs:
            folder = tmp_path_factory.mktemp("graph") / role
            graphs[key] = target.export(
                component, folder, dtype=dtype, static=static, plan=False, check_operators=False
            )
        return component, graphs[key]

    return get


def shapes() -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(MODEL_DIR)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(("name", "role", "dtype", "static"), GRAPHS)
def test_the_parser_reads_every_operator_and_type(written: Any, name: str, role: str, dtype: str, static: bool) -> None:
    component, graph = written(name, role, dtype, static)
    model = ir.load(graph.path)
    target.passes.ShapeInferencePass()(model)
    assert problems(model) == []
    assert all(value.dtype is not None for node in model.graph for value in node.outputs if value.name)
    held = {str(value.dtype) for node in model.graph for value in (*node.inputs, *node.outputs) if value is not None}
    assert {"float16": "FLOAT16", "bfloat16": "BFLOAT16"}[dtype] in held
    certificate = parity.check(
        component,
        target.open_for_parity(graph.path, graph.signature, graph.stored).run,
        dtype,
        static=static,
        signature=graph.signature,
    )
    # 5e-4 to 1.5e-3 in float16, 8e-3 to 2e-2 in bfloat16 were measured
    assert certificate.rel_l2 < {"float16": 3e-3, "bfloat16": 4e-2}[dtype]


def test_bfloat16_is_as_far_from_float32_as_torchs_own(written: Any) -> None:
    """What the emulation answers is no better than a machine that computes in bfloat16, and not much worse."""
    component, graph = written("sd", "unet", "bfloat16")
    opened = target.open_for_parity(graph.path, graph.signature, graph.stored)
    program = trace(component, "bfloat16").module()
    for call in component.calls:
        wanted = call.outputs["out_sample"].numpy()
        found = opened.run({name: tensor.numpy() for name, tensor in call.inputs.items()})["out_sample"]
        with torch.no_grad():
            torchs = program(*call.inputs.values())[0].numpy()
        assert found.dtype == np.float32
        far, torchs_far = (np.linalg.norm(array - wanted) / np.linalg.norm(wanted) for array in (found, torchs))
        assert 0.5 * torchs_far < far < 2 * torchs_far


def graph(nodes: list[Any], weights: dict[str, Any], *, opset: int = 22) -> ir.Model:
    """float32 in and out, bfloat16 between."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            helper.make_tensor(name, TensorProto.BFLOAT16, np.shape(value), np.ravel(value))
            for name, value in weights.items()
        ],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def bf16(value: Any) -> Any:
    return np.asarray(value, ml_dtypes.bfloat16).astype(np.float32)


def test_every_result_is_rounded_to_bfloat16(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, x = bf16(rng.normal(size=(4, 4))), rng.normal(size=(3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["narrow", "weight"], ["product"]),
        helper.make_node("Transpose", ["product"], ["turned"], perm=[1, 0]),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=helper.make_tensor("v", TensorProto.BFLOAT16, [1], [1.0])),
        helper.make_node("Add", ["turned", "ones"], ["sum"]),
        helper.make_node("CastLike", ["x", "sum"], ["like"]),
        helper.make_node("Transpose", ["like"], ["like_turned"], perm=[1, 0]),
        helper.make_node("Mul", ["sum", "like_turned"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["y"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    model = graph(nodes, {"weight": weight})
    model.graph.register_initializer(
        ir.Value(name="shape", const_value=ir.tensor(np.array([1], np.int64), name="shape"))
    )
    ir.save(model, tmp_path / "m.onnx")
    signature = Signature((TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", (4, "batch")),))
    found = open_emulated(tmp_path / "m.onnx", signature).run({"x": x})["y"]
    wanted = bf16(bf16(bf16(bf16(x) @ weight).T + 1) * bf16(x).T)
    assert np.array_equal(bf16(found), found)  # nothing but bfloat16 numbers comes out
    # but for sums that fall between two of them and that NumPy adds in another order
    assert np.mean(found == wanted) > 0.9
    np.testing.assert_allclose(found, wanted, rtol=2 * ROUNDED)
    assert not np.array_equal(found, ((bf16(x) @ weight).T + 1) * bf16(x).T)


def test_what_cannot_be_emulated_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["narrow"], ["b"])],
        "b",
        [],
        [helper.make_tensor_value_info("b", TensorProto.BFLOAT16, None)],
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch),
        helper.make_node("Cast", ["chosen"], ["y"], to=TensorProto.FLOAT),
    ]
    model = graph(nodes, {})
    model.graph.register_initializer(ir.Value(name="yes", const_value=ir.tensor(np.array(True), name="yes")))
    with pytest.raises(ExportError, match=r"If .* holds a graph of its own"):
        emulated(model)
    foreign = graph([helper.make_node("Strange", ["x"], ["y"], domain="com.example")], {})
    next(iter(foreign.graph)).outputs[0].type = None
    foreign.opset_imports["com.example"] = 1
    with pytest.raises(ExportError, match="the types of Strange are not known"):
        emulated(foreign)


def test_a_graph_that_onnx_runtime_does_not_open_cannot_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ir.save(graph([helper.make_node("Abs", ["x"], ["y"])], {}), tmp_path / "m.onnx")

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(ExportError, match=r"m\.onnx cannot be checked in bfloat16 on the CPU: no kernel"):
        open_emulated(tmp_path / "m.onnx", Signature((), ()))


def test_what_the_parser_does_not_read_is_named(monkeypatch: pytest.MonkeyPatch, written: Any) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Mish", ["narrow"], ["mish"], name="m"),
        helper.make_node("Unique", ["x"], ["u"], name="q"),
        helper.make_node("Gelu", ["x"], ["g"], name="g", domain="com.microsoft"),
        helper.make_node("Cast", ["mish"], ["y"], to=TensorProto.FLOAT),
    ]
    model = graph(nodes, {}, opset=25)
    model.opset_imports["com.microsoft"] = 1
    next(node for node in model.graph if node.name == "m").outputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)
    assert problems(model) == [
        "opset 25 is not one of 9 to 24",
        "operator Mish (m) has no BFLOAT16",
        "operator Unique (q) is not in it",
        "operator com.microsoft::Gelu (g) is not in it",
    ]
    component, graph_file = written("sd", "text_encoder", "bfloat16")
    target._require_readable(component.role, graph_file.path)
    monkeypatch.delitem(OPERATORS, "Softmax")
    with pytest.raises(
        ExportError, match=r"text_encoder: by its list for version 10\.15 .*Softmax .*check_operators=false"
    ):
        target._require_readable(component.role, graph_file.path)


def test_the_list_is_whole() -> None:
    assert len(OPERATORS) == COUNT  # marked Y in the source
    assert len(OPERATORS) == sum(len(names.split()) for names in _LIST.values())  # none of them twice
    assert OPERATORS["Attention"] >= {"FLOAT", "FLOAT16", "BFLOAT16"}
    assert "BFLOAT16" not in OPERATORS["GridSample"]
    assert "INT64" not in OPERATORS["Softmax"]
    known = {dtype.name for dtype in ir.DataType}
    assert {name for types in OPERATORS.values() for name in types} <= known
