"""Stable Diffusion XL on a GPU, rung by rung: `python -m ingot.benchmarks.gpu_ladder -o FOLDER`.

diffusers in float32 without SDPA, then in bfloat16, with SDPA, compiled, with fused projections, with dynamic int8, as its
documentation publishes it (tutorials/fast_diffusion: 7.36 s to 2.43 s on an A100), and beside it what Ingot has for the same
GPU: one checkpoint with random weights, 1024x1024, 30 steps. Makes the checkpoint and the bundles in `--work`, has `ingot bench`
measure every rung in fresh processes, in turn, and writes its report and `ladder.md` into FOLDER. A rung that cannot run here
keeps its row with the reason. By estimate 60 GB of disk, 45 GB of memory, 24 GB on the GPU, and some hours. Not yet run on a GPU.
`--device cpu --config tiny` goes the same way anywhere, with a model of a few layers: it tests this script, not a GPU.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import EngineError, IngotError, InputError

from .gpu_rungs import FILE, Rung, rungs, table
from .harness import folder as files
from .harness import grid
from .harness.machine import cores
from .harness.record import Contestant, Report
from .harness.request import Request
from .harness.run import run_request

PROMPT = "a lighthouse on a cliff"  # random weights: any will do
GUIDANCE, SCHEDULER, SEED = 5.0, "EulerDiscreteScheduler", 0
TIMEOUT = 7200.0  # seconds, of a process: max-autotune compiles for many minutes
SIDES = {"sdxl": 1024, "tiny": 64}
FACTORS = {"sdxl": 8, "tiny": 2}  # pixels to a side of one latent
SMALL = {"sdxl": "256x256", "tiny": "32x32"}  # what quantizing measures its damage at: on the processor
COARSEST = 4  # latents to a side of the UNet's coarsest
EXPORTS = {  # of each bundle
    "onnx": ("--to", "onnx", "--dtype", "float16"),
    "tensorrt": ("--to", "tensorrt", "--dtype", "bfloat16"),
    "torch": ("--to", "torch", "--dtype", "bfloat16", "--rewrite", "fused_qkv"),
}
Say = Callable[[str], None]


def main(given: Sequence[str] | None = None) -> int:
    """Measure, write, print; the exit status: 1 where nothing could be measured, 2 for options that cannot be."""
    words = list(sys.argv[1:] if given is None else given)
    asked = _parser().parse_args(words)
    try:
        _check(asked)
        if why := grid.absent("torch", asked.device):
            print(f"nothing was measured: {why}. `--device cpu --config tiny` goes the same way on any machine")
            return 1
        report = measured(asked, f"python -m ingot.benchmarks.gpu_ladder {shlex.join(words)}")
    except IngotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    published = (asked.config, asked.size, asked.steps) == ("sdxl", 1024, 30)
    text = "\n".join(table(report, rungs(asked.device, asked.backend), published=published)) + "\n"
    files.write(asked.output / FILE, text)
    print(text, end="")
    return 0 if any(row.runs for row in report.rows) else 1


def measured(asked: argparse.Namespace, command: str) -> Report:
    """Everything that is needed made, as far as it can be, and every rung measured."""
    ladder = rungs(asked.device, asked.backend)
    checkpoint = asked.work / asked.config
    made = Made(checkpoint, asked.config, lambda line: print(line, file=sys.stderr, flush=True))
    made.checkpoint()
    refused = {rung.name: why for rung in ladder if (why := made.reason(rung, asked.device)) is not None}
    return run_request(_request(asked, ladder, made, command), refused=refused, overwrite=asked.overwrite)


class Made:
    """The checkpoint and the bundles in a folder: made once, each in a process of its own, whose memory goes back."""

    def __init__(self, checkpoint: Path, config: str, say: Say) -> None:
        self.path, self.config, self.say = checkpoint, config, say
        self._failed: dict[str, str] = {}

    def checkpoint(self) -> None:
        """Make it where it is not there yet. Raises EngineError where it cannot be."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.say(f"making the checkpoint {self.path}")
            command = ["ingot.benchmarks.full_size_xl", str(self.path), "--config", self.config]
            apart(command, self.path.with_name(f"{self.path.name}.log"))

    def bundle(self, target: str) -> Path:
        """Where the bundle for a target is, or would be."""
        return self.path.with_name(f"{self.path.name}-{target}")

    def reason(self, rung: Rung, device: str) -> str | None:
        """Why a rung cannot run here; None where all that it needs is there now. What failed is not tried again."""
        if rung.kind != grid.INGOT:
            return None  # diffusers says it itself
        engine = str(rung.options["engine"])
        if why := grid.absent(engine, str(rung.options.get("device", device))):
            return why
        steps = [rung.bundle, *([rung.scheme] if rung.scheme else [])]
        for step in steps:
            if step not in self._failed:
                try:
                    self._make(step, rung)
                except IngotError as error:
                    self._failed[step] = str(error)
                    self.say(str(error))
            if step in self._failed:
                return self._failed[step]
        return None

    def _make(self, step: str, rung: Rung) -> None:
        bundle = self.bundle(rung.bundle)
        if step == rung.bundle:
            if bundle.exists():
                return
            words = ["export", str(self.path), "-o", str(bundle), *EXPORTS[rung.bundle]]
        else:
            if any(graph.precision == step for graph in Bundle.open(bundle, hashes=False).component("unet").graphs):
                return
            words = ["quantize", str(bundle), "--scheme", step, "--components", "unet", "--steps", "2", "--calls", "2"]
            words += ["--size", SMALL[self.config]]
        self.say(f"ingot {shlex.join(words)}")
        apart(["ingot.cli", *words], bundle.with_name(f"{bundle.name}-{step}.log"))


