"""Explicit quantization for TensorRT: the numbers in front of each layer, and what ONNX Runtime's CPU makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper

from ingot.exporters.graph_file import GraphFile
from ingot.quantization import tensorrt as toolchain
from ingot.quantization.scheme import Source
from ingot.runtimes import engines
from ingot.runtimes.errors import ExportError, InputError

from . import quantize_onnx_graphs as graphs

FLOAT8 = ml_dtypes.float8_e4m3fn


def quantized(source: Source, scheme: str, **options: Any) -> GraphFile:
    return toolchain.quantize(source, source.path.parent, scheme=scheme, name=f"tensorrt_{scheme}", **options)


def answer(graph: GraphFile, **inputs: NDArray[Any]) -> NDArray[Any]:
    """What the operators say: ONNX Runtime's own integer kernels would saturate, and it has none for float8."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    engine = engines.open_with("onnx", graph.path, graph.signature, {}, {"session_options": options})
    return np.asarray(engine.run(inputs)["y"])


def rounded(x: NDArray[Any], extreme: float) -> NDArray[Any]:
    """int8, symmetric, by the greatest magnitude of calibration."""
    scale = np.float32(extreme) / np.float32(127)
    return np.asarray(np.clip(np.rint(x / scale), -128, 127) * scale, np.float64)


def gaussians(*shape: int) -> NDArray[np.float32]:
    return graphs.rng().standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_int8_of_a_linear_layer(tmp_path: Path, dtype: str) -> None:
    weight, bias, x = gaussians(40, 24), gaussians(24), gaussians(6, 40)
    weight[:, 3] = 0
    weight, bias, x = (array.astype(dtype) for array in (weight, bias, x))
    graph = quantized(graphs.linear(tmp_path, weight, bias, dtype=dtype), "int8-static", calls=[{"x": x}, {"x": 2 * x}])
    held = graphs.stored(graph.path)
    extreme = np.abs(weight.astype(np.float32)).max(axis=0)
    scale = np.where(extreme, extreme / np.float32(127), np.float32(1)).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(held["layer.weight_scale"], scale.astype(dtype))
    np.testing.assert_array_equal(held["layer.weight_quantized"], np.rint(weight.astype(np.float32) / scale))
    assert held["layer.weight_quantized"].dtype == np.int8
    assert not held["layer.weight_zero"].any()
    assert not held["x.activation_zero"].any()
    largest = 2 * float(np.abs(x).max())
    assert held["x.activation_scale"] == (np.float32(largest) / np.float32(127)).astype(dtype)
    assert graphs.operators(graph.path) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul", "Add"]
    expected = x.astype(np.float64) @ weight.astype(np.float64) + bias
    error = np.linalg.norm(answer(graph, x=x) - expected) / np.linalg.norm(expected)
    assert error < 0.02  # of 8 bits over twice the range: 0.01


@pytest.mark.parametrize("scheme", ["int8-static", "fp8", "int4-weights"])
@pytest.mark.parametrize("extreme", [2e-5, 1.8e-5, 3e-6])
def test_integers_are_of_the_scale_that_float16_holds(tmp_path: Path, scheme: str, extreme: float) -> None:
    weight = (gaussians(64, 8).clip(-1, 1) * extreme).astype(np.float16)
    graph = quantized(
        graphs.linear(tmp_path, weight, dtype="float16"), scheme, calls=[{"x": np.full((2, 64), extreme, np.float16)}]
    )
    held = graphs.stored(graph.path)
    scale, whole = held["layer.weight_scale"].astype(np.float32), held["layer.weight_quantized"].astype(np.float32)
    assert scale.all()
    if scheme == "int4-weights":
        scale = np.repeat(scale, 64, axis=0)
    else:
        assert held["x.activation_scale"] > 0
    wide = weight.astype(np.float32)
    # half a step; float8 has 3 bits behind its first, and its own least numbers are finer than that here
    allowed = np.abs(wide) / 16 + scale / 2**9 if scheme == "fp8" else scale / 2
    assert (np.abs(whole * scale - wide) <= 1.01 * allowed).all()


