"""What DeepCache saves and costs: `python -m ingot.benchmarks.deep_cache FOLDER [--checkpoint FOLDER --size 512 --steps 6]`.

Without a checkpoint: Shapes, every branch in `--branches`, the whole UNet every N steps for each N in `--intervals`, seconds
a picture and PSNR and the checker's score against the same bundle without it. With a checkpoint, such as the one that
`full_size` makes, the same at its size and with a few steps; on random weights the PSNR says little.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ingot
from ingot.runtimes.metrics import image_psnr
from ingot.shapes import score, split

HEAD = "| branch | N | schedule | seconds | times as fast | PSNR, dB | checker |"


def main() -> None:
    """Make the bundles that are not there, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default="shapes")
    parser.add_argument("--to", default="onnx")
    parser.add_argument("--branches", type=int, nargs="+", default=[0])
    parser.add_argument("--intervals", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--count", type=int, default=16, help="pictures (default: 16; 1 with a checkpoint)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(HEAD)
    print("|---" * (HEAD.count("|") - 1) + "|")
    for branch in options.branches:
        bundle = options.folder / f"deep-cache-{Path(options.checkpoint).name}-{branch}"
        if not bundle.exists():
            ingot.export(options.checkpoint, bundle, to=options.to, deep_cache=branch)
        for line in lines(bundle, branch, options):
            print(line, flush=True)


def lines(bundle: Path, branch: int, options: argparse.Namespace) -> list[str]:
    """One bundle's rows. The forms take turns, so that a machine that is busy for a while is busy for all."""
    shapes = options.checkpoint == "shapes"
    count = options.count if shapes else 1
    prompts = [scene.caption for scene in split()[1][:count]]
    forms: list[dict[str, Any]] = [{}]
    for interval in options.intervals:
        forms += [{"cache_interval": interval}, {"cache_interval": interval, "cache_schedule": "non-uniform"}]
    times: list[list[float]] = [[] for _ in forms]
    drawn: list[NDArray[Any]] = []
    with ingot.load(bundle, verify=False) as pipe:
        for number in range(options.rounds):
            for index, form in enumerate(forms):
                began = time.perf_counter()
                made = pipe(
                    prompts, num_inference_steps=options.steps, guidance_scale=4.0, height=options.size, width=options.size,
                    seed=list(range(count)), output_type="np" if shapes else "latent", progress=False, **form,
                ).images  # fmt: skip
                times[index].append((time.perf_counter() - began) / count)
                if not number:
                    drawn.append(made)
    return [
        _row(branch, form, min(times[i]), min(times[0]), drawn[i], drawn[0], prompts if shapes else None)
        for i, form in enumerate(forms)
    ]


def _row(
    branch: int, form: dict[str, Any], seconds: float, base: float, found: NDArray[Any], reference: NDArray[Any],
    prompts: list[str] | None,
) -> str:  # fmt: skip
    right = psnr = "-"
    if prompts is not None:
        right = f"{score(prompts, (found * 255).round().astype(np.uint8))['all']:.0%}"
        psnr = f"{image_psnr(reference, found):.1f}" if form else "-"
    return (
        f"| {branch} | {form.get('cache_interval', 1)} | {form.get('cache_schedule', 'uniform')} | {seconds:.3f} "
        f"| {base / seconds:.2f} | {psnr} | {right} |"
    )


if __name__ == "__main__":
    main()
