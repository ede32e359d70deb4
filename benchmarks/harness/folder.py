"""The folder of a report: what is in it, by which names, and how it is written."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

JSON, MARKDOWN, CSV, PAGE = "report.json", "report.md", "report.csv", "report.html"
PICTURES, WORK = "pictures", "work"
MOST_PICTURES = 8  # of each row that are kept as PNG
_LONGEST = 40  # letters of a contestant's name in a file's


@contextlib.contextmanager
def opened(place: Path | None, overwrite: bool) -> Iterator[Path]:
    """The folder, without what an older report left in it where that is to be replaced; a temporary one for None."""
    if place is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    place.mkdir(exist_ok=True)
    if overwrite:
        _clear(place)
    yield place


def write(file: Path, text: str) -> None:
    """A half-written file never has the name."""
    part = _part(file)
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def keep_pictures(folder: Path, arrays: Path, row: int, contestant: str) -> list[str]:
    """The first pictures of a row's `arrays` as PNG, by their names in the folder."""
    (folder / PICTURES).mkdir(exist_ok=True)
    names = []
    for i, picture in enumerate(np.load(arrays)[:MOST_PICTURES]):
        names.append(f"{PICTURES}/{row}-{_slug(contestant)}-{i}.png")
        Image.fromarray(picture).save(folder / names[-1])
    return names


def _clear(place: Path) -> None:
    """A report's own files; whatever else lies there is the user's."""
    for name in (JSON, MARKDOWN, CSV, PAGE):
        (place / name).unlink(missing_ok=True)
        _part(place / name).unlink(missing_ok=True)
    for name in (PICTURES, WORK):
        shutil.rmtree(place / name, ignore_errors=True)


def _part(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name)[:_LONGEST].strip("-") or "contestant"
