"""What each scheme costs and brings, on every engine: `python -m ingot.benchmarks.scheme_table FOLDER [--count 50]`.

Casts Shapes, quantizes it in every scheme that each engine has, and has `ingot bench` draw held-out captions with each, beside
diffusers in float32; its report is FOLDER/report. Engines that this machine does not have stand with what was measured while
quantizing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ingot
from ingot.quantization.toolchains import toolchain
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.choice import engines_of, pick
from ingot.runtimes.errors import IngotError
from ingot.shapes import split

from .harness import grid
from .harness.summary import Line, summarize

TARGETS = ("onnx", "openvino", "torch", "coreml", "tensorrt")
STEPS, BATCH = 20, 10
ROLES = ("text_encoder", "unet", "vae_decoder")
HALVES = {"float16": "fp16", "bfloat16": "bf16"}
HEAD = "| engine | scheme | MB | times smaller | s per step | peak MiB | PSNR, dB | SSIM | checker |"


def main() -> None:
    """Make the bundle where there is none, quantize it where it is not, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--count", type=int, default=50, help=f"held-out captions to draw, a multiple of {BATCH} (default: 50)"
    )
    parser.add_argument("--to", default="onnx,openvino,torch,coreml", help=f"of {', '.join(TARGETS)}")
    options = parser.parse_args()
    if options.count < BATCH or options.count % BATCH:
        parser.error(f"--count {options.count}: a multiple of {BATCH} is needed")
    bundle = prepared(options.folder, options.to.split(","))
    print("\n".join(table(Bundle.open(bundle, hashes=False), measured(bundle, options.count))))


def prepared(folder: Path, targets: list[str]) -> Path:
    """The bundle with every engine's schemes, as far as they are not there yet."""
    bundle = folder / "bundle"
    if not bundle.exists():
        ingot.export(
            "shapes",
            bundle,
            to=targets,
            options={"coreml": {"deployment_target": "iOS18"}} if "coreml" in targets else {},
        )
    prompts = [scene.caption for scene in split()[0][:16]]  # seen in training: calibration is no test
    held = names(Bundle.open(bundle, hashes=False))
    for engine in targets:
        done = {scheme for target, scheme in held if target == engine}
        done |= {HALVES[dtype] for dtype in done & HALVES.keys()}  # floats that are halves already
        missing = [scheme for scheme in toolchain(engine).SCHEMES if scheme not in done]
        if missing:
            quantized(bundle, engine, missing, prompts)
    return bundle


def quantized(bundle: Path, engine: str, schemes: list[str], prompts: list[str]) -> None:
    """Add schemes, in one go where all of them can be had."""
    try:
        ingot.quantize(bundle, schemes, to=engine, calibrate=prompts)
    except IngotError as error:
        for scheme in schemes if len(schemes) > 1 else ():
            quantized(bundle, engine, [scheme], prompts)
        if len(schemes) == 1:
            print(f"{engine} {schemes[0]}: {error}", file=sys.stderr)


def names(bundle: Bundle) -> list[tuple[str, str]]:
    """Engines and precisions of a bundle."""
    return [(engine, scheme) for engine in engines_of(bundle, ROLES) for scheme in grid.precisions(bundle, engine)]


def measured(bundle: Path, count: int) -> list[Line]:
    """diffusers and what of the bundle runs here: one process each, whose first batch's time is left out."""
    report = ingot.bench(
        bundle, baseline=["diffusers"], prompts=[scene.caption for scene in split()[1][:count]], batch=[BATCH], steps=[STEPS],
        guidance_scale=4.0, scheduler="DPMSolverMultistepScheduler", rounds=1, calls=count // BATCH - 1,
        output=bundle.parent / "report", overwrite=True, title="Shapes in every scheme",
    )  # fmt: skip
    return summarize(report)


def table(bundle: Bundle, lines: list[Line]) -> list[str]:
    """Markdown: the reference first; what does not run here by what its bundle says of it."""
    found = {line.contestant: line for line in lines}
    full = (
        4 * sum(entry.parameters for role, entry in bundle.manifest.components.items() if role != "vae_encoder") / 1e6
    )
    rows = [HEAD, "|---" * (HEAD.count("|") - 1) + "|", _row("diffusers", "float32", found["diffusers"], full)]
    for engine, scheme in names(bundle):
        line = found.get(f"{engine} {scheme}")
        rows.append(_row(engine, scheme, line, full) if line else _emulated(bundle, engine, scheme, full))
    return rows


def _row(engine: str, scheme: str, line: Line, full: float) -> str:
    if line.error or line.picture_s is None or line.quality is None:
        return f"| {engine} | {scheme} | {line.error or 'nothing was measured'} | | | | | | |"
    quality, megabytes = line.quality, line.artifact_mb or full
    psnr = "-" if line.reference else "equal" if quality.equal else f"{quality.psnr_db:.1f}"
    ssim = "-" if line.reference else f"{quality.ssim:.3f}"
    step_s = line.picture_s.median / STEPS
    return (
        f"| {engine} | {scheme} | {megabytes:.1f} | {full / megabytes:.1f} | {step_s:.4f} | {line.peak_mib or 0:.0f} "
        f"| {psnr} | {ssim} | {quality.checker:.0%} |"
    )


def _emulated(bundle: Bundle, engine: str, scheme: str, full: float) -> str:
    """What quantizing measured, by the engine's emulation."""
    files = {file for graph in pick(bundle, ROLES, engine, scheme).values() for file in graph.files}
    megabytes = sum(bundle.manifest.files[file].size for file in files) / 1e6
    quality = bundle.manifest.quality.get(f"{engine} {scheme}")
    told = ["", "", ""]
    if quality is not None:
        psnr = "equal" if quality.psnr_db is None else f"{quality.psnr_db:.1f}"
        checker = "" if quality.checker is None else f"{quality.checker:.0%} of {quality.prompts}"
        told = [f"{psnr} (emulated)", f"{quality.ssim:.3f}", checker]
    return f"| {engine} | {scheme} | {megabytes:.1f} | {full / megabytes:.1f} | | | {' | '.join(told)} |"


if __name__ == "__main__":
    main()
