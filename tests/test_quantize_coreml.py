"""Core ML packages with compressed weights: their integers, tables and scales, and that they compute what those say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import msgspec
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - coremltools' own name for it
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.converters.mil.mil import types
from coremltools.libmilstoragepython import _BlobStorageWriter
from coremltools.optimize import _utils as ct_numbers
from numpy.typing import NDArray
from torch.nn import functional as F

from ingot.exporters import parity
from ingot.exporters.capture import capture
from ingot.exporters.coreml_chunks import split_package
from ingot.exporters.mil import open_package
from ingot.exporters.mil.evaluate import _Run
from ingot.exporters.mil.package import read_package
from ingot.exporters.targets import coreml as target
from ingot.quantization import coreml
from ingot.quantization._coreml_activations import rounding
from ingot.quantization._coreml_blobs import WeightWriter
from ingot.quantization._coreml_compress import Palette, largest_divisor
from ingot.quantization._coreml_layers import dotted
from ingot.quantization._coreml_numbers import pack, palette, psnr_db, spread, symmetric, unpalette
from ingot.quantization.scheme import Source
from ingot.runtimes.engines._coreml import Feature, Packages
from ingot.runtimes.errors import ExportError, InputError
from ingot.runtimes.signature import Signature, TensorSpec

from . import tiny
from .mil_packages import write

Array = NDArray[Any]
RNG = np.random.default_rng(5)
CONV = RNG.standard_normal((16, 24, 3, 3)).astype(np.float32)
LINEAR = (RNG.standard_normal((20, 256)) * RNG.uniform(0.1, 3, (20, 1))).astype(np.float32)
TABLE = RNG.standard_normal((50, 64)).astype(np.float32)
SMALL = RNG.standard_normal((5, 20)).astype(np.float32)
BIAS = RNG.standard_normal(20).astype(np.float32)
INPUTS = {"x": RNG.standard_normal((2, 24, 4, 4)).astype(np.float32), "ids": np.array([3, 41], np.int32)}
NAMES = ["block_conv", "linear", "table"]
OLD, NEW = ct.target.iOS17, ct.target.iOS18
# Sums of 216 or 256 products of numbers of about 1, added by torch in float32 in two orders: 2e-6 was measured.
NEAR = {"rtol": 1e-5, "atol": 2e-5}


def build(x: Any, ids: Any) -> dict[str, Any]:
    seen = mb.conv(x=x, weight=mb.const(val=CONV, name="block_conv"), pad_type="same")
    flat = mb.reshape(x=seen, shape=(2, 256))
    wide = mb.linear(x=flat, weight=mb.const(val=LINEAR, name="linear"), bias=BIAS)
    looked = mb.gather(x=mb.const(val=TABLE, name="table"), indices=ids, axis=0)
    return {"y": mb.linear(x=wide, weight=mb.const(val=SMALL, name="small")), "z": looked}


def computed(
    conv: Array, linear: Array, table: Array, rounded: Callable[..., Any] = lambda x, _: x
) -> dict[str, Array]:
    """What the program gives with these weights, by torch; `rounded` is done to what enters a layer."""
    x = torch.from_numpy(INPUTS["x"])
    seen = F.conv2d(rounded(x, "x"), torch.from_numpy(conv), padding=1).reshape(2, 256)
    wide = F.linear(rounded(seen, "seen"), torch.from_numpy(linear), torch.from_numpy(BIAS))
    return {"y": F.linear(wide, torch.from_numpy(SMALL)).numpy(), "z": table[INPUTS["ids"]]}


def source_of(*packages: Path) -> Source:
    """The packages as a bundle's manifest would have them."""
    stored = Packages(
        packages=tuple(package.name for package in packages), precision="float32",
        inputs={name: Feature(name, str(array.dtype), "same") for name, array in INPUTS.items()},
        outputs={"y": "y", "z": "z"}, attention="original", deployment_target="iOS18", compute_units="ALL",
    )  # fmt: skip
    signature = Signature(
        tuple(TensorSpec(name, str(array.dtype), array.shape) for name, array in INPUTS.items()),
        (TensorSpec("y", "float32", (2, 5)), TensorSpec("z", "float32", (2, 64))),
    )
    head = packages[0] / "Manifest.json"
    return Source("unet", head, signature, msgspec.to_builtins(stored), "float32", True, {})


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Source]:
    """The program for systems that write compressed weights in the older and in the newer form."""
    return {
        one: source_of(write(tmp_path_factory.mktemp("package"), INPUTS, build, one))
        for one in (ct.target.iOS15, OLD, NEW)
    }


