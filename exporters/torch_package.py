"""AOTInductor: a traced program compiled ahead of time, with its weights beside the code."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from ingot.runtimes.engines._torch_code import PACKAGE, WEIGHTS, machine, remember_own
from ingot.runtimes.errors import ExportError

from .torch_program import weights

# Code and weights apart: inside the library (Inductor's default) the weights are copied into an object file, a library,
# a zip, and at every load into a temporary folder. Beside it the code reads them where the file is mapped.
CONFIG: dict[str, Any] = {
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.enable_line_tables": False,  # debug information with paths of this machine
}


def compile_package(program: ExportedProgram, folder: Path, *, device: str, max_autotune: bool) -> dict[str, Any]:
    """Write `model.aoti.pt2` and `model.aoti.safetensors`; what the code needs of a machine.

    The program is used up. Raises ExportError when Inductor, or the C++ compiler behind it, fails.
    """
    import torch._inductor  # seconds of imports

    if device != "cpu":
        program = move_to_device_pass(program, device)
    held = weights(program)
    config = CONFIG | ({"max_autotune": True} if max_autotune else {})
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / PACKAGE
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=dict(config))
        except Exception as error:  # Inductor's own classes, with no common base
            raise ExportError(f"AOTInductor could not compile the program: {error}") from error
        # Inductor writes vectors of up to 8 numbers into the code; what is left it asks for by name
        wanted = torch._inductor.aoti_load_package(str(package)).get_constant_fqns()
        _without_sources(package, folder / PACKAGE)
    save_file(_each_alone({name: held[name] for name in wanted}), folder / WEIGHTS)
    remember_own(folder / PACKAGE)
    return machine(device)


def _without_sources(package: Path, target: Path) -> None:
    """The package without the generated C++: its comments hold compiler commands with paths of this machine."""
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            if not info.filename.endswith(".cpp"):
                with old.open(info) as source, new.open(info.filename, "w", force_zip64=True) as sink:
                    shutil.copyfileobj(source, sink)


def _each_alone(held: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, those that share memory with an earlier one copied: safetensors refuses them."""
    seen: set[int] = set()
    alone = {}
    for name, tensor in held.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        alone[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return alone
