"""TensorRT: a strongly typed ONNX graph, and where this machine has a GPU the plan that is built of it.

Precision lies in the graph, as TensorRT 11 has no float16 or int8 switch: float16 and bfloat16 are what it was traced in.
Without a GPU here the plan is built when the bundle is first opened on a machine that has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common as passes

from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile, Progress
from ingot.exporters.onnx_weights import EXTERNAL_BYTES
from ingot.exporters.targets import onnx
from ingot.exporters.tensorrt_emulation import open_emulated
from ingot.exporters.tensorrt_operators import VERSION, problems
from ingot.exporters.trace import graph_signature
from ingot.runtimes import engines
from ingot.runtimes.engines import Engine
from ingot.runtimes.engines._tensorrt_options import (
    USUAL,
    BuildOptions,
    Range,
    build_options,
    names,
    profile,
    require_sizes,
    seen,
    widened,
)
from ingot.runtimes.errors import EngineError, ExportError
from ingot.runtimes.signature import Signature

DTYPES = ("float16", "bfloat16", "float32")
FILE = "tensorrt.onnx"
# ONNX knows Conv and InstanceNormalization of bfloat16 since opset 22.
OPSETS = {"float16": onnx.OPSET, "float32": onnx.OPSET, "bfloat16": 22}
PLAN = "model.plan"


def export(
    component: Component,
    folder: Path,
    *,
    dtype: str = "float16",
    static: bool = False,
    progress: Progress | None = None,
    plan: bool | None = None,
    sizes: Mapping[str, Any] | None = None,
    optimization_level: int = 3,
    tf32: bool = False,
    refit: bool = False,
    weight_streaming: bool = False,
    version_compatible: bool = False,
    hardware_compatibility: str = "none",
    workspace: int | None = None,
    opset: int | None = None,
    check_operators: bool = True,
    external_bytes: int = EXTERNAL_BYTES,
) -> GraphFile:
    """Write `tensorrt.onnx` into `folder`, and `model.plan` where this machine can build it.

    `plan` builds one (True, or an error), never does (False), or does where TensorRT and a GPU are here (None). `sizes`
    are ranges by name, `{"batch": [1, 2, 8], "height": [512, 1024, 1536]}`; what they leave out follows from the model,
    and all of them are widened to the sizes that it was recorded at, which the plan is held against. `tf32` loses
    float32's parity; `weight_streaming` lets the engine keep weights in the host's memory; `version_compatible` and
    `hardware_compatibility` (none, ampere_plus, same_compute_capability) make plans that run on more than this machine,
    slower; `workspace` is in bytes. `check_operators=False` leaves it to TensorRT whether it reads the graph.

    Raises InputError for options that cannot be used, ExportError for a graph that TensorRT's parser does not read and
    for a plan that cannot be built.
    """
    options = build_options({
        "sizes": sizes, "optimization_level": optimization_level, "tf32": tf32, "refit": refit, "workspace": workspace,
        "weight_streaming": weight_streaming, "version_compatible": version_compatible,
        "hardware_compatibility": hardware_compatibility,
    })  # fmt: skip
    options = replace(options, sizes=_sizes(component, options, static))
    profile(graph_signature(component, dtype, static=static), options.sizes)  # says which size is missing
    graph = onnx.export(
        component, folder, dtype=dtype, static=static, opset=opset or OPSETS[dtype], progress=progress,
        external_bytes=external_bytes, name=FILE, tuned=False,
    )  # fmt: skip
    if check_operators:
        _require_readable(component.role, graph.path)
    stored: dict[str, Any] = {"build": options.plain(), "precision": graph.dtype}
    extra = graph.extra_files
    if plan is not False and _can_build(required=bool(plan)):
        stored |= _build(graph.path, graph.signature, options, progress)
        extra = (*extra, folder / PLAN)
    return GraphFile(
        role=component.role, path=graph.path, extra_files=extra, dtype=graph.dtype, static=static,
        signature=graph.signature, node_count=graph.node_count, stored=stored,
    )  # fmt: skip


def open_for_parity(file: Path, signature: Signature, stored: Mapping[str, Any]) -> Engine:
    """The plan, where there is one and a GPU; else the graph that it is made of, on the CPU: by ONNX Runtime, in bfloat16
    by float32 rounded after each operator."""
    if stored.get("plan") and _can_build(required=False):
        return engines.open_with("tensorrt", file, signature, stored, {"trust_plan": True})
    if stored.get("precision") == "bfloat16":
        return open_emulated(file, signature)
    # a quantized graph as TensorRT's operators say: ONNX Runtime's own int8 kernels add in 16 bits on some CPUs, and it
    # has none for float8
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    exact = {**engines.engine("onnx").PARITY_OPTIONS, "session_options": options}
    return engines.open_with("onnx", file, signature, {}, exact)


def _sizes(component: Component, options: BuildOptions, static: bool) -> dict[str, Range]:
    """A range for every size that the graph's dimensions are named after."""
    signature = component.signature
    require_sizes(signature, options.sizes)
    recorded = seen(signature, ({name: t.shape for name, t in call.inputs.items()} for call in component.calls))
    if static:
        return {}
    wanted = _defaults(component, recorded) | options.sizes
    return widened({name: wanted[name] for name in names(signature) if name in wanted}, recorded)