def answers(source: Source, folder: Path, **options: Any) -> dict[str, Array]:
    """What the compressed graph computes, opened as parity opens it."""
    graph = coreml.quantize(source, folder, name="model_q", **options)
    assert graph.dtype == options["scheme"]
    assert all(file.is_file() and file.parts[len(folder.parts)].startswith("model_q") for file in graph.extra_files)
    return dict(parity.open_exactly("coreml", graph.path, graph.signature, graph.stored).run(INPUTS))


def constants(package: Path) -> dict[str, Any]:
    """Each compressed weight's arguments as they lie in the package."""
    compressed = read_package(package).main.compressed
    return {
        name: {key: items[0].read() for key, items in operation.arguments.items()}
        for name, operation in compressed.items()
    }


def test_symmetric_integers_and_scales() -> None:
    weight = np.array([[127.0, -63.5, 0.4, 1.5, -2.5], [0, 0, 0, 0, 0], [2.54, -1.26, 0.02, 0.009, -0.031]], np.float32)
    integers, scale = symmetric(weight, 8, (1, 5), np.float32)
    # halves go to the even number
    assert integers.tolist() == [[127, -64, 0, 2, -2], [0, 0, 0, 0, 0], [127, -63, 1, 0, -2]]
    np.testing.assert_array_equal(scale, np.array([[1], [1], [2.54 / 127]], np.float32))


def test_symmetric_blocks_of_four_bits() -> None:
    weight = np.array([[7.0, -3.0, 0.5, 14.0, -7.0, 2.9], [1.0, 0.2, -0.4, 0.0, 0.0, 0.0]], np.float32)
    integers, scale = symmetric(weight, 4, (1, 3), np.float32)
    assert integers.tolist() == [[7, -3, 0, 7, -4, 1], [7, 1, -3, 0, 0, 0]]
    np.testing.assert_array_equal(scale, np.array([[1, 2], [1 / 7, 1]], np.float32))
    assert spread(scale, weight.shape)[0].tolist() == [1, 1, 1, 2, 2, 2]


def test_scales_are_used_as_they_are_stored() -> None:
    weight = np.array([[1000.0, 999.0, 501.5]], np.float32)  # 1000 / 127 in half precision is 7.875
    integers, scale = symmetric(weight, 8, (1, 3), np.float16)
    assert scale.dtype == np.float16
    assert scale.tolist() == [[7.875]]
    assert integers.tolist() == [[127, 127, 64]]
    small, tiniest = symmetric(np.array([[1e-7, 0.0]], np.float32), 8, (1, 2), np.float16)
    assert tiniest.item() == np.finfo(np.float16).smallest_subnormal
    assert small.tolist() == [[2, 0]]


@pytest.mark.parametrize("bits", [4, 8])
def test_float32_integers_are_those_of_coremltools(bits: int) -> None:
    kind = {4: types.int4, 8: types.int8}[bits]
    integers, scale, _ = ct_numbers.compute_qparams_by_dtype(LINEAR, kind, "LINEAR_SYMMETRIC", [1, 32])
    ours, our_scale = symmetric(LINEAR, bits, (1, 32), np.float32)
    np.testing.assert_array_equal(ours, integers)
    np.testing.assert_allclose(our_scale, scale, rtol=1e-6)  # (max + max) / (7 + 7) in another order


def test_tables_of_means() -> None:
    weight = np.array([[0.0, 0, 1, 1], [10, 10, 10, 12]], np.float32)
    indices, tables = palette(weight, 1, 1, np.float32)
    assert indices.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert tables.tolist() == [[0.5, 10.5]]
    indices, tables = palette(weight, 1, 2, np.float32)
    assert indices.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1]]
    assert tables.tolist() == [[0, 1], [10, 12]]
    # no more values than entries: nothing is lost
    indices, tables = palette(weight, 2, 1, np.float32)
    assert tables.tolist() == [[0, 1, 10, 12]]
    np.testing.assert_array_equal(unpalette(indices, tables), weight)


