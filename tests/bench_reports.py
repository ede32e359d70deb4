"""Made-up benchmark reports for tests of what reads them: figures that follow simple rules, pictures of noise and rings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from ingot.benchmarks.harness.record import Contestant, Job, Machine, Noise, Quality, Report, Row, Run

PROMPTS = ("a large red ring on a blue background", "a small green disc on a white background")
# name, kind, engine, precision, seconds a step at 256x256, cold start, MiB, MB, PSNR (None is equal)
KNOWN = (
    ("diffusers", "diffusers", "", "float32", 0.31, 12.1, 547.0, 34.0, None),
    ("diffusers-compile", "diffusers-compile", "", "float32", 0.27, 31.0, 690.0, 34.0, 71.2),
    ("optimum-onnx", "optimum-onnx", "", "float32", 0.26, 10.2, 811.0, 34.4, 64.0),
    ("openvino-genai", "openvino-genai", "", "float32", 0.22, 2.2, 248.0, 33.9, 58.3),
    ("onnx float32", "ingot", "onnx", "float32", 0.21, 1.4, 190.0, 33.8, None),
    ("onnx int8-static", "ingot", "onnx", "int8-static", 0.11, 1.2, 120.0, 9.1, 31.8),
    ("openvino float32", "ingot", "openvino", "float32", 0.20, 1.9, 210.0, 33.8, 66.4),
    ("openvino int8-static", "ingot", "openvino", "int8-static", 0.072, 1.7, 131.0, 9.3, 33.1),
    ("openvino int8-static, DeepCache 3", "ingot", "openvino", "int8-static", 0.041, 1.7, 133.0, 9.3, 24.7),
    ("torch bfloat16", "ingot", "torch", "bfloat16", 0.16, 6.3, 420.0, 17.2, 41.9),
)


def job(size: int = 256, width: int | None = None, **changed: Any) -> Job:
    given = {
        "batch": 1,
        "steps": 8,
        "threads": 1,
        "guidance_scale": 7.5,
        "scheduler": "DPMSolverMultistepScheduler",
        "seed": 0,
    }
    return Job(height=size, width=width or size, **{"prompts": PROMPTS, **given, **changed})


def grid() -> list[Job]:
    """A job and what scales from it: three sizes, batches 1, 2 and 4, two counts of threads and of steps."""
    first = job()
    sizes = [job(384, 256), job(512)]
    return [first, *sizes, job(batch=2), job(batch=4), job(threads=2), job(steps=20)]


def run(number: int, one: Job, step_s: float, cold_s: float, mib: float, rng: np.random.Generator) -> Run:
    """A process's figures: a step grows with pixels and batch, the text encoder takes half a step, the VAE two."""
    noisy = float(rng.uniform(0.97, 1.06))
    step = step_s * one.height * one.width / 65536 * one.batch**0.9 / one.threads**0.8 * noisy
    call = step * (one.steps + 2.5) + 0.004 * one.steps
    timeline, at = [("text_encoder", 0.0, step / 2)], step / 2 + 0.001
    for _ in range(one.steps):
        timeline += [("unet", at, at + step), ("scheduler", at + step, at + step + 0.002)]
        at += step + 0.004
    timeline.append(("vae_decoder", at, at + 2 * step))
    imported, opened = 0.55 * cold_s * noisy, 0.25 * cold_s * noisy
    first = call * 1.2
    return Run(
        round=number, import_s=imported, open_s=opened, first_step_s=step * 1.9, first_image_s=first,
        cold_start_s=imported + opened + first, first_preview_s=step * 1.6, call_s=[call, call * 1.01], step_s=[step, step * 1.01],
        host_ms_per_step=[4.0 * noisy, 4.1 * noisy],
        component_s={"text_encoder": [step / 2], "unet": [step * one.steps], "vae_decoder": [2 * step]},
        timeline=timeline, peak_mib=mib * (1 + one.height * one.width * one.batch / 2**20) * noisy, busy=0.02,
    )  # fmt: skip


def contestants(count: int = len(KNOWN), name: str = "{}") -> list[tuple[Contestant, tuple[Any, ...]]]:
    """As many as asked for: after the known ones their like, with other options."""
    made = []
    for index in range(count):
        known = KNOWN[index % len(KNOWN)]
        turn = index // len(KNOWN)
        title = name.format(known[0] + (f", variant {turn}" if turn else ""))
        options = {"precision": known[3]} | ({"engine": known[2]} if known[2] else {})
        figures = tuple(value if value is None else value * (1 + 0.17 * turn) for value in known[4:])
        made.append((Contestant(name=title, kind=known[1], model="out/shapes", options=options), figures))
    return made


