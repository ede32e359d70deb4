"""A `.pt2` program is opened as data: what could be more is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets.torch import export
from ingot.runtimes.engines._torch_archive import Archive, read_safetensors
from ingot.runtimes.engines._torch_graph import read_program
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
        replacing(MODEL, b"torch.ops.aten.silu.default", b"torch.os.system"), {}, "operator 'torch.os.system' is not one"
    ),
    "a file that is read": (
        replacing(MODEL, b"torch.ops.aten.silu.default", b"torch.ops.aten.from_file.default"), {}, "from_file.default' is not"
    ),
    "somebody's operator": (
        replacing(MODEL, b"torch.ops.aten.silu.default", b"torch.ops.mine.silu.default"), {}, "mine.silu.default' is not"
    ),
    "another schema": (replacing(MODEL, b'"major": 8', b'"major": 9'), {}, "version 9 .* reads 8: export again"),
    "no program": (lambda name, c: None if name == MODEL else c, {}, "models/model.json is missing"),
    "half a program": (lambda name, c: c[: len(c) // 2] if name == MODEL else c, {}, "models/model.json cannot be read"),
    "a weight too short": (lambda name, c: c[:-4] if name.endswith("weight_0") else c, {}, "does not fit its .* bytes"),
    "a value that nothing made": (replacing(MODEL, b'"name": "silu"', b'"name": "sigh"'), {}, None),
}  # fmt: skip


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