def test_tables_are_where_kmeans_stops() -> None:
    indices, (table,) = palette(LINEAR, 4, 1, np.float32)
    np.testing.assert_array_equal(indices, np.abs(LINEAR[..., None] - table).argmin(-1))
    for entry, value in enumerate(table):
        np.testing.assert_allclose(LINEAR[indices == entry].mean(dtype=np.float64), value, rtol=1e-6)
    # a uniform table of 16 has 23.4 dB here
    assert psnr_db(LINEAR, unpalette(indices, table[None])) > 30
    np.testing.assert_array_equal(palette(LINEAR, 4, 1, np.float32)[1][0], table)


def test_psnr() -> None:
    assert psnr_db(np.array([10.0, 0]), np.array([9.0, 1])) == pytest.approx(20)
    assert psnr_db(LINEAR, LINEAR) == float("inf")


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_packing_is_that_of_coremltools(bits: int) -> None:
    values = RNG.integers(0, 2**bits, 37).astype(np.uint8)
    np.testing.assert_array_equal(pack(values, bits), ct_numbers.pack_elements_into_bits(values, bits))


def test_weight_file_is_byte_for_byte_that_of_coremltools(tmp_path: Path) -> None:
    values = {
        "UINT1": RNG.integers(0, 2, 37), "UINT2": RNG.integers(0, 4, 37), "UINT3": RNG.integers(0, 8, 37),
        "UINT4": RNG.integers(0, 16, 37), "UINT6": RNG.integers(0, 64, 37), "UINT8": RNG.integers(0, 256, 37),
    }  # fmt: skip
    theirs = _BlobStorageWriter(str(tmp_path / "theirs"))
    with WeightWriter(tmp_path / "ours", tmp_path / "none") as writer:
        for kind, array in values.items():
            offset = getattr(theirs, f"write_{kind.lower()}_data")(array.astype(np.uint8))
            assert writer.value(array.astype(np.uint8), kind).blobFileValue.offset == offset
        signed = RNG.integers(-8, 8, 37).astype(np.int8)
        offset = theirs.write_int4_data(signed.astype(types.np_int4_dtype))
        assert writer.value(signed, "INT4").blobFileValue.offset == offset
        halves = RNG.standard_normal(11).astype(np.float16)
        theirs.write_fp16_data(halves.view(np.uint16))
        writer.value(halves)
    del theirs
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("system", [OLD, NEW])
@pytest.mark.parametrize("scheme", ["int8-weights", "int4-weights", "palette-8", "palette-6", "palette-4"])
def test_packages_compute_with_the_stored_weights(
    sources: dict[Any, Source], tmp_path: Path, scheme: str, system: Any
) -> None:
    if scheme == "int4-weights" and system == OLD:
        with pytest.raises(InputError, match=r"int4-weights needs iOS18.*for iOS17.*deployment_target=iOS18"):
            coreml.layers(sources[OLD], scheme)
        return
    found = answers(sources[system], tmp_path, scheme=scheme)
    weights = []
    for weight in (CONV, LINEAR, TABLE):
        if scheme.startswith("palette"):
            weights.append(unpalette(*palette(weight, int(scheme[-1]), 1, np.float32)))
            continue
        bits = int(scheme[3])
        block = largest_divisor(weight.shape[1], 32) if bits == 4 else weight.shape[1]
        integers, scale = symmetric(weight, bits, (1, block, *weight.shape[2:]), np.float32)
        weights.append(integers * spread(scale, weight.shape))
    expected = computed(*weights)
    np.testing.assert_allclose(found["y"], expected["y"], **NEAR)
    np.testing.assert_allclose(found["z"], expected["z"], rtol=1e-7)
    far = np.linalg.norm(found["y"] - computed(CONV, LINEAR, TABLE)["y"]) / np.linalg.norm(expected["y"])
    assert 1e-4 < far < {"8": 2e-2, "6": 5e-2, "4": 2e-1}[next(c for c in scheme if c.isdigit())]


