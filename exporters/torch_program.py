"""A traced program as it is worth storing: without the machine it was traced on, without what nothing uses."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, TensorArgument
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
HELD = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def portable(program: ExportedProgram, *, example: bool = False) -> ExportedProgram:
    """A copy of the program that shares its weights with it.

    Gone are: parameters that no operator reads (a VAE's decoder traced alone still lists the encoder's), checks of
    dtypes and devices that hold the program to where it was traced, dropouts that drop nothing, and where in which file
    on this machine each line came from. `example` keeps the example inputs, which only compiling needs.
    """
    if any(_writes(node) for node in program.graph.nodes):
        program = program.run_decompositions({})  # what changes a tensor in place is refused when a bundle is opened
    graph = Graph()
    copies: dict[Node, Node] = {}
    graph.output(graph.graph_copy(program.graph, copies))
    _clean(graph)
    signature = copy.copy(program.graph_signature)
    signature.input_specs = _used_inputs(graph, program.graph_signature)
    signature.output_specs = _named_outputs(graph, program.graph_signature)
    held = {spec.target for spec in signature.input_specs if spec.kind in HELD}
    root = GraphModule({name: getattr(program.graph_module, name) for name in _attributes(graph)}, graph)
    return ExportedProgram(
        root=root,
        graph=graph,
        graph_signature=signature,
        state_dict={name: tensor for name, tensor in program.state_dict.items() if name in held},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph[
            :1
        ],  # the call itself; the rest says which line was in which module
        example_inputs=program.example_inputs if example else None,
        constants={name: value for name, value in program.constants.items() if name in held},
        verifiers=program.verifiers,
    )


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _clean(graph: Graph) -> None:
    for node in list(graph.nodes):
        node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
        if node.target is aten._unsafe_view.default:  # what decompositions make of a reshape
            node.target = aten.reshape.default
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is aten.dropout.default and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and not node.is_impure():
            graph.erase_node(node)


def _used_inputs(graph: Graph, signature: ExportGraphSignature) -> list[Any]:
    """Erase the placeholders of parameters without users; what is left of the specs."""
    kept = []
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, signature.input_specs, strict=True):
        if spec.kind in HELD and not node.users:
            graph.erase_node(node)
        else:
            kept.append(spec)
    return kept


def _named_outputs(graph: Graph, signature: ExportGraphSignature) -> list[Any]:
    """The specs by the nodes that are the outputs now: one that was a dropout is what went into it."""
    (outputs,) = next(node for node in graph.nodes if node.op == "output").args
    assert isinstance(outputs, (list, tuple))
    return [
        dataclasses.replace(spec, arg=TensorArgument(name=node.name)) if isinstance(node, Node) else spec
        for spec, node in zip(signature.output_specs, outputs, strict=True)
    ]


def _attributes(graph: Graph) -> list[str]:
    return [str(node.target).split(".")[0] for node in graph.nodes if node.op == "get_attr"]


def weights(program: ExportedProgram) -> dict[str, Tensor]:
    """Every tensor that the program holds, by the name that compiled code asks for it."""
    constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    return {**program.state_dict, **constants}
