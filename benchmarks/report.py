"""The reports that the README links, each by one command.

    python -m ingot.benchmarks.report shapes out/report -o docs/report                            # make report
    python -m ingot.benchmarks.report full-size out/full-size -o docs/report-full-size            # make report-full-size

Makes a checkpoint and bundles in WORK, as far as they are not there, and runs `ingot bench`: peers, exact graphs, and the best
recipe a step at a time. `full-size` is a checkpoint of Stable Diffusion 1.5's size with random weights: it takes an hour or
more and 40 GB. What a stop leaves in WORK is used again. Needs `make bench-env`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import ExportError, IngotError, unknown

from .harness.grid import INGOT, baselines, recipe
from .harness.machine import cores
from .harness.prepare import EXPORTERS, FORMATS
from .harness.request import interpreter
from .random_checkpoint import SD15, TINY, TINY_VAE

INT8 = "int8-static"
CLI, CHECKPOINT = "ingot.cli", "ingot.benchmarks.random_checkpoint"
Command = Sequence[str]  # a module and its arguments
Run = Callable[[Command], None]
# by the checkpoint's config: a name, GB of disk, pixels to a side, steps, rounds
SIZES = {SD15: ("Stable Diffusion 1.5 at full size", 40.0, 512, 20, 2), TINY: ("A tiny model", 0.2, 64, 6, 1)}


@dataclass(frozen=True)
class Step:
    """What one command makes in WORK: a folder, or in that bundle the UNet's graph of a precision."""

    made: Path
    command: Command
    precision: str | None = None

    def done(self) -> bool:
        """Folders appear whole or not at all, and so do a bundle's graphs."""
        if self.precision is None or not self.made.exists():
            return self.made.exists()
        return self.precision in [g.precision for g in Bundle.open(self.made, hashes=False).component("unet").graphs]


@dataclass(frozen=True)
class Subject:
    """What a report is of. `bundles` are those that have contestants."""

    work: Path
    title: str
    room_gb: float
    baselines: tuple[str, ...]
    prompts: tuple[str, ...]  # that int8 finds its ranges on
    steps: tuple[Step, ...]
    bundles: tuple[Path, ...]
    contestants: tuple[str, ...]
    job: tuple[str, ...]  # options of `ingot bench`


def main(arguments: Sequence[str] | None = None, run: Run | None = None) -> None:
    """Check, make what is missing, measure; `run` carries a command out, by default in a process of its own."""
    parser = argparse.ArgumentParser(prog="ingot.benchmarks.report", description=__doc__)
    parser.add_argument("subject", choices=["shapes", "full-size"])
    parser.add_argument("work", type=Path, help="where the checkpoint, bundles and the peers' exports are kept")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="REPORT")
    parser.add_argument(
        "--config",
        choices=[SD15, TINY],
        default=SD15,
        help=f"{TINY}: the whole path of full-size with a tiny checkpoint, to try it, in WORK/{TINY}",
    )
    parser.add_argument("--baselines", metavar="NAME,...", help="other peers than the report's own")
    parser.add_argument("--rounds", type=int, metavar="N", help="other than the report's own")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="the peers' (default: build/bench-env)")
    given = parser.parse_args(arguments)
    subject = shapes(given.work) if given.subject == "shapes" else full_size(given.work, given.config)
    names = subject.baselines if given.baselines is None else [name for name in given.baselines.split(",") if name]
    options = [] if given.rounds is None else ["--rounds", str(given.rounds)]
    options += [] if given.environments is None else ["--environments", str(given.environments)]
    try:
        require_peers(names, given.environments)
        require_room(subject)
        make(subject, run or apart)
        (run or apart)(bench(subject, given.output, names, options))
    except IngotError as error:
        raise SystemExit(f"error: {error}") from None
    shutil.rmtree(given.output / "work", ignore_errors=True)


def shapes(work: Path) -> Subject:
    """The model that ships: on it quality can be judged."""
    from ingot.shapes import split

    plain, cached, prompts = work / "bundle", work / "deep-cache", str(prompts_file(work))
    return Subject(
        work=work, title=f"Shapes on {cores()} cores", room_gb=0.5,
        baselines=("diffusers", "optimum-onnx", "optimum-intel", "openvino-genai"),
        prompts=tuple(scene.caption for scene in split()[0][:8]),  # seen in training
        steps=(
            _export(plain, "shapes", "--to", "onnx,openvino"),
            _int8(plain, "--calibrate", prompts),
            _export(cached, "shapes", "--to", "onnx", "--deep-cache", "0"),
            _int8(cached, "--calibrate", prompts),
        ),
        bundles=(plain, cached),
        contestants=(
            _ours("onnx float32", plain, "onnx", "float32"), _ours("openvino float16", plain, "openvino", "float16"),
            _ours("openvino int8-static", plain, "openvino", INT8), *ladder("onnx int8-static", plain, cached),
        ),
        job=("--guidance-scale", "4", "--steps", "20", "--rounds", "5"),
    )  # fmt: skip


