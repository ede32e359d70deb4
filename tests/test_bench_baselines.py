"""The baselines of `ingot bench` on Shapes: those that run in our own Python, and each in its environment where it is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.utils
import torch._inductor.config
from diffusers import DiffusionPipeline

import ingot
from ingot.benchmarks.contestants import diffusers as plain
from ingot.benchmarks.contestants import diffusers_compile, openvino_genai
from ingot.benchmarks.contestants.measure import Clock, Task
from ingot.benchmarks.harness import environments, prepare
from ingot.runtimes.errors import InputError
from ingot.runtimes.metrics import image_psnr
from ingot.shapes import MODEL_DIR

pytestmark = pytest.mark.usefixtures("torch_settings")

BENCHMARKS = Path(environments.__file__).parents[1]
EXPORTS = environments.FOLDER / "exports"  # kept beside the environments: an export takes a minute
PROMPTS = ["a large red ring on a blue background", "a small yellow star on a black background"]
SIDE, STEPS, GUIDANCE, SEED = 64, 8, 4.0, 3


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """diffusers' first latents for the seeds from SEED on."""
    path = tmp_path_factory.mktemp("noise") / "noise.npy"
    drawn = [
        torch.randn((1, 4, SIDE // 4, SIDE // 4), generator=torch.Generator().manual_seed(SEED + i)) for i in range(4)
    ]
    np.save(path, torch.cat(drawn).numpy())
    return path


@pytest.fixture(scope="module")
def task(noise: Path) -> Callable[..., Task]:
    """A task for Shapes: two pictures a call."""

    def make(**changes: Any) -> Task:
        return Task(**{
            "kind": "diffusers", "model": str(MODEL_DIR), "options": {}, "call": {}, "height": SIDE, "width": SIDE,
            "batch": 2, "steps": STEPS, "guidance_scale": GUIDANCE, "scheduler": "DDIMScheduler", "threads": 1,
            "seed": SEED, "prompts": PROMPTS, "noise": str(noise), "calls": 0, "spawned": time.monotonic(), **changes,
        })  # fmt: skip

    return make


@dataclass
class Made:
    """What a call gave."""

    pictures: np.ndarray
    latents: np.ndarray | None
    steps: int
    roles: dict[str, int]
    notes: list[str]
    files: list[str]


def call(module: Any, task: Task) -> Made:
    """A contestant's first call, in this process."""
    module.load_libraries()
    clock, ended = Clock(), list[float]()
    opened = module.open_model(task, clock)
    clock.begin()
    pictures = opened(*task.of_call(0), lambda: ended.append(clock.now()))
    assert all(0 <= start <= end <= clock.now() for _, start, end in clock.spans)
    roles: dict[str, int] = {}
    for role, _, _ in clock.spans:
        roles[role] = roles.get(role, 0) + 1
    return Made(pictures, opened.latents, len(ended), roles, opened.notes, opened.files)


@pytest.fixture(scope="module")
def reference(task: Callable[..., Task]) -> Made:
    """diffusers as a contestant."""
    return call(plain, task())


def test_diffusers_makes_what_it_makes_without_us(reference: Made) -> None:
    pipe = DiffusionPipeline.from_pretrained(MODEL_DIR)
    pipe.set_progress_bar_config(disable=True)

    def made(output_type: str) -> Any:
        generators = [torch.Generator().manual_seed(SEED + i) for i in range(2)]
        return pipe(
            PROMPTS, height=SIDE, width=SIDE, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators,
            output_type=output_type,
        ).images  # fmt: skip

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        np.testing.assert_array_equal(reference.pictures, np.stack([np.array(image) for image in made("pil")]))
        assert reference.latents is not None
        np.testing.assert_array_equal(reference.latents, made("latent").numpy())
    finally:
        torch.set_num_threads(threads)


def test_diffusers_is_timed_by_its_parts(reference: Made) -> None:
    assert reference.steps == STEPS
    assert reference.roles == {"text_encoder": 2, "unet": STEPS, "scheduler": STEPS, "vae_decoder": 1}
    names = {Path(file).parent.name for file in reference.files}
    assert names == {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert reference.notes == []


def test_another_scheduler_is_taken_from_the_checkpoint_s_config(task: Callable[..., Task], reference: Made) -> None:
    made = call(plain, task(scheduler="DPMSolverMultistepScheduler"))
    assert made.steps == STEPS
    assert 5 < image_psnr(reference.pictures, made.pictures) < 40  # the same scene by another path


def test_bfloat16_is_the_same_picture_in_its_precision(task: Callable[..., Task]) -> None:
    """Two steps: without the processor's own bfloat16 they are slow."""
    exact = call(plain, task(batch=1, steps=2))
    made = call(plain, task(batch=1, steps=2, options={"dtype": "bfloat16"}))
    assert made.latents is not None
    assert made.latents.dtype == np.float32
    assert made.notes == ["weights and sums in bfloat16"]
    assert 40 < image_psnr(exact.pictures, made.pictures) < 70  # 52 measured; of another seed 14


def test_compiled_graphs_are_what_runs(task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own arithmetic: what the inductor compiles takes minutes. Its pictures were 87 dB from these."""
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "0")  # what it sets is put back afterwards
    torch._dynamo.utils.counters.clear()
    with torch._inductor.config.patch(force_disable_caches=False):  # pytest's own patch would lose the name
        made = call(diffusers_compile, task(kind="diffusers-compile", steps=2, options={"backend": "eager"}))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # the UNet, the decoder
    assert image_psnr(call(plain, task(steps=2)).pictures, made.pictures) > 60
    assert made.roles == {"text_encoder": 2, "unet": 2, "scheduler": 2, "vae_decoder": 1}
    assert made.notes == ["compiled anew in each process"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes with float32 weights; optimum-intel's folders have the same names."""
    path = tmp_path_factory.mktemp("openvino") / "shapes"
    return ingot.export("shapes", path, to="openvino", dtype="float32", progress=False)


def test_genai_makes_the_same_pictures_from_the_same_noise(
    task: Callable[..., Task], reference: Made, bundle: Path
) -> None:
    made = call(openvino_genai, task(kind="openvino-genai", model=str(bundle), options={"precision": "f32"}))
    # it cuts off to 8 bits where others round: half of all values are one of 255 lower, which is 51 dB
    assert image_psnr(reference.pictures, made.pictures) > 48
    assert made.latents is not None
    assert reference.latents is not None
    np.testing.assert_allclose(made.latents, reference.latents, atol=2e-3)  # of values up to about 4
    assert made.steps == 2 * STEPS
    assert made.roles == {"text_encoder": 2, "unet": 2 * STEPS, "vae_decoder": 2}
    assert made.notes == ["different prompts of a batch one after the other: it takes one a call"]


def test_genai_s_own_durations_stand_where_they_were() -> None:
    """Three steps of 1 s with 0.9 in the UNet, after 0.5 s of text; told 0, 0.3 and 0.1 s late; then 0.25 s of decoding."""
    metrics = SimpleNamespace(
        raw_metrics=SimpleNamespace(iteration_durations=[1e6] * 3, unet_inference_durations=[0.9e6] * 3),
        get_text_encoder_infer_duration=lambda: {"text_encoder": 500.0}, get_vae_decoder_infer_duration=lambda: 250.0,
    )  # fmt: skip
    found = openvino_genai.spans(metrics, 10.0, [11.5, 12.8, 13.6], 13.75)
    assert [role for role, _, _ in found] == ["text_encoder", "unet", "unet", "unet", "vae_decoder"]
    expected = [(10, 10.5), (10.5, 11.4), (11.5, 12.4), (12.5, 13.4), (13.5, 13.75)]
    np.testing.assert_allclose([span[1:] for span in found], expected, rtol=1e-12)


def test_genai_takes_equal_prompts_at_once(task: Callable[..., Task], bundle: Path) -> None:
    made = call(
        openvino_genai,
        task(
            kind="openvino-genai", model=str(bundle), options={"precision": "f32", "static": True}, prompts=PROMPTS[:1],
            scheduler="DPMSolverMultistepScheduler",
        ),
    )  # fmt: skip
    assert made.steps == STEPS
    assert made.pictures.shape == (2, SIDE, SIDE, 3)
    assert made.notes == [
        "EulerDiscreteScheduler: it has no DPMSolverMultistepScheduler", "graphs fixed to this size and batch"
    ]  # fmt: skip
    euler = call(plain, task(prompts=PROMPTS[:1], scheduler="EulerDiscreteScheduler"))
    assert image_psnr(euler.pictures, made.pictures) > 40


def test_genai_lets_go_where_a_step_says_so(task: Callable[..., Task], bundle: Path) -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        seen.append(1)
        raise StopError

    seen: list[int] = []
    opened = openvino_genai.open_model(task(kind="openvino-genai", model=str(bundle), prompts=PROMPTS[:1]), Clock())
    with pytest.raises(StopError):
        opened(PROMPTS[:1], [SEED], stop)
    assert seen == [1]


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (plain, {"options": {"dtype": "int8"}}, "dtype 'int8'; there are float32, bfloat16, float16"),
        (plain, {"options": {"engine": "onnx"}}, "diffusers has no option engine; it has dtype"),
        (plain, {"model": "nowhere"}, "nowhere is no checkpoint: it has no model_index.json"),
        (
            openvino_genai,
            {"scheduler": "LCMScheduler"},
            "dies of a segmentation fault when LCMScheduler runs a StableDiffusionPipeline",
        ),
        (openvino_genai, {"options": {"dtype": "f32"}}, "has no option dtype; it has precision, static"),
    ],
)
def test_what_a_baseline_cannot_do_is_refused(
    task: Callable[..., Task], module: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        module.open_model(task(**changes), Clock())


def test_a_class_that_no_baseline_knows_is_refused(task: Callable[..., Task], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(
        ValueError, match="diffusers is not asked for a FluxPipeline; it is for StableDiffusionPipeline"
    ):
        plain.open_model(task(model=str(tmp_path)), Clock())


@pytest.mark.parametrize("kind", ["diffusers", "optimum-onnx", "optimum-intel", "openvino-genai"])
def test_a_baseline_in_its_environment_makes_the_same_pictures(
    kind: str, task: Callable[..., Task], reference: Made, tmp_path: Path
) -> None:
    try:
        python = environments.python_of(kind)
        model = prepare.prepared(kind, "shapes", EXPORTS).path
    except InputError as missing:
        pytest.skip(str(missing))
    asked = {**vars(task(kind=kind, calls=1, batch=1, model=str(model)))}
    asked["options"] = {"precision": "f32"} if kind in ("optimum-intel", "openvino-genai") else {}
    (tmp_path / "task.json").write_text(json.dumps(asked))
    code = f"import sys; sys.path.append({str(BENCHMARKS)!r}); from contestants.measure import main; main()"
    command = [str(python), "-c", code, str(tmp_path / "task.json"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    pictures, latents = np.load(tmp_path / "pictures.npy"), np.load(tmp_path / "latents.npy")
    assert reference.latents is not None
    assert (
        image_psnr(reference.pictures, pictures) > 48
    )  # GenAI's cut, see above; the others are within a few values of it
    np.testing.assert_allclose(latents, reference.latents, atol=2e-3)
    result = json.loads((tmp_path / "result.json").read_text())
    assert {"text_encoder", "unet", "vae_decoder"} <= set(result["component_s"])
    assert 0 < result["component_s"]["unet"][0] < result["call_s"][0] < result["cold_start_s"]
    assert result["versions"].keys() >= {"openvino-genai" if kind == "openvino-genai" else "torch"}
    assert ("torch" in result["installed_mb"]) == (kind != "openvino-genai")
    assert result["notes"] == []


def test_a_python_without_the_library_ends_with_its_name(task: Callable[..., Task], tmp_path: Path) -> None:
    """As a Row's error tells it: optimum is not beside Ingot."""
    (tmp_path / "task.json").write_text(json.dumps(vars(task(kind="optimum-onnx"))))
    code = f"import sys; sys.path.append({str(BENCHMARKS)!r}); from contestants.measure import main; main()"
    command = [sys.executable, "-c", code, str(tmp_path / "task.json"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "ModuleNotFoundError: No module named 'optimum'"
