"""ONNX: one file per component, readable by ONNX Runtime, OpenVINO, TensorRT and optimum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from torch.export import ExportedProgram

from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile, Progress
from ingot.exporters.onnx_graph import build, is_transposed
from ingot.exporters.onnx_tuned import DEVICES, FORM, tuned_form
from ingot.exporters.onnx_weights import EXTERNAL_BYTES, save, write_anew
from ingot.exporters.trace import graph_signature, precision, trace
from ingot.runtimes.errors import ExportError

# The newest that writes attention and group norm in operators older than every reader we aim at: GroupNormalization is
# of opset 21, Attention of 23. With ONNX Runtime 1.31.1 on one CPU core, a UNet of 128 and 256 channels on latents of
# 32x32 took 214, 209, 214 and 200 ms in opsets 18, 20, 21 and 23, so the younger ones buy little there. 20 has Gelu.
OPSET = 20


DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class OnnxFile(GraphFile):
    """An ONNX graph on disk.

    `weights` are the parameters of the model that it uses, by the model's names; those in `transposed` it holds with rows
    and columns exchanged.
    """

    opset: int = OPSET
    weights: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()


def export(
    component: Component,
    folder: Path,
    *,
    dtype: str = "float32",
    static: bool = False,
    opset: int = OPSET,
    progress: Progress | None = None,
    external_bytes: int = EXTERNAL_BYTES,
    name: str = "model.onnx",
    tuned: bool = True,
) -> OnnxFile:
    """Trace the component and write `name` into `folder`, which is made.

    `dtype` is float32, float16 or bfloat16; a static graph keeps the sizes of the first recording. With `tuned`, the form
    for ONNX Runtime lies beside the portable graph, as `model_ort.onnx`, where its operators fit: both read their weights
    from `model.onnx_data` then. Raises ExportError when the model cannot be traced with the dimensions that its recordings
    changed.
    """
    if progress:
        progress("trace", 0.0)
    program = trace(component, dtype, static=static)
    return write(
        component,
        program,
        folder,
        dtype=dtype,
        static=static,
        opset=opset,
        progress=progress,
        external_bytes=external_bytes,
        name=name,
        tuned=tuned,
    )


def write(
    component: Component,
    program: ExportedProgram,
    folder: Path,
    *,
    dtype: str = "float32",
    static: bool = False,
    opset: int = OPSET,
    progress: Progress | None = None,
    external_bytes: int = EXTERNAL_BYTES,
    name: str = "model.onnx",
    tuned: bool = False,
) -> OnnxFile:
    """Write a traced program as `name`; its weights go to `<name>_data` past `external_bytes`, or when a second form of
    the graph reads them too."""
    if progress:
        progress("graph", 0.0)
    signature = graph_signature(component, dtype, static=static)
    try:
        model, weights = build(program, signature, opset, static=static)
        form = tuned_form(model) if tuned else None
    except Exception as error:  # whatever torch's exporter and onnxscript raise, of which they have no common base
        raise ExportError(f"{component.role} cannot be written as ONNX: {error}") from error
    transposed = tuple(name for name in weights if is_transposed(model.graph.initializers[name]))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    files = save(model, path, external_bytes=0 if form else external_bytes, progress=progress)
    portable = OnnxFile(
        role=component.role,
        path=path,
        extra_files=files,
        dtype=precision(component, dtype),
        static=static,
        opset=opset,
        node_count=len(model.graph),
        signature=signature,
        weights=weights,
        transposed=transposed,
    )
    return replace(portable, forms=(_beside(portable, model, form),)) if form else portable


def _beside(portable: OnnxFile, model: ir.Model, form: ir.Model) -> OnnxFile:
    """Write the tuned form over the weights of the portable graph, which was saved."""
    path = portable.path.with_name(f"{portable.path.stem}_ort.onnx")
    for name, value in form.graph.initializers.items():
        if name in model.graph.initializers:
            value.const_value = model.graph.initializers[name].const_value
    write_anew(form, path)
    return replace(portable, path=path, node_count=len(form.graph), form=FORM, stored={"devices": list(DEVICES)})
