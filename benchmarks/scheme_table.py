"""What each scheme costs and brings, on every engine: `python -m ingot.benchmarks.scheme_table FOLDER [--count 50]`.

Casts Shapes, quantizes it in every scheme that each engine has, and draws held-out captions with each in a process of its
own, diffusers in float32 first. Engines that this machine does not have stand with what was measured while quantizing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ingot
from ingot.quantization.toolchains import toolchain
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import IngotError
from ingot.runtimes.manifest import Graph, Manifest
from ingot.runtimes.metrics import image_psnr, image_ssim
from ingot.shapes import score, split

from .engine_table import GUIDANCE, STEPS, open_diffusers, peak_mib, size, why_not

TARGETS = ("onnx", "openvino", "torch", "coreml", "tensorrt")
BATCH = 10
HALVES = {"float16": "fp16", "bfloat16": "bf16"}
HEAD = "| engine | scheme | MB | times smaller | s per step | peak MiB | PSNR, dB | SSIM | checker |"


def main() -> None:
    """Make the bundle where there is none, quantize it where it is not, print the table; or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=50, help="held-out captions to draw (default: 50)")
    parser.add_argument("--to", default="onnx,openvino,torch,coreml", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--worker", nargs=2, metavar=("ENGINE", "PRECISION"))
    options = parser.parse_args()
    if options.worker:
        engine, precision = options.worker
        print(json.dumps(run_here(options.folder, engine, precision, options.count)))
        return
    bundle = prepared(options.folder, options.to.split(","))
    for row in table(bundle, options.count):
        print(row, flush=True)


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
    held = names(Bundle.open(bundle, hashes=False).manifest)
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


def names(manifest: Manifest) -> list[tuple[str, str]]:
    """Engines and precisions of the bundle's UNets, floats first."""
    graphs = [graph for graph in manifest.components["unet"].graphs if not graph.form or graph.quantization]
    graphs.sort(key=lambda graph: graph.quantization is not None)
    found = [(graph.engine, graph.precision) for graph in graphs]
    return [pair for engine in dict.fromkeys(engine for engine, _ in found) for pair in found if pair[0] == engine]


def table(bundle: Path, count: int) -> Iterator[str]:
    """The table's lines, as they are measured."""
    manifest = Bundle.open(bundle, hashes=False).manifest
    reference = run(bundle, "diffusers", "float32", count)
    truth = pictures(bundle, "diffusers", "float32")
    full = 4 * sum(entry.parameters for role, entry in manifest.components.items() if role != "vae_encoder") / 1e6
    yield HEAD
    yield "|---" * (HEAD.count("|") - 1) + "|"
    yield line("diffusers", "float32", size(manifest, "diffusers"), full, reference, None)
    for engine, precision in names(manifest):
        megabytes = weight(manifest, engine, precision)
        if why_not(engine):
            quality = manifest.quality.get(f"{engine} {precision}")
            psnr = "" if quality is None else f"{quality.psnr_db or np.inf:.1f} (emulated)"
            ssim = "" if quality is None else f"{quality.ssim:.3f}"
            checker = (
                "" if quality is None or quality.checker is None else f"{quality.checker:.0%} of {quality.prompts}"
            )
            yield f"| {engine} | {precision} | {megabytes:.1f} | {full / megabytes:.1f} | | | {psnr} | {ssim} | {checker} |"
            continue
        found = run(bundle, engine, precision, count)
        drawn = pictures(bundle, engine, precision)
        yield line(engine, precision, megabytes, full, found, (image_psnr(truth, drawn), image_ssim(truth, drawn)))


def line(
    engine: str, precision: str, megabytes: float, full: float, found: dict[str, float], far: tuple[float, float] | None
) -> str:
    """One row."""
    psnr, ssim = ("-", "-") if far is None else (f"{far[0]:.1f}", f"{far[1]:.3f}")
    return (
        f"| {engine} | {precision} | {megabytes:.1f} | {full / megabytes:.1f} | {found['step_s']:.4f} | {found['peak_mib']:.0f} "
        f"| {psnr} | {ssim} | {found['checker']:.0%} |"
    )


def weight(manifest: Manifest, engine: str, precision: str) -> float:
    """Megabytes of what runs: each component's graph in the precision, or the one that stands in for it."""
    graphs = (chosen(manifest, role, engine, precision) for role in ("text_encoder", "unet", "vae_decoder"))
    return sum(manifest.files[file].size for graph in graphs for file in graph.files) / 1e6


def chosen(manifest: Manifest, role: str, engine: str, precision: str) -> Graph:
    """The graph that `ingot.load(precision=...)` takes."""
    own = (
        manifest.quality[f"{engine} {precision}"].graphs.get(role)
        if f"{engine} {precision}" in manifest.quality
        else precision
    )
    graphs = [graph for graph in manifest.components[role].graphs if graph.engine == engine]
    return next((graph for graph in graphs if graph.precision == own), graphs[0])


def run(bundle: Path, engine: str, precision: str, count: int) -> dict[str, float]:
    """One row's figures, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "ingot.benchmarks.scheme_table",
        str(bundle),
        "--count",
        str(count),
        "--worker",
        engine,
        precision,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} {precision} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_here(bundle: Path, engine: str, precision: str, count: int) -> dict[str, float]:
    """Draw the captions in batches; seconds are of a step of one picture, the first batch left out."""
    prompts = [scene.caption for scene in split()[1][:count]]
    generate = open_diffusers() if engine == "diffusers" else _pipeline(bundle, engine, precision)
    generate(prompts[:BATCH], list(range(BATCH)))
    drawn, began = [], time.perf_counter()
    for start in range(0, count, BATCH):
        drawn.append(generate(prompts[start : start + BATCH], list(range(start, min(start + BATCH, count)))))
    seconds = time.perf_counter() - began
    found = np.concatenate(drawn)
    file = _file(bundle, engine, precision)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, found)
    return {"step_s": seconds / count / STEPS, "peak_mib": peak_mib(), "checker": score(prompts, found)["all"]}


def pictures(bundle: Path, engine: str, precision: str) -> NDArray[Any]:
    """What a row's process drew."""
    found: NDArray[Any] = np.load(_file(bundle, engine, precision))
    return found


def _file(bundle: Path, engine: str, precision: str) -> Path:
    return bundle.parent / "pictures" / f"{engine}-{precision}.npy"


def _pipeline(bundle: Path, engine: str, precision: str) -> Any:
    from ingot.runtimes.schedulers import DPMSolverMultistepScheduler

    pipe = ingot.load(bundle, engine=engine, precision=precision)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

    def generate(prompts: list[str], seeds: list[int]) -> NDArray[Any]:
        made = pipe(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=seeds, progress=False)
        return np.stack([np.asarray(picture) for picture in made.images])

    return generate


if __name__ == "__main__":
    main()
