"""What installing Ingot takes on disk: `python -m ingot.benchmarks.installed_size [--wheel FILE] [--extras openvino ...]`.

Makes a fresh virtual environment for each, installs the wheel with its dependencies, and counts the files that each
distribution's RECORD names, pip's own aside. Megabytes are of a million bytes; `bytecode` is the share that pip compiles when
it installs. `make wheel` makes the wheel; the network, or pip's cache, gives the rest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

WHEELS = Path(__file__).parent.parent / "dist"
TOOLS = ("pip", "setuptools", "wheel")  # what the environment itself brings
# run by the environment's own interpreter: {distribution: [version, bytes, bytes of bytecode]}
COUNT = """
import importlib.metadata as metadata, json
found = {}
for dist in metadata.distributions():
    files = [file for file in map(dist.locate_file, dist.files or ()) if file.is_file()]
    sizes = [(file.stat().st_size, file.suffix == ".pyc") for file in files]
    found[dist.name] = [dist.version, sum(size for size, _ in sizes), sum(size for size, made in sizes if made)]
print(json.dumps(found))
"""


def main() -> None:
    """Print a table for each set of extras."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, help="by default the newest in dist/")
    parser.add_argument("--extras", nargs="*", default=["", "openvino"], help="each measured apart; '' is none")
    options = parser.parse_args()
    wheel = options.wheel or max(WHEELS.glob("ingot-*.whl"), key=lambda file: file.stat().st_mtime, default=None)
    if wheel is None:
        raise SystemExit(f"no wheel in {WHEELS}: `make wheel` makes it")
    for extra in options.extras:
        wanted = f"ingot[{extra}]" if extra else "ingot"
        print("\n".join(table(wanted, measured(wheel, extra))), flush=True)


def measured(wheel: Path, extra: str) -> dict[str, tuple[str, int, int]]:
    """By distribution: its version, its bytes, and those of its bytecode."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        what = f"{wheel.resolve()}[{extra}]" if extra else str(wheel.resolve())
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what], check=True)
        done = subprocess.run([python, "-I", "-c", COUNT], capture_output=True, text=True, check=True)
    return {name: tuple(values) for name, values in json.loads(done.stdout).items() if name not in TOOLS}


def table(title: str, found: dict[str, tuple[str, int, int]]) -> list[str]:
    """Markdown, the largest first."""
    whole = (f"all {len(found)}", sum(size for _, size, _ in found.values()), sum(made for *_, made in found.values()))
    lines = [f"\n| {title} | version | MB | of it bytecode |\n|---|---|---|---|"]
    for name, (version, size, made) in sorted(found.items(), key=lambda item: -item[1][1]):
        lines.append(f"| {name} | {version} | {size / 1e6:.1f} | {made / 1e6:.1f} |")
    return [*lines, f"| {whole[0]} | | {whole[1] / 1e6:.1f} | {whole[2] / 1e6:.1f} |"]


if __name__ == "__main__":
    main()
