"""The form for ONNX Runtime: its attention where it can say it, reasons where not, the same answers, one copy of weights."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.onnx_tuned import tune
from ingot.exporters.onnx_weights import SHARED_FILE, data_files, share_weights
from ingot.exporters.targets.onnx import OnnxFile, export
from ingot.runtimes.engines.onnx import open_graph
from ingot.runtimes.metrics import compare

from .conftest import Tiny

# Against the portable graph, both in float32 on ONNX Runtime: sums in another order. 7e-7 at most was measured.
TOLERANCE = 1e-6
Arrays = dict[str, NDArray[Any]]
Export = Callable[..., tuple[Component, OnnxFile]]


@pytest.fixture(scope="module")
def exported(tiny_sd: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A component of the tiny pipeline and its graph, each exported once."""
    components = {component.role: component for component in capture(tiny_sd.pipe)}
    graphs: dict[Any, OnnxFile] = {}

    def get(role: str, **options: Any) -> tuple[Component, OnnxFile]:
        key = role, *options.items()
        if key not in graphs:
            graphs[key] = export(components[role], tmp_path_factory.mktemp("graph") / role, **options)
        return components[role], graphs[key]

    return get


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(path).graph)


def pictures(batch: int = 2) -> Arrays:
    return {"sample": np.random.default_rng(5).standard_normal((batch, 3, 16, 32)).astype(np.float32)}


def answers(graph: Any, inputs: Arrays) -> Arrays:
    engine = open_graph(graph.path, graph.signature, stored=graph.stored, threads=1)
    try:
        return engine.run(inputs)
    finally:
        engine.close()


def test_nothing_to_fuse_gives_no_second_file(exported: Export) -> None:
    for options in ({"tuned": False}, {"opset": 23}):  # opset 23 has an Attention of its own
        _, graph = exported("vae_encoder", **options)
        assert graph.forms == ()
        assert [file.name for file in graph.path.parent.iterdir()] == ["model.onnx"]


