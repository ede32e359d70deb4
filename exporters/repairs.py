"""Small changes to a traced program that its way to a graph needs."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten
CONCATENATIONS = (aten.cat.default, aten.concat.default, aten.concatenate.default)


def repair(program: ExportedProgram) -> None:
    """Rewrite in place what torch 2.13 traces and then cannot decompose or translate."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        elif node.target is aten.scaled_dot_product_attention.default:
            _fix_layout(node)
        elif node.target is aten.squeeze.dim and node.meta["val"].dim() == node.args[0].meta["val"].dim():
            # torch leaves a dimension that is not 1 (PixArt's tokens); ONNX refuses it, at run time.
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in CONCATENATIONS:
            _promote(node)
    program.graph_module.recompile()


def _fix_layout(node: Node) -> None:
    """Pin the layout of an attention's output.

    Fused it has other strides than decomposed, so a view traced behind the one is impossible behind the other (T5 with
    a mask: "Cannot view a tensor with shape ... and strides ..."). The copy is an Identity in ONNX, and goes.
    """
    with node.graph.inserting_after(node):
        copy = node.graph.call_function(aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
        copy.meta = {**node.meta, "val": node.meta["val"].contiguous()}
    node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)


def _promote(node: Node) -> None:
    """Cast what is concatenated to the dtype of the result, as torch does and the ONNX exporter does not.

    SDXL's float32 time ids meet float16 text embeddings.
    """
    parts = node.args[0]
    assert isinstance(parts, (list, tuple))
    dtype = node.meta["val"].dtype
    for part in parts:
        assert isinstance(part, Node)
        if part.meta["val"].dtype != dtype:
            with node.graph.inserting_before(node):
                cast = node.graph.call_function(aten._to_copy.default, (part,), {"dtype": dtype})
                cast.meta = {**node.meta, "val": part.meta["val"].to(dtype)}
            node.replace_input_with(part, cast)
