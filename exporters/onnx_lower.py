"""A traced program in the operators that torch's ONNX exporter translates, without tracing it again.

`torch.onnx.export` runs every program anew on symbolic shapes to decompose what it cannot translate, which takes a half of a
UNet's export; what it then finds in a diffusion model are casts. Where these are all, they are written here, and the program
says that nothing is left to decompose. Others go torch's way, and so do those of which an operator then has no translation:
torch decomposes some that stand in no table.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

aten = torch.ops.aten
CASTS = (aten.to.dtype, aten.to.dtype_layout, aten.to.device)


class Lowered(ExportedProgram):
    """A program with casts in the form that is translated."""

    was_decomposed = False

    def run_decompositions(self, decomp_table: Mapping[Any, Any] | None = None, **options: Any) -> ExportedProgram:
        """The program itself, where none of its operators is in the table and none writes into its input."""
        operators = {node.target for node in self.graph.nodes if node.op == "call_function"}
        plain = not any(isinstance(one, OpOverload) and one._schema.is_mutable for one in operators)
        if decomp_table is not None and plain and operators.isdisjoint(decomp_table):
            return self
        self.was_decomposed = True
        again: ExportedProgram = super().run_decompositions(decomp_table, **options)
        return again


def lowered(program: ExportedProgram) -> Lowered:
    """A copy of the program, over the same weights, with its casts rewritten."""
    graph = copy.deepcopy(program.graph)  # its nodes; what they were traced with is shared
    for node in list(graph.nodes):
        if node.target in CASTS:
            _cast(node)
        elif node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
    return Lowered(
        root=GraphModule(program.graph_module, graph),
        graph=graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def _cast(node: Node) -> None:
    """Its input in its place where the dtype stays, else a cast that is nothing else."""
    source = node.args[0]
    assert isinstance(source, Node)
    before, after = source.meta["val"].dtype, node.meta["val"].dtype
    if before == after:
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)
    else:
        node.target, node.args, node.kwargs = aten._to_copy.default, (source,), {"dtype": after}
