"""OpenVINO graphs in fewer bits: their integers and scales by the published formulas, what is kept, what is lost."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13 as ops

from ingot.exporters.graph_file import GraphFile
from ingot.quantization import _openvino_nncf, openvino
from ingot.quantization.scheme import Source
from ingot.runtimes.engines import open_with
from ingot.runtimes.engines.openvino import PARITY_OPTIONS
from ingot.runtimes.errors import ExportError, InputError
from ingot.runtimes.signature import Signature, TensorSpec

Array = NDArray[Any]
CORE = ov.Core()
RNG = np.random.default_rng(3)
CONV = RNG.standard_normal((6, 4, 3, 3)).astype(np.float32)
LINEAR = (RNG.standard_normal((5, 64)) * RNG.uniform(0.1, 3, (5, 1))).astype(np.float32)
LAST = RNG.standard_normal((3, 5)).astype(np.float32)
TABLE = RNG.standard_normal((9, 64)).astype(np.float32)
BIAS = RNG.standard_normal((1, 5)).astype(np.float32)
NAMES = ["block.conv", "table", "linear", "last"]
SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 4, 5, 5)), TensorSpec("ids", "int64", ("batch",))),
    (TensorSpec("y", "float32", ("batch", 3)), TensorSpec("z", "float32", ("batch", 6, 5, 5))),
)
CALLS = [
    {"x": RNG.standard_normal((2, 4, 5, 5)).astype(np.float32) * scale, "ids": np.array(ids)}
    for scale, ids in ((1.0, [0, 4]), (2.5, [8, 1]), (0.3, [2, 3]))
]


def graph(path: Path, dtype: str = "float32", **weights: Array) -> Source:
    """A convolution beside an embedding that goes through two linear layers, the first with a bias."""
    arrays = {"block.conv": CONV, "table": TABLE, "linear": LINEAR, "last": LAST} | weights

    def constant(name: str) -> ov.Node:
        return ops.constant(arrays[name], name=f"{name}.weight")

    x, ids = ops.parameter([-1, 4, 5, 5], ov.Type.f32, "x"), ops.parameter([-1], ov.Type.i64, "ids")
    seen = ops.convolution(x, constant("block.conv"), [1, 1], [1, 1], [1, 1], [1, 1], name="block.conv/Convolution")
    looked = ops.gather(constant("table"), ids, ops.constant(0), name="table/Gather")
    wide = ops.matmul(looked, constant("linear"), False, True, name="linear/MatMul")
    last = ops.matmul(
        ops.relu(ops.add(wide, ops.constant(BIAS, name="linear.bias"))),
        constant("last"),
        False,
        True,
        name="last/MatMul",
    )
    model = ov.Model([last, seen], [x, ids])
    for port, spec in zip((*model.inputs, *model.outputs), (*SIGNATURE.inputs, *SIGNATURE.outputs), strict=True):
        port.get_tensor().set_names({spec.name})
    path.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, path / "openvino_model.xml", compress_to_fp16=dtype == "float16")
    return Source("unet", path / "openvino_model.xml", SIGNATURE, {"own": 1}, dtype, False, {})


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return graph(tmp_path / "float")


def cast(source: Source, scheme: str, **options: Any) -> GraphFile:
    calls = options.pop("calls", CALLS)
    return openvino.quantize(source, source.path.parent, scheme=scheme, name=f"m_{scheme}", calls=calls, **options)


def nodes(path: Path) -> dict[str, ov.Node]:
    return {node.get_friendly_name(): node for node in CORE.read_model(path).get_ops()}


def stored(path: Path, operation: str, port: int = 1) -> tuple[Array, Array | None, Array]:
    """The integers, zero points and scales that an operation's weight is written as, all as OpenVINO reads them."""
    model = CORE.read_model(path)  # holds the constants' memory
    node = next(n for n in model.get_ops() if n.get_friendly_name() == operation).input_value(port).get_node()
    scale = zero = None

    def value(port: ov.Output) -> Array:
        source = port.get_node()
        while source.get_type_name() != "Constant":
            source = source.input_value(0).get_node()
        return np.array(source.get_data())

    while node.get_type_name() != "Constant":
        if node.get_type_name() == "Multiply":
            scale = value(node.input_value(1))
        elif node.get_type_name() == "Subtract":
            zero = value(node.input_value(1))
        node = node.input_value(0).get_node()
    assert scale is not None
    return np.array(node.get_data()), zero, scale


