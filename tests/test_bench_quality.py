"""What a benchmark report says of pictures: against the reference, and by Shapes' checker."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ingot.benchmarks.harness.compare import compare
from ingot.benchmarks.harness.quality import judge, ssim
from ingot.benchmarks.harness.record import Contestant, Job, Machine, Noise, Quality, Report, Row, Run
from ingot.benchmarks.harness.run import bench
from ingot.runtimes.metrics import image_ssim
from ingot.shapes import MODEL_DIR, all_scenes, draw

SCENES = all_scenes()[5::1000]
A_RUN = Run(round=1, import_s=1, open_s=1, first_step_s=1, first_image_s=1, cold_start_s=3)


def report(*names: str, prompts: tuple[str, ...] = ("a cat", "a dog"), model: str = "bundle") -> Report:
    """A report of these contestants at one job, the first of them the reference."""
    job = Job(
        height=64, width=64, batch=1, steps=2, threads=1, guidance_scale=1.0, scheduler="DDIMScheduler", seed=0,
        prompts=prompts,
    )  # fmt: skip
    machine = Machine(processor="", cores=1, memory_gib=1.0, system="", python="", flags=[])
    quiet = Noise(probe_ms=[], spread=0.0, busy=0.0, noisy=False)
    return Report(
        ingot="", command="", began="", seconds=0.0, title="", machine=machine, noise=quiet, rounds=1, reference=names[0],
        jobs=[job], contestants=[Contestant(name=name, kind="ingot", model=model) for name in names],
        rows=[Row(contestant=name, job=0, runs=[A_RUN]) for name in names],
    )  # fmt: skip


def keep(folder: Path, row: int, pictures: Any = None, latents: Any = None) -> None:
    """What a contestant's process leaves."""
    place = folder / "work" / f"row-{row}"
    place.mkdir(parents=True)
    for name, array in (("pictures", pictures), ("latents", latents)):
        if array is not None:
            np.save(place / f"{name}.npy", array)


def noise(seed: int = 0, shape: tuple[int, ...] = (3, 64, 48, 3)) -> Any:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


# against the reference


def test_a_damaged_contestant_is_worse_by_the_numbers_that_were_put_in(tmp_path: Path) -> None:
    pictures, latents = noise(), np.random.RandomState(1).randn(3, 4, 8, 6).astype(np.float32)
    damaged = np.where(pictures > 127, pictures - 2, pictures + 2)  # each value off by 2
    damaged[0] = pictures[0]
    keep(tmp_path, 0, pictures, latents)
    keep(tmp_path, 1, pictures, latents)
    keep(tmp_path, 2, damaged, latents * np.float32(1.1))
    reference, same, worse = (row.quality for row in judge(report("a", "b", "c"), tmp_path).rows)
    assert reference == same == Quality(reference="a", equal=True, ssim=1.0, latents_equal=True)
    assert worse is not None
    # two pictures of three with a squared error of 4, taken together
    assert worse.psnr_db == pytest.approx(10 * np.log10(255**2 / (4 * 2 / 3)), abs=1e-9)
    assert worse.latent_sqnr_db == pytest.approx(20.0, abs=1e-4)  # float32's rounding of a tenth
    assert (worse.equal, worse.latents_equal, worse.checker) == (False, False, None)
    assert worse.ssim is not None
    assert 0.9 < worse.ssim < 1


def test_each_job_is_held_against_its_own_reference(tmp_path: Path) -> None:
    made = report("a", "b")
    jobs = [made.jobs[0], msgspec.structs.replace(made.jobs[0], steps=9)]
    rows = [*made.rows, *(Row(contestant=name, job=1, runs=[A_RUN]) for name in ("a", "b"))]
    for row, seed in enumerate((0, 0, 1, 2)):
        keep(tmp_path, row, noise(seed))
    found = judge(msgspec.structs.replace(made, jobs=jobs, rows=rows), tmp_path).rows
    assert [row.quality.equal for row in found if row.quality] == [True, True, True, False]


@pytest.mark.parametrize(
    ("pictures", "latents", "said"),
    [
        (noise(shape=(2, 64, 48, 3)), None, "its pictures are [2, 64, 48, 3] and a's are [3, 64, 48, 3]: not compared"),
        (
            noise().astype(np.float32),
            None,
            "its pictures.npy is float32 [3, 64, 48, 3], not uint8 [n, height, width, 3]",
        ),
        (noise(), np.zeros((3, 16, 4, 4), np.float32), "its latents are [3, 16, 4, 4] and a's are [3, 4, 8, 6]"),
        (noise(), np.full((3, 4, 8, 6), np.nan, np.float32), "its latents have numbers that are not finite"),
    ],
)
def test_what_cannot_be_compared_is_a_note(tmp_path: Path, pictures: Any, latents: Any, said: str) -> None:
    keep(tmp_path, 0, noise(), np.ones((3, 4, 8, 6), np.float32))
    keep(tmp_path, 1, pictures, latents)
    row = judge(report("a", "b"), tmp_path).rows[1]
    assert len(row.notes) == 1
    assert row.notes[0].startswith(said)
    assert row.quality is None or row.quality.latent_sqnr_db is None