def _defaults(component: Component, recorded: Mapping[str, tuple[int, int]]) -> dict[str, Range]:
    """From half to one and a half times the size that the model was trained at; its VAE one picture at a time, which at
    1536 pixels comes near TensorRT's limit of 2**31 values in a tensor with three."""
    defaults = {name: size for name, size in USUAL.items() if name in recorded}
    if component.role.startswith(("vae", "vqvae", "movq")):
        defaults["batch"] = (1, 1, 1)
    for side, trained in zip(("height", "width"), _trained_at(component), strict=True):
        if side in recorded and trained:
            defaults[side] = (max(1, trained // 2), trained, trained * 3 // 2)
    return defaults


def _trained_at(component: Component) -> tuple[int, int]:
    """Pixels to a side that the config gives: a VAE's own, a denoiser's in latents, `height/8` of the pixels."""
    size = getattr(component.source.config, "sample_size", None) or 0
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    factor = 1
    if not component.role.startswith(("vae", "vqvae", "movq")):
        dims = [dim for spec in component.signature.inputs[:1] for dim in spec.shape if isinstance(dim, str)]
        factor = max((int(dim.partition("/")[2] or 1) for dim in dims), default=1)
    return int(sides[0]) * factor, int(sides[-1]) * factor


def _require_readable(role: str, file: Path) -> None:
    model = ir.load(file)
    passes.ShapeInferencePass()(model)  # operators that a rewrite put in have no types in the file
    found = problems(model)
    if found:
        raise ExportError(
            f"{role}: by its list for version {VERSION} TensorRT's parser does not read this graph: {'; '.join(found[:5])}. "
            "check_operators=false leaves it to the TensorRT that builds the plan"
        )


def _can_build(*, required: bool) -> bool:
    try:
        missing = "" if engines.engine("tensorrt").devices() else "there is no GPU here"
    except EngineError as error:
        missing = str(error)
    if missing and required:
        raise ExportError(f"plan=true: {missing}. Without it the plan is built where the bundle is first opened")
    return not missing


def _build(file: Path, signature: Signature, options: BuildOptions, progress: Progress | None) -> dict[str, Any]:
    engine: Any = engines.engine("tensorrt")  # has more to offer than engines in general
    try:
        content, tied_to = engine.build_plan(file, signature, options, progress=progress)
    except EngineError as error:
        raise ExportError(str(error)) from error
    file.with_name(PLAN).write_bytes(content)
    return {"plan": PLAN, **tied_to}
