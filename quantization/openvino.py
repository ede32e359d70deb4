"""OpenVINO graphs in fewer bits, by NNCF: weights alone, or weights and activations. Start reading at `quantize`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino._offline_transformations import (
    compress_model_transformation,
    compress_quantize_weights_transformation,
)

from ingot.exporters.graph_file import GraphFile, Progress
from ingot.exporters.openvino_graph import take_integer_timestep
from ingot.runtimes.engines._openvino import core, take_float_timestep
from ingot.runtimes.errors import ExportError, InputError, unknown

from ._openvino_layers import Place, chosen, largest, operations, places, require_finite
from ._openvino_nncf import apply, nncf
from ._openvino_options import BiasCorrection, FloatActivations, Mode, Options, Preset, usable
from ._openvino_static import Calibration, calibrated, digest, restore, restore_weights
from .scheme import Layer, Source

SCHEMES = {
    "int8-weights": "NNCF's int8 weights, a scale to an output channel; computed in floats",
    "int8-dynamic": "the same weights, and OpenVINO asked to round the activations of linear layers: no effect on CPUs with AVX2 alone",
    "int4-weights": "NNCF's int4 weights of linear layers in groups, int8 for embeddings, convolutions, the last layer",
    "int8-static": "NNCF's calibrated int8 of convolutions and linear layers, weights and activations",
    "int8-hybrid": "int8 weights everywhere, calibrated int8 activations for linear layers or for convolutions alone",
    "fp16": "float16 weights; the machine chooses what it computes in",
}
# OpenVINO reads this of a model when it compiles it; a caller's own setting goes before it.
DYNAMIC = ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
FP16_MAX = float(np.finfo(np.float16).max)


def layers(source: Source, scheme: str) -> list[Layer]:
    """What a scheme can quantize in this graph, in its order. Weights are mapped, not read."""
    return [place.layer for place in _places(core().read_model(source.path), scheme)]


def default_keep(source: Source, scheme: str) -> frozenset[str]:
    """Layers that the scheme's format cannot hold: for fp16, weights beyond its largest number."""
    if scheme != "fp16":
        return frozenset()
    model = core().read_model(source.path)
    return frozenset(place.layer.name for place in _places(model, scheme) if largest(place) > FP16_MAX)


def quantize(
    source: Source,
    folder: Path,
    *,
    scheme: str,
    keep: Collection[str] = (),
    calls: Sequence[Mapping[str, NDArray[Any]]] = (),
    name: str,
    progress: Progress | None = None,
    mode: Mode = "asym",
    group_size: int = 64,
    ratio: float = 1.0,
    dynamic_group_size: int = 32,
    preset: Preset = "mixed",
    smooth_quant_alpha: float | None = None,
    bias_correction: BiasCorrection = "none",
    half_range: bool = True,
    float_activations: FloatActivations = "linear",
) -> GraphFile:
    """Write a graph in a scheme as `<name>.xml` and `.bin` into `folder`.

    Weights only: `mode` has zero points (asym) or not (sym); int4 has a scale to `group_size` weights (-1: to a channel;
    a smaller power of two where it does not divide the channels, int8 where none from 32 does) in the share `ratio` of
    the linear layers that it costs least, int8 in the rest. `dynamic_group_size` is how many activations OpenVINO rounds
    together in int8-dynamic. Calibrated: `preset` has zero points for activations (mixed) or not (performance);
    `smooth_quant_alpha`, 0 to 1, moves outliers of activations into the weights of linear layers; `bias_correction` takes
    the mean error out of biases; `half_range` leaves out half of the weights' 256 values, without which CPUs that have no
    VNNI overflow in their 16-bit sums; `float_activations` says for int8-hybrid whose activations stay floats.

    Raises InputError for arguments that cannot be used, ExportError for weights that are not finite and what NNCF refuses.
    """
    options = Options(
        mode, group_size, ratio, dynamic_group_size, preset, smooth_quant_alpha, bias_correction, half_range,
        float_activations,
    )  # fmt: skip
    if scheme not in _MAKERS:
        raise unknown("scheme", scheme, _MAKERS)
    if scheme in ("int8-static", "int8-hybrid"):
        calls = usable(scheme, calls, source.signature)
    model = core().read_model(source.path)
    there = _places(model, scheme)
    if not there:
        raise InputError(f"{source.path} has nothing that {scheme} could make smaller (it is {source.dtype})")
    kept = chosen(there, keep, source.path)
    require_finite([place for place in there if place not in kept], source.path)
    if progress:
        progress(scheme, 0.0)
    made = _MAKERS[scheme](_Job(source, model, there, kept, calls, options))
    return _write(made, source, folder / f"{name}.xml", scheme, options, progress)


@dataclass(frozen=True)
class _Job:
    """A graph as it was read, its layers, and what to do with them."""

    source: Source
    model: ov.Model
    places: list[Place]
    kept: list[Place]
    calls: Sequence[Mapping[str, NDArray[Any]]]
    options: Options


