"""A checkpoint as the peers' older transformers read it, where a newer one wrote it.

transformers 5 writes `CLIPTextModel` without the `text_model.` prefix, and of a tokenizer only `tokenizer.json`. transformers 4.57
and 5.5 then begin with random text weights and a warning, and 4.57 fails over the tokenizer: a peer would be measured on
another model. So the export gets a folder of links in which those files are as published checkpoints have them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

PREFIX = "text_model."
WEIGHTS = "model.safetensors"


def mended(source: Path, place: Path) -> Path:
    """`source` itself where there is nothing to mend, else `place`, made anew: links, and the mended files."""
    classes = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    of = {name: value[1] for name, value in classes.items() if isinstance(value, list) and len(value) == 2}
    encoders = [name for name, kind in of.items() if kind == "CLIPTextModel" and _lacks_prefix(source / name / WEIGHTS)]
    tokenizers = [
        name for name, kind in of.items() if str(kind).startswith("CLIPTokenizer") and _lacks_words(source / name)
    ]
    if not encoders and not tokenizers:
        return source
    shutil.rmtree(place, ignore_errors=True)
    for file in source.rglob("*"):
        if file.is_file():
            link = place / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    for name in encoders:
        (place / name / WEIGHTS).unlink()
        _write_prefixed(source / name / WEIGHTS, place / name / WEIGHTS)
    for name in tokenizers:
        _write_words(source / name, place / name)
    return place


def _lacks_prefix(file: Path) -> bool:
    return file.is_file() and not any(name.startswith(PREFIX) for name in _header(file)[0])


def _lacks_words(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").exists()


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, and where its data begins: 8 bytes of length, JSON, data."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(length)), 8 + length


def _write_prefixed(file: Path, to: Path) -> None:
    """The same tensors under other names: their places in the data stay."""
    header, begin = _header(file)
    renamed = {name if name == "__metadata__" else PREFIX + name: value for name, value in header.items()}
    written = json.dumps(renamed).encode()
    written += b" " * (-len(written) % 8)
    with file.open("rb") as stream, to.open("wb") as output:
        output.write(len(written).to_bytes(8, "little") + written)
        stream.seek(begin)
        shutil.copyfileobj(stream, output, 1 << 24)


def _write_words(folder: Path, to: Path) -> None:
    """vocab.json and merges.txt of a byte pair encoding."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (to / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (to / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
