"""Weights are let go of when nothing that is still to come needs them, and only where nobody else holds the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ingot.exporters import cast
from ingot.exporters.capture import capture
from ingot.exporters.checkpoint import load_checkpoint
from ingot.exporters.component import Component
from ingot.exporters.export import load
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.request import request
from ingot.runtimes.manifest import Graph


def numbers(component: Component) -> int:
    return sum(parameter.numel() for parameter in component.source.parameters())


@pytest.mark.parametrize("let_go", [True, False])
def test_a_component_without_its_weights_is_certified(
    let_go: bool, tiny_sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    components = capture(load_checkpoint(tiny_sd.folder).pipe)
    whole = {component.role: numbers(component) for component in components}
    at_writing: dict[str, int] = {}
    at_checking: dict[str, int] = {}

    def write(component: Component, _name: str, folder: Path, *_: Any) -> GraphFile:
        at_writing[component.role] = numbers(component)
        return GraphFile(component.role, folder / component.role / "model", (), "float32", False, component.signature)

    def certified(component: Component, name: str, written: GraphFile, *_: Any) -> Graph:
        at_checking[component.role] = numbers(component)
        return Graph(engine=name, precision="float32", files=("model",), signature=written.signature)

    monkeypatch.setattr(cast, "_write", write)
    monkeypatch.setattr(cast, "certified", certified)
    wanted = request("onnx", None, None, None, 1, False, None, False)
    entries, _ = cast.cast_components(components, tmp_path, wanted, let_go=let_go)
    assert list(whole) == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert at_writing == whole
    # the encoder is of the decoder's own module
    gone = {"text_encoder": 0, "unet": 0, "vae_encoder": 0} if let_go else {}
    assert at_checking == {**whole, **gone}
    assert {role: entry.parameters for role, entry in entries.items()} == whole


def test_a_model_of_somebody_else_keeps_its_weights(tiny_sd: Any) -> None:
    assert load(tiny_sd.folder).ours
    assert load(tiny_sd.folder, vae=tiny_sd.folder / "vae").ours
    assert not load(tiny_sd.pipe).ours
    assert not load(tiny_sd.folder, vae=tiny_sd.pipe.vae).ours
    assert not load(tiny_sd.pipe, vae=tiny_sd.folder / "vae").ours
