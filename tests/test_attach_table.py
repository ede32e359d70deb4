"""The table of classes: its list, and the page that was made from it."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers

from ingot.benchmarks.attach_table import Result, line, table
from ingot.benchmarks.pipelines import ROWS

PAGE = Path(__file__).parent.parent / "docs" / "pipelines.md"
# those that the issue names
NAMED = (
    "AmusedPipeline", "StableDiffusionAttendAndExcitePipeline", "AudioLDMPipeline", "BlipDiffusionPipeline",
    "DanceDiffusionPipeline", "IFPipeline", "I2VGenXLPipeline", "KandinskyPipeline", "Kandinsky3Pipeline",
    "LDMTextToImagePipeline", "LDMSuperResolutionPipeline", "StableDiffusionPanoramaPipeline", "PaintByExamplePipeline",
    "PIAPipeline", "StableDiffusionSAGPipeline", "SemanticStableDiffusionPipeline", "ShapEPipeline",
    "WuerstchenPriorPipeline",
)  # fmt: skip


def rows() -> list[list[str]]:
    """The cells of the page's rows, less its head."""
    lines = [text for text in PAGE.read_text().splitlines() if text.startswith("| ")]
    return [[cell.strip() for cell in text.strip("|").split("|")] for text in lines[1:]]


def test_the_list_is_of_diffusers_own_classes_and_has_those_that_are_asked_for() -> None:
    assert set(NAMED) <= set(ROWS)
    assert not [name for name in ROWS if not issubclass(getattr(diffusers, name), diffusers.DiffusionPipeline)]


def test_the_page_names_every_class_once_and_why_one_does_not_run() -> None:
    found = rows()
    assert sorted(cells[0] for cells in found) == sorted(ROWS)
    assert not [cells[0] for cells in found if cells[3] != "yes" and not cells[5]]


def test_at_least_forty_are_exported_and_thirty_run() -> None:
    found = rows()
    assert sum(bool(cells[1]) for cells in found) >= 40
    assert sum(cells[3] == "yes" or bool(re.fullmatch(r"\d+ of \d+", cells[3])) for cells in found) >= 30


def test_a_row_says_what_was_found() -> None:
    good = Result("DDPMPipeline", "onnx", ("unet",), 1e-6, (), ("unet",), 2e-6, 1.0)
    assert line(good) == "| DDPMPipeline | unet | 1.0e-06 | yes | 2.0e-06 |  |"
    part = Result("DDPMPipeline", "onnx", ("unet", "vae"), 1e-6, ("unet",), ("unet",), 2e-6, 1.0, {"vae": "why"})
    assert line(part).endswith("| 1 of 2 | 2.0e-06 | vae: why |")
    far = Result("DDPMPipeline", "onnx", ("unet",), 1e-6, (), ("unet",), 0.5, 1.0)
    assert "| no, it differs |" in line(far)
    failed = Result("DDPMPipeline", "onnx", error="what it said")
    assert line(failed) == "| DDPMPipeline |  |  | no |  | what it said |"
    assert "Of 4 classes, 3 are exported, 2 run attached, 1 of them with every component" in table(
        [good, part, far, failed]
    )
