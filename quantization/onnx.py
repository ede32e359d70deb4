"""Quantization of ONNX graphs for ONNX Runtime, on the graph itself: integers in place of weights, one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ingot.exporters.graph_file import GraphFile, Progress
from ingot.runtimes.errors import InputError, unknown

from ._onnx_calibration import require_method
from ._onnx_dynamic import make_dynamic
from ._onnx_file import load
from ._onnx_graph import Edit, Weight, chosen, require_float32, weights, write
from ._onnx_qdq import Rounding
from ._onnx_static import make_static
from ._onnx_weights import halves, in_blocks, on_load, on_run, rows
from .scheme import SCHEMES as SHARED
from .scheme import Layer, Source

SCHEMES = {
    "int8-dynamic": "linear layers in integers, activations rounded to 8 bits as they come; embeddings int8",
    "int8-weights": "int8 weights to a channel, computed in floats",
    "int4-weights": "linear layers in int4 blocks (MatMulNBits), the rest int8, computed in floats",
    "int8-static": "linear layers and convolutions in integers, activations to 8 bits by recorded ranges; embeddings int8",
    "fp16": "float16 weights, computed in float32",
}
CONVOLUTIONS = ("float", "weights", "integers")
UNPACK = ("load", "run")
FORMS = ("int7", "uint8", "int8")
BLOCKS = (16, 32, 64, 128, 256)
KINDS = ("linear", "conv", "embedding")


def layers(source: Source, scheme: str, *, convolutions: str = "weights") -> list[Layer]:
    """What a scheme could quantize in this graph, in its order; in int8-dynamic without the convolutions, if those are to
    stay floats."""
    _require_known(scheme)
    floats = scheme == "int8-dynamic" and convolutions == "float"
    return [w.layer for w in weights(load(source.path), KINDS) if not (floats and w.layer.kind == "conv")]


def quantize(
    source: Source,
    folder: Path,
    *,
    scheme: str,
    keep: Collection[str] = (),
    calls: Sequence[Mapping[str, NDArray[Any]]] = (),
    name: str,
    progress: Progress | None = None,
    convolutions: str = "weights",
    integers: str = "int7",
    unpack: str = "load",
    block_size: int = 32,
    symmetric: bool = True,
    method: str = "minmax",
    percentile: float = 99.99,
    outputs: bool = True,
) -> GraphFile:
    """Write `name`.onnx into `folder`, the source's graph with the layers that are not in `keep` quantized.

    `integers` is what weights are kept as in int8-dynamic and int8-static: int7 (int8 of which 7 bits are used: exact on
    every CPU and the fastest), uint8 (8 bits, exact, slower; int8-dynamic only), int8 (8 bits, the sums of which saturate
    on x86 CPUs without VNNI). `convolutions` in int8-dynamic: float, weights (int8, computed in floats) or integers.
    `unpack` is when weights that are computed in floats become so: on load (small files) or on run (small in memory too).
    `block_size` and `symmetric` are those of int4 blocks. `method` of int8-static takes an activation's range from its
    extremes (minmax), from the `percentile` of its values, or where the squared error is smallest (mse); `outputs` rounds
    what convolutions give too, without which ONNX Runtime computes them in floats.

    Raises InputError for a graph that is not float32, unknown options and layers, and int8-static without `calls`;
    ExportError for weights and activations that are no numbers.
    """
    _require_known(scheme)
    require_float32(source, scheme)
    _require_options(convolutions, integers, unpack, block_size)
    require_method(method, percentile)
    if SHARED[scheme].calibrated and not calls:
        raise InputError(f"{scheme} needs recorded inputs of the component; calibrate with prompts")
    edit = Edit(source.path)
    everything = weights(edit.model, KINDS)
    found = chosen(everything, keep)
    if scheme == "fp16":
        halves(edit, found)
    elif scheme == "int8-dynamic":
        _dynamic(edit, found, convolutions, integers, unpack)
    elif scheme == "int8-static":
        rounding = Rounding(signed=False, method=method, percentile=percentile)
        arithmetic, watched = (_of(group, "linear", "conv") for group in (found, everything))
        make_static(
            edit, source, arithmetic, watched, calls, form=integers, rounding=rounding, outputs=outputs, progress=progress
        )  # fmt: skip
    else:
        _weights(edit, found, 4 if scheme == "int4-weights" else 8, unpack, block_size, symmetric)
    if scheme != "fp16":
        rows(edit, _of(found, "embedding"))
    return write(edit, source, folder, scheme=scheme, name=name, progress=progress)


def _dynamic(edit: Edit, found: Sequence[Weight], convolutions: str, integers: str, unpack: str) -> None:
    in_integers = ("linear", "conv") if convolutions == "integers" else ("linear",)
    make_dynamic(edit, _of(found, *in_integers), form=integers)
    if convolutions == "weights":
        _unpack(edit, _of(found, "conv"), unpack)


def _weights(edit: Edit, found: Sequence[Weight], bits: int, unpack: str, block_size: int, symmetric: bool) -> None:
    linear = _of(found, "linear")
    if bits == 4 or unpack == "run":
        in_blocks(edit, linear, bits=bits, block_size=block_size, symmetric=symmetric)
    else:
        on_load(edit, linear)
    _unpack(edit, _of(found, "conv"), unpack)


def _unpack(edit: Edit, found: Sequence[Weight], when: str) -> None:
    (on_run if when == "run" else on_load)(edit, found)


def _of(found: Sequence[Weight], *kinds: str) -> list[Weight]:
    return [weight for weight in found if weight.layer.kind in kinds]


def _require_options(convolutions: str, integers: str, unpack: str, block_size: int) -> None:
    for kind, value, known in (
        ("convolutions", convolutions, CONVOLUTIONS),
        ("unpack", unpack, UNPACK),
        ("integers", integers, FORMS),
    ):
        if value not in known:
            raise unknown(kind, value, known)
    if block_size not in BLOCKS:
        raise InputError(f"block_size={block_size}: a block has one of {', '.join(map(str, BLOCKS))} weights")


def _require_known(scheme: str) -> None:
    if scheme not in SCHEMES:
        raise unknown("scheme of ONNX", scheme, SCHEMES)
