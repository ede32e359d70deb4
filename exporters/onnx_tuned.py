"""The form of an ONNX graph for ONNX Runtime: its own operators where their kernels pay, over the same weights.

Measured with ONNX Runtime 1.31.1 on one core of an AMD EPYC (AVX2), and left out:
- SkipLayerNormalization in place of two sums and a layer norm: equal to 1e-7, 14 to 26 % slower together with the product
  before it ((2, 4096, 320), (2, 1024, 640), (2, 77, 768)).
- QuickGelu in place of x * sigmoid(1.702 x) and x * sigmoid(x): ONNX Runtime puts it in by itself when it opens the graph.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes

from .onnx_tuned_attention import fuse
from .onnx_tuned_match import CONTRIB, Outcome

FORM = "onnxruntime"
# Both have the kernel. That of CUDA was never run by us.
DEVICES = ("cpu", "cuda")


def tuned_form(model: ir.Model) -> ir.Model | None:
    """A second graph over the same tensors, None where there is nothing to fuse."""
    form = model.clone()
    return form if tune(form).applied else None


def tune(model: ir.Model) -> Outcome:
    """Rewrite a portable graph in place. Weights are neither read nor copied."""
    given = {value: value.shape for node in model.graph for value in node.outputs}
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    outcome = fuse(model)
    passes.RemoveUnusedNodesPass()(model)
    if outcome.applied:
        model.opset_imports[CONTRIB] = 1
    for node in model.graph:  # the names of sizes that were inferred mean nothing outside
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = given.get(value)
    passes.NameFixPass()(model)
    return outcome
