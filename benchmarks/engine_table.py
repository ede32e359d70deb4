"""The engines of a bundle side by side: `python -m ingot.benchmarks.engine_table BUNDLE`.

Each runs in a process of its own, diffusers among them, and makes the same eight pictures of Shapes with the same seeds.
Prints a table; `pictures` beside the bundle keeps what they made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import ingot
from ingot.runtimes import engines
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import EngineError
from ingot.runtimes.metrics import image_psnr
from ingot.shapes import MODEL_DIR, score

from .contestants._process import peak_mib
from .harness.prompts import OF_SHAPES

PROMPTS = list(OF_SHAPES)
STEPS, GUIDANCE, SEEDS = 20, 4.0, list(range(len(PROMPTS)))
HEAD = "| engine | load, s | first picture, s | s per picture | peak MiB | MB | PSNR to diffusers, dB | checker: all right |"


def main() -> None:
    """Print the table of a bundle, or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--worker", metavar="ENGINE", help="only this one, as JSON; pictures go to --output")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(run_here(options.bundle, options.worker, options.output)))
        return
    folder = options.bundle.parent / "pictures"
    print("\n".join(table(options.bundle, folder)))


def table(bundle: Path, folder: Path) -> list[str]:
    """The table's lines: diffusers first, then every engine of the bundle; pictures go to the folder as .npy."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Bundle.open(bundle, hashes=False).manifest
    names = list(dict.fromkeys(g.engine for entry in manifest.components.values() for g in entry.graphs))
    lines = [HEAD, "|---" * HEAD.count(" | ") + "|---|"]
    reference = None
    for name in ["diffusers", *names]:
        absent = None if name == "diffusers" else why_not(name)
        if absent:
            lines.append(f"| {name} | {absent} | | | | {size(manifest, name):.1f} | {certified(manifest, name)} | |")
            continue
        found = run(bundle, name, folder / f"{name}.npy")
        pictures = np.load(folder / f"{name}.npy")
        reference = pictures if reference is None else reference
        lines.append(row(name, found, size(manifest, name), pictures, reference))
    return lines


def row(name: str, found: dict[str, float], megabytes: float, pictures: NDArray[Any], reference: NDArray[Any]) -> str:
    """One engine's figures."""
    right = score(PROMPTS, [Image.fromarray(picture) for picture in pictures])["all"]
    psnr = image_psnr(reference, pictures)
    far = "-" if name == "diffusers" else "equal" if np.isinf(psnr) else f"{psnr:.1f}"
    return (
        f"| {name} | {found['load_s']:.2f} | {found['first_s']:.2f} | {found['picture_s']:.3f} | {found['peak_mib']:.0f} "
        f"| {megabytes:.1f} | {far} | {right:.0%} |"
    )


def run(bundle: Path, name: str, output: Path) -> dict[str, float]:
    """One engine in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "ingot.benchmarks.engine_table",
        str(bundle),
        "--worker",
        name,
        "--output",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_here(bundle: Path, name: str, output: Path) -> dict[str, float]:
    """Load, one picture, then all of them in one batch; seconds, and the process's peak memory."""
    start = time.perf_counter()
    generate = open_diffusers() if name == "diffusers" else open_ingot(bundle, name)
    loaded = time.perf_counter()
    generate(PROMPTS[:1], SEEDS[:1])
    first = time.perf_counter()
    pictures = generate(PROMPTS, SEEDS)
    done = time.perf_counter()
    np.save(output, pictures)
    return {
        "load_s": loaded - start, "first_s": first - loaded, "picture_s": (done - first) / len(PROMPTS), "peak_mib": peak_mib(),
    }  # fmt: skip


def open_ingot(bundle: Path, name: str) -> Any:
    """A function from prompts and seeds to pictures, (count, height, width, 3) of bytes, by an engine of the bundle."""
    from ingot.runtimes.schedulers import DPMSolverMultistepScheduler

    pipe = ingot.load(bundle, engine=name)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

    def generate(prompts: list[str], seeds: list[int]) -> NDArray[Any]:
        made = pipe(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=seeds, progress=False)
        return np.stack([np.asarray(picture) for picture in made.images])

    return generate


def open_diffusers() -> Any:
    """The same by diffusers in float32."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(MODEL_DIR)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)

    def generate(prompts: list[str], seeds: list[int]) -> NDArray[Any]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        made = pipe(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators)
        return np.stack([np.asarray(picture) for picture in made.images])

    return generate


def why_not(name: str) -> str | None:
    """Why this machine cannot run an engine; None when it can."""
    try:
        return None if engines.engine(name).devices() else "no device for it here"
    except EngineError as error:
        return str(error)


def size(manifest: Any, name: str) -> float:
    """Megabytes of an engine's graphs in a bundle; of the checkpoint for diffusers."""
    if name == "diffusers":
        return sum(file.stat().st_size for file in MODEL_DIR.rglob("*") if file.is_file()) / 1e6
    graphs = [g for entry in manifest.components.values() for g in entry.graphs if g.engine == name]
    return sum(manifest.files[file].size for file in {f for g in graphs for f in g.files}) / 1e6


def certified(manifest: Any, name: str) -> str:
    """What the export measured of a picture by an engine that cannot run here."""
    parity = manifest.parity.get(name)
    return "" if parity is None else "equal at export" if parity.psnr_db is None else f"{parity.psnr_db:.1f} at export"


if __name__ == "__main__":
    main()
