"""Engines that take other weights, on a graph of our own, and the gate between calls and changes. Nothing is exported."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from ingot.runtimes.engines import onnx as engine
from ingot.runtimes.errors import EngineError
from ingot.runtimes.loras.gate import Gate
from ingot.runtimes.signature import Signature, TensorSpec

SPECS = Signature((TensorSpec("x", "float32", ("batch", 8, "h", "w")),), (TensorSpec("y", "float32", ("batch", 32)),))


def onnx_model(folder: Path, weights: dict[str, Any], beside: bool) -> Path:
    """A convolution, a mean over the picture, and a product with a weight whose rows and columns are exchanged."""
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    held[1].metadata_props.add(key="ingot.transposed", value="1")
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "linear.weight"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(s.name, TensorProto.FLOAT, list(s.shape)) for s in (*SPECS.inputs, *SPECS.outputs)
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    file = folder / "model.onnx"
    onnx.save(model, file, save_as_external_data=beside, location="model.onnx_data", size_threshold=1024)
    return file


@pytest.mark.parametrize("beside", [False, True])
def test_weights_inside_a_graph_and_beside_it_change_and_come_back(tmp_path: Path, beside: bool) -> None:
    rng = np.random.RandomState(0)
    weights = {
        "conv.weight": rng.randn(16, 8, 3, 3), "linear.weight": rng.randn(16, 32), "conv.bias": rng.randn(16), "b.weight": rng.randn(3),
    }  # fmt: skip
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    graph = engine.open_graph(onnx_model(tmp_path, weights, beside), SPECS, threads=1)
    x = {"x": rng.randn(2, 8, 9, 9).astype(np.float32)}
    assert graph.weights() == {
        "conv.weight": (16, 8, 3, 3),
        "linear.weight": (32, 16),
        "conv.bias": (16,),
        "b.weight": (3,),
    }
    first = graph.run(x)["y"]
    conv, linear = rng.randn(16, 8, 3, 3).astype(np.float32), rng.randn(32, 16).astype(np.float32)
    added = {"conv.weight": lambda w: w + conv, "linear.weight": lambda w: w + linear, "b.weight": lambda w: w + 1}
    take_effect = graph.with_weights(added)
    np.testing.assert_array_equal(graph.run(x)["y"], first)  # made ready, and not in place yet
    take_effect()
    other = {"conv.weight": weights["conv.weight"] + conv, "linear.weight": weights["linear.weight"] + linear.T}
    (tmp_path / "other").mkdir()
    wanted = engine.open_graph(onnx_model(tmp_path / "other", {**weights, **other}, False), SPECS, threads=1).run(x)[
        "y"
    ]
    np.testing.assert_array_equal(graph.run(x)["y"], wanted)  # the same graph with the same weights
    assert graph.changed
    graph.with_weights({})()
    np.testing.assert_array_equal(graph.run(x)["y"], first)
    assert not graph.changed


def test_providers_that_compile_and_options_of_the_callers_are_refused(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    shapes = {"conv.weight": (16, 8, 3, 3), "linear.weight": (16, 32), "conv.bias": (16,)}
    file = onnx_model(tmp_path, {name: rng.randn(*shape).astype(np.float32) for name, shape in shapes.items()}, True)
    with pytest.raises(EngineError, match="session_options"):
        engine.open_graph(file, SPECS, session_options=ort.SessionOptions()).weights()
    graph = engine.open_graph(file, SPECS)
    object.__setattr__(graph._origin, "providers", [("TensorrtExecutionProvider", {})])
    with pytest.raises(EngineError, match="TensorrtExecutionProvider compiles weights"):
        graph.weights()
    graph.close()
    with pytest.raises(EngineError, match="closed"):
        graph.weights()


# the gate


def test_a_change_waits_for_calls_of_other_threads_and_holds_new_ones_back() -> None:
    gate, order = Gate(), []
    call = gate.call()

    def change() -> None:
        with gate.change():
            order.append("changed")

    def late() -> None:
        with gate.call():
            order.append("late call")

    threads = [threading.Thread(target=change), threading.Thread(target=late)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # in this order
    order.append("first call ends")
    call.close()
    for thread in threads:
        thread.join(5)
    assert order == ["first call ends", "changed", "late call"]


def test_a_loop_that_nobody_finishes_is_over_when_nobody_holds_it() -> None:
    gate = Gate()
    call = gate.call()
    done = threading.Event()

    def change() -> None:
        with gate.change():
            done.set()

    thread = threading.Thread(target=change)
    thread.start()
    assert not done.wait(0.05)
    del call
    thread.join(5)
    assert done.is_set()


def test_a_change_within_ones_own_call_needs_no_wait_and_never_waits_for_another_call() -> None:
    gate = Gate()
    with gate.call(), gate.change():
        pass
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with gate.call():
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(5)
    with gate.call(), pytest.raises(EngineError, match="between calls"), gate.change():
        pass
    leave.set()
    thread.join(5)
    with gate.change():
        pass