def picture(seed: int, psnr_db: float | None, size: int = 64) -> np.ndarray:
    """A ring on a ground; with `psnr_db` noise of about that strength is on it."""
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    ring = np.abs(np.hypot(x, y) - size * 0.3) < size * 0.09
    made = np.where(ring[..., None], (214, 60, 40), (60, 90, 190) if seed % 2 == 0 else (235, 235, 228)).astype(
        np.float64
    )
    if psnr_db is not None:
        made += np.random.default_rng(seed).normal(0, 255 / 10 ** (psnr_db / 20), made.shape)
    return np.clip(made + 0.5, 0, 255).astype(np.uint8)


def report(
    folder: Path | None = None, jobs: Sequence[Job] | None = None, count: int = len(KNOWN), rounds: int = 3,
    name: str = "{}", quality: bool = True, failing: Sequence[int] = (), noisy: bool = False, picture_size: int = 64,
    notes: Sequence[str] = (),
) -> Report:  # fmt: skip
    """A report. With a folder its pictures are written there; contestants whose index is in `failing` died before any run."""
    jobs = list(jobs or [job()])
    asked, rows = contestants(count, name), []
    reference = asked[0][0].name if asked else None
    for number, one in enumerate(jobs):
        for index, (who, figures) in enumerate(asked):
            rows.append(_row(who, number, one, figures, rounds, reference if quality else None, index in failing))
            if folder is not None and index not in failing:
                rows[-1] = _with_pictures(rows[-1], index, figures[4], folder, picture_size)
    return Report(
        ingot="0.1.0", command="ingot bench out/shapes --baseline diffusers -o report", began="2026-01-02T03:04:05Z", seconds=1234.5,
        title="Shapes on two cores", machine=machine(), noise=Noise(probe_ms=[101.0, 102.5, 103.0], spread=0.02, busy=0.03, noisy=noisy,
        why="the probe's times spread by 31 %" if noisy else ""), rounds=rounds, reference=reference, jobs=jobs,
        contestants=[who for who, _ in asked], rows=rows, notes=list(notes),
    )  # fmt: skip


def machine() -> Machine:
    return Machine(
        processor="A Processor Model 8375C CPU @ 2.90GHz", cores=2, memory_gib=15.6, system="Linux 6.1", python="3.11.2",
        flags=["avx2", "avx512f", "avx512_vnni", "amx_int8"], limit="2 processors by cgroup",
    )  # fmt: skip


def _row(
    who: Contestant, number: int, one: Job, figures: Sequence[Any], rounds: int, reference: str | None, fails: bool
) -> Row:
    if fails:
        return Row(contestant=who.name, job=number, error="killed by signal 9 (out of memory?)")
    rng = np.random.default_rng([number, len(who.name)])
    step_s, cold_s, mib, artifact_mb, psnr_db = figures
    runs = [run(turn + 1, one, step_s, cold_s, mib, rng) for turn in range(rounds)]
    found = None
    if reference:
        ssim = 1.0 if psnr_db is None else 1 - 10 ** (-psnr_db / 20)
        sqnr_db = None if psnr_db is None else psnr_db * 0.8
        right = 0.75 if psnr_db and psnr_db < 30 else 1.0
        equal = psnr_db is None
        found = Quality(
            reference=reference, equal=equal, psnr_db=psnr_db, ssim=ssim, latents_equal=equal, latent_sqnr_db=sqnr_db, checker=right
        )  # fmt: skip
    notes = (
        ["its own first latents: pictures are not those of the reference's seeds"]
        if who.name == "openvino-genai"
        else []
    )
    return Row(contestant=who.name, job=number, runs=runs, versions={"numpy": "2.0.0", who.kind: "1.2.3"}, artifact_mb=artifact_mb,
               installed_mb={"numpy": 60.0, "total": 240.0 + cold_s * 90}, quality=found, notes=notes)  # fmt: skip


def _with_pictures(row: Row, index: int, psnr_db: float | None, folder: Path, size: int) -> Row:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    names = [f"pictures/c{index}-{row.job}-{seed}.png" for seed in range(len(PROMPTS))]
    for seed, name in enumerate(names):
        Image.fromarray(picture(seed, psnr_db, size)).save(folder / name)
    return msgspec.structs.replace(row, pictures=names)
