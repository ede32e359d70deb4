"""The weights of an OpenVINO model by the checkpoint's names, and others in their place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ._openvino_import import ov
from ._weights import Change, changed_weight

FLOATS = (ov.Type.f32, ov.Type.f16)
COMPRESSED = "_compressed"  # what OpenVINO adds to the name of a constant that it stores in float16


def named_weights(model: ov.Model) -> dict[str, ov.Node]:
    """The constants that are weights: exporters.openvino_graph gives those the checkpoint's names, `….weight`."""
    found: dict[str, ov.Node] = {}
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() in FLOATS:
            name = node.get_friendly_name().removesuffix(COMPRESSED)
            if name.endswith(".weight"):
                found[name] = node
    return found


def exchange(model: ov.Model, changes: Mapping[str, Change]) -> None:
    """Put changed weights in the places of the model's own, in its own dtypes."""
    weights = named_weights(model)
    for name, change in changes.items():
        old = weights[name]
        array = np.ascontiguousarray(changed_weight(change, old.data))
        new = ov.op.Constant(array)  # a copy: the array may go
        new.set_friendly_name(old.get_friendly_name())
        for target in old.output(0).get_target_inputs():
            target.replace_source_output(new.output(0))