def inodes(folder: Path) -> dict[int, int]:
    return {file.stat().st_ino: file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def test_both_forms_read_one_file_of_weights(exported: Export) -> None:
    component, graph = exported("vae_encoder")
    data = graph.path.with_name("model.onnx_data")
    assert graph.extra_files == graph.forms[0].extra_files == (data,)
    assert data_files(graph.path) == data_files(graph.forms[0].path) == (data,)
    state = component.source.state_dict()
    parameters = sum(state[name].nbytes for name in graph.weights)
    assert 0.9 * parameters < data.stat().st_size < 1.3 * parameters  # once, with padding between large ones
    # what is left inside: nodes, and tensors below 1 KiB
    assert all(path.stat().st_size < 0.1 * parameters for path in (graph.path, graph.forms[0].path))


def copied(graph: OnnxFile, folder: Path) -> list[Path]:
    shutil.copytree(graph.path.parent, folder)
    return [folder / graph.path.name, folder / graph.forms[0].path.name]


def test_sharing_leaves_forms_of_one_graph_alone(exported: Export, tmp_path: Path) -> None:
    paths = copied(exported("vae_encoder")[1], tmp_path / "a")
    before = [path.read_bytes() for path in paths]
    assert share_weights(paths).files == ()
    assert [path.read_bytes() for path in paths] == before


def test_forms_of_two_folders_share_and_keep_what_is_their_own(exported: Export, tmp_path: Path) -> None:
    _, graph = exported("vae_encoder")
    paths = copied(graph, tmp_path / "a") + copied(graph, tmp_path / "b")
    own = "encoder.conv_out.weight"
    _negate(paths[2], own)  # in the second folder one weight is another
    inputs = pictures()
    before = [answers(_at(graph, path), inputs) for path in paths]
    alone = sum(inodes(tmp_path / "a").values())
    shared = share_weights(paths)
    assert shared.files == (tmp_path / "a" / SHARED_FILE, tmp_path / "b" / SHARED_FILE)
    assert {name.name for path in paths for name in data_files(path)} == {SHARED_FILE, "model.onnx_data"}
    weight = ir.load(paths[0]).graph.initializers[own].const_value
    assert weight is not None
    for folder in ("a", "b"):
        assert (tmp_path / folder / "model.onnx_data").stat().st_size >= weight.nbytes
    graphs = sum(path.stat().st_size for path in paths)
    assert sum(inodes(tmp_path).values()) - graphs < alone - graphs / 2 + 4 * weight.nbytes
    for path, expected in zip(paths, before, strict=True):
        found = answers(_at(graph, path), inputs)
        assert all(np.array_equal(found[name], array) for name, array in expected.items())
    assert share_weights(paths).files == ()


def test_a_data_file_that_another_graph_reads_is_left_whole(exported: Export, tmp_path: Path) -> None:
    _, graph = exported("vae_encoder")
    paths = copied(graph, tmp_path / "a") + copied(graph, tmp_path / "b")
    inputs = pictures(batch=1)
    expected = answers(_at(graph, paths[1]), inputs)
    assert share_weights([paths[0], paths[2]]).files  # the tuned forms are not told of
    for path in (paths[1], paths[3]):
        found = answers(_at(graph, path), inputs)
        assert all(np.array_equal(found[name], array) for name, array in expected.items())


def _at(graph: OnnxFile, path: Path) -> Any:
    return replace(graph, path=path)


def _negate(path: Path, name: str) -> None:
    tensor: Any = ir.load(path).graph.initializers[name].const_value
    negated = (-tensor.numpy()).tobytes()
    with path.with_name("model.onnx_data").open("r+b") as file:
        file.seek(tensor.offset)
        file.write(negated)


ATTENTION = """
<ir_version: 10, opset_import: ["" : 20]>
attention ({inputs}) => (float[batch, queries, 32] out)
<int64[4] heads = {{0, 0, 4, 8}}, int64[3] flat = {{0, 0, 32}}, float scale = {{0.25}}, float zero = {{0.0}},
 float lowest = {{-3.4e38}}, float infinite = {{{infinite}}}, int64[4] halved = {{0, 0, 2, 16}}>
{{
    q4 = Reshape (q, heads)
    k4 = Reshape (k, {key_heads})
    v4 = Reshape (v, heads)
    qt = Transpose <perm = [{split}]> (q4)
    kt = Transpose <perm = [0, 2, 3, 1]> (k4)
    vt = Transpose <perm = [0, 2, 1, 3]> (v4)
    {scores}
    p = Softmax <axis = {axis}> (s)
    {weighted}
    ot = Transpose <perm = [0, 2, 1, 3]> (o)
    out = Reshape (ot, flat)
}}
"""
QKV = "float[batch, queries, 32] q, float[batch, keys, 32] k, float[batch, keys, 32] v"
PLAIN = {
    "inputs": QKV, "key_heads": "heads", "split": "0, 2, 1, 3", "axis": "-1", "infinite": "-3.4e38",
    "scores": "m = MatMul (qt, kt)\n s = Mul (m, scale)",
    "weighted": "o = MatMul (p, vt)",
}  # fmt: skip
MASK = f"{QKV}, float[batch, 1, queries, keys] mask"
ADDED = "m = MatMul (qt, kt)\n d = Mul (m, scale)\n s = Add (d, mask)"
GUARD = "n = IsNaN (p)\n w = Where (n, zero, p)\n o = MatMul (w, vt)"


def parsed(**changes: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(ATTENTION.format(**PLAIN | changes)))


FORMS = {
    "factor on the scores": {},
    "factor on the queries": {"scores": "h = Mul (scale, qt)\n s = MatMul (h, kt)"},
    "factor divided by": {"scores": "m = MatMul (qt, kt)\n s = Div (m, scale)"},
    "no factor": {"scores": "s = MatMul (qt, kt)"},
    "an added mask": {"inputs": MASK, "scores": ADDED},
    "the mask on the left": {"inputs": MASK, "scores": ADDED.replace("(d, mask)", "(mask, d)")},
    "guarded rows": {"weighted": GUARD},
    "a chosen mask with guarded rows": {
        "inputs": f"{QKV}, bool[batch, 1, queries, keys] seen",
        "scores": "mask = Where (seen, zero, lowest)\n" + ADDED,
        "weighted": GUARD,
    },
}


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS.keys())
def test_ways_of_writing_attention(changes: dict[str, str]) -> None:
    model = parsed(**changes)
    before = ir.to_proto(model).SerializeToString()
    assert (outcome := tune(model)).applied == 1, outcome
    assert [node.op_type for node in model.graph if node.op_type in ("Softmax", "MatMul")] == []
    for batch, queries, keys in ((1, 7, 7), (2, 9, 5)):
        inputs = _feeds(batch, queries, keys, model)
        (expected,), (found,) = (_run(content, inputs) for content in (before, ir.to_proto(model).SerializeToString()))
        assert compare(expected, found).rel_l2 < TOLERANCE


