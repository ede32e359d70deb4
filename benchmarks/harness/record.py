"""What a benchmark report holds: one JSON file, its schema published as `docs/bench-schema.json`.

A report has jobs (what was asked: size, batch, steps, threads), contestants (who was asked) and a row for each pair, with
every fresh process's figures as they were measured. Medians and ratios are computed from it, never stored instead of it.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

SCHEMA = 1


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One point of the grid. Every contestant gets the same."""

    height: int  # pixels
    width: int
    batch: int  # pictures a call
    steps: int
    threads: int
    guidance_scale: float
    scheduler: str  # diffusers' class name
    seed: int  # of the first picture; the next have the next numbers
    prompts: tuple[str, ...]  # taken in turn, `batch` a call


class Contestant(msgspec.Struct, frozen=True, kw_only=True):
    """Who runs: Ingot with a bundle, or a baseline with a checkpoint."""

    name: str  # unique in the report: "onnx int8-static", "diffusers"
    kind: str  # "ingot", a baseline's name, or the path of a file that the user wrote
    model: str  # the bundle, or what the baseline loads
    options: dict[str, Any] = {}  # what it is loaded with: engine, precision, form, vae, ...
    call: dict[str, Any] = {}  # what each call is given beside the job: cache_interval, guidance_end, ...
    python: str = ""  # the interpreter; empty is Ingot's own


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One fresh process. Seconds of wall clock; a list has one entry for each call after the first, or for that one alone."""

    round: int
    import_s: float  # from the process's start to its library's last import
    open_s: float  # the model opened and compiled, tokenizers and all
    first_step_s: float  # from the first call to its first step's end: text encoders included
    first_image_s: float  # the first call, whole
    cold_start_s: float  # from the process's start to the first picture
    first_preview_s: float | None = (
        None  # from a later call to its first picture of unfinished latents, else first step
    )
    call_s: list[float] = []
    step_s: list[float] = []  # of each call: the mean step, the first left out, for it has the prompts' encoding in it
    host_ms_per_step: list[float] = []  # of each call: what its median step takes outside the denoiser
    component_s: dict[str, list[float]] = {}  # by role: the seconds of each call inside it
    timeline: list[tuple[str, float, float]] = []  # of the last call: what, from, to; seconds from its beginning
    peak_mib: float = 0.0  # resident
    gpu_peak_mib: float | None = None
    energy_j: float | None = None  # of the processor's package for each call, where the machine tells it
    busy: float = 0.0  # the share of the machine that other processes used meanwhile, 0..1


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Against the reference contestant's pictures of the same seeds. None: not measured; infinity is written as null with
    `equal` true."""

    reference: str
    equal: bool = False  # byte by byte
    psnr_db: float | None = None
    ssim: float | None = None
    latent_sqnr_db: float | None = None
    latents_equal: bool = False  # then no number says how equal
    checker: float | None = None  # share of the pictures that show what was asked: Shapes only
    clip: float | None = None
    fid: float | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A contestant at a job. `error` says why it has no figures, or fewer."""

    contestant: str
    job: int  # index into the report's jobs
    runs: list[Run] = []
    error: str | None = None
    notes: list[str] = []  # what differs from what was asked: another scheduler, its own latents
    versions: dict[str, str] = {}  # of the packages that did the work
    artifact_mb: float | None = None  # files that are opened
    installed_mb: dict[str, float] = {}  # by package: what running it needs installed; "total" is the sum
    quality: Quality | None = None
    pictures: list[str] = []  # files beside the report: PNG, the prompts' order


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    processor: str
    cores: int  # that this process may use
    memory_gib: float
    system: str
    python: str
    flags: list[str]  # instruction sets that matter: avx2, avx512_vnni, amx_int8, ...
    gpu: str | None = None
    limit: str | None = None  # a container's limit on the processor, a governor: what would explain odd figures


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """How quiet the machine was: a fixed piece of arithmetic, timed before and between the rounds."""

    probe_ms: list[float]
    spread: float  # (largest - least) / median of the probe
    busy: float  # the largest share that other processes used in a run
    noisy: bool
    why: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    schema: int = SCHEMA
    ingot: str
    command: str
    began: str  # ISO 8601, UTC
    seconds: float
    title: str
    machine: Machine
    noise: Noise
    rounds: int
    calls: int = 1  # of each process after the first; 0: the first call's own figures stand for theirs
    reference: str | None  # the contestant that ratios and quality are held against
    jobs: list[Job]
    contestants: list[Contestant]
    rows: list[Row]
    notes: list[str] = []  # what is missing from the report, and why: the page, quality


def schema() -> str:
    """The published schema, as the text of `docs/bench-schema.json`: `python -m ingot.benchmarks.harness.record` prints it."""
    described = msgspec.json.schema(Report)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A report of `ingot bench`, schema {SCHEMA}",
    }
    return json.dumps({**head, **described}, indent=1) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