def _int8_weights(job: _Job) -> ov.Model:
    return _compress(job.model, operations(job.kept), f"int8_{job.options.mode}")


def _int4_weights(job: _Job) -> ov.Model:
    fallback = nncf().quantization.advanced_parameters.GroupSizeFallbackMode.ADJUST
    return _compress(
        job.model,
        operations(job.kept),
        f"int4_{job.options.mode}",
        ratio=job.options.ratio,
        group_size=job.options.group_size,
        advanced_parameters=nncf().AdvancedCompressionParameters(group_size_fallback_mode=fallback),
    )


def _int8_static(job: _Job) -> ov.Model:
    model = _calibrate(job)
    restore(model, core().read_model(job.source.path), operations(job.kept))
    return _finish(model, job)


def _int8_hybrid(job: _Job) -> ov.Model:
    """Calibrated, then some layers made floats again and their weights compressed."""
    kinds = ("conv",) if job.options.float_activations == "conv" else ("linear", "embedding")
    floats = [place for place in job.places if place.layer.kind in kinds and place not in job.kept]
    model = _calibrate(job)
    restore(model, core().read_model(job.source.path), operations([*job.kept, *floats]))
    others = [place for place in job.places if place not in floats]
    return _finish(_compress(model, operations(others), f"int8_{job.options.mode}"), job)


def _fp16(job: _Job) -> ov.Model:
    """OpenVINO's own halving of everything, and float32 again where that is to stay."""
    over = [p.layer.name for p in job.places if p not in job.kept and largest(p) > FP16_MAX]
    if over:
        raise ExportError(f"{job.source.path} has weights beyond float16: {', '.join(over[:5])}; keep these layers")
    compress_model_transformation(job.model)
    restore_weights(job.model, core().read_model(job.source.path), set(operations(job.kept)))
    return job.model


_MAKERS: dict[str, Callable[[_Job], ov.Model]] = {
    "int8-weights": _int8_weights,
    "int8-dynamic": _int8_weights,
    "int4-weights": _int4_weights,
    "int8-static": _int8_static,
    "int8-hybrid": _int8_hybrid,
    "fp16": _fp16,
}


def _places(model: ov.Model, scheme: str) -> list[Place]:
    """What a scheme reaches: for calibrated ones products of activations too, for fp16 float32 weights only."""
    found = places(model, products=scheme in ("int8-static", "int8-hybrid"))
    if scheme != "fp16":
        return found
    return [place for place in found if place.constant and place.constant.get_element_type() == ov.Type.f32]


def _compress(model: ov.Model, ignored: list[str], mode: str, **arguments: Any) -> ov.Model:
    module = nncf()
    return apply(
        "compress_weights",
        model,
        mode=module.CompressWeightsMode(mode),
        ignored_scope=module.IgnoredScope(names=ignored),
        **arguments,
    )


def _calibrate(job: _Job) -> ov.Model:
    """A copy of the graph with everything calibrated, fed as its signature says."""
    take_float_timestep(job.model, job.source.signature)
    path, options = job.source.path, job.options
    stat = path.stat()
    wanted = Calibration(
        path, (stat.st_mtime_ns, stat.st_size), digest(job.calls), options.preset, options.smooth_quant_alpha,
        options.bias_correction, options.half_range, model=job.model, calls=job.calls,
    )  # fmt: skip
    return calibrated(wanted).clone()


def _finish(model: ov.Model, job: _Job) -> ov.Model:
    """Store as integers what stands behind FakeQuantize, and take the timestep as the source does."""
    compress_quantize_weights_transformation(model)
    ports = core().read_model(job.source.path).inputs
    if any("timestep" in port.get_names() and port.get_element_type() == ov.Type.i64 for port in ports):
        take_integer_timestep(model)
    return model


def _write(
    model: ov.Model, source: Source, path: Path, scheme: str, options: Options, progress: Progress | None
) -> GraphFile:
    if scheme != "fp16":
        model.set_rt_info(str(options.dynamic_group_size if scheme == "int8-dynamic" else 0), DYNAMIC)
    if progress:
        progress("weights", 0.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.stem}.new.xml")
    try:
        ov.save_model(model, fresh, compress_to_fp16=False)
    except RuntimeError as error:
        raise ExportError(f"{path} cannot be written: {error}") from error
    # never in place: a file of this name may be a hard link to another bundle's
    for suffix in (".bin", ".xml"):
        fresh.with_suffix(suffix).replace(path.with_suffix(suffix))
    return GraphFile(
        role=source.role,
        path=path,
        extra_files=(path.with_suffix(".bin"),),
        dtype=scheme,
        static=source.static,
        signature=source.signature,
        node_count=sum(node.get_type_name() not in ("Constant", "Parameter", "Result") for node in model.get_ops()),
        stored=dict(source.stored),
    )
