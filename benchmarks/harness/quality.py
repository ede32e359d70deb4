"""How good a contestant's pictures are: against the reference's of the same job and seeds, and by themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import BundleError
from ingot.runtimes.metrics import compare, image_psnr, image_ssim
from ingot.shapes import MODEL_DIR, SIZE, parse, score

from .record import Job, Quality, Report, Row
from .scorers import Scorers, open_scorers

WINDOW = 11  # pixels to a side of SSIM's windows
Pictures = NDArray[np.uint8]  # (n, height, width, 3)


class Made(NamedTuple):
    """What a contestant made at a job, and what is wrong with its files."""

    pictures: Pictures | None
    latents: NDArray[np.float32] | None  # (n, channels, height, width)
    faults: list[str]


def judge(report: Report, folder: str | Path, *, clip: str | Path | None = None, fid: str | None = None) -> Report:
    """The report with each row's `quality`, from `folder/work/row-<index>/pictures.npy` (uint8, (n, height, width, 3)) and
    `latents.npy` (float32; may be missing).

    PSNR is over all pictures of a row together, 10 log10(255^2 / mean squared error), not a mean of decibels; SSIM is the
    mean over the pictures, the latents' SQNR over all latents together. They need the reference's row of the same job, with
    pictures of the same shape. The checker (a share of the pictures), CLIP score (their mean) and FID (of all together)
    need none. `clip` and `fid` are as in `scorers`. Raises InputError for what `scorers.open_scorers` refuses.
    """
    scorers = open_scorers(clip, fid)
    made = Path(folder) / "work"
    shapes = any(_is_shapes(contestant.model) for contestant in report.contestants)
    references = {row.job: index for index, row in enumerate(report.rows) if row.contestant == report.reference}

    def loaded(index: int | None) -> Made:
        """What lies in the folder of a row without runs is the warm-up's, or nobody's."""
        if index is None or not report.rows[index].runs:
            return Made(None, None, [])
        return _load(made / f"row-{index}")

    def judged(index: int, row: Row) -> Row:
        own, other = loaded(index), loaded(references.get(row.job))
        found, notes = _quality(report.reference or "", other, own)
        if own.pictures is not None:
            alone = _alone(own.pictures, report.jobs[row.job], scorers, shapes)
            found = msgspec.structs.replace(found or Quality(reference=""), **alone)
        return msgspec.structs.replace(row, quality=found, notes=[*row.notes, *own.faults, *notes])

    def tried(index: int, row: Row) -> Row:
        try:
            return judged(index, row)
        except Exception as error:  # a row's figures cost no other row its own
            note = f"no quality: {type(error).__name__}: {error}"
            print(f"ingot: {row.contestant}: {note}", file=sys.stderr, flush=True)
            return msgspec.structs.replace(row, notes=[*row.notes, note])

    return msgspec.structs.replace(report, rows=[tried(index, row) for index, row in enumerate(report.rows)])


def ssim(reference: Pictures, found: Pictures) -> float:
    """Mean structural similarity in Gaussian windows of 11x11 pixels (Wang et al. 2004): scikit-image's where it is installed,
    else that of `ingot.runtimes.metrics`; a test holds them against each other."""
    try:
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError:
        # one picture at a time: windows of a whole batch of large ones take gigabytes
        one = [image_ssim(a[None], b[None]) for a, b in zip(reference, found, strict=True)]
    else:
        gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
        one = [structural_similarity(a, b, channel_axis=-1, **gaussian) for a, b in zip(reference, found, strict=True)]
    return float(np.mean(one))


def _quality(name: str, reference: Made, found: Made) -> tuple[Quality | None, list[str]]:
    """What can be said against the reference, and what cannot."""
    if reference.pictures is None or found.pictures is None:
        return None, []
    shapes = [list(made.pictures.shape) for made in (reference, found) if made.pictures is not None]
    if shapes[0] != shapes[1]:
        return None, [f"its pictures are {shapes[1]} and {name}'s are {shapes[0]}: not compared"]
    equal = bool(np.array_equal(reference.pictures, found.pictures))
    sqnr, same, notes = _latents(name, reference.latents, found.latents)
    small = min(found.pictures.shape[1:3]) < WINDOW
    if small and not equal:
        notes = [*notes, f"no SSIM: its windows of {WINDOW} pixels are larger than the pictures"]
    quality = Quality(
        reference=name,
        equal=equal,
        psnr_db=None if equal else image_psnr(reference.pictures, found.pictures),
        ssim=1.0 if equal else None if small else ssim(reference.pictures, found.pictures),
        latent_sqnr_db=sqnr,
        latents_equal=same,
    )
    return quality, notes


def _latents(
    name: str, reference: NDArray[np.float32] | None, found: NDArray[np.float32] | None
) -> tuple[float | None, bool, list[str]]:
    """SQNR in dB, whether they are equal (then no number says it), and what cannot be said."""
    if reference is None or found is None:
        return None, False, []
    if reference.shape != found.shape:
        return (
            None,
            False,
            [f"its latents are {list(found.shape)} and {name}'s are {list(reference.shape)}: not compared"],
        )
    sqnr = compare(reference, found).sqnr_db
    if np.isneginf(sqnr):
        return None, False, ["its latents have numbers that are not finite"]
    return (None, True, []) if np.isposinf(sqnr) else (sqnr, False, [])


def _alone(pictures: Pictures, job: Job, scorers: Scorers, shapes: bool) -> dict[str, float | None]:
    """What needs no reference, by Quality's names."""
    prompts = [job.prompts[i % len(job.prompts)] for i in range(len(pictures))] if job.prompts else []
    return {
        "checker": score(prompts, pictures)["all"] if shapes and _are_shapes(prompts, pictures) else None,
        "clip": scorers.clip(pictures, prompts) if scorers.clip and prompts else None,
        "fid": scorers.fid(pictures) if scorers.fid and len(pictures) > 1 else None,
    }