def full_size(work: Path, config: str = SD15) -> Subject:
    """Random weights: time and memory are a trained model's, pictures are noise."""
    work = work / TINY if config == TINY else work
    checkpoint, little, tiny_vae = work / "checkpoint", work / "little", work / "tiny-vae"
    exact, cached, vae = (work / name for name in ("bundle", "deep-cache", "tiny-vae-bundle"))
    prompts = str(prompts_file(work))
    title, room_gb, side, steps, rounds = SIZES[config]
    return Subject(
        work=work, title=f"{title} with random weights on {cores()} cores", room_gb=room_gb,
        baselines=("diffusers", "optimum-onnx", "openvino-genai"),
        prompts=("a lighthouse on a cliff", "a bowl of fruit"),
        steps=(
            _checkpoint(checkpoint, config), _checkpoint(little, TINY), _checkpoint(tiny_vae, TINY_VAE),
            _export(exact, checkpoint, "--to", "onnx,openvino"),
            _export(cached, checkpoint, "--to", "onnx", "--deep-cache", "0"),
            # ranges of random weights: a few calls of small pictures will do
            _int8(cached, "--components", "unet,unet_shallow", "--calibrate", prompts, "--prompts", prompts, "--steps", "2",
                  "--size", "128", "--calls", "4"),
            _export(vae, little, "--to", "onnx", "--vae", str(tiny_vae)),
        ),
        bundles=(exact, cached),
        contestants=(
            _ours("onnx float32", exact, "onnx", "float32"), _ours("openvino", exact, "openvino", "float16"),
            "genai int8: kind=openvino-genai, weights=int8", *ladder("int8", cached, cached, vae),
        ),
        job=("--model", str(checkpoint), "--sizes", str(side), "--steps", str(steps), "--guidance-scale", "7.5",
             "--scheduler", "DPMSolverMultistepScheduler", "--calls", "0", "--rounds", str(rounds)),
    )  # fmt: skip


def ladder(name: str, plain: Path, cached: Path, vae: Path | None = None) -> list[str]:
    """The best recipe as contestants that add one thing each: what that brings and costs stands between its row and the one
    before. DeepCache has a bundle of its own, since a pipeline opens all graphs that it may use."""
    things = {"DeepCache 5": "cache_interval=5", "guidance to 0.4": "guidance_end=0.4"}
    if vae is not None:
        things["tiny VAE"] = f"vae={json.dumps(str(vae))}"
    found, said = [_ours(name, plain, "onnx", INT8)], _ours("", cached, "onnx", INT8)
    for thing, value in things.items():
        said += f", {value}"
        found.append(f"+ {thing}{said}")
    return found


def _ours(name: str, bundle: Path, engine: str, precision: str) -> str:
    return f"{name}: bundle={json.dumps(str(bundle))}, engine={engine}, precision={precision}"


def _checkpoint(folder: Path, config: str) -> Step:
    return Step(folder, (CHECKPOINT, str(folder), "--config", config))


def _export(bundle: Path, model: str | Path, *options: str) -> Step:
    return Step(bundle, (CLI, "export", str(model), "-o", str(bundle), *options))


def _int8(bundle: Path, *options: str) -> Step:
    return Step(bundle, (CLI, "quantize", str(bundle), "--scheme", INT8, *options), INT8)


def prompts_file(work: Path) -> Path:
    """Where the prompts of the calibration stand."""
    return work / "prompts.txt"


def require_peers(names: Sequence[str], environments: Path | None) -> None:
    """Raise InputError for a peer that there is not, or whose environment, or its exporter's, is not made."""
    for name in names:
        if name not in baselines():
            raise unknown("baseline", name, baselines())
        interpreter(name, environments)
        if name in FORMATS:
            interpreter(EXPORTERS[FORMATS[name]], environments)


def require_room(subject: Subject) -> None:
    """Raise ExportError where the disk has not what is still to be made."""
    work, room_gb = subject.work, subject.room_gb
    there = sum(file.stat().st_size for file in work.rglob("*") if file.is_file()) / 1e9
    existing = next(parent for parent in (work, *work.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < room_gb - there:
        raise ExportError(
            f"{work} needs {room_gb:g} GB, of which it has {there:.1f}, and its disk has {free:.1f} GB free: make room, or name "
            "another folder"
        )


def make(subject: Subject, run: Run) -> None:
    """Every step that is not done."""
    subject.work.mkdir(parents=True, exist_ok=True)
    prompts_file(subject.work).write_text("\n".join(subject.prompts) + "\n", encoding="utf-8")
    for step in subject.steps:
        if not step.done():
            run(step.command)


def bench(subject: Subject, output: Path, peers: Sequence[str], options: Sequence[str] = ()) -> Command:
    """The command that measures; of options that are given twice the last counts."""
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    entrants = [one for one in subject.contestants if _kind(one) in (INGOT, *peers)]
    recipes = [word for one in entrants for word in ("--contestant", one)]
    named = ["--baseline", ",".join(peers)] if peers else []
    said = [*named, *recipes, *subject.job, *options, "--work", str(subject.work / "peers"), "--title", subject.title]
    return [CLI, "bench", *map(str, subject.bundles), *said, "--overwrite", "--output", str(output)]


def _kind(contestant: str) -> str:
    """Ingot, or a peer whose recipe goes where the peer does."""
    return str(recipe(contestant)[1].get("kind", INGOT))


def apart(command: Command) -> None:
    """Run a module's command. Raises ExportError where it fails."""
    module, *arguments = command
    print(f"$ python -m {shlex.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
    if done.returncode:
        raise ExportError(f"it ended with {done.returncode}: {shlex.join(command)}; what is made is used again")


if __name__ == "__main__":
    main()
