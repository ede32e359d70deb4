"""Quantization of ONNX graphs by hand-sized arrays: the integers, scales and zero points, and what is computed with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from ingot.exporters.graph_file import GraphFile
from ingot.quantization import _onnx_integers as integers
from ingot.quantization import onnx as toolchain
from ingot.quantization._onnx_calibration import limits, rounding_error
from ingot.quantization._onnx_calibration import observe as observed_in
from ingot.quantization._onnx_graph import Edit
from ingot.quantization.scheme import Source
from ingot.runtimes import engines
from ingot.runtimes.errors import ExportError, InputError

from . import quantize_onnx_graphs as graphs

# One product and one sum in float32 after exact sums of integers.
EXACT = 1e-6


def quantized(source: Source, scheme: str, **options: Any) -> GraphFile:
    return toolchain.quantize(source, source.path.parent, scheme=scheme, name=f"model_{scheme}", **options)


def answer(graph: GraphFile, **inputs: NDArray[Any]) -> NDArray[Any]:
    engine = engines.open_with("onnx", graph.path, graph.signature, graph.stored, {"threads": 1})
    return np.asarray(engine.run(inputs)["y"])


def rounded(x: NDArray[Any]) -> NDArray[Any]:
    """What DynamicQuantizeLinear makes of an activation, as floats again: by its definition in ONNX."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.asarray((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale, np.float64)


# --- integers ------------------------------------------------------------------------------------------------------------


def test_integers_of_a_channel_by_hand() -> None:
    weight = np.array([[1.27, -0.5, 0.0], [0.635, 2.54, 0.0]], np.float32)
    scale = integers.scales(weight, 1, 8)
    np.testing.assert_array_equal(scale, np.array([1.27, 2.54, 127], np.float32) / np.float32(127))
    assert integers.rounded(weight, scale, 1, 8).tolist() == [[127, -25, 0], [64, 127, 0]]  # 63.5 is rounded to even
    seven = integers.scales(weight, 1, 7)
    np.testing.assert_array_equal(seven[:2], np.array([1.27, 2.54], np.float32) / np.float32(63))
    assert integers.rounded(weight, seven, 1, 7).tolist() == [[63, -12, 0], [32, 63, 0]]
    assert integers.biased(np.array([-127, 0, 127], np.int8)).tolist() == [1, 128, 255]


def test_channels_along_another_axis() -> None:
    weight = np.arange(-6, 6, dtype=np.float32).reshape(3, 2, 2)
    np.testing.assert_array_equal(integers.scales(weight, 0, 8), np.array([6, 2, 5], np.float32) / np.float32(127))


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (-1.0, 3.0, 4 / 255, 64),
        (0.5, 2.0, 2 / 255, 0),
        (-2.0, -1.0, 2 / 255, 255),
        (0.0, 0.0, 1.0, 0),
        (0.7, 0.7, 0.7 / 255, 0),
    ],
)
def test_scale_and_zero_of_an_activation(low: float, high: float, scale: float, zero: int) -> None:
    found = integers.activation_scale(low, high, signed=False)
    assert (found[0], found[1]) == (np.float32(scale), zero)  # constants too; zero is always in the range
    signed = integers.activation_scale(low, high, signed=True)
    assert (signed[0], signed[1]) == (np.float32(max(abs(low), abs(high)) / 127) if high or low else 1, 0)


def test_blocks_by_hand() -> None:
    weight = np.array([[0.8], [-0.4], [0.0], [0.1], [0.7]], np.float32)  # 5 inputs in blocks of 4
    found, scale, zeros = integers.blocks(weight, 4, 4, symmetric=True)
    np.testing.assert_array_equal(scale, np.array([[0.8, 0.7]], np.float32) / np.float32(-8))
    assert found.tolist() == [[[0, 12, 8, 7], [0, 8, 8, 8]]]  # the extreme on 0, where its sign has a value more
    assert zeros.tolist() == [[8, 8]]
    found, scale, zeros = integers.blocks(weight, 4, 4, symmetric=False)
    np.testing.assert_array_equal(
        scale, np.array([[np.float32(0.8) + np.float32(0.4), 0.7]], np.float32) / np.float32(15)
    )
    assert found.tolist() == [[[15, 0, 5, 6], [15, 0, 0, 0]]]
    assert zeros.tolist() == [[5, 0]]
    assert integers.blocks(np.zeros((4, 1), np.float32), 4, 4, symmetric=True)[1].tolist() == [[1]]
    assert integers.packed(np.array([[1, 2, 15]], np.uint8), 4).tolist() == [[0x21, 0x0F]]


