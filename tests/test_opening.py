"""Opening the graphs of a bundle: side by side where that pays, and what is left when one cannot be opened."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ingot
from ingot.runtimes import load
from ingot.runtimes.engines import Engine, _onnx_level, onnx
from ingot.runtimes.engines._onnx_level import LEVELS, optimization_level
from ingot.runtimes.errors import BundleError, EngineError, InputError
from ingot.runtimes.load import _open_all
from ingot.runtimes.signature import Signature

ROLES = ("text_encoder", "unet", "vae_decoder")


def nothing() -> None:
    pass


class Opened:
    """An engine that says where it was opened."""

    signature = Signature((), ())

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(inputs)

    def close(self) -> None:
        pass


def opening(wait: threading.Barrier | None = None, error: Exception | None = None) -> Callable[[], Engine]:
    def open_one() -> Engine:
        if wait is not None:
            wait.wait(timeout=30)  # passes when all of them are being opened at once
        if error is not None:
            raise error
        return Opened()

    return open_one


def test_graphs_are_opened_at_once_and_stay_in_the_order_of_their_roles() -> None:
    engines: dict[str, Engine] = {}
    wait = threading.Barrier(3)
    _open_all({name: opening(wait) for name in ROLES}, engines, together=True, meanwhile=nothing)
    assert tuple(engines) == ROLES


def test_what_needs_no_graph_is_made_in_the_thread_that_asked_while_they_are_opened() -> None:
    engines: dict[str, Engine] = {}
    wait = threading.Barrier(len(ROLES) + 1)

    def made() -> int:
        wait.wait(timeout=30)  # passes while all of them are being opened
        return threading.get_ident()

    found = _open_all({name: opening(wait) for name in ROLES}, engines, together=True, meanwhile=made)
    assert (found, len(engines)) == (threading.get_ident(), 3)


def test_one_after_another_they_are_opened_in_the_thread_that_asked() -> None:
    engines: dict[str, Any] = {}
    made = _open_all({"a": opening(), "b": opening()}, engines, together=False, meanwhile=lambda: len(engines))
    assert made == 2
    assert {engine.thread for engine in engines.values()} == {threading.get_ident()}


@pytest.mark.parametrize("together", [True, False])
def test_the_first_error_by_role_is_raised_and_what_was_opened_is_there_to_close(together: bool) -> None:
    engines: dict[str, Engine] = {}
    openings = {"a": opening(), "b": opening(error=EngineError("b")), "c": opening(error=EngineError("c"))}
    with pytest.raises(EngineError, match=r"^b$"):
        _open_all(openings, engines, together=together, meanwhile=nothing)
    assert list(engines) == ["a"]


@pytest.mark.parametrize("together", [True, False])
def test_graphs_are_closed_when_the_rest_of_a_bundle_cannot_be_read(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    closed: list[str] = []
    opened = load.open_engine

    def noted(bundle: Any, graph: Any, **options: Any) -> Any:
        engine = opened(bundle, graph, **options)
        monkeypatch.setattr(engine, "close", lambda: closed.append(graph.files[0].partition("/")[0]))
        return engine

    def no_tokenizer(_: Path) -> Any:
        raise BundleError("no tokenizer")

    monkeypatch.setattr(load, "open_engine", noted)
    monkeypatch.setattr(load, "Tokenizer", no_tokenizer)
    with pytest.raises(BundleError, match="no tokenizer"):
        ingot.load(tiny_bundle, engine="onnx", threads=2 if together else 1)
    assert sorted(closed) == sorted(ROLES)


def test_what_is_wrong_with_files_goes_before_what_is_wrong_with_their_engine(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    for name in ("text_encoder/model.onnx_data", "vae_encoder/model.onnx_data"):
        with (bundle / name).open("r+b") as stream:
            first = stream.read(1)
            stream.seek(0)
            stream.write(bytes([first[0] ^ 1]))
    script = f"""
import sys
sys.modules["onnxruntime"] = None  # not installed
import ingot
try:
    ingot.load({str(bundle)!r}, engine="onnx", device="cpu")
except ingot.BundleError as error:
    print(error)
try:
    ingot.load({str(tiny_bundle)!r}, engine="onnx", device="cpu")
except ingot.EngineError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    changed, missing = done.stdout.splitlines()
    assert "text_encoder/model.onnx_data has another sha256" in changed
    assert "vae_encoder/model.onnx_data has another sha256" in changed
    assert "pip install onnxruntime" in missing


