"""An evaluator of Core ML packages: what was written to disk, computed step by step on any machine.

Core ML itself runs on Apple's systems only. `open_package` reads the saved protobuf and weight file of an ML program and
computes it operation by operation with torch's CPU kernels, each written from what the MIL operation is documented to do
(the docstrings of coremltools.converters.mil.mil.ops.defs), so that a package can be held against its model anywhere.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .evaluate import Program
from .package import Port, read_package

__all__ = ["Port", "Program", "open_package"]

# Importing one of these fills the table of kernels with its operations.
KERNEL_FILES = (
    "activation", "compressed", "convolution", "elementwise", "indexing", "linear", "making", "normalization", "reduction",
    "reshaping", "resizing",
)  # fmt: skip
for _file in KERNEL_FILES:
    import_module(f"{__name__}.{_file}")


def open_package(path: str | Path) -> Program:
    """Open an .mlpackage (the folder, or its Manifest.json) to evaluate it.

        program = open_package("unet.mlpackage")
        outputs = program.run({"sample": latents, "timestep": t, "encoder_hidden_states": states})

    Raises ExportError when it is not a package of an ML program, or lists what in it the evaluator does not know.
    """
    return Program(read_package(Path(path)))
