"""Casting from end to end: what is refused, what is left behind, what others read."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import ingot
from ingot import Bundle, ExportError, InputError, ParityError
from ingot.exporters.picture import reference_picture

from .eager import ATOL, eager, running


def leftovers(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_bundle_has_what_the_manifest_and_other_readers_want(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "vae_decoder/config.json",
        "tokenizer/vocab.json",
    } <= set(manifest.files)
    assert manifest.parity["onnx"].psnr_db is None or manifest.parity["onnx"].psnr_db >= 60
    assert (
        manifest.scheduler["_class_name"]
        == json.loads((tiny_bundle / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    )
    files = {file.relative_to(tiny_bundle).as_posix() for file in tiny_bundle.rglob("*") if file.is_file()}
    assert files == {*manifest.files, "ingot.json"}


def test_float16_bundle_is_half_the_size_and_near_diffusers(tiny_sd: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    half = ingot.export(tiny_sd.folder, tmp_path / "half", dtype="float16", progress=False)
    sizes = [Bundle.open(bundle).manifest.files["unet/model.onnx_data"].size for bundle in (half, tiny_bundle)]
    assert sizes[0] < 0.6 * sizes[1]
    pictures = [
        ingot.load(b)(
            "a cat", num_inference_steps=2, height=64, width=64, seed=0, output_type="np", progress=False
        ).images
        for b in (half, tiny_bundle)
    ]
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.01  # of 1: a few grey levels, the rounding of 11-bit numbers


def test_static_bundle_takes_its_own_size_only(tiny_sd: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    static = ingot.export(
        tiny_sd.folder, tmp_path / "static", height=64, width=96, batch=2, static=True, progress=False
    )
    pipe = ingot.load(static)
    call = {
        "num_inference_steps": 2,
        "seed": [0, 1, 2],
        "num_images_per_prompt": 3,
        "output_type": "latent",
        "progress": False,
    }
    free = ingot.load(tiny_bundle)("a cat", height=64, width=96, **call).images
    np.testing.assert_allclose(
        pipe("a cat", **call).images, free, atol=1e-4, rtol=0
    )  # 3 pictures through graphs of batch 2
    with pytest.raises(InputError, match="height=128: this bundle was exported with the static height 64"):
        pipe("a cat", height=128, **call)
    assert ingot.verify(static, deep=True)


def test_a_static_bundle_without_a_size_has_the_models_own(tiny_sd: Any, tmp_path: Path) -> None:
    static = ingot.export(tiny_sd.folder, tmp_path / "static", static=True, progress=False)
    pipe = ingot.load(static)
    made = pipe("a cat", num_inference_steps=1, seed=0, output_type="np", progress=False).images
    assert made.shape[1:3] == pipe.default_size


def test_a_model_that_does_not_say_its_size_is_asked_for_one(tiny_sd: Any, tmp_path: Path) -> None:
    """Its config has no sample_size. diffusers makes pictures with it where a size is given, and so does its bundle."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd.folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.register_to_config(sample_size=None)
    with pytest.raises(
        InputError, match=r"StableDiffusionPipeline does not say its size: give --size \(height=, width=\)"
    ):
        ingot.export(pipe, tmp_path / "static", to="torch", static=True, progress=False)
    assert leftovers(tmp_path) == []
    compared = reference_picture(pipe, None, 1)  # of an export that is not static: the largest that is compared
    assert compared is not None
    assert compared.picture.shape == (1, 64, 64, 3)
    ours = running(eager(pipe, tmp_path / "bundle"))
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    with pytest.raises(InputError, match="does not say the size it was trained at: give height and width"):
        ours("a cat", height=64, **call)
    call |= {"height": 64, "width": 48}
    with torch.no_grad():
        expected = pipe("a cat", **call, generator=torch.Generator().manual_seed(0)).images.numpy()
    np.testing.assert_allclose(ours("a cat", **call, seed=0, progress=False).images, expected, atol=ATOL, rtol=0)