def _are_shapes(prompts: Sequence[str], pictures: Pictures) -> bool:
    """Whether Shapes' checker can measure these: its own captions, pictures of its size."""
    return bool(prompts) and pictures.shape[1:] == (SIZE, SIZE, 3) and all(_parses(prompt) for prompt in prompts)


def _parses(prompt: str) -> bool:
    try:
        parse(prompt)
    except ValueError:
        return False
    return True


def _is_shapes(model: str) -> bool:
    """Whether a bundle or a checkpoint is the model that ships with Ingot; all contestants of a report run one model."""
    if model == "shapes" or Path(model).resolve() == MODEL_DIR.resolve():
        return True
    try:
        return Bundle.open(model, hashes=False).manifest.provenance.source in ("shapes", str(MODEL_DIR))
    except BundleError:
        return False


def _load(folder: Path) -> Made:
    """A row's arrays. What is there and is none is a fault, not an error: a contestant of the user's own wrote it."""
    faults: list[str] = []

    def array(name: str, fits: Callable[[NDArray[Any]], bool], what: str) -> NDArray[Any] | None:
        file = folder / name
        if not file.exists():
            return None
        try:
            found: NDArray[Any] = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            faults.append(f"its {name} cannot be read: {error}")
            return None
        if not fits(found):
            faults.append(f"its {name} is {found.dtype} {list(found.shape)}, not {what}")
            return None
        return found

    pictures = array(
        "pictures.npy",
        lambda a: a.dtype == np.uint8 and a.ndim == 4 and a.shape[-1] == 3 and a.size > 0,
        "uint8 [n, height, width, 3]",
    )
    latents = array("latents.npy", lambda a: a.dtype.kind == "f" and a.ndim > 1 and a.size > 0, "float32 [n, ...]")
    return Made(pictures, latents, faults)