@pytest.mark.parametrize("system", [OLD, NEW])
@pytest.mark.parametrize("scheme", ["int8-weights", "int4-weights", "palette-6", "int8-static"])
def test_coremltools_reads_the_same_weights(
    sources: dict[Any, Source], tmp_path: Path, scheme: str, system: Any
) -> None:
    if scheme == "int4-weights" and system == OLD:
        system = NEW
    graph = coreml.quantize(sources[system], tmp_path, scheme=scheme, name="m", calls=[INPUTS])
    package = graph.path.parent
    spec = ct.utils.load_spec(str(package))
    weights = str(package / "Data" / "com.apple.CoreML" / "weights")
    program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=weights)
    read = {one.outputs[0].name: one for one in program.functions["main"].operations}
    theirs = {
        name: one.materialized_val_inference() for name, one in read.items() if one.op_type.startswith("constexpr")
    }
    assert list(theirs) == NAMES
    compressed = read_package(package).main.compressed
    for name in NAMES:
        (ours,) = _Run(False, None).operation(compressed[name], {})
        np.testing.assert_allclose(ours.numpy(), theirs[name], rtol=1e-6)
    assert scheme in spec.description.metadata.shortDescription


def test_layers_in_order_with_kinds(sources: dict[Any, Source]) -> None:
    found = coreml.layers(sources[NEW], "int8-weights")
    assert [(one.name, one.kind, one.parameters) for one in found] == [
        ("block_conv", "conv", CONV.size), ("linear", "linear", LINEAR.size), ("table", "embedding", TABLE.size),
    ]  # fmt: skip


def test_what_is_kept_is_kept_to_the_bit(sources: dict[Any, Source], tmp_path: Path) -> None:
    graph = coreml.quantize(sources[NEW], tmp_path, scheme="palette-4", keep=["linear", "table"], name="m")
    before, after = (read_package(path).main for path in (sources[NEW].path, graph.path))
    assert list(after.compressed) == ["block_conv"]
    for name, constant in after.constants.items():
        old, new = before.constants[name].read(), constant.read()
        assert torch.equal(old, new) if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor) else old == new
    with pytest.raises(InputError, match=r"no layers up_blocks, wide"):
        coreml.quantize(sources[NEW], tmp_path, scheme="palette-4", keep=["wide", "up_blocks", "linear"], name="m")


def test_the_package_beside_it_is_left_alone(sources: dict[Any, Source]) -> None:
    package = sources[OLD].path.parent
    before = {file: file.read_bytes() for file in package.rglob("*") if file.is_file()}
    for _ in range(2):  # the second writes over the first
        coreml.quantize(sources[OLD], package.parent, scheme="int8-weights", name="again")
    assert {file: file.read_bytes() for file in package.rglob("*") if file.is_file()} == before


def test_fewest_bits_that_hold_a_floor(sources: dict[Any, Source], tmp_path: Path) -> None:
    for system, allowed in ((OLD, (1, 2, 4, 6, 8)), (NEW, (1, 2, 3, 4, 6, 8))):
        for floor in (15.0, 22.0, 38.0):
            graph = coreml.quantize(sources[system], tmp_path, scheme="palette-8", name="m", min_psnr=floor)
            found = constants(graph.path.parent)
            for name, weight in zip(NAMES, (CONV, LINEAR, TABLE), strict=True):
                quality = {b: psnr_db(weight, unpalette(*palette(weight, b, 1, np.float32))) for b in allowed}
                fewest = min(bits for bits in allowed if quality[bits] >= floor)
                assert found[name]["lut"].numel() == 2**fewest
    most = Palette(8, 4, None, 90.0).compressed(LINEAR)  # which no table of 16 holds
    assert most[2] == 4


def test_several_tables_to_a_weight(sources: dict[Any, Source], tmp_path: Path) -> None:
    graph = coreml.quantize(sources[NEW], tmp_path, scheme="palette-4", name="m", rows=8)
    found = constants(graph.path.parent)
    # 16 rows in twos of 8, 20 in fours of 5, 50 in tens of 5
    assert [tuple(found[name]["lut"].shape) for name in NAMES] == [
        (2, 1, 1, 1, 16, 1), (4, 1, 16, 1), (10, 1, 16, 1),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"rows.* needs iOS18"):
        coreml.quantize(sources[OLD], tmp_path, scheme="palette-4", name="m", rows=8)