def test_a_size_that_diffusers_refuses_is_told(tiny_sd: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot make a picture of 70x64 pixels: .*divisible by 8"):
        ingot.export(tiny_sd.folder, tmp_path / "static", static=True, height=70, width=64, progress=False)
    assert leftovers(tmp_path) == []


def test_a_pipeline_in_memory_exports_too(tiny_sd: Any, tmp_path: Path) -> None:
    bundle = ingot.export(tiny_sd.pipe, tmp_path / "bundle", progress=False)
    assert Bundle.open(bundle).manifest.provenance.source == "StableDiffusionPipeline"
    assert tiny_sd.pipe.unet is not None  # the caller's pipeline is left whole
    assert tiny_sd.pipe("a cat", num_inference_steps=1, height=64, width=64).images
    assert "safety_checker" in tiny_sd.pipe.config


def test_families_without_a_loop_of_ours_export_too(tiny_sdxl: Any, tmp_path: Path) -> None:
    bundle = ingot.export(tiny_sdxl.folder, tmp_path / "bundle", progress=False)
    assert {"text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"} == set(
        Bundle.open(bundle).manifest.components
    )
    assert ingot.verify(bundle, deep=True)


def test_a_graph_that_computes_something_else_fails_the_export(
    tiny_sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingot.exporters.targets import onnx

    honest = onnx.export

    def wrong(component: Any, folder: Path, **options: Any) -> Any:
        if component.role != "vae_decoder":
            return honest(component, folder, **options)
        parameter = component.source.decoder.conv_out.bias
        kept = parameter.detach().clone()
        parameter.data += 0.01
        written = honest(component, folder, **options)
        parameter.data = kept
        return written

    monkeypatch.setattr(onnx, "export", wrong)
    with pytest.raises(ParityError, match="vae_decoder"):
        ingot.export(tiny_sd.folder, tmp_path / "bundle", progress=False)
    assert leftovers(tmp_path) == []


def test_a_picture_that_differs_fails_the_export(tiny_sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingot.runtimes.pipelines.stable_diffusion import StableDiffusion

    honest = StableDiffusion.decode
    monkeypatch.setattr(StableDiffusion, "decode", lambda self, latents: np.float32(1) - honest(self, latents))
    with pytest.raises(ParityError, match=r"dB from diffusers' with the same seed; float32 wants 60 dB"):
        ingot.export(tiny_sd.folder, tmp_path / "bundle", progress=False)
    assert leftovers(tmp_path) == []


def test_weights_that_two_components_have_in_common_are_stored_once(tiny_sd: Any, tmp_path: Path) -> None:
    """A decoder with the encoder's middle: equal tensors in two folders."""
    import copy

    pipe = copy.deepcopy(tiny_sd.pipe)
    pipe.vae.decoder.mid_block.load_state_dict(pipe.vae.encoder.mid_block.state_dict())
    bundle = ingot.export(pipe, tmp_path / "bundle", progress=False)
    entries = Bundle.open(bundle).manifest.components
    names = [entries[role].graphs[0].files[1:] for role in ("vae_decoder", "vae_encoder")]
    own = [[name for name in files if "shared" in name] for files in names]  # beside what is a component's alone
    assert own == [["vae_decoder/shared.onnx_data"], ["vae_encoder/shared.onnx_data"]]
    one, two = ((bundle / files[0]).stat() for files in own)
    assert one.st_ino == two.st_ino  # one file on disk
    assert len(ingot.verify(bundle, deep=True)) == 10  # two lines, and two forms of each of four


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "target": ("shapes", {"to": "onx"}, "unknown target 'onx'; available: coreml, onnx, openvino, tensorrt, torch"),
    "dtype": ("shapes", {"dtype": "int3"}, "unknown dtype for the target onnx 'int3'; available: float16, float32"),
    "batch": ("shapes", {"batch": 0}, "batch=0"),
    "size": ("shapes", {"height": -8}, "-8x-8"),
    "no such path": ("./nowhere", {}, "nowhere is neither a file, a folder, a hub id"),
    "not a model": (3, {}, "not int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    model, options, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        ingot.export(model, tmp_path / "bundle", progress=False, **options)
    assert leftovers(tmp_path) == []


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=r"no diffusers checkpoint: it has no model_index\.json"):
        ingot.export(tmp_path / "model", tmp_path / "bundle", progress=False)


def test_a_checkpoint_without_a_component_is_refused(tiny_sd: Any, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_sd.folder, tmp_path / "broken"))
    shutil.rmtree(broken / "unet")
    with pytest.raises(ExportError, match=r"diffusers could not load .*broken"):
        ingot.export(broken, tmp_path / "bundle", progress=False)
    assert leftovers(tmp_path) == ["broken"]


def test_pickled_weights_need_a_yes(tiny_sd: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    pickled = Path(shutil.copytree(tiny_sd.folder, tmp_path / "pickled"))
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(InputError, match=r"unet only as pickle.*can run any code.*--allow-pickle"):
        ingot.export(pickled, tmp_path / "bundle", progress=False)
    (tmp_path / "one.ckpt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"one\.ckpt: pickled weights can run any code"):
        ingot.export(tmp_path / "one.ckpt", tmp_path / "bundle", progress=False)
    ingot.export(pickled, tmp_path / "bundle", allow_pickle=True, progress=False)
    assert Bundle.open(tmp_path / "bundle").manifest.components


def test_an_existing_folder_is_not_overwritten_unasked(tiny_sd: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with pytest.raises(InputError, match="bundle exists; name another folder, or give --overwrite"):
        ingot.export(tiny_sd.folder, bundle, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is no bundle; it is not replaced"):
        ingot.export(tiny_sd.folder, tmp_path / "mine", overwrite=True, progress=False)
    before = Bundle.open(bundle).manifest.provenance.created
    time.sleep(1)  # `created` counts whole seconds
    ingot.export(tiny_sd.folder, bundle, overwrite=True, progress=False)
    assert Bundle.open(bundle).manifest.provenance.created != before
    assert leftovers(tmp_path) == ["bundle", "mine"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tiny_sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ExportError, match=r"the bundle needs .* and the disk of .* has 1 kB free"):
        ingot.export(tiny_sd.folder, tmp_path / "bundle", progress=False)
    assert leftovers(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(tiny_sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingot.exporters import export as exporting

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "write_configs", full)
    with pytest.raises(ExportError, match="No space left on device; nothing was kept"):
        ingot.export(tiny_sd.folder, tmp_path / "bundle", progress=False)
    assert leftovers(tmp_path) == []


def test_a_place_that_cannot_be_written_is_refused(tiny_sd: Any, tmp_path: Path) -> None:
    # a file in the way stands for a read-only disk: root, who runs many test machines, may write everywhere else
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write to .*file"):
        ingot.export(tiny_sd.folder, tmp_path / "file" / "bundle", progress=False)


def test_a_read_only_disk_is_told(tiny_sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ExportError, match=r"cannot write to .*: Read-only file system"):
        ingot.export(tiny_sd.folder, tmp_path / "bundle", progress=False)


def test_what_a_killed_replacement_left_is_put_back_or_removed(tiny_bundle: Path, tmp_path: Path) -> None:
    from ingot.exporters.atomic import atomic_folder

    final = tmp_path / "b[1]"  # a name that a pattern would misread
    shutil.copytree(tiny_bundle, tmp_path / f".{final.name}.ingot-old-999999999")
    (tmp_path / f".{final.name}.ingot-partial-999999998").mkdir()
    with pytest.raises(InputError, match="exists"), atomic_folder(final):
        pass
    assert leftovers(tmp_path) == [final.name]  # killed between two renames: the old bundle is back
    assert Bundle.open(final)
    shutil.copytree(tiny_bundle, tmp_path / f".{final.name}.ingot-old-999999999")
    with atomic_folder(final, overwrite=True) as partial:
        (partial / "new").write_text("")
    assert leftovers(tmp_path) == [final.name]
    assert leftovers(final) == ["new"]


def test_a_replacement_that_fails_keeps_the_old_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    from ingot.exporters.atomic import atomic_folder

    final = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))

    def fail() -> None:
        with atomic_folder(final, overwrite=True) as partial:
            (partial / "new").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert leftovers(tmp_path) == ["bundle"]
    assert Bundle.open(final)


@pytest.mark.parametrize("name", ["black-forest-labs/FLUX.1-dev", "someone/a-model"])
def test_hub_ids_go_to_diffusers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingot.exporters import checkpoint

    asked: list[Any] = []

    def answer(model: str, **options: Any) -> None:
        asked.append((model, options["use_safetensors"]))
        raise OSError("Could not find the necessary `safetensors` weights")

    monkeypatch.setattr(checkpoint.DiffusionPipeline, "from_pretrained", answer)
    with pytest.raises(ExportError, match=r"could not load .*safetensors.*only pickled weights.*--allow-pickle"):
        ingot.export(name, tmp_path / "bundle", progress=False)
    assert asked == [(name, True)]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_a_stopped_export_leaves_nothing_that_opens(tiny_sd: Any, tmp_path: Path, stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "ingot.cli", "export", str(tiny_sd.folder), "-o", str(tmp_path / "bundle")]

    def as_at_a_terminal() -> None:
        # a suite that runs in the background is told to ignore Ctrl-C, and so would be what it starts
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, preexec_fn=as_at_a_terminal, **quiet) as process:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob(".bundle*/*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(stop)
    # Python ends by the signal itself where Ctrl-C fell into an exec() of a library; shells show 130 for both
    assert process.returncode in ((130, -signal.SIGINT) if stop is signal.SIGINT else (-signal.SIGKILL,))
    assert not (tmp_path / "bundle").exists()
    assert not list(tmp_path.rglob("ingot.json"))
    ingot.export(tiny_sd.folder, tmp_path / "bundle", progress=False)
    assert leftovers(tmp_path) == ["bundle"]


def test_both_text_encoder_layouts_are_read_alike(tiny_sd: Any, tmp_path: Path) -> None:
    """transformers 5 saves CLIPTextModel without its prefix; checkpoints have it. Random weights would be the silent failure."""
    from safetensors.torch import load_file, save_file

    from ingot.exporters.checkpoint import load_checkpoint

    other = Path(shutil.copytree(tiny_sd.folder, tmp_path / "other"))
    file = other / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    prefixed = any(name.startswith("text_model.") for name in weights)
    renamed = {
        name.removeprefix("text_model.") if prefixed else f"text_model.{name}": value for name, value in weights.items()
    }
    save_file(renamed, file, metadata={"format": "pt"})
    one, two = (load_checkpoint(folder).pipe.text_encoder.state_dict() for folder in (tiny_sd.folder, other))
    assert all((one[name] == two[name]).all() for name in one)