def apart(module: Sequence[str], log: Path) -> None:
    """Run a module in a process of its own, all that it prints in `log`. Raises EngineError with what it said last."""
    with log.open("wb") as out:
        command = [sys.executable, "-m", *module]
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        raise EngineError(f"{' '.join(module[:2])} ended with {code}: {said} (all of it is in {log})")


def _request(asked: argparse.Namespace, ladder: Sequence[Rung], made: Made, command: str) -> Request:
    # diffusers in this Python, which has torchao and a torch for the GPU, not in the environment of `make bench-env`
    contestants = [
        Contestant(
            name=rung.name, kind=rung.kind, options=rung.options,
            model=str((made.bundle(rung.bundle) if rung.kind == grid.INGOT else made.path).absolute()),
            python="" if rung.kind == grid.INGOT else sys.executable,
        )
        for rung in ladder
    ]  # fmt: skip
    jobs = grid.jobs(
        [(asked.size, asked.size)], [1], [asked.steps], [asked.threads], guidance_scale=GUIDANCE, scheduler=SCHEDULER, seed=SEED,
        prompts=(PROMPT,),
    )  # fmt: skip
    return Request(
        jobs=tuple(jobs), contestants=tuple(contestants), latents=(4, FACTORS[asked.config]), reference=ladder[0].name,
        rounds=asked.rounds, calls=asked.calls, timeout=asked.timeout, command=command, output=asked.output, work=asked.work,
        title=f"Stable Diffusion XL ({asked.config}, random weights) on {asked.device}", environments=None, clip=None, fid=None,
    )  # fmt: skip


def _check(asked: argparse.Namespace) -> None:
    """Raise InputError for numbers that cannot be, and for a place that has something else; fill in what was not said."""
    asked.size = asked.size or SIDES[asked.config]
    multiple = FACTORS[asked.config] * COARSEST
    for name, least in (("rounds", 1), ("calls", 0), ("steps", 1), ("threads", 1), ("size", multiple)):
        if getattr(asked, name) < least:
            raise InputError(f"--{name} {getattr(asked, name)}: at least {least} is needed")
    if asked.size % multiple:
        raise InputError(f"--size {asked.size} is not a multiple of {multiple}, as this model needs")
    output = asked.output
    if output.exists() and not (asked.overwrite and (output / files.JSON).exists()):
        raise InputError(f"{output} exists; --overwrite replaces a report in it, or name another folder with -o")
    if not output.absolute().parent.is_dir():
        raise InputError(
            f"the folder {output.absolute().parent} does not exist; -o must name a folder in one that does"
        )


def _parser() -> argparse.ArgumentParser:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ingot" / "gpu-ladder"
    parser = argparse.ArgumentParser(prog="ingot.benchmarks.gpu_ladder", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="the report's, made here")
    parser.add_argument(
        "--work", type=Path, default=cache, help=f"checkpoint and bundles, used again (default: {cache})"
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument("--config", choices=sorted(SIDES), default="sdxl", help="the model's size (default: sdxl)")
    parser.add_argument("--size", type=int, help="pixels to a side (default: 1024; 64 for tiny)")
    parser.add_argument("--steps", type=int, default=30, help="(default: 30)")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each rung (default: 3)")
    parser.add_argument("--calls", type=int, default=3, help="of each process, after its first (default: 3)")
    parser.add_argument("--threads", type=int, default=cores(), help="of the processor (default: all)")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds of a process (default: 7200)")
    parser.add_argument(
        "--backend", default="inductor", help="torch.compile's; others have no modes (default: inductor)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the report in FOLDER")
    return parser


if __name__ == "__main__":
    sys.exit(main())