def test_ranges_of_activations() -> None:
    scale, zero = rounding((-2.0, 2.54), np.float32, affine=False)
    assert (scale, zero) == (np.float32(2.54 / 127), 0)
    scale, zero = rounding((-0.55, 2.0), np.float32, affine=True)
    assert (scale, zero) == (np.float32(0.01), -73)  # -128 + 55
    assert rounding((0.0, 0.0), np.float16, affine=False) == (1, 0)
    assert rounding((1.0, 5.1), np.float32, affine=True)[1] == -128  # 0 is in the range


@pytest.mark.parametrize("activations", ["symmetric", "affine"])
@pytest.mark.parametrize("system", [OLD, NEW])
def test_static_activations(sources: dict[Any, Source], tmp_path: Path, system: Any, activations: str) -> None:
    found = answers(
        sources[system], tmp_path, scheme="int8-static", calls=[INPUTS], activations=activations, keep=["table"]
    )
    weights = []
    for weight in (CONV, LINEAR):
        integers, scale = symmetric(weight, 8, (1, *weight.shape[1:]), np.float32)
        weights.append(integers * scale)

    # ranges are of the float graph, whatever was rounded before a layer
    x = torch.from_numpy(INPUTS["x"])
    plain = {"x": x, "seen": F.conv2d(x, torch.from_numpy(CONV), padding=1)}

    def rounded(value: torch.Tensor, name: str) -> torch.Tensor:
        span = float(plain[name].min()), float(plain[name].max())
        scale, zero = rounding(span, np.float32, activations == "affine")
        whole = torch.clamp(torch.round(value / torch.from_numpy(scale)) + int(zero), -128, 127)
        return (whole - int(zero)) * torch.from_numpy(scale)

    expected = computed(weights[0], weights[1], TABLE, rounded)
    # a value that lies on the edge between two integers may go to the other one: none does here
    np.testing.assert_allclose(found["y"], expected["y"], **NEAR)
    np.testing.assert_array_equal(found["z"], TABLE[INPUTS["ids"]])
    far = np.linalg.norm(found["y"] - computed(CONV, LINEAR, TABLE)["y"]) / np.linalg.norm(expected["y"])
    assert 1e-3 < far < 4e-2


def test_a_value_that_two_layers_read_is_rounded_once(tmp_path: Path) -> None:
    def twice(x: Any, ids: Any) -> dict[str, Any]:
        flat = mb.reshape(x=mb.reduce_sum(x=x, axes=[1]), shape=(2, 16))
        wide = mb.linear(x=flat, weight=mb.const(val=LINEAR[:, :128].reshape(160, 16), name="one"))
        other = mb.linear(x=flat, weight=mb.const(val=LINEAR[:, 128:].reshape(160, 16), name="two"))
        looked = mb.gather(x=mb.const(val=TABLE, name="table"), indices=ids, axis=0)
        return {"y": mb.slice_by_size(x=mb.add(x=wide, y=other), begin=[0, 0], size=[2, 5]), "z": looked}

    source = source_of(write(tmp_path / "a", INPUTS, twice, NEW))
    graph = coreml.quantize(source, tmp_path, scheme="int8-static", name="m", calls=[INPUTS])
    kinds = open_package(graph.path).operations
    assert (kinds["quantize"], kinds["dequantize"], kinds["linear"]) == (1, 1, 2)
    kept = coreml.quantize(source, tmp_path, scheme="int8-static", name="k", calls=[INPUTS], keep=["one", "two"])
    assert "quantize" not in open_package(kept.path).operations


