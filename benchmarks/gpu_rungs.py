"""What `gpu_ladder` climbs, as data, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .harness import summary
from .harness.grid import INGOT
from .harness.record import Report, Row

FILE = "ladder.md"
HEAD = (
    "rung", "s a picture", "times the first", "times the rung before", "GPU, MiB", "PSNR to the first, dB", "to the first picture, s",
)  # fmt: skip
PUBLISHED = "published, A100, s"
# torch's settings of the published ladder; what else it sets for int8, torchao sets by itself
INDUCTOR = {
    "conv_1x1_as_mm": True, "coordinate_descent_tuning": True, "coordinate_descent_check_all_directions": True,
    "epilogue_fusion": False,
}  # fmt: skip
MODE = "max-autotune"
INT8 = "int8-dynamic"


@dataclass(frozen=True)
class Rung:
    """A contestant: diffusers with the checkpoint, or Ingot with one of the bundles."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    bundle: str = ""  # of Ingot's: a key of gpu_ladder.EXPORTS
    scheme: str = ""  # what the bundle's UNet is quantized to
    published: float | None = None  # seconds on an A100, of diffusers' documentation


def rungs(device: str, backend: str = "inductor") -> list[Rung]:
    """The ladder, diffusers' first and in order."""
    return [*_of_diffusers(device, backend), *_of_ingot(device, backend)]


def _of_diffusers(device: str, backend: str) -> list[Rung]:
    """Each has all that those before it have.

    The first takes TF32 on NVIDIA's GPUs, as the published figure must have: a call of the UNet with one row is 6.8 TFLOP by torch's
    counter, 60 of them in 7.36 s are 55 TFLOP/s, and an A100 without TF32 has 19.5 by its datasheet.
    """
    first: dict[str, Any] = {"dtype": "float32", "attention": "math", "device": device}
    if device.startswith("cuda"):
        first |= {"tf32": True}
    lower: dict[str, Any] = {"dtype": "bfloat16", "attention": "math", "device": device}
    fused_attention: dict[str, Any] = {"dtype": "bfloat16", "device": device}
    how: dict[str, Any] = {"mode": MODE, "inductor": INDUCTOR} if backend == "inductor" else {"backend": backend}
    compiled = {**fused_attention, "channels_last": True, "fullgraph": True, "cache": True, **how}
    projected = {**compiled, "fuse_qkv": True}
    return [
        Rung("diffusers float32", "diffusers", first, published=7.36),
        Rung("diffusers + bfloat16", "diffusers", lower, published=4.63),
        Rung("diffusers + SDPA", "diffusers", fused_attention, published=3.31),
        Rung("diffusers + compile", "diffusers-compile", compiled, published=2.54),
        Rung("diffusers + fused QKV", "diffusers-compile", projected, published=2.52),
        Rung("diffusers + int8", "diffusers-compile", {**projected, "quantize": INT8}, published=2.43),
    ]


def _of_ingot(device: str, backend: str) -> list[Rung]:
    """What the repository has for the GPU; its VAE in float16 stays in float32, as SDXL's config wants it."""
    how: dict[str, Any] = {"device": device, "channels_last": True}
    how |= {"compile": MODE} if backend == "inductor" else {}
    compiled = ", compiled" if "compile" in how else ""
    torch: dict[str, Any] = {"engine": "torch", **how}
    onnx: dict[str, Any] = {"engine": "onnx", "precision": "float16"}
    tensorrt = {"engine": "tensorrt", "precision": "bfloat16", "device": device}
    int8 = {**torch, "precision": INT8}
    return [
        Rung("Ingot, ONNX Runtime, float16", INGOT, {**onnx, "device": device}, "onnx"),
        Rung("Ingot, ONNX Runtime's TensorRT, float16", INGOT, {**onnx, "device": "tensorrt"}, "onnx"),
        Rung("Ingot, TensorRT, bfloat16", INGOT, tensorrt, "tensorrt"),
        Rung(f"Ingot, torch, bfloat16{compiled}", INGOT, {**torch, "precision": "bfloat16"}, "torch"),
        Rung(f"Ingot, torch, {INT8}{compiled}", INGOT, int8, "torch", scheme=INT8),
    ]


def table(report: Report, ladder: Sequence[Rung], *, published: bool) -> list[str]:
    """The ladder's lines in Markdown: medians of the processes' median calls; ratios round by round. With `published` also
    what the documentation says, for the same model, size and steps."""
    heads = [*HEAD, *([PUBLISHED] if published else [])]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows = {row.contestant: row for row in report.rows}
    told = {line.contestant: line for line in summary.summarize(report)}
    before: Row | None = None
    for rung in ladder:
        row = rows[rung.name]
        cells = _cells(told[rung.name], row, before)
        cells += [f"{rung.published:.2f}" if rung.published else ""] if published else []
        lines.append(f"| {rung.name} | {' | '.join(cells)} |")
        before = row if row.runs and rung.kind != INGOT else before
    return [*lines, "", *_legend(report)]


def _cells(line: summary.Line, row: Row, before: Row | None) -> list[str]:
    """All but the name. A rung that did not run says why in place of its seconds."""
    if not row.runs:
        return [f"not run: {_plain(row.error or 'its figures are missing')}", *[""] * (len(HEAD) - 2)]
    quality = line.quality
    psnr = "" if quality is None or line.reference else "equal" if quality.equal else _number(quality.psnr_db, 1)
    seconds = _spread(line.picture_s, 3) + (f" ({_plain(row.error)})" if row.error else "")
    step = None if before is None else summary.ratios(before.runs, row.runs, summary.call_seconds)
    return [
        seconds, "1" if line.reference else _spread(line.speedup, 2), _spread(step, 2), _number(line.gpu_peak_mib, 0), psnr,
        _spread(line.cold_start_s, 1),
    ]  # fmt: skip


def _legend(report: Report) -> list[str]:
    job, where = report.jobs[0], report.machine.gpu or report.machine.processor
    lines = [
        f"{report.title}: {job.height}x{job.width}, {job.steps} steps of {job.scheduler}, guidance {job.guidance_scale:g}, one "
        f"picture a call; {where}. {report.rounds} rounds: medians of a process each, with the least and the most, and of the ratios "
        "in each round. "
        "Ingot's rungs are each held against the last of diffusers' that ran. PSNR of random weights says nothing of trained ones.",
        *(f"- {row.contestant}: {'; '.join(row.notes)}" for row in report.rows if row.runs and row.notes),
    ]
    return [*lines, *([f"The machine was not quiet: {report.noise.why}."] if report.noise.noisy else [])]


def _plain(text: str) -> str:
    """In a cell: bars would end it."""
    return text.replace("|", "/").replace("\n", " ")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _spread(found: summary.Spread | None, digits: int) -> str:
    if found is None:
        return ""
    middle = _number(found.median, digits)
    return middle if found.count == 1 else f"{middle} ({_number(found.least, digits)} to {_number(found.most, digits)})"