def rows(weights: Array) -> Array:
    return weights.reshape(len(weights), -1).astype(np.float32)


def asymmetric(weights: Array, levels: int) -> tuple[Array, Array, Array]:
    """scale = (max - min) / levels with 0 within the range, zero = round(-min / scale), q = round(w / scale + zero)."""
    low, high = (np.minimum(weights.min(-1, keepdims=True), 0), np.maximum(weights.max(-1, keepdims=True), 0))
    scale = ((high - low) / np.float32(levels)).astype(np.float32)
    zero = np.clip(np.round(-low / scale), 0, levels)
    return np.clip(np.round(weights / scale + zero), 0, levels), zero, scale


def symmetric(weights: Array, levels: int) -> tuple[Array, Array]:
    """scale = (the number of largest magnitude) / -levels, q = round(w / scale): no value is left out."""
    low, high = np.abs(weights.min(-1, keepdims=True)), weights.max(-1, keepdims=True)
    scale = (np.where(low >= high, low, -high) / np.float32(levels)).astype(np.float32)
    return np.clip(np.round(weights / scale), -levels, levels - 1), scale


PLACES = {
    "block.conv": ("block.conv/Convolution", 1, CONV),
    "table": ("table/Gather", 0, TABLE),
    "linear": ("linear/MatMul", 1, LINEAR),
    "last": ("last/MatMul", 1, LAST),
}


@pytest.mark.parametrize("scheme", ["int8-weights", "int8-dynamic"])
def test_int8_weights_are_the_formulas(source: Source, scheme: str) -> None:
    file = cast(source, scheme)
    for operation, port, weights in PLACES.values():
        integers, zero, scale = stored(file.path, operation, port)
        wanted, wanted_zero, wanted_scale = asymmetric(rows(weights), 255)
        assert integers.dtype == np.uint8
        assert zero is not None
        np.testing.assert_array_equal(integers.reshape(wanted.shape), wanted)
        np.testing.assert_array_equal(zero.ravel(), wanted_zero.ravel())
        # written as float16, rounded once
        np.testing.assert_array_equal(scale.ravel(), wanted_scale.astype(np.float16).ravel())


def test_symmetric_int8_weights_are_the_formula(source: Source) -> None:
    file = cast(source, "int8-weights", mode="sym")
    for operation, port, weights in PLACES.values():
        integers, zero, scale = stored(file.path, operation, port)
        wanted, wanted_scale = symmetric(rows(weights), 128)
        assert integers.dtype == np.int8
        assert zero is None
        np.testing.assert_array_equal(integers.reshape(wanted.shape), wanted)
        np.testing.assert_array_equal(scale.ravel(), wanted_scale.astype(np.float16).ravel())


@pytest.mark.parametrize(("group_size", "groups"), [(32, 2), (16, 4), (-1, 1)])
def test_int4_weights_are_the_formula_in_groups(source: Source, group_size: int, groups: int) -> None:
    file = cast(source, "int4-weights", group_size=group_size)
    scale = stored(file.path, "linear/MatMul")[2]
    wanted, wanted_zero, wanted_scale = asymmetric(LINEAR.reshape(5, groups, -1), 15)
    found = nodes(file.path)
    np.testing.assert_array_equal(unpacked(found["linear.weight"]).reshape(wanted.shape), wanted)
    np.testing.assert_array_equal(unpacked(found["linear.weight/zero_point"])[: 5 * groups], wanted_zero.ravel())
    np.testing.assert_array_equal(scale.ravel(), wanted_scale.astype(np.float16).ravel())
    # embeddings, convolutions and the last layer are in int8
    for name in ("block.conv", "table", "last"):
        operation, port, weights = PLACES[name]
        np.testing.assert_array_equal(
            stored(file.path, operation, port)[0].ravel(), asymmetric(rows(weights), 255)[0].ravel()
        )


