"""OpenVINO: `openvino_model.xml` with its weights in `openvino_model.bin`, readable by optimum-intel and OpenVINO GenAI."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov
from transformers import PreTrainedTokenizerBase

from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile, Progress
from ingot.exporters.openvino_graph import FAILURES, build, take_integer_timestep
from ingot.exporters.trace import graph_signature, precision, trace
from ingot.runtimes.errors import ExportError

DTYPES = ("float16", "float32")
NAME, TOKENIZER = "openvino_model.xml", "openvino_tokenizer.xml"


def export(
    component: Component,
    folder: Path,
    *,
    dtype: str = "float16",
    static: bool = False,
    progress: Progress | None = None,
) -> GraphFile:
    """Write the component as `openvino_model.xml` and `.bin` into `folder`, which is made.

    float16 is how the weights are stored: inputs and outputs are float32, and the machine that runs the graph chooses what
    it computes in. A static graph keeps the sizes of the first recording. Raises ExportError when the model cannot be
    traced, or has an operator that OpenVINO cannot translate.
    """
    if progress:
        progress("trace", 0.0)
    stored = precision(component, dtype)
    signature = graph_signature(component, "float32", static=static)
    program = trace(component, "float32", static=static)
    path = folder / NAME
    try:
        if progress:
            progress("graph", 0.0)
        model = build(program, signature)
        if component.role == "unet":
            take_integer_timestep(model)
        if progress:
            progress("weights", 0.0)
        folder.mkdir(parents=True, exist_ok=True)
        ov.save_model(model, path, compress_to_fp16=stored == "float16")
    except FAILURES as error:
        raise ExportError(f"{component.role} cannot be written for OpenVINO {ov.__version__}: {error}") from error
    return GraphFile(
        role=component.role,
        path=path,
        extra_files=(path.with_suffix(".bin"),),
        dtype=stored,
        static=static,
        signature=signature,
        node_count=sum(node.get_type_name() not in ("Constant", "Parameter", "Result") for node in model.get_ops()),
        # a VAE that overflows in float16 must not be computed in it, as GPUs do by themselves
        stored={"keep_float32": True} if stored != dtype else {},
    )


def finish(folder: Path, pipe: Any, entries: Mapping[str, GraphFile]) -> None:  # noqa: ARG001  # every target takes them
    """Write each tokenizer as `openvino_tokenizer.xml` too: what OpenVINO GenAI reads. Warns where that cannot be done."""
    roles = [role for role, part in pipe.components.items() if isinstance(part, PreTrainedTokenizerBase)]
    try:
        from openvino_tokenizers import convert_tokenizer
    except ModuleNotFoundError:
        version = ".".join(ov.__version__.split("-")[0].split(".")[:3])
        _warn(f"openvino_tokenizers is not installed: pip install 'openvino-tokenizers=={version}.*'")
        return
    for role in roles:
        try:
            model = convert_tokenizer(pipe.components[role], truncation=True)
        except (RuntimeError, TypeError, ValueError) as error:  # OVTypeError is a TypeError
            _warn(f"{role} ({type(pipe.components[role]).__name__}) cannot be converted: {error}")
            continue
        ov.save_model(model, folder / role / TOKENIZER)


def _warn(reason: str) -> None:
    warnings.warn(f"OpenVINO GenAI will not read this bundle, everything else will: {reason}", stacklevel=3)
