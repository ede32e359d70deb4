"""`make bench-env`: a virtual environment for each baseline, from the pins in `benchmarks/environments/`.

    python -m ingot.benchmarks.harness.environments [NAME...] [--folder build/bench-env]

An environment is whole when its stamp is there: written last, it holds the hash of the pins that it was made from. One
whose pins have changed since, or that was left half-made, is made again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ingot.runtimes.errors import EngineError, InputError, unknown

PINS = Path(__file__).parents[1] / "environments"
ROOT = Path(__file__).parents[2]
FOLDER = (ROOT if (ROOT / "Makefile").exists() else Path()) / "build" / "bench-env"
STAMP = ".pins"
ENVIRONMENTS = {  # of each baseline; two may share one
    "diffusers": "diffusers",
    "diffusers-compile": "diffusers",
    "optimum-onnx": "optimum-onnx",
    "optimum-intel": "optimum-intel",
    "openvino-genai": "openvino-genai",
}


def main() -> None:
    """Make the environments that are named, or all."""
    names = sorted(set(ENVIRONMENTS.values()))
    parser = argparse.ArgumentParser(prog="ingot.benchmarks.harness.environments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)} (default: all)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where they are made (default: {FOLDER})")
    given = parser.parse_args()
    try:
        for name in [environment_of(name) for name in given.names] or names:
            print(make(name, given.folder), flush=True)
    except (InputError, EngineError) as error:
        raise SystemExit(f"error: {error}") from None


def environment_of(kind: str) -> str:
    """The environment that a baseline runs in. Raises InputError for what is no baseline."""
    if kind not in ENVIRONMENTS:
        raise unknown("baseline", kind, ENVIRONMENTS)
    return ENVIRONMENTS[kind]


def python_of(kind: str, folder: str | Path = FOLDER) -> Path:
    """The interpreter that runs a baseline. Raises InputError where its environment is missing, half-made or of older pins."""
    name = environment_of(kind)
    place = Path(folder) / name
    if is_whole(place, name):
        return _python(place)
    if not place.exists():
        why = f"is not in {folder}"
    else:
        why = f"in {place} is " + ("of older pins" if (place / STAMP).exists() else "half-made")
    raise InputError(f"the environment of the baseline {kind} {why}; to make it: {how_to_make(name, folder)}")


def how_to_make(name: str, folder: str | Path = FOLDER) -> str:
    """The command for an error's text."""
    elsewhere = "" if Path(folder).absolute() == FOLDER.absolute() else f" --folder {folder}"
    whole = f"python -m ingot.benchmarks.harness.environments {name}{elsewhere}"
    return whole if elsewhere else f"make bench-env, or only this one: {whole}"


def is_whole(place: Path, name: str) -> bool:
    """Whether an environment was made to its end, from today's pins."""
    stamp = place / STAMP
    return stamp.exists() and _python(place).exists() and stamp.read_text().strip() == pins_hash(name)


def make(name: str, folder: str | Path = FOLDER) -> Path:
    """Make an environment unless it is whole. Returns its interpreter. Raises EngineError where something cannot be installed."""
    place = Path(folder).absolute() / name
    if is_whole(place, name):
        return _python(place)
    if (
        place.exists()
    ):  # made anew where it stands: an environment holds its own path, so it cannot be renamed into place
        shutil.rmtree(place)
    print(f"making the environment {name} in {place}", flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    _run(name, [sys.executable, "-m", "venv", str(place)])
    install = [str(_python(place)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for pin in pins(name):
        if pin.startswith("torch=="):  # first and by its exact version: see the Makefile
            _run(name, [*install, pin])
    _run(name, [*install, "--no-deps", "--requirement", str(PINS / f"{name}.txt")])
    (place / STAMP).write_text(pins_hash(name) + "\n")
    return _python(place)


def pins(name: str) -> list[str]:
    """`package==version` of everything in an environment."""
    lines = (PINS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def pins_hash(name: str) -> str:
    """Of the pins alone: a comment may change."""
    return hashlib.sha256("\n".join(sorted(pins(name))).encode()).hexdigest()


def _python(place: Path) -> Path:
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _run(name: str, command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        last = " | ".join(done.stdout.strip().splitlines()[-3:])
        raise EngineError(
            f"the environment {name} could not be made: {' '.join(command)} ended with {done.returncode}: {last}"
        )


if __name__ == "__main__":
    main()