def unpacked(constant: ov.Node) -> Array:
    """Two values to a byte, the first in the low half."""
    assert constant.get_element_type() == ov.Type.u4
    packed = np.array(constant.get_data()).view(np.uint8).ravel()
    return np.stack([packed & 15, packed >> 4], -1).ravel()


def test_a_group_size_that_does_not_divide_becomes_smaller_or_int8(tmp_path: Path) -> None:
    weights = RNG.standard_normal((5, 96)).astype(np.float32)
    table = RNG.standard_normal((9, 96)).astype(np.float32)
    file = cast(graph(tmp_path, linear=weights, table=table), "int4-weights", group_size=64)
    wanted = asymmetric(weights.reshape(5, 3, 32), 15)[0]  # 32 is the largest power of two in 96
    np.testing.assert_array_equal(unpacked(nodes(file.path)["linear.weight"]).reshape(wanted.shape), wanted)
    odd = RNG.standard_normal((5, 40)).astype(np.float32)
    file = cast(graph(tmp_path, linear=odd, table=table[:, :40]), "int4-weights", group_size=64)
    np.testing.assert_array_equal(stored(file.path, "linear/MatMul")[0], asymmetric(odd, 255)[0])


@pytest.mark.parametrize("half_range", [True, False])
def test_calibrated_weights_are_the_formula(source: Source, half_range: bool) -> None:
    """q = round(w / scale) with scale = max|w| / 127, or max|w| / 63.5 where half of the range is left out."""
    file = cast(source, "int8-static", half_range=half_range)
    for operation, port, weights in PLACES.values():
        integers, zero, scale = stored(file.path, operation, port)
        largest = np.abs(rows(weights)).max(-1, keepdims=True)
        top = 63.5 if half_range and port == 1 else 127  # a table is looked up, not multiplied
        assert integers.dtype == np.int8
        assert zero is None
        # float32 in another order: 2e-7 was measured; an integer may differ where w / scale is a half to that
        np.testing.assert_allclose(scale.ravel(), largest.ravel() / top, rtol=1e-6)
        exact = rows(weights) / (largest.astype(np.float64) / top)
        away = np.abs(integers.reshape(exact.shape) - exact)
        assert np.abs(integers).max() <= np.ceil(top)
        assert away.max() <= 0.5 + 1e-4


def test_calibrated_activations_have_the_range_of_all_calls(source: Source) -> None:
    """low and high over every call, moved so that 0 is one of 256 values: scale = (high - low) / 255."""
    found = nodes(cast(source, "int8-static").path)
    low, high, _, _ = ranges(found["block.conv/Convolution"])
    every = np.concatenate([call["x"].ravel() for call in CALLS])
    scale = (high - low) / 255
    assert low <= every.min()
    assert high >= every.max()  # never narrower
    assert scale * 255 - (every.max() - every.min()) < scale  # wider by less than one value
    np.testing.assert_allclose(low / scale, np.round(low / scale), atol=1e-4)
    # what a ReLU gives has no numbers below 0
    assert ranges(found["last/MatMul"])[0] == 0
    assert found["linear/MatMul"].input_value(0).get_node().get_type_name() == "FakeQuantize"


def ranges(node: ov.Node) -> list[float]:
    fake = node.input_value(0).get_node()
    assert fake.get_type_name() == "FakeQuantize"
    assert fake.get_attributes()["levels"] == 256
    return [float(fake.input_value(port).get_node().get_data()) for port in range(1, 5)]


