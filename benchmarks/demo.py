"""`make demo`: cast Shapes for four engines, verify it, make eight pictures with each and with diffusers, and compare."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import ingot
from ingot.exporters.parity import open_in_bundle
from ingot.runtimes.images import grid

from .engine_table import table

TARGETS = ("onnx", "openvino", "torch", "coreml")


def main() -> None:
    """Run the demo into the folder named on the command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo")
    folder.mkdir(parents=True, exist_ok=True)
    bundle = ingot.export("shapes", folder / "shapes-bundle", to=TARGETS, overwrite=True, command="make demo")
    for line in ingot.verify(bundle, deep=True, open_graph=open_in_bundle):
        print(line)
    lines = table(bundle, folder / "pictures")
    for file in sorted((folder / "pictures").glob("*.npy")):
        pictures = [Image.fromarray(picture) for picture in np.load(file)]
        grid(pictures, columns=4).resize((1024, 512), Image.Resampling.NEAREST).save(folder / f"{file.stem}.png")
    print(f"pictures: {', '.join(str(file) for file in sorted(folder.glob('*.png')))}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
