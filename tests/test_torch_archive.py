"""A `.pt2` program is opened as data: what could be more is refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets.torch import export
from ingot.runtimes import devices as kinds
from ingot.runtimes.devices.policy import Policy
from ingot.runtimes.engines import torch as engine
from ingot.runtimes.engines._torch_archive import Archive, read_safetensors
from ingot.runtimes.engines._torch_checked import batch_norm_no_training, checked
from ingot.runtimes.engines._torch_graph import read_program
from ingot.runtimes.engines._torch_operators import ALLOWED
from ingot.runtimes.engines.torch import open_graph
from ingot.runtimes.errors import EngineError

from .torch_cases import micro


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, GraphFile]:
    """`Micro` as a program."""
    component = micro()
    return component, export(component, tmp_path_factory.mktemp("graph") / "micro")


def edited(graph: GraphFile, folder: Path, change: Callable[[str, bytes], bytes | None], **extra: bytes) -> Path:
    """A copy of the archive with members changed, dropped (None) or added."""
    path = folder / "model.pt2"
    with zipfile.ZipFile(graph.path) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            content = change(info.filename.partition("/")[2], old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
        for name, content in extra.items():
            new.writestr(f"model/{name}", content)
    return path


def replacing(member: str, old: bytes, new: bytes) -> Callable[[str, bytes], bytes | None]:
    def change(name: str, content: bytes) -> bytes:
        assert name != member or old in content
        return content.replace(old, new) if name == member else content

    return change


MODEL, CONFIG = "models/model.json", "data/weights/model_weights_config.json"


HARMFUL = {
    "pickled weight": (replacing(CONFIG, b'"use_pickle": false', b'"use_pickle": true'), {}, "is pickled; only plain"),
    "a member with an object": (lambda _, c: c, {"data/constants/opaque_obj_0": b"x"}, "more than a program .*opaque_obj_0"),
    "compiled code": (lambda _, c: c, {"data/aotinductor/model/a.so": b"\x7fELF"}, "more than a program"),
    "a command": (
        replacing(MODEL, b"torch.ops.aten.silu.default", b"torch.os.system"), {}, "'torch.os.system' is not one that Ingot opens"
    ),
    "a file that is read": (
        replacing(MODEL, b"torch.ops.aten.silu.default", b"torch.ops.aten.from_file.default"), {}, "from_file.default' is not one"
    ),
    "somebody's operator": (
        replacing(MODEL, b"torch.ops.aten.silu.default", b"torch.ops.mine.silu.default"), {}, "mine.silu.default' is not one"
    ),
    "another schema": (replacing(MODEL, b'"major": 8', b'"major": 9'), {}, "version 9 .* reads 8: export again"),
    "no program": (lambda name, c: None if name == MODEL else c, {}, "models/model.json is missing"),
    "half a program": (lambda name, c: c[: len(c) // 2] if name == MODEL else c, {}, "models/model.json cannot be read"),
    "a weight too short": (lambda name, c: c[:-4] if name.endswith("weight_0") else c, {}, "does not fit its .* bytes"),
    "an empty weight": (lambda name, c: b"" if name.endswith("weight_0") else c, {}, "does not fit its 0 bytes"),
    "a value that nothing made": (replacing(MODEL, b'"name": "silu"', b'"name": "sigh"'), {}, None),
}  # fmt: skip


PYTHON = b"x=__import__('pathlib').Path('HERE').touch() or False, pin_memory"
AS_PYTHON = {
    "a keyword of an operator": (b'"name": "pin_memory"', b'"name": "' + PYTHON + b'"', "arange.default' has no argument"),
    "a keyword of a size": (
        b'"target": "torch.ops.aten.arange.default", "inputs": [',
        b'"target": "_operator.mul", "inputs": [{"name": "' + PYTHON + b'", "arg": {"as_int": 2}, "kind": 2}, ',
        "_operator.mul' has no argument",
    ),
    "a constant": (b'"arg": {"as_int": 8}', b'"arg": {"as_int": {"' + PYTHON + b'": 1}}', "no constant of kind 'as_int'"),
    "a list": (b'{"as_ints": [1, 1]}', b'{"as_ints": [{"' + PYTHON + b'": 1}]}', "no constant of kind 'as_ints'"),
}  # fmt: skip


@pytest.mark.parametrize("place", AS_PYTHON)
def test_nothing_of_the_file_becomes_python_source(
    small: tuple[Component, GraphFile], tmp_path: Path, place: str
) -> None:
    component, graph = small
    old, new, message = AS_PYTHON[place]
    harm = tmp_path / "harm"
    path = edited(graph, tmp_path, replacing(MODEL, old, new.replace(b"HERE", str(harm).encode())))
    with pytest.raises(EngineError, match=message):
        read_program(Archive(path))(*component.calls[0].inputs.values())
    assert not harm.exists()


@pytest.mark.parametrize(
    "name",
    ["_reshape_alias.default", "add_.Tensor", "fill_.Scalar", "_sparse_coo_tensor_unsafe.default", "as_strided.default",
     "_upsample_bilinear2d_aa.default", "_upsample_bilinear2d_aa.vec", "_upsample_bicubic2d_aa.default",
     "_upsample_bicubic2d_aa.vec", "silu.out", "empty.memory_format", "repeat_interleave.Tensor", "__class__.mro"],
)  # fmt: skip
def test_operators_that_are_not_listed_are_refused(
    small: tuple[Component, GraphFile], tmp_path: Path, name: str
) -> None:
    path = edited(small[1], tmp_path, replacing(MODEL, b"aten.silu.default", f"aten.{name}".encode()))
    with pytest.raises(
        EngineError, match=rf"operator 'torch\.ops\.aten\.{name}' is not one that .* export .* again .* or report"
    ):
        read_program(Archive(path))


def test_every_listed_operator_exists_and_writes_to_none_of_its_arguments() -> None:
    for name in ALLOWED:
        packet, _, overload = name.partition(".")
        schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
        assert not schema.is_mutable, name
        assert not any("Generator" in str(a.type) or "Storage" in str(a.type) for a in schema.arguments), name


IMAGE, BYTES = torch.zeros(1, 3, 8, 6, device="meta"), torch.zeros(1, 3, 8, 6, dtype=torch.uint8, device="meta")
NEAREST, BICUBIC, VEC = "upsample_nearest2d.default", "upsample_bicubic2d.default", "upsample_bilinear2d.vec"
UPSAMPLINGS = {
    "bytes": (NEAREST, (BYTES, [16, 12]), "the input is torch.uint8, and only floats"),
    "bytes by a scale": (VEC, (BYTES, None, False, [2.0, 2.0]), "the input is torch.uint8"),
    "a scale that is next to nothing": (BICUBIC, (IMAGE, [16, 12], False, 2.0, 1e-6), "1e-06 is not between 1/1024 and"),
    "no number": (NEAREST, (IMAGE, [16, 12], float("nan"), 2.0), "a scale of nan is not between"),
    "a scale below zero": (VEC, (IMAGE, None, False, [-2.0, 2.0]), "a scale of -2.0 is not between"),
    "a scale of millions": (VEC, (IMAGE, None, False, [2.0, 1e6]), "a scale of 1000000.0 is not between"),
    "another size": (NEAREST, (IMAGE, [16, 12], 2.0, 0.5), "0.5 does not make 12 of 6 pixels"),
    "a pixel too many": ("_upsample_nearest_exact2d.default", (IMAGE, [17, 12], 2.0, 2.0), "2.0 does not make 17 of 8"),
    "too many sizes": (NEAREST, (IMAGE, [16, 12, 1], 2.0, 2.0), "3 sizes for 2 axes"),
}  # fmt: skip


def overload(name: str) -> torch._ops.OpOverload:
    packet, _, which = name.partition(".")
    found = getattr(getattr(torch.ops.aten, packet), which)
    assert isinstance(found, torch._ops.OpOverload)
    return found


@pytest.mark.parametrize("what", UPSAMPLINGS)
def test_upsampling_is_of_floats_by_scales_that_make_the_size(what: str) -> None:
    """On tensors without memory, which no kernel reads."""
    name, arguments, message = UPSAMPLINGS[what]
    with pytest.raises(EngineError, match=rf"^aten\.{name}: .*{message}"):
        checked(overload(name))(*arguments)


def test_upsampling_that_fits_is_torchs_own() -> None:
    image = torch.randn(1, 3, 7, 6, generator=torch.Generator().manual_seed(0))
    for name, arguments in (
        (NEAREST, ([14, 9], 2.0, 1.5)), (NEAREST, ([5, 5],)), (VEC, (None, False, [1.1, 0.3])), (VEC, ([9, 9], True, None)),
        (BICUBIC, ([3, 1], False, 0.45, 0.3)), ("_upsample_nearest_exact2d.vec", (None, [2.0, 2.0])),
    ):  # fmt: skip
        operator = overload(name)
        assert torch.equal(checked(operator)(image, *arguments), operator(image, *arguments))


def test_every_upsampling_that_is_listed_is_checked() -> None:
    found = [name for name in ALLOWED if "upsample" in name]
    assert len(found) == 20
    assert all(checked(overload(name)) is not overload(name) for name in found)


def test_a_scale_that_was_edited_is_refused(tmp_path: Path) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, scale_factor=2.0)

    x = torch.randn(1, 3, 4, 4)
    torch.export.save(torch.export.export(Doubled(), (x,)), tmp_path / "whole.pt2")
    whole = Archive(tmp_path / "whole.pt2")
    (y,) = read_program(whole)(x)
    assert torch.equal(y, Doubled()(x))
    broken = whole.json(MODEL)
    for node in broken["graph_module"]["graph"]["nodes"]:
        node["inputs"][-1]["arg"] = {"as_floats": [1e-6, 1e-6]}
    with zipfile.ZipFile(tmp_path / "whole.pt2") as old, zipfile.ZipFile(tmp_path / "model.pt2", "w") as new:
        for info in old.infolist():
            content = json.dumps(broken).encode() if info.filename.endswith(MODEL) else old.read(info)
            new.writestr(info.filename, content)
    with pytest.raises(EngineError, match="a scale of 1e-06 is not between"):
        read_program(Archive(tmp_path / "model.pt2"))(x)


def test_batch_norm_has_a_parameter_for_each_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    image, parameters = torch.randn(2, 64, 3, 3, generator=generator), torch.rand(4, 64, generator=generator)
    expected = torch.ops.aten._native_batch_norm_legit_no_training.default(image, *parameters, 0.1, 1e-5)
    found = batch_norm_no_training(image, *parameters, 0.1, 1e-5)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for place in range(4):
        given = [one[:1] if place == number else one for number, one in enumerate(parameters)]
        with pytest.raises(RuntimeError, match="should contain 64 elements not 1"):
            batch_norm_no_training(image, *given, 0.1, 1e-5)


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.minimum(x.masked_fill(x > 0, float("-inf")) + 1, torch.full((1,), float("inf")))

    torch.export.save(torch.export.export(Masked(), (torch.ones(3),)), tmp_path / "model.pt2")
    x = torch.tensor([1.0, -1.0, 0.0])
    expected = torch.tensor([-float("inf"), 0.0, 1.0])
    (found,) = read_program(Archive(tmp_path / "model.pt2"))(x)
    assert torch.equal(found, expected)


BROKEN = {
    "a dtype that is none": (CONFIG, b'"dtype": 7', b'"dtype": []'),
    "no configuration": (CONFIG, b'"config"', b'"confif"'),
    "JSON that is too deep": (MODEL, b'"schema_version": {', b'"x": ' + b"[" * 100000 + b"]" * 100000 + b', "schema_version": {'),
    "an output with two kinds": (MODEL, b'"outputs": [{"as_tensor"', b'"outputs": [{"as_none": 1, "as_tensor"'),
    "a shape of text": (CONFIG, b'"sizes": [{"as_int": 8}', b'"sizes": [{"as_int": "8"}'),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_whatever_is_broken_is_an_engine_error(small: tuple[Component, GraphFile], tmp_path: Path, what: str) -> None:
    component, graph = small
    path = edited(graph, tmp_path, replacing(*BROKEN[what]))
    with pytest.raises(EngineError, match=r"model\.pt2"):
        open_graph(path, component.signature, device="cpu")


def test_a_header_past_the_end_is_an_engine_error(small: tuple[Component, GraphFile], tmp_path: Path) -> None:
    content = small[1].path.read_bytes()
    at = content.rindex(
        b"PK\x01\x02", 0, content.rindex(b"models/model.json")
    )  # the directory's entry; 42 bytes on is where its header lies
    (tmp_path / "model.pt2").write_bytes(content[: at + 42] + b"\xf0\xff\xff\x7f" + content[at + 46 :])
    with pytest.raises(EngineError, match=r"model\.pt2"):
        open_graph(tmp_path / "model.pt2", small[0].signature, device="cpu")


def test_memory_that_is_full_while_opening_says_what_would_do(
    small: tuple[Component, GraphFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "read_program", full)
    monkeypatch.setattr(kinds, "policy_for", lambda *_: Policy("cuda", explain=lambda _: "a smaller picture would do"))
    with pytest.raises(EngineError, match=r"on cuda: .*CUDA out of memory; a smaller picture would do"):
        open_graph(small[1].path, small[0].signature, device="cuda")


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_program_that_is_more_than_data_is_refused(
    small: tuple[Component, GraphFile], tmp_path: Path, harm: str
) -> None:
    _, graph = small
    change, extra, message = HARMFUL[harm]
    path = edited(graph, tmp_path, change, **extra)
    if message is None:  # renamed where it is made and where it is used alike: only a key, so it works
        assert read_program(Archive(path))
        return
    with pytest.raises(EngineError, match=message):
        read_program(Archive(path))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"PK and then nothing")
    signature = micro().signature
    for path in (tmp_path / "model.pt2", tmp_path / "absent.pt2"):
        with pytest.raises(EngineError, match=r"is not a \.pt2 archive"):
            open_graph(path, signature, device="cpu")


def test_safetensors_are_read_as_they_are(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    made = {"half": torch.randn(3, 5).bfloat16(), "ids": torch.arange(7), "none": torch.zeros(0, 4)}
    save_file(made, tmp_path / "a.safetensors")
    found = read_safetensors(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in made.items())
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(EngineError, match="is not a safetensors file"):
        read_safetensors(tmp_path / "b.safetensors")


def test_float64_becomes_float32_where_a_device_has_none(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("wide", torch.ones(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.float64) * self.wide).to(torch.float64)

    torch.export.save(torch.export.export(Wide(), (torch.ones(3),)), tmp_path / "model.pt2")
    (wide,) = read_program(Archive(tmp_path / "model.pt2"))(torch.ones(3))
    (narrow,) = read_program(Archive(tmp_path / "model.pt2"), no_float64=True)(torch.ones(3))
    assert (wide.dtype, narrow.dtype) == (torch.float64, torch.float32)