@pytest.mark.parametrize(
    ("scheme", "dtype", "opset", "needed"),
    [("fp8", "float32", 18, 19), ("int8-static", "float16", 18, 19), ("int4-weights", "float32", 19, 20)],
)
def test_an_opset_without_the_operators_is_named(
    tmp_path: Path, scheme: str, dtype: str, opset: int, needed: int
) -> None:
    weight, x = gaussians(64, 8).astype(dtype), gaussians(2, 64).astype(dtype)
    source = graphs.linear(tmp_path, weight, dtype=dtype, opset=opset)
    message = f"needs a graph of opset {needed} or newer, this one has {opset}; export it with --set tensorrt.opset=20"
    with pytest.raises(InputError, match=message):
        quantized(source, scheme, calls=[{"x": x}])


def test_int8_convolutions_are_per_output_channel(tmp_path: Path) -> None:
    weight, bias, x = gaussians(6, 2, 3, 3), gaussians(6), gaussians(1, 4, 7, 7)
    graph = quantized(graphs.convolution(tmp_path, weight, bias, group=2), "int8-static", calls=[{"x": x}])
    scale = (np.abs(weight).max(axis=(1, 2, 3)) / np.float32(127)).reshape(-1, 1, 1, 1)
    held = graphs.stored(graph.path)
    np.testing.assert_array_equal(held["layer.weight_quantized"], np.rint(weight / scale))
    import torch

    arrays = (
        rounded(x, float(np.abs(x).max())),
        np.rint(weight / scale) * scale.astype(np.float64),
        bias.astype(np.float64),
    )
    expected = torch.nn.functional.conv2d(*map(torch.from_numpy, arrays), groups=2).numpy()
    np.testing.assert_allclose(answer(graph, x=x), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(held["layer.bias"], bias)  # a float, as TensorRT wants it


@pytest.mark.parametrize("kind", ["matmul", "gemm"])
def test_smoothing_moves_outliers_into_the_weights(tmp_path: Path, kind: str) -> None:
    weight, x = gaussians(40, 24), gaussians(64, 40)
    x[:, 5] *= 50
    if kind == "gemm":
        source = graphs.gemm(tmp_path, np.ascontiguousarray(weight.T), np.zeros(24, np.float32))
    else:
        source = graphs.linear(tmp_path, weight)
    exact = x.astype(np.float64) @ weight
    errors = []
    for smooth in (None, 0.5):
        graph = quantized(source, "int8-static", calls=[{"x": x}], smooth=smooth)
        errors.append(np.linalg.norm(answer(graph, x=x) - exact) / np.linalg.norm(exact))
    by = np.abs(x).max(axis=0) ** 0.5 / np.abs(weight).max(axis=1) ** 0.5
    held = graphs.stored(graph.path)
    np.testing.assert_allclose(held["x.smooth"], 1 / by, rtol=1e-6)
    scale = np.abs(weight * by[:, None]).max(axis=0) / 127
    np.testing.assert_allclose(held["layer.weight_scale"], scale, rtol=1e-6)
    np.testing.assert_allclose(held["x.activation_scale"], (np.abs(x).max(axis=0) / by).max() / 127, rtol=1e-6)
    assert errors[1] < errors[0] / 2


def test_smoothing_of_nothing_is_one() -> None:
    found = toolchain.smoothing(np.array([4, 0, 9], np.float32), [np.array([[1], [2], [0]], np.float32)], 0.5)
    assert found.tolist() == [2, 1, 1]
    both = toolchain.smoothing(
        np.array([4], np.float32), [np.array([[1]], np.float32), np.array([[-16]], np.float32)], 0.5
    )
    assert both.tolist() == [0.5]


def test_float8_by_hand(tmp_path: Path) -> None:
    weight = np.array([[448.0, -3.0], [0.3, 0.0]], np.float32)
    x = np.array([[44.8, -1.0], [0.37, 0.002]], np.float32)
    graph = quantized(graphs.linear(tmp_path, weight), "fp8", calls=[{"x": x}])
    held = graphs.stored(graph.path)
    assert held["layer.weight_scale"] == 1
    assert held["x.activation_scale"] == pytest.approx(0.1, rel=1e-6)
    assert held["layer.weight_quantized"].dtype == FLOAT8
    assert held["layer.weight_quantized"].astype(np.float32).tolist() == [
        [448, -3],
        [0.3125, 0],
    ]  # 3 bits: steps of 1/32
    scale = held["x.activation_scale"]
    near = (x / scale).astype(FLOAT8).astype(np.float32) * scale
    np.testing.assert_allclose(answer(graph, x=x), near @ held["layer.weight_quantized"].astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_int4_blocks_by_hand(tmp_path: Path, dtype: str) -> None:
    weight = np.zeros((64, 2), dtype)
    weight[0, 0], weight[1, 0], weight[40, 0], weight[2, 1] = 0.7, -0.25, -1.4, 0.5
    graph = quantized(graphs.linear(tmp_path, weight, dtype=dtype), "int4-weights", block_size=32)
    held = graphs.stored(graph.path)
    exact = np.array([[weight[0, 0], 0.5], [1.4, 7]], np.float32) / np.float32(7)
    np.testing.assert_allclose(held["layer.weight_scale"], exact.astype(dtype), rtol=1e-3)
    whole = held["layer.weight_quantized"].astype(np.int32)
    assert {(int(r), int(c)): int(whole[r, c]) for r, c in np.argwhere(whole)} == {
        (0, 0): 7,
        (1, 0): -2,
        (40, 0): -7,
        (2, 1): 7,
    }
    x = np.eye(64, dtype=dtype)
    expected = whole * np.repeat(held["layer.weight_scale"].astype(np.float32), 32, axis=0)
    np.testing.assert_allclose(answer(graph, x=x), expected, rtol=1e-3)


def test_layers_that_have_no_whole_blocks_stay(tmp_path: Path) -> None:
    weight = gaussians(40, 8)
    source = graphs.linear(tmp_path, weight)
    assert toolchain.default_keep(source, "int4-weights") == {"layer"}
    assert toolchain.default_keep(source, "int8-static") == frozenset()
    graph = quantized(source, "int4-weights")
    np.testing.assert_array_equal(graphs.stored(graph.path)["layer.weight"], weight)


def test_a_group_norm_of_an_older_opset_is_not_reinterpreted(tmp_path: Path) -> None:
    ones = np.ones(2, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "layer.weight"], ["m"]),
        helper.make_node("GroupNormalization", ["m", "scale", "bias"], ["y"], num_groups=2),
    ]
    weights = {"layer.weight": gaussians(64, 64), "scale": ones, "bias": ones}
    source = graphs.source(tmp_path, nodes, {"x": ("float32", (1, 64, 64))}, {"y": (1, 64, 64)}, weights)
    with pytest.raises(ExportError, match="GroupNormalization of opset 20, which means another thing in 21"):
        quantized(source, "int4-weights")


