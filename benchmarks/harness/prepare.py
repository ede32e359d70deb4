"""The checkpoint in a baseline's own format, made once by the baseline's own tool: `optimum-cli export`.

    work/onnx/shapes-fp32-1f3c…/         what optimum-onnx reads
    work/onnx/shapes-fp32-1f3c….json     the command, its seconds and peak memory: written last
    work/openvino/…                      what optimum-intel and openvino-genai read

The name holds a hash of the checkpoint's files and of the environment's pins: another of either is another export.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from ingot.benchmarks.contestants._diffusers_loop import KNOWN
from ingot.runtimes.errors import ExportError, InputError, unknown

from ._layout import mended
from ._watched import watched
from .environments import ENVIRONMENTS, FOLDER, STAMP, how_to_make, python_of

FORMATS = {
    "optimum-onnx": "onnx",
    "optimum-intel": "openvino",
    "openvino-genai": "openvino",
}  # diffusers reads checkpoints
EXPORTERS = {"onnx": "optimum-onnx", "openvino": "optimum-intel"}  # whose environment has the tool
WEIGHTS = {"onnx": ("fp32",), "openvino": ("fp32", "fp16", "int8")}  # fp16 for ONNX wants a GPU


WEIGHT = "fp32"  # where a recipe does not say


@dataclass(frozen=True)
class Prepared:
    """What a baseline opens. `seconds`, `peak_mib` (all processes of the export, resident) and `processor_s` are 0 where nothing was
    exported."""

    path: Path
    seconds: float = 0.0
    peak_mib: float = 0.0
    command: tuple[str, ...] = ()
    processor_s: float = 0.0


def prepared(
    kind: str,
    checkpoint: str | Path,
    work: str | Path,
    python: str | Path | None = None,
    *,
    environments: str | Path = FOLDER,
    weights: str = WEIGHT,
) -> Prepared:
    """The checkpoint as a baseline reads it: exported unless `work` has it already.

    `python` is the interpreter of the environment that exports; by default the baseline's in `environments`, for openvino-genai
    optimum-intel's. Raises InputError for arguments that cannot be used, ExportError with the tool's last lines where it fails.
    """
    if kind not in ENVIRONMENTS:
        raise unknown("baseline", kind, ENVIRONMENTS)
    source = checkpoint_folder(checkpoint)
    if kind not in FORMATS:
        return Prepared(source)
    layout = FORMATS[kind]
    check_weights(kind, weights)
    exporter = Path(python_of(EXPORTERS[layout], environments) if python is None else python)
    name = "shapes" if str(checkpoint) == "shapes" else source.name
    target = Path(work).absolute() / layout / f"{name}-{weights}-{_hash(source, exporter)}"
    record = target.with_name(f"{target.name}.json")
    kept = _kept(record, target)
    if kept is not None:
        return kept
    made = export(layout, source, target, exporter, weights)
    _write(record, {**asdict(made), "path": str(target)})
    return made


def check_weights(kind: str, weights: str) -> None:
    """Raise InputError for weights that a baseline's export has not."""
    there = WEIGHTS[FORMATS[kind]]
    if weights not in there:
        raise InputError(f"weights {weights!r} for {kind}; there are {', '.join(there)}")


def _kept(record: Path, target: Path) -> Prepared | None:
    """The export that is there already; None where its record cannot be read: then nobody knows whether it is whole."""
    try:
        kept = json.loads(record.read_text(encoding="utf-8"))
        seconds, peak, processor = (float(kept.get(name, 0.0)) for name in ("seconds", "peak_mib", "processor_s"))
        return Prepared(target, seconds, peak, tuple(kept["command"]), processor) if target.is_dir() else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint that the baselines can read. Raises InputError for what is none."""
    if str(checkpoint) == "shapes":
        from ingot.shapes import MODEL_DIR

        return MODEL_DIR
    folder = Path(checkpoint)
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"{checkpoint} has no model_index.json; the baselines read a diffusers checkpoint: a folder, or 'shapes'"
        )
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index} does not name a pipeline's class: {error}") from None
    if found not in KNOWN:
        raise InputError(f"{checkpoint} is a {found}; the baselines are asked for {', '.join(KNOWN)} only")
    return folder.absolute()


def export(layout: str, source: Path, target: Path, python: Path, weights: str = "fp32") -> Prepared:
    """Run optimum-cli, whatever stands at `target` already; what it writes is renamed there when it is whole. A checkpoint that
    its transformers would misread is mended first, outside the time: see `_layout`."""
    tool = python.with_name("optimum-cli.exe" if os.name == "nt" else "optimum-cli")
    if not tool.exists():
        name = EXPORTERS[layout]
        raise InputError(
            f"{python} has no optimum-cli beside it, so it is no environment of {name}; {how_to_make(name)}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    read = mended(source, target.with_name(f".{target.name}.mended"))
    options = ["--dtype", weights] if layout == "onnx" else ["--weight-format", weights]
    command = [str(tool), "export", layout, "--model", str(read), "--task", "text-to-image", *options, str(part)]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = watched(command, {**os.environ, **offline})
    if read != source:
        shutil.rmtree(read)
    if done.returncode or not (part / "model_index.json").is_file():
        shutil.rmtree(part, ignore_errors=True)
        last = " | ".join(line.strip() for line in done.output.strip().splitlines()[-4:])
        raise ExportError(f"{' '.join(command)} ended with {done.returncode}: {last or 'it said nothing'}")
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return Prepared(target, done.seconds, done.peak_mib, tuple(command), done.processor_s)


def _hash(source: Path, python: Path) -> str:
    """Of the checkpoint's place and files, and of the environment that exports."""
    files = sorted(file for file in source.rglob("*") if file.is_file())
    parts = [str(source.resolve()), *(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)]
    stamp = python.parents[1] / STAMP
    parts.append(stamp.read_text() if stamp.exists() else str(python))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _write(path: Path, record: dict[str, object]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
