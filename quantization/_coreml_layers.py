"""The weights of a Core ML package that can be compressed, by the model's own names."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.exporters.coreml_chunks import MODEL, WEIGHTS
from ingot.exporters.mil.blobs import WeightFile
from ingot.exporters.mil.graph import TensorType
from ingot.runtimes.engines._coreml_import import ct
from ingot.runtimes.errors import ExportError

from .scheme import Layer

MIL_pb2, Model_pb2 = ct.proto.MIL_pb2, ct.proto.Model_pb2
LEAST = 2048  # weights below this stay as they are, as with coremltools: tables and scales would eat the gain
# The argument that is a weight, by operation, with the kind of layer and the weight's axes of output and input channels.
WEIGHTS_OF = {
    "conv": ("weight", "conv", (0, 1)),
    "conv_transpose": ("weight", "conv", (1, 0)),
    "linear": ("weight", "linear", (0, 1)),
    "gather": ("x", "embedding", (0, 1)),
}
COMPUTING = ("conv", "linear")  # operations whose activations can be int8 too
FLOATS = {"FLOAT16": np.float16, "FLOAT32": np.float32}
PARAMETER, HALF = "p_", "_to_fp16"  # how torch.export begins a parameter's name, and how coremltools ends a half's
ENDING = re.compile(r"_(weight|bias)(_folded(_\d+)?)?$")  # folded: reshaped into another constant
# Parts of module names with an underscore inside: Core ML's names have underscores for dots.
WITH_UNDERSCORES = """
add_embedding add_k_proj add_q_proj add_v_proj adaln_single c_fc c_proj caption_projection class_embedding
cond_embedding cond_proj context_embedder controlnet_blocks controlnet_cond_embedding controlnet_down_blocks
controlnet_mid_block conv_in conv_out conv_shortcut down_blocks down_proj embed_tokens encoder_hid_proj
final_layer_norm gate_proj in_layer k_proj layer_norm layer_norm1 layer_norm2 linear_1 linear_2 lm_head mid_block
nin_shortcut norm_out out_layer out_proj patch_embedding pos_embed position_embedding post_quant_conv proj_in
proj_mlp proj_out q_proj quant_conv refiner_blocks relative_attention_bias resolution_embedder self_attn
single_transformer_blocks skip_conv spatial_conv temb_proj text_embedder text_model text_proj text_projection
time_emb_proj time_embedding time_proj time_text_embed timestep_embedder to_add_out to_added_kv to_added_qkv to_k
to_k_ip to_kv to_out to_q to_qkv to_v to_v_ip token_embedding transformer_blocks transformer_layers up_blocks
up_proj v_proj vision_model visual_projection wi_0 wi_1 x_embedder
"""
COMPOUNDS = frozenset(WITH_UNDERSCORES.split())
LONGEST = max(name.count("_") for name in COMPOUNDS) + 1


@dataclass(frozen=True)
class Weight:
    """A constant in a package's weight file that operations of one kind read as their weight."""

    name: str
    kind: str
    constant: str
    operations: tuple[str, ...]
    place: int
    type: TensorType
    axes: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return tuple(size for size in self.type.shape if size is not None)

    @property
    def layer(self) -> Layer:
        """As a scheme knows it."""
        return Layer(self.name, self.kind, math.prod(self.shape))


class Package:
    """A package's protobuf, in memory, and its weight file, which stays on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = Model_pb2.Model()
        try:
            self.spec.ParseFromString((path / MODEL).read_bytes())
        except Exception as error:  # protobuf's own class, whose module differs between its versions, or the disk's
            raise ExportError(f"{path} is not a Core ML package: {error}") from error
        (function,) = self.spec.mlProgram.functions.values()
        self.opset = int(function.opset.removeprefix("CoreML"))  # 5 is iOS15's
        self.block = function.block_specializations[function.opset]
        self.weights = list(_weights(self.block))

    @property
    def weight_file(self) -> Path:
        """Where its weights lie."""
        return self.path / WEIGHTS

    def read(self, weight: Weight) -> NDArray[Any]:
        """A weight in its own dtype. Raises ExportError for numbers that are not finite."""
        found: NDArray[Any] = WeightFile(self.weight_file).read(weight.place, weight.type).numpy()
        if not np.isfinite(found).all():
            raise ExportError(f"{weight.name} has weights that are not finite: keep it as it is, with keep=[...]")
        return found.astype(FLOATS[weight.type.dtype])


def reads(operation: Any) -> Iterator[tuple[str, str, str]]:
    """What an operation and its blocks read: its type, the argument, and the value's name."""
    for argument, given in operation.inputs.items():
        for binding in given.arguments:
            if binding.WhichOneof("binding") == "name":
                yield operation.type, argument, binding.name
    for block in operation.blocks:
        yield from (("block", "output", name) for name in block.outputs)
        for inner in block.operations:
            yield from reads(inner)