def test_a_view_that_is_used_twice_is_flattened_twice() -> None:
    """Keys that are the values too, and views that are made in the graph: nothing is known to lie flat before them."""
    views = "float[batch, queries, 4, 8] q, float[batch, keys, 4, 8] k, float[batch, keys, 4, 8] v"
    text = ATTENTION.format(**PLAIN | {"inputs": views})
    for name in "qkv":
        text = text.replace(
            f"{name}4 = Reshape ({name}, heads)", f"{name}4 = Identity ({'k' if name == 'v' else name})"
        )
    text = text.replace(", float[batch, keys, 4, 8] v)", ")")
    model = ir.from_proto(onnx.parser.parse_model(text))
    before = ir.to_proto(model).SerializeToString()
    for node in [node for node in model.graph if node.op_type == "Identity"]:
        node.outputs[0].replace_all_uses_with(node.inputs[0])  # type: ignore[arg-type]  # it has one
        model.graph.remove(node, safe=True)
    assert (outcome := tune(model)).applied == 1, outcome
    inputs = _feeds(2, 5, 3, model)
    (expected,), (found,) = (_run(content, inputs) for content in (before, ir.to_proto(model).SerializeToString()))
    assert compare(expected, found).rel_l2 < TOLERANCE


REFUSALS = {
    "the Softmax is not over the last axis": {"axis": "2"},
    "queries are not a view": {"split": "0, 2, 3, 1", "scores": "t = Transpose <perm = [0, 1, 3, 2]> (qt)\n s = MatMul (t, kt)"},
    "not known to have one number of heads": {"key_heads": "halved"},
    "known to have one batch": {"inputs": QKV.replace("[batch, keys, 32] k", "[1, keys, 32] k")},
    "one batch, over which": {"inputs": QKV.replace("[batch, keys, 32] v", "[1, keys, 32] v")},
    "a row for every query": {
        "inputs": f"{QKV}, float[batch, 1, 1, keys] mask", "scores": ADDED,
    },
    "may hold -inf": {
        "inputs": f"{QKV}, bool[batch, 1, queries, keys] seen",
        "scores": "mask = Where (seen, zero, infinite)\n" + ADDED, "weighted": GUARD, "infinite": "-inf",
    },
    "zero": {"weighted": GUARD.replace("zero", "scale")},
    "more than one product": {"weighted": "twice = Add (p, p)\n o = MatMul (twice, vt)"},
    "no product of queries and keys": {"scores": "m = MatMul (qt, kt)\n s = Exp (m)"},
    "cannot be told": {"scores": "m = MatMul (qt, kt)\n s = Add (m, m)"},
    "not known to be merged": {"weighted": "h = MatMul (p, vt)\n o = Neg (h)"},
}  # fmt: skip


@pytest.mark.parametrize(("reason", "changes"), REFUSALS.items(), ids=REFUSALS.keys())
def test_what_the_operator_cannot_say_stays_and_is_told(reason: str, changes: dict[str, str]) -> None:
    model = parsed(**changes)
    before = [(node.op_type, [value and value.name for value in node.inputs]) for node in model.graph]
    outcome = tune(model)
    assert outcome.applied == 0
    assert len(outcome.refused) == 1
    assert reason in outcome.refused[0]
    assert [(node.op_type, [value and value.name for value in node.inputs]) for node in model.graph] == before


def _feeds(batch: int, queries: int, keys: int, model: ir.Model) -> Arrays:
    generator = np.random.default_rng(3)
    lengths = {"batch": batch, "queries": queries, "keys": keys}
    made: Arrays = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        shape = [dim if isinstance(dim, int) else lengths[str(dim.value)] for dim in value.shape]
        drawn = generator.standard_normal(shape)
        made[str(value.name)] = drawn > -1 if value.name == "seen" else drawn.astype(np.float32)
    return made


def _run(content: bytes, inputs: Arrays) -> list[NDArray[Any]]:
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(None, inputs)
    return found


def test_onnx_runtime_fuses_gates_by_itself(exported: Export, tmp_path: Path) -> None:
    """Which is why the form does not: x * sigmoid(1.702 x) in CLIP."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(exported("text_encoder")[1].path), options, providers=["CPUExecutionProvider"])
    assert operators(tmp_path / "optimized.onnx")["QuickGelu"] == 3