@pytest.mark.parametrize(
    ("float_activations", "floats", "calibrated"),
    [("linear", ["linear", "last", "table"], ["block.conv"]), ("conv", ["block.conv"], ["linear", "last", "table"])],
)
def test_hybrid_is_weights_alone_here_and_calibrated_there(
    source: Source, float_activations: str, floats: list[str], calibrated: list[str]
) -> None:
    hybrid = cast(source, "int8-hybrid", float_activations=float_activations)
    both = {"int8-weights": floats, "int8-static": calibrated}
    found = nodes(hybrid.path)
    for scheme, names in both.items():
        other = cast(source, scheme)
        for name in names:
            operation, port, _ = PLACES[name]
            for mine, theirs in zip(
                stored(hybrid.path, operation, port), stored(other.path, operation, port), strict=True
            ):
                assert (mine is None) == (theirs is None)
                if mine is not None and theirs is not None:
                    np.testing.assert_array_equal(mine, theirs)
            if port == 1:
                rounded = found[operation].input_value(0).get_node().get_type_name() == "FakeQuantize"
                assert rounded == (scheme == "int8-static"), operation


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "scheme", ["int8-weights", "int8-dynamic", "int4-weights", "int8-static", "int8-hybrid", "fp16"]
)
def test_what_is_kept_keeps_its_bytes(tmp_path: Path, scheme: str, dtype: str) -> None:
    if (scheme, dtype) == ("fp16", "float16"):
        with pytest.raises(InputError, match="nothing that fp16 could make smaller"):
            cast(graph(tmp_path / dtype, dtype), scheme)
        return
    source = graph(tmp_path / dtype, dtype)
    assert [layer.name for layer in openvino.layers(source, scheme)] == NAMES
    before = nodes(source.path)
    for keep in (["linear"], ["block.conv", "table"]):
        after = nodes(cast(source, scheme, keep=keep).path)
        for name in NAMES:
            operation, port, _ = PLACES[name]
            was, now = (float_weight(found[operation], port) for found in (before, after))
            if scheme == "fp16" and now is not None and now.dtype == np.float16:
                now = None
            assert was is not None
            assert (now is None) == (name not in keep), name
            if now is not None:
                assert now.dtype == was.dtype
                assert now.tobytes() == was.tobytes()
                if port == 1:
                    assert after[operation].input_value(0).get_node().get_type_name() != "FakeQuantize"


def float_weight(node: ov.Node, port: int) -> Array | None:
    """An operation's weight where nothing but a Convert stands before it."""
    source = node.input_value(port).get_node()
    converted = source.get_type_name() == "Convert"
    source = source.input_value(0).get_node() if converted else source
    if source.get_type_name() != "Constant":
        return None
    return np.array(source.get_data())


def test_everything_kept_is_the_float_graph(source: Source) -> None:
    for scheme in ("int8-weights", "int8-static", "int8-hybrid"):
        file = cast(source, scheme, keep=NAMES, smooth_quant_alpha=0.5, bias_correction="fast")
        for one, other in zip(answers(source, source.path), answers(source, file.path), strict=True):
            np.testing.assert_array_equal(one, other)


def answers(source: Source, path: Path) -> list[Array]:
    engine = open_with("openvino", path, source.signature, source.stored, PARITY_OPTIONS)
    found = [array for call in CALLS for array in engine.run(call).values()]
    engine.close()
    return found


def test_fp16_rounds_to_the_nearest_half(source: Source) -> None:
    found = nodes(cast(source, "fp16").path)
    for name, (_, _, weights) in PLACES.items():
        constant = found.get(f"{name}.weight_compressed", found.get(f"{name}.weight"))
        assert constant is not None
        np.testing.assert_array_equal(constant.get_data(), weights.astype(np.float16))


def test_fp16_keeps_what_it_cannot_hold(tmp_path: Path) -> None:
    large = LINEAR.copy()
    large[0, 0] = 70000
    source = graph(tmp_path, linear=large)
    assert openvino.default_keep(source, "fp16") == {"linear"}
    assert openvino.default_keep(source, "int8-weights") == frozenset()
    with pytest.raises(ExportError, match="weights beyond float16: linear; keep these"):
        cast(source, "fp16")
    file = cast(source, "fp16", keep=["linear"])
    kept = float_weight(nodes(file.path)["linear/MatMul"], 1)
    assert kept is not None
    assert kept.tobytes() == large.tobytes()


