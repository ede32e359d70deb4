"""torch: a traced program (`model.pt2`), which runs on every device; or AOTInductor's machine code for one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile, Progress
from ingot.exporters.torch_package import compile_package
from ingot.exporters.torch_program import portable
from ingot.exporters.trace import graph_signature, precision, trace
from ingot.runtimes.engines import Engine
from ingot.runtimes.engines._torch_code import PACKAGE, WEIGHTS
from ingot.runtimes.engines.torch import open_graph
from ingot.runtimes.errors import InputError, unknown
from ingot.runtimes.signature import Signature

DTYPES = ("float32", "bfloat16", "float16")
FORMATS = ("exported", "aoti")
DEVICES = ("cpu", "cuda")


def export(
    component: Component,
    folder: Path,
    *,
    dtype: str = DTYPES[0],
    static: bool = False,
    progress: Progress | None = None,
    format: str = "exported",
    channels_last: bool = False,
    device: str = "cpu",
    max_autotune: bool = False,
) -> GraphFile:
    """Trace the component and write `model.pt2` into `folder`, which is made; or, as format "aoti", compile it for a
    device (cpu or cuda, of this machine) into `model.aoti.pt2` with `model.aoti.safetensors` beside it.

    `channels_last` is how the program's convolutions run where the user does not say otherwise; `max_autotune` lets
    Inductor time several kernels and is for compiled code, as `device` is. A bfloat16 graph takes and gives float32.
    Raises InputError for options that cannot be, ExportError when the component cannot be traced or compiled.
    """
    _check(format, device, channels_last, max_autotune)
    if progress:
        progress("trace", 0.0)
    program = trace(component, dtype, static=static)
    folder.mkdir(parents=True, exist_ok=True)
    signature = graph_signature(component, dtype, static=static)
    stored: dict[str, Any] = {"format": format, "torch": torch.__version__.partition("+")[0]}
    if progress:
        progress("write" if format == "exported" else "compile", 0.5)
    plain = portable(program, example=format == "aoti")
    if format == "exported":
        path, extra = folder / "model.pt2", tuple[Path, ...]()
        torch.export.save(plain, path)
        stored |= {"channels_last": channels_last}
    else:
        path, extra = folder / PACKAGE, (folder / WEIGHTS,)
        stored |= compile_package(plain, folder, device=device, max_autotune=max_autotune)
    return GraphFile(
        role=component.role,
        path=path,
        extra_files=extra,
        dtype=precision(component, dtype),
        static=static,
        signature=signature,
        node_count=sum(node.op == "call_function" for node in plain.graph.nodes),
        stored=stored,
    )


def open_for_parity(file: Path, signature: Signature, stored: Mapping[str, Any]) -> Engine:
    """On the CPU, or where the code was compiled for. Code that this process did not compile itself needs the user's
    trust here too."""
    device = stored.get("device", "cpu")
    return open_graph(file, signature, stored=stored, device=device, tf32=False if device == "cuda" else None)


def _check(format: str, device: str, channels_last: bool, max_autotune: bool) -> None:
    for name, value, known in (("torch format", format, FORMATS), ("device for compiled code", device, DEVICES)):
        if value not in known:
            raise unknown(name, value, known)
    for name, flag in (("channels_last", channels_last), ("max_autotune", max_autotune)):
        if not isinstance(flag, bool):
            raise InputError(f"{name}={flag!r}: true or false is needed")
    if format == "aoti" and channels_last:
        raise InputError("channels_last is for torch.format=exported: AOTInductor lays out convolutions by itself")
    if format == "exported" and (device != "cpu" or max_autotune):
        raise InputError(
            "device and max_autotune are for torch.format=aoti; a .pt2 program runs on every device, and is told when it "
            "is opened: ingot.load(..., engine='torch', device=..., compile='max-autotune')"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch.device=cuda compiles for the GPU of this machine, and torch finds none here")
