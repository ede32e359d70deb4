"""Changes to a model that OpenVINO could not open otherwise."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset14 as operators


def add_scaled(model: ov.Model) -> None:
    """Write a group norm's n (s + 1) as n + n s.

    Of a model with fixed sizes OpenVINO 2026.4.1 fuses norm, sum and product into one kernel for the CPU, and ends the
    process with a segmentation fault while it compiles it, at most sizes. So the UNets of Kandinsky, DeepFloyd IF and unCLIP
    are built, whose timestep scales their norms.
    """
    for product in [node for node in model.get_ops() if node.get_type_name() == "Multiply"]:
        one, other = (product.input(index).get_source_output() for index in (0, 1))
        for norm, factor in ((one, other), (other, one)):
            scale = _less_one(factor) if norm.get_node().get_type_name() == "GroupNormalization" else None
            if scale is None:
                continue
            scaled = operators.add(norm, operators.multiply(norm, scale))
            scaled.set_friendly_name(product.get_friendly_name())
            for target in product.output(0).get_target_inputs():
                target.replace_source_output(scaled.output(0))
            break
    model.validate_nodes_and_infer_types()


def _less_one(factor: ov.Output) -> ov.Output | None:
    """s of what computes s + 1."""
    node = factor.get_node()
    if node.get_type_name() != "Add":
        return None
    first, second = (node.input(index).get_source_output() for index in (0, 1))
    for scale, constant in ((first, second), (second, first)):
        held = constant.get_node()
        if held.get_type_name() == "Constant" and np.all(held.data == 1):
            return scale
    return None