def _weights(block: Any) -> Iterator[Weight]:
    users: dict[str, list[tuple[str, str, Any]]] = defaultdict(list)
    for operation in block.operations:
        for kind, argument, name in reads(operation):
            users[name].append((kind, argument, operation))
    constants = {one.outputs[0].name: one.attributes["val"] for one in block.operations if one.type == "const"}
    roles = {name: _role(users[name]) for name, value in constants.items() if _is_large_float(value)}
    modules = {name: _module(name, users) for name, role in roles.items() if role}
    several = Counter(modules.values())
    for name, module in modules.items():
        role, value = roles[name], constants[name]
        assert role is not None
        yield Weight(
            name=module if several[module] == 1 else name,
            kind=role[0],
            constant=name,
            operations=tuple(user.outputs[0].name for _, _, user in users[name]),
            place=value.blobFileValue.offset,
            type=TensorType(MIL_pb2.DataType.Name(value.type.tensorType.dataType), _shape(value)),
            axes=role[1],
        )


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(dimension.constant.size for dimension in value.type.tensorType.dimensions)


def _is_large_float(value: Any) -> bool:
    shape = _shape(value)
    return (
        value.WhichOneof("value") == "blobFileValue"
        and MIL_pb2.DataType.Name(value.type.tensorType.dataType) in FLOATS
        and len(shape) >= 2
        and math.prod(shape) >= LEAST
    )


def _role(users: Sequence[tuple[str, str, Any]]) -> tuple[str, tuple[int, int]] | None:
    """The kind of layer, and the axes of output and input channels, where all users agree that it is a weight."""
    roles = set()
    for kind, argument, _ in users:
        expected, layer, axes = WEIGHTS_OF.get(kind, ("", "", (0, 1)))
        roles.add((layer, axes) if argument == expected else None)
    return roles.pop() if len(roles) == 1 else None


def _module(constant: str, users: dict[str, list[tuple[str, str, Any]]]) -> str:
    """The module of a weight: by its own name, else by that of the bias beside it, else what the package calls it.

    coremltools folds a weight that is reshaped into a constant without the weight's name.
    """
    if constant.startswith(PARAMETER):
        return _path(constant)
    biases = [name for _, _, one in users[constant] for _, key, name in reads(one) if key == "bias"]
    for bias in biases:
        if bias.startswith(PARAMETER) and len(users[bias]) == 1:  # equal biases are one constant, named after the first
            return _path(bias)
    return constant.removesuffix(HALF)


def _path(constant: str) -> str:
    return dotted(ENDING.sub("", constant.removesuffix(HALF)).removeprefix(PARAMETER).removeprefix("source_"))


def dotted(name: str) -> str:
    """`down_blocks_0_resnets_0_conv1` as `down_blocks.0.resnets.0.conv1`."""
    words = name.split("_")
    parts = []
    while words:
        lengths = (n for n in range(min(LONGEST, len(words)), 0, -1) if n == 1 or "_".join(words[:n]) in COMPOUNDS)
        length = next(lengths)
        parts.append("_".join(words[:length]))
        words = words[length:]
    return ".".join(parts)


def layers_of(packages: Iterable[Package]) -> dict[str, Layer]:
    """The layers of packages by name; a weight that both halves of a graph hold is one."""
    return {weight.name: weight.layer for package in packages for weight in package.weights}