@pytest.mark.parametrize("scheme", sorted(toolchain.SCHEMES))
def test_what_is_kept_is_kept_and_the_plan_is_not(tmp_path: Path, scheme: str) -> None:
    weight, x = gaussians(64, 8), gaussians(3, 64)
    build = {"sizes": {"batch": [1, 2, 4]}}
    source = replace(
        graphs.linear(tmp_path, weight),
        stored={"build": build, "precision": "float32", "plan": "model.plan", "gpu": "H100"},
    )
    graph = quantized(source, scheme, keep=["layer"], calls=[{"x": x}])
    assert graph.stored == {"build": build, "precision": "float32"}
    np.testing.assert_array_equal(graphs.stored(graph.path)["layer.weight"], weight)
    assert graphs.operators(graph.path) == ["MatMul"]


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("int8-dynamic", {}, "unknown scheme of TensorRT 'int8-dynamic'; available: fp8, int4-weights, int8-static"),
        ("fp8", {}, "fp8 needs recorded inputs of the component; calibrate with prompts"),
        ("int8-static", {"smooth": 2.0}, "smooth=2.0: it is between 0 and 1, and for int8-static only"),
        ("fp8", {"smooth": 0.5}, "smooth=0.5: it is between 0 and 1, and for int8-static only"),
        ("int4-weights", {"block_size": 48}, "block_size=48: int4 blocks have 32, 64 or 128 weights"),
        ("int4-weights", {"keep": ["other"]}, "unknown layer to keep 'other'; available: layer"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, scheme: str, options: dict[str, Any], message: str) -> None:
    source = graphs.linear(tmp_path, gaussians(64, 8))
    calls = [{"x": gaussians(2, 64)}] if "smooth" in options else []
    with pytest.raises(InputError, match=f"^{message}"):
        quantized(source, scheme, calls=calls, **options)


@pytest.mark.parametrize("scheme", sorted(toolchain.SCHEMES))
def test_numbers_that_are_none_are_named(tmp_path: Path, scheme: str) -> None:
    weight = gaussians(64, 8)
    weight[0, 0] = np.nan
    with pytest.raises(ExportError, match=r"^layer: its weight holds NaN"):
        quantized(graphs.linear(tmp_path, weight), scheme, calls=[{"x": gaussians(2, 64)}])
