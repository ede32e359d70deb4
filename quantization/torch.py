"""torch: weights as torchao quantizes them, in a bundle's own `.pt2` programs, which run without torchao.

Nothing is traced again: the saved program is changed, and what is kept stays as it was, to the bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ingot.exporters.graph_file import GraphFile, Progress
from ingot.runtimes.errors import ExportError, InputError, unknown

from ._torch_archive import Program
from ._torch_layers import Weight, weights_of
from ._torch_rewrite import require_fitting, rewrite
from .scheme import Layer, Source

SCHEMES = {
    "int8-weights": "int8 weights with a scale for each output channel, unpacked when they are used",
    "int8-dynamic": "linear layers and 1x1 convolutions as products of int8, each token or pixel with a scale of its own; "
    "other weights as with int8-weights",
    "int4-weights": "int4 weights with a scale for each 32 of a row, unpacked when they are used",
    "fp8": "linear layers and 1x1 convolutions as products of float8 (e4m3), each token or pixel with a scale of its own, for "
    "Hopper and Ada; other weights in float8, unpacked when they are used",
    "bf16": "bfloat16 weights, computed in the graph's own precision",
    "fp16": "float16 weights, computed in the graph's own precision",
}
UNCALIBRATED = ("fp8",)  # a row of activations gets its scale as it comes
SAME = {"bf16": "bfloat16", "fp16": "float16"}


def layers(source: Source, scheme: str) -> list[Layer]:
    """The linear layers, convolutions and embeddings of 2048 weights and more, in the order of the program."""
    return [weight.layer for weight in _weights(_program(source, scheme), scheme)]


def quantize(
    source: Source,
    folder: Path,
    *,
    scheme: str,
    keep: Collection[str] = (),
    calls: Sequence[Mapping[str, NDArray[Any]]] = (),  # noqa: ARG001 - no scheme here needs any
    name: str,
    progress: Progress | None = None,
    group_size: int = 32,
) -> GraphFile:
    """Write a program quantized, as `<name>.pt2`.

    `group_size` weights of a row share a scale of int4: the largest number up to it that divides the row. Raises InputError
    for a scheme that torch has not, for compiled code, and for names in `keep` that are no layers; ExportError without torchao
    and for weights that the scheme cannot hold.
    """
    if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 1:
        raise InputError(f"group_size={group_size!r}: a whole number of at least 1 is needed")
    if scheme not in SAME and find_spec("torchao") is None:
        raise ExportError(
            f"{scheme} for torch needs torchao, which is not installed: pip install 'ingot[export,quantize]'"
        )
    program = _program(source, scheme)
    weights = _weights(program, scheme)
    missing = sorted(set(keep) - {weight.name for weight in weights})
    if missing:
        raise InputError(f"{source.path.name} has no layers {', '.join(missing)}; `layers` names those it has")
    chosen = [weight for weight in weights if weight.name not in keep]
    require_fitting(chosen, scheme)
    for number, weight in enumerate(chosen):
        rewrite(program, weight, scheme, group_size)
        if progress:
            progress("quantize", (number + 1) / len(chosen))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt2"
    program.save(path)
    return GraphFile(
        role=source.role, path=path, extra_files=(), dtype=scheme, static=source.static, signature=source.signature,
        node_count=len(program.nodes), stored=dict(source.stored),
    )  # fmt: skip


def _program(source: Source, scheme: str) -> Program:
    if scheme not in SCHEMES:
        raise unknown("scheme for torch", scheme, SCHEMES)
    if source.stored.get("format") == "aoti":
        raise InputError(
            f"{source.path.name} is compiled code, whose weights cannot be changed: export the bundle with "
            "--set torch.format=exported"
        )
    if SAME.get(scheme) == source.dtype:
        raise InputError(f"the weights of {source.path.name} are {source.dtype} already")
    return Program(source.path)


def _weights(program: Program, scheme: str) -> list[Weight]:
    """Those that the scheme can have: nibbles come in twos."""
    return [one for one in weights_of(program) if scheme != "int4-weights" or one.tensor.numel() % 2 == 0]