def test_both_halves_of_a_graph(sources: dict[Any, Source], tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", INPUTS, build, NEW)
    halves = [tmp_path / "UnetChunk1.mlpackage", tmp_path / "UnetChunk2.mlpackage"]
    split_package(whole, halves)
    source = source_of(*halves)
    assert {one.name for one in coreml.layers(source, "palette-4")} == set(NAMES)
    for options in ({"scheme": "palette-4"}, {"scheme": "int8-static", "calls": [INPUTS]}):
        options |= {"keep": ["linear"]}
        one = answers(sources[NEW], tmp_path / "one", **options)
        two = answers(source, tmp_path / "two", **options)
        assert len(list((tmp_path / "two").glob("model_q_*.mlpackage"))) == 2
        np.testing.assert_array_equal(two["y"], one["y"])
        np.testing.assert_array_equal(two["z"], one["z"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheme": "int8-dynamic"}, r"unknown scheme.*int8-dynamic.*palette-4"),
        ({"scheme": "int8-static"}, "int8-static needs recorded calls of"),
        ({"scheme": "int8-static", "calls": [{"x": INPUTS["x"][:1], "ids": INPUTS["ids"]}]}, "of the graph's sizes"),
        ({"scheme": "int4-weights", "block_size": 0}, "block_size=0"),
        ({"scheme": "palette-4", "rows": 1.5}, "rows=1.5"),
        ({"scheme": "palette-4", "min_psnr": -3}, "min_psnr=-3"),
        ({"scheme": "int8-weights", "min_psnr": 40.0}, "min_psnr is for palette-N"),
        ({"scheme": "palette-4", "activations": "affine"}, "activations is for int8-static"),
        (
            {"scheme": "int8-static", "activations": "round", "calls": [INPUTS]},
            "unknown form of int8 activations 'round'",
        ),
    ],
)
def test_refusals(sources: dict[Any, Source], tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        coreml.quantize(sources[NEW], tmp_path, name="m", **options)
    assert not list(tmp_path.iterdir())


def test_systems_without_compressed_weights(sources: dict[Any, Source]) -> None:
    with pytest.raises(InputError, match=r"palette-8 needs iOS16.*for iOS15"):
        coreml.layers(sources[ct.target.iOS15], "palette-8")


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    def broken(x: Any, ids: Any) -> dict[str, Any]:
        weight = CONV.copy()
        weight[3, 2] = np.inf
        seen = mb.conv(x=x, weight=mb.const(val=weight, name="conv"), pad_type="same")
        looked = mb.gather(x=mb.const(val=TABLE, name="table"), indices=ids, axis=0)
        return {"y": mb.slice_by_size(x=mb.reshape(x=seen, shape=(2, 256)), begin=[0, 0], size=[2, 5]), "z": looked}

    source = source_of(write(tmp_path / "a", INPUTS, broken, NEW))
    with pytest.raises(ExportError, match="conv has weights that are not finite"):
        coreml.quantize(source, tmp_path, scheme="int8-weights", name="m")
    coreml.quantize(source, tmp_path, scheme="int8-weights", name="m", keep=["conv"])


@pytest.mark.parametrize("name", ["sd", "sdxl", "controlnet", "pixart"])
def test_names_with_underscores_find_their_dots(tmp_path: Path, name: str) -> None:
    pipe = getattr(tiny, name)(tmp_path)
    modules = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)
    names = {path for module in modules for path, layer in module.named_modules() if isinstance(layer, layers)}
    assert len(names) > 40
    assert {path: dotted(path.replace(".", "_")) for path in names} == {path: path for path in names}


def test_a_text_encoder_by_its_modules_names(tmp_path: Path, tiny_sd: Any) -> None:
    (component,) = (one for one in capture(tiny_sd.pipe) if one.role == "text_encoder")
    exported = target.export(component, tmp_path, deployment_target="iOS18")
    source = Source("text_encoder", exported.path, exported.signature, exported.stored, exported.dtype, False, {})
    found = {layer.name: layer for layer in coreml.layers(source, "int8-weights")}
    modules = dict(tiny_sd.pipe.text_encoder.named_modules())
    assert "embeddings.token_embedding" in found
    for name, layer in found.items():
        assert modules[name].weight.numel() == layer.parameters, name
    graph = coreml.quantize(source, tmp_path, scheme="int8-weights", name="m")
    certificate = parity.check(
        component, parity.open_exactly("coreml", graph.path, graph.signature, graph.stored).run, "float16",
        signature=graph.signature, limit=5e-2,
    )  # fmt: skip
    assert certificate.rel_l2 > 2e-3  # the float16 package is 1e-3 from the model; int8 is measured, not float
