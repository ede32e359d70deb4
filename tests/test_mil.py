"""Core ML packages are read as they were written, evaluated in two precisions, and refused with reasons."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - coremltools' own name for it
from coremltools.libmilstoragepython import _BlobStorageWriter
from coremltools.proto import Model_pb2

from ingot.exporters.mil import Port, open_package
from ingot.exporters.mil.blobs import WeightFile
from ingot.exporters.mil.graph import STORAGE, TensorType
from ingot.exporters.mil.rounding import round_to_half
from ingot.runtimes.errors import ExportError, InputError

from .mil_packages import write

RNG = np.random.default_rng(1)
WEIGHT = RNG.standard_normal((8, 4, 3, 3)).astype(np.float32)
PICTURE = RNG.standard_normal((1, 4, 6, 6)).astype(np.float32)
MODEL, BLOBS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"


def layers(x: Any) -> dict[str, Any]:
    return {"y": mb.gelu(x=mb.conv(x=x, weight=WEIGHT, pad_type="same", strides=[2, 2], name="conv"), mode="EXACT")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("package"), {"x": PICTURE}, layers)


@pytest.fixture
def package(written: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(written, tmp_path / "copy.mlpackage"))


def edit(package: Path, change: Callable[[Any], None]) -> Path:
    """Change the protobuf of a package; `change` gets the model."""
    spec = Model_pb2.Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    change(spec)
    (package / MODEL).write_bytes(spec.SerializeToString())
    return package


def operations(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def constant(spec: Any, ending: str) -> Any:
    """The value of the constant whose name ends so."""
    (found,) = (op for op in operations(spec) if op.type == "const" and op.outputs[0].name.endswith(ending))
    return found.attributes["val"]


def test_ports_operations_and_both_paths(written: Path) -> None:
    program = open_package(written / "Manifest.json")
    assert program.inputs == (Port("x", np.dtype(np.float32), (1, 4, 6, 6)),)
    assert program.outputs == (Port("y", np.dtype(np.float32), (1, 8, 3, 3)),)
    assert program.operations == {"conv": 1, "gelu": 1, "identity": 1}
    expected = torch.nn.functional.gelu(
        torch.nn.functional.conv2d(
            torch.nn.functional.pad(torch.from_numpy(PICTURE), (0, 1, 0, 1)), torch.from_numpy(WEIGHT), stride=2
        )
    )
    assert program.run({"x": PICTURE})["y"].shape == (1, 8, 3, 3)
    np.testing.assert_allclose(program.run({"x": PICTURE})["y"], expected, rtol=1e-5, atol=1e-6)


def test_one_changed_weight_changes_the_answer(package: Path) -> None:
    program = open_package(package)
    before = program.run({"x": PICTURE})["y"]
    content = bytearray((package / BLOBS).read_bytes())
    place = content.find(WEIGHT.tobytes())
    assert place > 0
    where = place + 4 * int(np.ravel_multi_index((5, 2, 1, 1), WEIGHT.shape))
    content[where : where + 4] = np.float32(WEIGHT[5, 2, 1, 1] + 1).tobytes()
    (package / BLOBS).write_bytes(content)
    after = open_package(package).run({"x": PICTURE})["y"]
    assert [c for c in range(8) if not np.array_equal(before[:, c], after[:, c])] == [5]


PARAMETERS: list[tuple[str, Callable[[Any], Any]]] = [
    ("mode_0", lambda value: value.immediateValue.tensor.strings.values.__setitem__(0, "TANH_APPROXIMATION")),
    ("pad_type_0", lambda value: value.immediateValue.tensor.strings.values.__setitem__(0, "same_lower")),
]


@pytest.mark.parametrize(("ending", "change"), PARAMETERS, ids=[ending for ending, _ in PARAMETERS])
def test_one_changed_parameter_changes_the_answer(package: Path, ending: str, change: Callable[[Any], Any]) -> None:
    before = open_package(package).run({"x": PICTURE})["y"]
    edit(package, lambda spec: change(constant(spec, ending)))
    difference = np.abs(open_package(package).run({"x": PICTURE})["y"] - before).max()
    assert difference > 1e-5


def test_a_result_of_another_shape_than_declared_is_an_error(package: Path) -> None:
    def strides(spec: Any) -> None:
        constant(spec, "strides_0").immediateValue.tensor.ints.values[:] = [1, 2]

    message = r"conv 'conv' gives float \[1, 8, 6, 3\]; the package declares float32\[1, 8, 3, 3\]"
    with pytest.raises(ExportError, match=message):
        open_package(edit(package, strides)).run({"x": PICTURE})


def test_every_unknown_operation_is_named_when_the_package_is_opened(package: Path) -> None:
    def rename(spec: Any) -> None:
        for op in operations(spec):
            op.type = {"conv": "random_normal", "gelu": "convolve"}.get(op.type, op.type)

    message = r"copy.mlpackage cannot be evaluated: random_normal 'conv': unknown operation; convolve 'gelu_0': unknown"
    with pytest.raises(ExportError, match=message):
        open_package(edit(package, rename))


def test_unknown_missing_and_undefined_inputs_are_named(package: Path) -> None:
    def change(spec: Any) -> None:
        conv = next(op for op in operations(spec) if op.type == "conv")
        conv.inputs["shape"].CopyFrom(conv.inputs["weight"])
        conv.inputs["x"].arguments[0].name = "nowhere"
        del conv.inputs["weight"]
        spec.description.input[0].name = "z"

    with pytest.raises(ExportError) as caught:
        open_package(edit(package, change))
    for part in (
        "conv 'conv': unknown input 'shape'", "missing input 'weight'", "'nowhere' is used before it is made",
        "the package declares 'z', which the program does not take",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_damaged_packages_are_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"is not a Core ML package: its Manifest.json cannot be read"):
        open_package(tmp_path)
    blobs = (package / BLOBS).read_bytes()
    (package / BLOBS).write_bytes(blobs[:-64])
    with pytest.raises(ExportError, match="it was cut short"):
        open_package(package).run({"x": PICTURE})
    (package / BLOBS).write_bytes(blobs[:64].ljust(len(blobs), b"\0"))
    with pytest.raises(ExportError, match=r"holds no blob at 64, where the program expects float32\[8, 4, 3, 3\]"):
        open_package(package).run({"x": PICTURE})
    (package / BLOBS).unlink()
    with pytest.raises(ExportError, match="which does not exist"):
        open_package(package)
    edit(package, lambda spec: setattr(constant(spec, "weight_0").blobFileValue, "fileName", "@model_path/../w.bin"))
    with pytest.raises(ExportError, match="outside the package"):
        open_package(package)
    (package / MODEL).write_bytes(b"\xff" * 9)
    with pytest.raises(ExportError, match="is not a Core ML model"):
        open_package(package)
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../model.mlmodel"
    (package / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="which it does not hold"):
        open_package(package)


def test_inputs_that_do_not_fit(written: Path) -> None:
    program = open_package(written)
    with pytest.raises(InputError) as caught:
        program.run({"x": PICTURE.astype(np.int32)[0], "w": PICTURE})
    for part in ("unknown input 'w' (it takes x)", "'x' is int32, not float32", "shape [4, 6, 6], not [1, 4, 6, 6]"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match="missing input 'x'"):
        program.run({})
    double = program.run({"x": PICTURE.astype(np.float64)})["y"]
    np.testing.assert_array_equal(double, program.run({"x": PICTURE})["y"])


def test_whole_numbers_must_fit_their_type(tmp_path: Path) -> None:
    ids = np.array([3, 1], np.int32)
    program = open_package(write(tmp_path, {"ids": ids}, lambda ids: {"y": mb.add(x=ids, y=np.int32(1))}))
    assert program.run({"ids": ids.astype(np.int64)})["y"].dtype == np.int32
    with pytest.raises(InputError, match="'ids' holds numbers that int32 cannot"):
        program.run({"ids": np.array([2**40, 0])})


def test_half_precision_is_rounded_once_an_operation_or_not_at_all(tmp_path: Path) -> None:
    half = np.float16
    x = np.array([0.1, 1.0, 2049.0, 60000.0], np.float32)

    def build(x: Any) -> dict[str, Any]:
        total = mb.mul(x=mb.add(x=mb.cast(x=x, dtype="fp16"), y=half(0.3)), y=half(1.7))
        return {"y": mb.cast(x=mb.sub(x=total, y=half(0.01)), dtype="fp32"), "half": total}

    program = open_package(write(tmp_path, {"x": x}, build))
    assert [port.dtype for port in program.outputs] == [np.float32, np.float16]
    with np.errstate(over="ignore"):  # 60000 * 1.7 is more than half precision holds
        stepwise = (x.astype(half) + half(0.3)) * half(1.7) - half(0.01)
    assert np.isinf(stepwise[-1])
    np.testing.assert_array_equal(program.run({"x": x}, float16=True)["y"], stepwise.astype(np.float32))
    constants = [np.float32(half(value)) for value in (0.3, 1.7, 0.01)]
    exact = (x + constants[0]) * constants[1] - constants[2]
    np.testing.assert_array_equal(program.run({"x": x})["y"], exact)


def test_outputs_belong_to_the_caller_and_threads_do_not_meet(written: Path) -> None:
    program = open_package(written)
    inputs = [PICTURE * scale for scale in (1, 2, 3, 4)]
    alone = [program.run({"x": x})["y"] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: program.run({"x": x})["y"], inputs))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    alone[0][:] = 0
    np.testing.assert_array_equal(program.run({"x": PICTURE})["y"], together[0])


def test_branches_and_loops(tmp_path: Path) -> None:
    def build(x: Any, n: Any) -> dict[str, Any]:
        doubled, _ = mb.while_loop(
            _cond=lambda _, i: mb.less(x=i, y=mb.squeeze(x=n)),
            _body=lambda value, i: (mb.mul(x=value, y=2.0), mb.add(x=i, y=1)),
            loop_vars=(x, np.int32(0)),
        )
        large = mb.greater(x=mb.reduce_sum(x=doubled), y=10.0)
        return {"y": mb.cond(pred=large, _true_fn=lambda: mb.sub(x=doubled, y=x), _false_fn=lambda: mb.add(x=x, y=0.5))}

    x = np.array([1, 2], np.float32)
    program = open_package(write(tmp_path, {"x": x, "n": np.array([2], np.int32)}, build))
    for n, expected in ((1, x + 0.5), (2, x * 4 - x), (3, x * 8 - x)):
        np.testing.assert_array_equal(program.run({"x": x, "n": np.array([n])})["y"], expected)


BLOB_VALUES = {
    "FLOAT32": np.array([0.5, -1.25, 3e30], np.float32), "FLOAT16": np.array([0.5, -1.25, 60000], np.float16),
    "INT4": np.array([-8, 7, -1, 0, 3], np.int8), "INT8": np.array([-128, 127, 0], np.int8),
    "INT16": np.array([-32768, 32767], np.int16), "INT32": np.array([-(2**31), 2**31 - 1], np.int32),
    "UINT1": np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], np.uint8), "UINT2": np.array([3, 0, 1, 2, 3], np.uint8),
    "UINT3": np.array([7, 0, 5, 2, 1, 6, 4], np.uint8), "UINT4": np.array([15, 0, 9], np.uint8),
    "UINT6": np.array([63, 0, 42, 21, 1], np.uint8), "UINT8": np.array([255, 0, 7], np.uint8),
    "UINT16": np.array([65535, 1], np.uint16), "UINT32": np.array([2**32 - 1, 1], np.uint32),
}  # fmt: skip


def test_every_type_of_blob_as_coremltools_writes_it(tmp_path: Path) -> None:
    writer = _BlobStorageWriter(str(tmp_path / "weight.bin"))
    offsets = {}
    for dtype, values in BLOB_VALUES.items():
        short = {"FLOAT32": "float", "FLOAT16": "fp16"}.get(dtype, dtype.lower())
        bits = values.view(np.uint16) if dtype == "FLOAT16" else values
        offsets[dtype] = getattr(writer, f"write_{short}_data")(bits)
    del writer  # writes
    file = WeightFile(tmp_path / "weight.bin")
    for dtype, values in BLOB_VALUES.items():
        found = file.read(offsets[dtype], TensorType(dtype, values.shape))
        assert found.dtype == STORAGE[dtype].computed
        np.testing.assert_array_equal(found.numpy(), values.astype(found.numpy().dtype), err_msg=dtype)
    assert set(BLOB_VALUES) == set(STORAGE) - {"BOOL", "INT64"}  # of which coremltools writes no blobs
    with pytest.raises(ExportError, match=r"holds 12 bytes at 64; float32\[4\] takes 16"):
        file.read(offsets["FLOAT32"], TensorType("FLOAT32", (4,)))
    with pytest.raises(ExportError, match=r"holds FLOAT32 at 64, where the program expects int32\[3\]"):
        file.read(offsets["FLOAT32"], TensorType("INT32", (3,)))


def test_rounding_leaves_given_tensors_alone_and_reaches_every_layout() -> None:
    given = torch.rand(40, 50)
    before = given.clone()
    own = torch.rand(300, 200)  # more than is rounded at a time
    for values in (own, own.t(), own[3:, ::7], own[0].expand(5, 200)):
        fresh = values.clone(memory_format=torch.preserve_format)
        expected = fresh.half().float()
        assert not torch.equal(fresh, expected)
        assert torch.equal(round_to_half(fresh, [given], copy=False), expected)
    parts = given.clone()
    assert torch.equal(round_to_half(parts.t()[2:], [given], copy=False), before.half().float().t()[2:])
    assert torch.equal(round_to_half(given.t(), [given], copy=True), before.half().float().t())
    assert round_to_half(given[1:], [given], copy=False).data_ptr() == given[1:].data_ptr()
    assert torch.equal(given, before)