def test_a_changed_graph_is_said_to_be_changed_whatever_its_engine_makes_of_it(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    for graph in bundle.glob("unet/*.onnx"):  # no engine can read this
        graph.write_bytes(b"\xff" * graph.stat().st_size)
    with pytest.raises(EngineError, match="cannot open"):
        ingot.load(bundle, engine="onnx", device="cpu", verify=False)
    with pytest.raises(BundleError, match=r"unet/\S+ has another sha256"):
        ingot.load(bundle, engine="onnx", device="cpu")


def test_graphs_of_a_changed_file_are_closed(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "tokenizer" / "tokenizer.json").write_bytes((bundle / "tokenizer" / "tokenizer.json").read_bytes()[::-1])
    opened: list[Any] = []
    build = load.open_engine
    monkeypatch.setattr(
        load, "open_engine", lambda *given, **options: opened.append(build(*given, **options)) or opened[-1]
    )
    monkeypatch.setattr(load, "Tokenizer", lambda _: None)  # reads what it is given
    with pytest.raises(BundleError, match=r"tokenizer/tokenizer\.json has another sha256"):
        ingot.load(bundle, engine="onnx", device="cpu")
    assert len(opened) == len(ROLES)
    assert all(engine.session is None for engine in opened)


def test_an_engine_that_may_run_what_a_file_says_opens_none_before_all_are_hashed(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "SIDE_BY_SIDE", {"openvino"})
    monkeypatch.setattr(load, "open_engine", lambda *_, **__: pytest.fail("was opened"))
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    weights = next(bundle.glob("unet/*_data"))
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(BundleError, match="has another sha256"):
        ingot.load(bundle, engine="onnx", device="cpu")


def test_pictures_and_tokenizers_are_imported_while_graphs_are_opened(tiny_bundle: Path) -> None:
    script = f"""
import sys, threading
import ingot
ingot.load
from ingot.runtimes import load, pipelines
pipelines.pipeline_class("StableDiffusionPipeline")
late = {{*load.LATE, "tokenizers"}}
assert not late & set(sys.modules), late & set(sys.modules)
ingot.load({str(tiny_bundle)!r}, engine="onnx").close()
assert late <= set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pictures_are_made_where_no_bundle_was_loaded() -> None:
    script = """
import sys
import numpy as np
from ingot.runtimes.images import to_pil, to_pixels
assert "PIL.Image" not in sys.modules
picture, = to_pil(np.full((1, 4, 6, 3), 0.5, np.float32))
assert (picture.size, picture.getpixel((0, 0))) == ((6, 4), (128, 128, 128))
assert to_pixels(picture, (8, 12)).shape == (1, 3, 8, 12)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_picture_does_not_depend_on_how_the_graphs_were_opened(tiny_bundle: Path) -> None:
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "seed": 0, "progress": False, "output_type": "np"}
    found = []
    for threads in (1, 2):  # with one thread they are opened one after another
        with ingot.load(tiny_bundle, engine="onnx", threads=threads) as pipe:
            found.append(pipe("a cat", **call).images)
    np.testing.assert_allclose(*found, rtol=0, atol=1e-5)  # 0 was measured; sums may be taken in another order


def test_on_a_processor_onnx_runtime_plans_no_memory_beforehand() -> None:
    on_cpu, elsewhere = (onnx._options(None, True, on_cpu, LEVELS["all"]) for on_cpu in (True, False))
    assert not on_cpu.enable_mem_reuse
    assert not on_cpu.enable_mem_pattern
    assert elsewhere.enable_mem_reuse
    assert elsewhere.enable_mem_pattern


def test_many_weights_are_laid_out_anew_only_for_many_calls(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unet = tiny_bundle / "unet" / "model.onnx"
    assert optimization_level("auto", unet) == LEVELS["all"]
    weights = sum(one.stat().st_size for one in unet.parent.iterdir() if one.suffix != ".json")
    assert (
        optimization_level("auto", tmp_path / "missing.onnx") == LEVELS["all"]
    )  # the engine says what is wrong with it
    monkeypatch.setattr(_onnx_level, "LARGE", weights // 2)
    assert optimization_level("auto", unet) == LEVELS["extended"]
    assert optimization_level("auto", None) == LEVELS["all"]  # not on a processor
    assert optimization_level(None, unet) == LEVELS["all"]
    told = r"unknown graph_optimization_level 'fast'; available: all, auto, basic, disable, extended"
    with pytest.raises(InputError, match=told):
        ingot.load(tiny_bundle, engine="onnx", graph_optimization_level="fast")
    seen: list[Any] = []
    monkeypatch.setattr(
        onnx, "optimization_level", lambda name, file: seen.append(name) or optimization_level(name, file)
    )
    ingot.verify(tiny_bundle, deep=True)
    assert set(seen) == {"auto"}


def test_a_picture_is_the_same_at_every_level_of_optimization(tiny_bundle: Path) -> None:
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "seed": 0, "progress": False, "output_type": "np"}
    found = []
    for level in LEVELS:
        with ingot.load(tiny_bundle, engine="onnx", graph_optimization_level=level) as pipe:
            found.append(pipe("a cat", **call).images)
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=0, atol=1e-5)


def test_a_thread_without_work_soon_sleeps() -> None:
    found = onnx._options(2, True, True, LEVELS["all"]).get_session_config_entry("session.intra_op.spin_duration_us")
    assert int(found) == onnx.SPIN_US <= 1000


def test_openvinos_converter_is_imported_when_it_is_asked_for() -> None:
    script = """
import sys
import ingot.runtimes.engines.openvino
import openvino
assert "openvino.tools.ovc" not in sys.modules
assert not hasattr(openvino, "no_such_name")
assert openvino.tools.ovc.convert_model
from openvino import convert_model
assert convert_model is sys.modules["openvino.tools.ovc"].convert_model
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_where_openvino_was_imported_before_nothing_is_changed() -> None:
    script = """
import openvino
import ingot.runtimes.engines.openvino
assert "convert_model" in vars(openvino) and "__getattr__" not in vars(openvino)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_opened_after_an_interrupt_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads go on opening when the caller is told to stop."""
    closed: list[str] = []

    class Closing(Opened):
        def close(self) -> None:
            closed.append("one")

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "wait", interrupted)
    engines: dict[str, Engine] = {}
    with pytest.raises(KeyboardInterrupt):
        _open_all({"unet": Closing, "vae_decoder": Closing}, engines, together=True, meanwhile=nothing)
    assert (engines, closed) == ({}, ["one", "one"])
