"""Where `ingot generate` puts what a pipeline makes: pictures, or a prior's embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import InputError
from ingot.runtimes.images import grid
from ingot.runtimes.loras.safetensors import open_safetensors
from ingot.runtimes.pipelines import pipeline_class

EMBEDDINGS = ".safetensors"
EMBEDS = ("image_embeds", "negative_image_embeds")  # what a prior makes and its decoder takes, by diffusers' names


def output_of(asked: Path | None, folder: Path, *, as_grid: bool) -> Path:
    """The file that the bundle in `folder` writes. Raises InputError for one that it cannot, before anything runs."""
    class_name = Bundle.open(folder, hashes=False).manifest.pipeline
    embeddings = pipeline_class(class_name).makes == "embeddings"
    output = asked or Path(f"out{EMBEDDINGS if embeddings else '.png'}")
    if not output.absolute().parent.is_dir():
        raise InputError(f"the folder {output.absolute().parent} does not exist; -o must name a file in one that does")
    ending = output.suffix.lower()
    if embeddings and (ending != EMBEDDINGS or as_grid):
        raise InputError(
            f"{class_name} makes embeddings, not pictures: -o {output.stem or 'out'}{EMBEDDINGS} without --grid would do; "
            "the decoder's bundle takes them with --embeds"
        )
    if not embeddings and ending not in Image.registered_extensions():
        raise InputError(f"cannot save {output}: its ending names no picture format; .png would do")
    return output


def save(made: Any, output: Path, *, as_grid: bool) -> list[Path]:
    """Write what a pipeline returned; several pictures are numbered. Returns the files. Raises InputError."""
    if output.suffix.lower() == EMBEDDINGS:
        write_safetensors(output, {name: getattr(made, name) for name in EMBEDS})
        return [output]
    images = [grid(made.images)] if as_grid else made.images
    names = [output] if len(images) == 1 else [output.with_stem(f"{output.stem}-{i + 1}") for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        try:
            image.save(name)
        except (OSError, ValueError) as error:  # PIL: ValueError for an ending that it does not know
            raise InputError(f"cannot save {name}: {error}") from error
    return names


def read_embeds(file: Path | None) -> dict[str, NDArray[np.float32]]:
    """A prior's embeddings, (pictures, width) each; nothing for no file. Raises InputError for a file without them."""
    if file is None:
        return {}
    opened = open_safetensors(file)
    if missing := [name for name in EMBEDS if name not in opened.entries]:
        raise InputError(f"{file} has no {' and no '.join(missing)}, as a prior's bundle makes with `ingot generate`")
    found = {name: opened.read(name) for name in EMBEDS}
    if wrong := [f"{name} of shape {array.shape}" for name, array in found.items() if array.ndim != 2]:
        raise InputError(f"{file} has {' and '.join(wrong)}; a prior makes (pictures, width)")
    return found


def write_safetensors(file: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as float32 tensors: the header's length, the header, the bytes. Raises InputError."""
    header, data = {}, b""
    for name, array in tensors.items():
        content = np.ascontiguousarray(array, "<f4").tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns the tensors so
    beside = file.with_name(f".{file.name}.part")
    try:
        beside.write_bytes(len(text).to_bytes(8, "little") + text + data)
        beside.replace(file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(f"cannot save {file}: {error}") from error