# --- int8-dynamic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["int7", "uint8"])
def test_dynamic_sums_are_exact_at_the_extremes(tmp_path: Path, form: str) -> None:
    """Where int8 weights saturate on CPUs without VNNI: all activations at 255 and all weights at the largest integer."""
    weight = np.ones((64, 32), np.float32)
    weight[:, 1] = -1
    x = np.ones((9, 64), np.float32)
    found = answer(quantized(graphs.linear(tmp_path, weight), "int8-dynamic", integers=form), x=x)
    np.testing.assert_allclose(found, x @ weight, rtol=EXACT)


@pytest.mark.parametrize(("form", "bits"), [("int7", 7), ("uint8", 8)])
@pytest.mark.parametrize("kind", ["matmul", "matmul with bias", "gemm"])
def test_dynamic_linear_layers(tmp_path: Path, form: str, bits: int, kind: str) -> None:
    rng = graphs.rng()
    weight, bias = rng.standard_normal((40, 24)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    weight[:, 3] = 0
    if kind == "gemm":
        source = graphs.gemm(tmp_path, np.ascontiguousarray(weight.T), bias)
    else:
        source = graphs.linear(tmp_path, weight, bias if "bias" in kind else None)
    bias = bias if kind != "matmul" else np.zeros(24, np.float32)
    graph = quantized(source, "int8-dynamic", integers=form)
    assert graphs.operators(graph.path) == ["DynamicQuantizeMatMul"]
    scale = np.abs(weight).max(axis=0) / np.float32(2 ** (bits - 1) - 1)
    scale[3] = 1
    whole = np.rint(weight / scale)
    held = graphs.stored(graph.path)
    np.testing.assert_array_equal(held["layer.weight_scale"], scale)
    np.testing.assert_array_equal(held["layer.weight_quantized"], whole + (128 if form == "uint8" else 0))
    assert held["layer.weight_zero"] == (128 if form == "uint8" else 0)
    x = rng.standard_normal((7, 40)).astype(np.float32)
    np.testing.assert_allclose(answer(graph, x=x), rounded(x) @ (whole * scale) + bias, rtol=1e-5, atol=1e-5)


def test_an_activation_of_several_layers_is_rounded_once(tmp_path: Path) -> None:
    rng = graphs.rng()
    weights = {f"{name}.weight": rng.standard_normal((16, 8)).astype(np.float32) for name in "qkv"}
    nodes = [helper.make_node("MatMul", ["x", f"{name}.weight"], [f"{name}_out"]) for name in "qkv"]
    nodes.append(helper.make_node("Sum", ["q_out", "k_out", "v_out"], ["y"]))
    source = graphs.source(tmp_path, nodes, {"x": ("float32", ("rows", 16))}, {"y": ("rows", 8)}, weights)
    graph = quantized(source, "int8-dynamic", keep=["k"])
    assert sorted(graphs.operators(graph.path)) == sorted(
        ["DynamicQuantizeLinear", "MatMulIntegerToFloat", "MatMulIntegerToFloat", "MatMul", "Sum"]
    )
    np.testing.assert_array_equal(graphs.stored(graph.path)["k.weight"], weights["k.weight"])
    assert [layer.name for layer in toolchain.layers(source, "int8-dynamic")] == ["q", "k", "v"]
    x = rng.standard_normal((5, 16)).astype(np.float32)
    whole = sum(weights[f"{name}.weight"] for name in "qv")
    expected = x @ whole + x @ weights["k.weight"]
    assert np.abs(answer(graph, x=x) - expected).max() < 0.25  # 7 bits of weights, 8 of activations: 0.163 was measured


@pytest.mark.parametrize(("group", "padding"), [(1, 1), (2, 0)])
def test_dynamic_convolutions(tmp_path: Path, group: int, padding: int) -> None:
    rng = graphs.rng()
    weight, bias = (
        rng.standard_normal((6, 4 // group, 3, 3)).astype(np.float32),
        rng.standard_normal(6).astype(np.float32),
    )
    source = graphs.convolution(tmp_path, weight, bias, group=group, padding=padding)
    graph = quantized(source, "int8-dynamic", convolutions="integers")
    assert "ConvInteger" in graphs.operators(graph.path)
    scale = (np.abs(weight).max(axis=(1, 2, 3)) / np.float32(127)).reshape(-1, 1, 1, 1)
    held = graphs.stored(graph.path)
    np.testing.assert_array_equal(held["layer.weight_quantized"], np.rint(weight / scale) + 128)
    # a range that is not even about zero: what is padded must still be zero
    x = (rng.standard_normal((2, 4, 8, 9)) + 2).astype(np.float32)
    expected = convolved(rounded(x), np.rint(weight / scale) * scale, bias, group, padding)
    np.testing.assert_allclose(answer(graph, x=x), expected, rtol=1e-5, atol=1e-4)


def convolved(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], group: int, padding: int) -> NDArray[Any]:
    import torch

    arrays = (torch.from_numpy(np.asarray(array, np.float64)) for array in (x, weight, bias))
    return torch.nn.functional.conv2d(*arrays, padding=padding, groups=group).numpy()


# --- weights -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unpack", ["load", "run"])
def test_weights_of_convolutions(tmp_path: Path, unpack: str) -> None:
    rng = graphs.rng()
    weight, bias = rng.standard_normal((6, 4, 3, 3)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    graph = quantized(graphs.convolution(tmp_path, weight, bias), "int8-weights", unpack=unpack)
    scale = (np.abs(weight).max(axis=(1, 2, 3)) / np.float32(127)).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(graphs.stored(graph.path)["layer.weight_quantized"], np.rint(weight / scale))
    assert ("DequantizeLinear" in graphs.operators(graph.path)) == (unpack == "run")
    x = rng.standard_normal((1, 4, 5, 5)).astype(np.float32)
    expected = convolved(x, np.rint(weight / scale) * scale, bias, 1, 0)
    np.testing.assert_allclose(answer(graph, x=x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("scheme", "bits"), [("int4-weights", 4), ("int8-weights", 8)])
def test_blocks_are_what_matmulnbits_computes(tmp_path: Path, scheme: str, bits: int, symmetric: bool) -> None:
    rng = graphs.rng()
    weight, bias = rng.standard_normal((40, 24)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    graph = quantized(
        graphs.linear(tmp_path, weight, bias), scheme, block_size=16, symmetric=symmetric, unpack="run"
    )  # 40 inputs: two blocks and a half
    assert graphs.operators(graph.path) == ["MatMulNBits"]
    found, scale, zeros = integers.blocks(weight, 16, bits, symmetric)
    back = ((found.astype(np.float64) - zeros[..., None]) * scale[..., None]).reshape(24, -1)[:, :40].T
    assert np.abs(back - weight).max() < np.abs(scale).max()
    x = rng.standard_normal((33, 40)).astype(np.float32)
    np.testing.assert_allclose(answer(graph, x=x), x @ back + bias, rtol=1e-4, atol=1e-5)


def test_embeddings_have_a_scale_for_each_row(tmp_path: Path) -> None:
    table = np.array([[1.27, -0.635, 0], [0, 0, 0], [254, 10, -3]], np.float32)
    graph = quantized(graphs.embedding(tmp_path, table), "int8-weights")
    held = graphs.stored(graph.path)
    assert held["layer.weight_quantized"].tolist() == [[127, -64, 0], [0, 0, 0], [127, 5, -2]]
    np.testing.assert_array_equal(
        held["layer.weight_scale"][:, 0], np.array([1.27, 127, 254], np.float32) / np.float32(127)
    )
    expected = held["layer.weight_quantized"][[2, 0, 0, 1]] * held["layer.weight_scale"][[2, 0, 0, 1]]
    np.testing.assert_array_equal(answer(graph, ids=np.array([2, 0, 0, 1])), expected)


def test_half_weights(tmp_path: Path) -> None:
    weight = np.array([[0.1, 65504.0], [1e-9, -3.0]], np.float32)
    graph = quantized(graphs.linear(tmp_path, weight), "fp16")
    np.testing.assert_array_equal(graphs.stored(graph.path)["layer.weight_half"], weight.astype(np.float16))
    x = np.eye(2, dtype=np.float32)
    np.testing.assert_array_equal(answer(graph, x=x), weight.astype(np.float16).astype(np.float32))
    weight[0, 0] = 1e5
    with pytest.raises(ExportError, match=r"^layer: its weight reaches 1e\+05, float16 ends at 65504; keep the layer$"):
        quantized(graphs.linear(tmp_path, weight), "fp16")


# --- int8-static ---------------------------------------------------------------------------------------------------------


def test_static_convolution_by_hand(tmp_path: Path) -> None:
    """One channel is nothing but zeros with a bias: its bias is kept."""
    weight = np.zeros((2, 1, 1, 1), np.float32)
    weight[0] = 2
    bias = np.array([0.5, 0.25], np.float32)
    x = np.array([-1, 0, 0.5, 3], np.float32).reshape(1, 1, 1, 4)
    source = graphs.convolution(tmp_path, weight, bias)
    graph = quantized(source, "int8-static", calls=[{"x": x}, {"x": x / 2}])
    assert graphs.operators(graph.path).count("QuantizeLinear") == 2
    held = graphs.stored(graph.path)
    assert (held["x.activation_scale"], held["x.activation_zero"]) == (np.float32(4 / 255), 64)
    out = next(array for name, array in held.items() if name.startswith("y") and name.endswith("activation_scale"))
    assert out == np.float32(8 / 255)  # -1.5 to 6.5
    assert held["layer.weight_quantized"].ravel().tolist() == [63, 0]
    np.testing.assert_array_equal(held["layer.bias_scale"], held["layer.weight_scale"] * held["x.activation_scale"])
    np.testing.assert_allclose(
        held["layer.bias_quantized"] * held["layer.bias_scale"].astype(np.float64), bias, atol=3e-4
    )
    # half a step of the answer's, and half a step of the input's times the weight
    expected = x * weight.reshape(1, 2, 1, 1) + bias.reshape(1, 2, 1, 1)
    np.testing.assert_allclose(answer(graph, x=x), expected, atol=4 / 255 + 4 / 255)


@pytest.mark.parametrize("form", ["int7", "uint8"])
@pytest.mark.parametrize("outputs", [True, False])
def test_static_convolutions_are_integers_and_near(tmp_path: Path, form: str, outputs: bool) -> None:
    rng = graphs.rng()
    weight, bias = rng.standard_normal((8, 8, 3, 3)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    x = (rng.standard_normal((2, 8, 10, 10)) + 1).astype(np.float32)
    graph = quantized(
        graphs.convolution(tmp_path, weight, bias, padding=1), "int8-static", calls=[{"x": x}], integers=form, outputs=outputs
    )  # fmt: skip
    expected = convolved(x, weight, bias, 1, 1)
    error = np.linalg.norm(answer(graph, x=x) - expected) / np.linalg.norm(expected)
    assert error < 0.02  # of 8 bits over a range of 7 deviations, 7 bits of weights: 0.009 to 0.0174 was measured


def test_static_linear_layer_that_reads_a_constant(tmp_path: Path) -> None:
    weight = np.ones((4, 2), np.float32)
    for number in (0.0, 0.25):
        x = np.full((3, 4), number, np.float32)
        graph = quantized(graphs.linear(tmp_path, weight), "int8-static", calls=[{"x": x}])
        np.testing.assert_allclose(answer(graph, x=x), x @ weight, rtol=EXACT)


def test_layers_whose_names_look_like_a_second_use(tmp_path: Path) -> None:
    """A convolution's weight of two uses is rounded for each: what is made must not meet that of another layer."""
    rng = graphs.rng()
    first, second = (rng.standard_normal((1, 1, 1, 1)).astype(np.float32) for _ in range(2))
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["b"]),
        helper.make_node("Conv", ["b", "a.weight"], ["c"]),
        helper.make_node("Conv", ["c", "a#1.weight"], ["y"]),
    ]
    shape = (1, 1, 4, 4)
    source = graphs.source(
        tmp_path, nodes, {"x": ("float32", shape)}, {"y": shape}, {"a.weight": first, "a#1.weight": second}
    )
    x = rng.standard_normal(shape).astype(np.float32)
    found = answer(quantized(source, "int8-static", calls=[{"x": x}]), x=x)
    expected = x * first * first * second
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()  # four roundings to 8 bits, 0.4 % each


def test_an_initializer_of_one_name_and_other_numbers_is_refused(tmp_path: Path) -> None:
    edit = Edit(graphs.linear(tmp_path, np.ones((4, 2), np.float32)).path)
    assert edit.constant("one", np.float32(1)) is edit.constant("one", np.float32(1))
    with pytest.raises(ExportError, match="two different initializers would be called 'one'"):
        edit.constant("one", np.float32(2))


def test_a_layer_that_reads_a_constant_weight_stays(tmp_path: Path) -> None:
    weights = {name: np.ones((4, 4), np.float32) for name in ("q0", "layer.weight")}
    nodes = [helper.make_node("MatMul", ["q0", "layer.weight"], ["q"]), helper.make_node("MatMul", ["x", "q"], ["y"])]
    source = graphs.source(tmp_path, nodes, {"x": ("float32", ("rows", 4))}, {"y": ("rows", 4)}, weights)
    x = np.ones((2, 4), np.float32)
    assert toolchain.layers(source, "int8-static") == []
    np.testing.assert_array_equal(answer(quantized(source, "int8-static", calls=[{"x": x}]), x=x), 16)


@pytest.mark.parametrize("at", range(0, 20000, 3333))
def test_a_nan_outside_the_sample_is_seen(tmp_path: Path, at: int) -> None:
    source = graphs.linear(tmp_path, np.ones((4, 2), np.float32))
    x = np.ones((5000, 4), np.float32)
    x.flat[at] = np.nan
    with pytest.raises(ExportError, match="the activation 'x' cannot be rounded: its values reach from nan to nan"):
        quantized(source, "int8-static", calls=[{"x": x}])


def test_a_range_that_float32_does_not_span_is_refused() -> None:
    with pytest.raises(ValueError, match=r"its values reach from -3e\+38 to 3e\+38"):
        integers.activation_scale(-3e38, 3e38, signed=False)
    assert np.isfinite(integers.activation_scale(-3e38, 3e38, signed=True)[0])


def test_a_file_that_is_linked_elsewhere_is_not_written_over(tmp_path: Path) -> None:
    source = graphs.linear(tmp_path, np.ones((4, 2), np.float32))
    before = source.path.read_bytes()
    (tmp_path / "other.onnx").hardlink_to(source.path)
    graphs.linear(tmp_path, np.zeros((4, 2), np.float32))
    assert (tmp_path / "other.onnx").read_bytes() == before != source.path.read_bytes()


def test_ranges_are_of_all_calls_and_by_method(tmp_path: Path) -> None:
    source = graphs.linear(tmp_path, np.ones((4, 2), np.float32))
    x = np.linspace(-1, 1, 4000, dtype=np.float32).reshape(-1, 4)
    outlier = np.full((1, 4), 50, np.float32)
    found = observed_in(source.path, ["x"], [{"x": x}, {"x": outlier}], channels={"x": 4})["x"]
    assert (found.low, found.high) == (-1, 50)
    assert found.channels is not None
    assert found.channels.tolist() == [50] * 4
    assert found.sample.size == 4004

    def cost(low: float, high: float, sample: NDArray[Any]) -> float:
        return rounding_error(low, high, sample, signed=False)

    assert limits(found, "minmax", 99, cost) == (-1, 50)
    low, high = limits(found, "percentile", 99, cost)
    assert -1 <= low < -0.98
    assert 0.98 < high < 1.01
    assert cost(*limits(found, "mse", 99, cost), found.sample) <= cost(-1, 50, found.sample)


# --- what stays, what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("scheme", sorted(toolchain.SCHEMES))
def test_what_is_kept_is_kept_to_the_bit(tmp_path: Path, scheme: str, beside: bool) -> None:
    rng = graphs.rng()
    weight = rng.standard_normal((300, 24)).astype(np.float32)
    source = graphs.linear(tmp_path, weight, beside=beside)
    x = rng.standard_normal((4, 300)).astype(np.float32)
    graph = quantized(source, scheme, keep=["layer"], calls=[{"x": x}])
    assert graphs.operators(graph.path) == ["MatMul"]
    assert bool(graph.extra_files) == beside
    np.testing.assert_array_equal(graphs.stored(graph.path)["layer.weight"], weight)
    float_graph = GraphFile("unet", source.path, (), "float32", False, source.signature)
    np.testing.assert_array_equal(answer(graph, x=x), answer(float_graph, x=x))


def test_a_file_with_its_weights_inside_is_read_as_one_with_them_beside(tmp_path: Path) -> None:
    weight = graphs.rng().standard_normal((300, 24)).astype(np.float32)
    inside = graphs.linear(tmp_path / "inside", weight)
    beside = graphs.linear(tmp_path / "beside", weight, beside=True)
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "link").hardlink_to(beside.path.with_name("model.onnx_data"))
    found = [graphs.stored(quantized(source, "int8-dynamic").path) for source in (inside, beside)]
    assert found[0].keys() == found[1].keys()
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name])


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-weights", "int4-weights", "int8-static"])
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-np.inf, "an infinity")])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, scheme: str, value: float, word: str) -> None:
    weight = np.ones((32, 4), np.float32)
    weight[3, 2] = value
    source = graphs.linear(tmp_path, weight)
    with pytest.raises(
        ExportError, match=f"^layer: its weight holds {word}, which no integer stands for; keep the layer$"
    ):
        quantized(source, scheme, calls=[{"x": np.ones((1, 32), np.float32)}])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_activation_that_is_no_number_is_named(tmp_path: Path, value: float) -> None:
    source = graphs.linear(tmp_path, np.ones((4, 2), np.float32))
    x = np.ones((2, 4), np.float32)
    x[1, 1] = value
    with pytest.raises(ExportError, match="the activation 'x' cannot be rounded: its values reach from"):
        quantized(source, "int8-static", calls=[{"x": x}])


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("int2", {}, "unknown scheme of ONNX 'int2'; available: fp16, int4-weights"),
        ("int8-dynamic", {"keep": ["other"]}, "unknown layer to keep 'other'; available: layer"),
        ("int8-dynamic", {"integers": "int9"}, "unknown integers 'int9'; available: int7, int8, uint8"),
        ("int8-dynamic", {"convolutions": "yes"}, "unknown convolutions 'yes'; available: float, integers, weights"),
        ("int8-weights", {"unpack": "never"}, "unknown unpack 'never'; available: load, run"),
        ("int4-weights", {"block_size": 24}, "block_size=24: a block has one of 16, 32, 64, 128, 256 weights"),
        ("int8-static", {}, "int8-static needs recorded inputs of the component; calibrate with prompts"),
        ("int8-static", {"method": "kl"}, "unknown calibration method 'kl'; available: minmax, mse, percentile"),
        ("int8-static", {"percentile": 30.0}, "percentile=30.0: it must be over 50 and at most 100"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, scheme: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        quantized(graphs.linear(tmp_path, np.ones((4, 2), np.float32)), scheme, **options)


def test_a_float16_graph_is_refused(tmp_path: Path) -> None:
    source = graphs.linear(tmp_path, np.ones((4, 2), np.float16), dtype="float16")
    with pytest.raises(InputError, match="int8-dynamic in ONNX starts from a float32 graph; unet at hand is float16"):
        quantized(source, "int8-dynamic")