def test_the_file_says_how_activations_are_rounded(source: Source) -> None:
    key = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
    for scheme, options, wanted in (
        ("int8-weights", {}, 0),
        ("int8-dynamic", {}, 32),
        ("int8-dynamic", {"dynamic_group_size": 64}, 64),
    ):
        file = cast(source, scheme, **options)
        assert CORE.compile_model(file.path, "CPU").get_property(key) == wanted
        assert CORE.compile_model(file.path, "CPU", {key: 16}).get_property(key) == 16  # the caller's goes before it


def test_the_graph_file_says_what_it_is(source: Source) -> None:
    before = {file.name: file.read_bytes() for file in source.path.parent.iterdir()}
    told: list[str] = []
    file = cast(source, "int8-weights", progress=lambda stage, _: told.append(stage))
    assert (file.role, file.dtype, file.static, file.stored) == ("unet", "int8-weights", False, {"own": 1})
    assert file.signature == source.signature
    assert told == ["int8-weights", "weights"]
    assert (file.path.name, file.extra_files[0].name) == ("m_int8-weights.xml", "m_int8-weights.bin")
    names = {one.name for one in source.path.parent.iterdir()}
    assert names == {*before, "m_int8-weights.xml", "m_int8-weights.bin"}
    assert all((source.path.parent / name).read_bytes() == data for name, data in before.items())


def test_a_file_of_the_name_is_replaced_not_written_into(source: Source) -> None:
    first = cast(source, "int8-weights")
    linked = first.path.with_name("link.bin")
    linked.hardlink_to(first.extra_files[0])
    before = linked.read_bytes()
    second = cast(source, "int8-weights", keep=["table"])
    assert second.extra_files[0].read_bytes() != before
    assert linked.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "int9"}, "unknown scheme 'int9'; available: fp16, int4-weights"),
        ({"keep": ["conv"]}, "keep: .* has no layer 'conv'; it has 4, among them block.conv, table"),
        ({"group_size": 0}, "group_size=0: at least 2"),
        ({"ratio": 0}, "ratio=0: a share above 0"),
        ({"ratio": 1.5}, "ratio=1.5: a share above 0"),
        ({"dynamic_group_size": 0}, "dynamic_group_size=0"),
        ({"smooth_quant_alpha": 2}, "smooth_quant_alpha=2: 0 to 1"),
        ({"mode": "both"}, "unknown mode 'both'; available: asym, sym"),
        ({"preset": "fast"}, "unknown preset 'fast'; available: mixed, performance"),
        ({"scheme": "int8-static", "calls": []}, "int8-static needs recorded inputs"),
        ({"scheme": "int8-static", "calls": [{"x": CALLS[0]["x"]}]}, "recorded call 0 lacks ids"),
    ],
)
def test_arguments_that_cannot_be_used(source: Source, options: dict[str, Any], message: str) -> None:
    before = set(source.path.parent.iterdir())
    with pytest.raises(InputError, match=message):
        cast(source, **{"scheme": "int4-weights", **options})
    assert set(source.path.parent.iterdir()) == before


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    bad = LINEAR.copy()
    bad[1, 2] = value
    source = graph(tmp_path, linear=bad)
    with pytest.raises(ExportError, match="weights that are not finite in linear; export a checkpoint"):
        cast(source, "int8-weights")
    assert cast(source, "int8-weights", keep=["linear"]).path.exists()


def test_nncf_is_quiet_and_reports_to_nobody(source: Source, capfd: pytest.CaptureFixture[str]) -> None:
    cast(source, "int8-static")
    assert capfd.readouterr() == ("", "")
    assert "openvino_telemetry" not in sys.modules or sys.modules["openvino_telemetry"] is not None
    wrapper = sys.modules["nncf.telemetry.wrapper"]
    assert not hasattr(wrapper, "Telemetry")  # what it would report by
    assert logging.getLoggerClass() is logging.Logger


def test_nncf_that_is_missing(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    _openvino_nncf.nncf.cache_clear()
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ExportError, match="needs nncf, which is not installed: pip install nncf"):
        cast(source, "int8-weights")
    monkeypatch.undo()
    _openvino_nncf.nncf.cache_clear()
