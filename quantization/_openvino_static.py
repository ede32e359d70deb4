"""Calibrated int8 graphs, with any layers taken out of them again.

NNCF needs ten seconds and more to place its FakeQuantize operations, nearly all of it in Python. So a graph is calibrated
once, everything in it, and what is to be kept is taken out of that: its inputs lose their FakeQuantize, its weight and
bias come back from the float graph. What is left is what NNCF makes with an ignored scope, as a test holds, but for
smoothing: that NNCF does to ignored layers too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as operators

from ._openvino_layers import weight, weight_port
from ._openvino_nncf import apply, nncf

# They move or copy values, so a FakeQuantize with one range for the whole tensor means the same before and after them.
MOVING = (
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "VariadicSplit", "Slice", "StridedSlice", "Concat",
    "Broadcast", "Tile", "Interpolate", "Pad", "Gather", "MaxPool", "DepthToSpace", "SpaceToDepth", "Convert",
)  # fmt: skip
SMOOTHING = "nncf_smooth_quant"  # in the name of what divides the activations by a scale that went into the weight
# OpenVINO's CPU plugin computes it in floats, so rounding its inputs costs quality and time
FLOAT_TYPES = ("ScaledDotProductAttention",)


@dataclass(frozen=True)
class Calibration:
    """A float graph and what is asked of its calibration: equal where the answer is."""

    path: Path
    stamp: tuple[int, int]
    digest: str
    preset: str
    smooth_quant_alpha: float | None
    bias_correction: str
    half_range: bool
    model: Any = field(compare=False, repr=False)
    calls: Sequence[Mapping[str, NDArray[Any]]] = field(compare=False, repr=False)


def digest(calls: Sequence[Mapping[str, NDArray[Any]]]) -> str:
    """What tells recorded inputs from others."""
    made = hashlib.sha256()
    for call in calls:
        for name, array in sorted(call.items()):
            made.update(f"{name} {array.dtype} {array.shape} ".encode())
            made.update(np.ascontiguousarray(array).tobytes())
    return made.hexdigest()


@lru_cache(maxsize=1)
def calibrated(wanted: Calibration) -> ov.Model:
    """The graph with every convolution and product in int8, its weights still floats behind FakeQuantize.

    It is kept for the next call: clone it.
    """
    module = nncf()
    advanced = module.quantization.advanced_parameters
    alpha = -1 if wanted.smooth_quant_alpha is None else wanted.smooth_quant_alpha
    # NNCF's default, the mean of each call's range, cuts off the steps of a trajectory that differ most from the others
    whole_range = module.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    return apply(
        "quantize",
        wanted.model,
        calibration_dataset=module.Dataset([dict(call) for call in wanted.calls]),
        subset_size=len(wanted.calls),
        preset=module.QuantizationPreset(wanted.preset),
        fast_bias_correction=wanted.bias_correction != "exact",
        model_type=module.ModelType.TRANSFORMER,
        ignored_scope=module.IgnoredScope(types=list(FLOAT_TYPES), validate=False),
        advanced_parameters=advanced.AdvancedQuantizationParameters(
            overflow_fix=advanced.OverflowFix.ENABLE if wanted.half_range else advanced.OverflowFix.DISABLE,
            disable_bias_correction=wanted.bias_correction == "none",
            activations_range_estimator_params=whole_range,
            smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(convolution=-1, matmul=alpha),
            backend_params={"compress_weights": False},
        ),
    )


def restore(model: ov.Model, floats: ov.Model, names: Collection[str]) -> None:
    """Make these operations of a calibrated graph what they are in the float graph: inputs, weight, and bias."""
    kept = set(names)
    for fake in [node for node in model.get_ordered_ops() if _rounds_activations(node)]:
        _sink(fake, kept)
    restore_weights(model, floats, kept)


def restore_weights(model: ov.Model, floats: ov.Model, names: Collection[str]) -> None:
    """Give these operations the float graph's own constants again: the same bytes in the same type."""
    originals = {node.get_friendly_name(): node for node in floats.get_ops()}
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if name not in names or weight(node) is None:
            continue
        original = originals[name]
        port = weight_port(original)
        node.input(port).replace_source_output(original.input_value(port))
        for (added, at), (source, source_at) in zip(_biases(node), _biases(original), strict=True):
            added.input(at).replace_source_output(source.input_value(source_at))


def _rounds_activations(node: ov.Node) -> bool:
    if node.get_type_name() != "FakeQuantize":
        return False
    source = node.input_value(0).get_node()
    while source.get_type_name() in ("Convert", "Reshape"):
        source = source.input_value(0).get_node()
    return bool(source.get_type_name() != "Constant")


def _sink(fake: ov.Node, kept: set[str]) -> None:
    """Where a FakeQuantize reaches something kept, move it behind the operations that only move values, to the others."""
    leaves = list(_leaves(fake))
    if not any(leaf.get_node().get_friendly_name() in kept for leaf in leaves):
        return
    source = fake.input_value(0)
    smooth = source.get_node() if SMOOTHING in source.get_node().get_friendly_name() else None
    direct = {(leaf.get_node().get_friendly_name(), leaf.get_index()) for leaf in fake.output(0).get_target_inputs()}
    ranges = [fake.input_value(port) for port in range(1, 5)]
    levels = fake.get_attributes()["levels"]
    for target in fake.output(0).get_target_inputs():
        target.replace_source_output(source)
    for leaf in leaves:
        node = leaf.get_node()
        name = node.get_friendly_name()
        if name in kept:
            if smooth is not None and (name, leaf.get_index()) in direct:
                leaf.replace_source_output(smooth.input_value(0))
        elif not _rounds_activations(node) and node.get_type_name() not in ("Result", "ShapeOf"):
            again = operators.fake_quantize(leaf.get_source_output(), *ranges, levels)
            again.set_friendly_name(f"{name}/fq_input_{leaf.get_index()}")
            leaf.replace_source_output(again.output(0))


def _leaves(node: ov.Node) -> Iterator[Any]:
    """The inputs that a value comes to when operations that only move it are passed by."""
    for output in node.outputs():
        for target in output.get_target_inputs():
            user = target.get_node()
            if user.get_type_name() in MOVING or (user.get_type_name() == "FakeQuantize" and _moved(user)):
                yield from _leaves(user)
            else:
                yield target


def _moved(fake: ov.Node) -> bool:
    """Whether a FakeQuantize stands right behind an operation that only moves values, as behind Interpolate."""
    return fake.input_value(0).get_node().get_type_name() in MOVING


def _biases(node: ov.Node) -> list[tuple[ov.Node, int]]:
    """The sums of an operation's result with a constant, and where that comes in."""
    found = []
    for target in node.output(0).get_target_inputs():
        user = target.get_node()
        if user.get_type_name() == "Add":
            at = 1 - target.get_index()
            source = user.input_value(at).get_node()
            while source.get_type_name() in ("Convert", "Reshape"):
                source = source.input_value(0).get_node()
            if source.get_type_name() == "Constant":
                found.append((user, at))
    return found