def test_rows_without_pictures_have_no_quality(tmp_path: Path) -> None:
    keep(tmp_path, 1, noise())
    keep(tmp_path, 2)
    (tmp_path / "work" / "row-2" / "pictures.npy").write_bytes(b"half of a file")
    dead, alone, broken = judge(report("a", "b", "c"), tmp_path).rows
    assert (dead.quality, dead.notes) == (None, [])
    assert alone.quality is not None
    assert (alone.quality.psnr_db, alone.quality.equal) == (None, False)  # there is nothing to hold it against
    assert broken.quality is None
    assert broken.notes[0].startswith("its pictures.npy cannot be read")


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is in the extra `bench`")
@pytest.mark.parametrize("shape", [(2, 64, 64, 3), (1, 40, 75, 3), (1, 11, 12, 3)])
def test_ours_and_scikit_images_ssim_agree(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over damage from none to all: 1e-12 is the rounding of float64 in another order, on numbers of about 1."""
    whole, other = noise(2, shape), noise(3, shape)
    for share in (0.0, 0.01, 0.3, 1.0):
        found = np.round(whole * (1 - share) + other * share).astype(np.uint8)
        theirs = ssim(whole, found)
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "skimage.metrics", None)
            assert ssim(whole, found) == pytest.approx(image_ssim(whole, found), abs=1e-12)
            assert ssim(whole, found) == pytest.approx(theirs, abs=1e-12)


def test_ssim_is_the_mean_over_pictures() -> None:
    pictures = noise(4)
    found = pictures.copy()
    found[2] = noise(5)[2]
    assert ssim(pictures, found) == pytest.approx((2 + ssim(pictures[2:], found[2:])) / 3, abs=1e-12)  # float64


# Shapes' checker


def shown() -> Any:
    return np.stack([draw(scene, np.random.RandomState(0)) for scene in SCENES])


def checked(folder: Path, prompts: tuple[str, ...], pictures: Any, model: str) -> float | None:
    keep(folder, 0, pictures)
    found = judge(report("a", prompts=prompts, model=model), folder).rows[0].quality
    assert found is not None
    return found.checker


def test_the_checker_scores_shapes_with_its_own_captions(tmp_path: Path) -> None:
    captions = tuple(scene.caption for scene in SCENES)
    assert checked(tmp_path / "right", captions, shown(), "shapes") == 1.0
    assert checked(tmp_path / "by its folder", captions, shown(), str(MODEL_DIR)) == 1.0
    assert checked(tmp_path / "in turn", captions[:1], shown()[:1].repeat(3, 0), "shapes") == 1.0
    wrong = shown()
    wrong[0] = 128  # a grey picture
    assert checked(tmp_path / "one of them wrong", captions, wrong, "shapes") == 1 - 1 / len(captions)


@pytest.mark.parametrize(
    ("prompts", "pictures", "model"),
    [
        (("a cat",), shown(), "shapes"),
        ((SCENES[0].caption,), noise(), "shapes"),
        ((SCENES[0].caption,), shown(), "bundle"),
    ],
    ids=["other prompts", "another size", "another model"],
)
def test_the_checker_is_silent_about_anything_else(
    tmp_path: Path, prompts: tuple[str, ...], pictures: Any, model: str
) -> None:
    assert checked(tmp_path, prompts, pictures, model) is None


# measured


DAMAGED = """
from contestants import ingot

PACKAGES, load_libraries, sources = ingot.PACKAGES, ingot.load_libraries, ingot.sources

def open_model(task, clock):
    return Damaged(ingot.open_model(task, clock))

class Damaged:
    def __init__(self, whole):
        self.whole, self.notes, self.files = whole, whole.notes, whole.files

    @property
    def latents(self):
        return self.whole.latents

    def __call__(self, *given):
        return self.whole(*given) ^ 16  # every value off by 16
"""


def test_a_damaged_contestant_shows_as_worse(tiny_bundle: Path, tmp_path: Path) -> None:
    """Measured for real: Ingot, and a contestant of the user's own that opens the same bundle and damages its pictures."""
    file = tmp_path / "damaged.py"
    file.write_text(DAMAGED)
    made = bench(
        tiny_bundle, engines=["onnx"], sizes=[(64, 64)], steps=[2], threads=[1], rounds=1, calls=1, prompts=["a red cat"],
        contestant=[f"damaged: kind={file}, engine=onnx"], progress=False,
    )  # fmt: skip
    whole, worse = made.rows
    assert [row.error for row in made.rows] == [None, None]
    assert whole.quality == Quality(reference=whole.contestant, equal=True, ssim=1.0, latents_equal=True)
    assert worse.quality is not None
    assert worse.quality.psnr_db == pytest.approx(20 * np.log10(255 / 16), abs=1e-9)
    assert worse.quality.latents_equal
    assert worse.quality.ssim is not None
    assert worse.quality.ssim < 1
    before = msgspec.structs.replace(made, rows=[whole, msgspec.structs.replace(worse, quality=whole.quality)])
    worsened = {(change.contestant, change.metric) for change in compare(before, made).regressions}
    assert ("damaged", "PSNR") in worsened
    assert not {name for name, _ in worsened} - {"damaged"}
