"""The same folder in three hands: Ingot, OpenVINO GenAI and optimum-intel make the same picture of Shapes from it."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai
import pytest

import ingot
from ingot.runtimes.metrics import image_psnr
from ingot.runtimes.noise import Generator, randn_tensor

PROMPT, SEED, STEPS, GUIDANCE, SIDE = "a large red ring on a blue background", 0, 20, 4.0, 64
PEERS = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes, float16 weights. Its own scheduler, DDIM, is one that GenAI has too."""
    return ingot.export("shapes", tmp_path_factory.mktemp("openvino") / "shapes", to="openvino", progress=False)


@pytest.fixture(scope="session")
def picture(bundle: Path) -> np.ndarray:
    """(height, width, 3) in 0..1."""
    return make(ingot.load(bundle, engine="openvino", inference_precision="f32"))


def make(pipe: object, prompt: str = PROMPT, seed: int = SEED) -> np.ndarray:
    made = pipe(  # type: ignore[operator]  # a pipeline is called
        prompt, height=SIDE, width=SIDE, num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=seed, output_type="np",
        progress=False,
    )  # fmt: skip
    return made.images[0]


class Fed(openvino_genai.Generator):
    """Our noise in GenAI's hands: its own generators draw other numbers from a seed than torch does."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = Generator(seed)

    def randn_tensor(self, shape: ov.Shape) -> ov.Tensor:
        return ov.Tensor(randn_tensor(tuple(shape), self._generator).astype(np.float32))


def test_genai_makes_the_same_picture(bundle: Path, picture: np.ndarray) -> None:
    pipe = openvino_genai.Text2ImagePipeline(str(bundle), "CPU", INFERENCE_PRECISION_HINT="f32")
    tensor = pipe.generate(
        PROMPT, height=SIDE, width=SIDE, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=Fed(SEED)
    )
    made = np.array(tensor.data)[0]
    # GenAI cuts values off to 8 bits where others round: an error of 0..1 of 255, 52.9 dB
    assert image_psnr(picture, made / np.float32(255)) > 52
    cut = np.floor(picture * 255).astype(int)
    assert np.abs(cut - made).max() <= 1
    assert (cut != made).mean() < 0.01  # 0.002 measured: values within rounding of a whole number


def test_optimum_intel_makes_the_same_picture(bundle: Path, picture: np.ndarray, tmp_path: Path) -> None:
    if not PEERS.exists():
        pytest.skip("optimum-intel 2.2 wants an older transformers than ours, in an environment of its own: make peers")
    code = f"""
import sys, numpy, torch
from optimum.intel import OVStableDiffusionPipeline
pipe = OVStableDiffusionPipeline.from_pretrained(sys.argv[1], device="CPU", ov_config={{"INFERENCE_PRECISION_HINT": "f32"}})
made = pipe({PROMPT!r}, height={SIDE}, width={SIDE}, num_inference_steps={STEPS}, guidance_scale={GUIDANCE},
            generator=torch.Generator().manual_seed({SEED}), output_type="np")
numpy.save(sys.argv[2], made.images[0])
"""
    subprocess.run([PEERS, "-c", code, bundle, tmp_path / "made.npy"], check=True, capture_output=True)
    # 141 dB measured with float32 weights: the same graphs, the sampler's sums in torch
    assert image_psnr(picture, np.load(tmp_path / "made.npy")) > 100


def test_fixed_sizes_make_the_same_picture(bundle: Path, picture: np.ndarray) -> None:
    sizes = {"batch": 2, "height": SIDE, "width": SIDE}
    with ingot.load(bundle, engine="openvino", inference_precision="f32", sizes=sizes) as pipe:
        assert pipe.denoiser.signature.inputs[0].shape == (2, 4, SIDE // 4, SIDE // 4)
        assert image_psnr(picture, make(pipe)) > 100  # the same sums by other kernels


def test_two_threads_make_their_own_pictures_from_one_bundle(bundle: Path, picture: np.ndarray) -> None:
    other = "a small yellow star on a black background"
    pipe = ingot.load(bundle, engine="openvino", inference_precision="f32", threads=1)
    alone = {seed: make(pipe, prompt, seed) for seed, prompt in ((SEED, PROMPT), (1, other))}
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda seed=seed, prompt=prompt: found.update({seed: make(pipe, prompt, seed)}))
        for seed, prompt in ((SEED, PROMPT), (1, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert image_psnr(picture, alone[SEED]) > 100
    assert all(np.array_equal(found[seed], alone[seed]) for seed in (SEED, 1))
    assert image_psnr(found[SEED], found[1]) < 20


def test_a_bundle_is_whole_after_others_read_it(bundle: Path) -> None:
    names = {file.name for file in (bundle / "tokenizer").iterdir()}
    assert {"openvino_tokenizer.xml", "openvino_tokenizer.bin", "vocab.json", "merges.txt"} <= names
    ingot.load(bundle, engine="openvino").close()  # verifies every file against the manifest
