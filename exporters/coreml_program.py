"""A traced program as coremltools 9.0 can read it, with the inputs that Apple's Swift package feeds.

What is changed, on a copy: inputs take their package's shapes; nodes that coremltools has no translation for are left out
or written in others that it has, each with its reason below.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Node

from ingot.runtimes.engines._coreml import Feature
from ingot.runtimes.errors import ExportError

aten = torch.ops.aten
# They compute nothing. coremltools 9.0 knows no `alias` ("Unsupported fx node alias").
NOTHING = (aten.alias.default, aten.detach.default, aten.detach_.default, aten.lift_fresh_copy.default)
CASTS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default)


# what changes a parameter's shape alone
RESHAPES = (
    torch.ops.aten.unsqueeze.default, torch.ops.aten.slice.Tensor, torch.ops.aten.reshape.default,
    torch.ops.aten.view.default, torch.ops.aten.squeeze.dim, torch.ops.aten.alias.default,
)  # fmt: skip


def prepared(
    program: ExportedProgram, features: Sequence[Feature], *, dynamic: bool, decomposed: bool = False
) -> ExportedProgram:
    """A copy of the program whose inputs are `features`, in the ATen dialect.

    `decomposed` lowers composite operators first, for models with some that coremltools does not know; it takes as long
    as the trace did, so that the few that UNets, VAEs and CLIP have are written anew here. Raises ExportError for an
    upsampling by something else than a doubling, where sizes are `dynamic`.
    """
    if decomposed or any(_mutates(node) for node in program.graph.nodes):
        program = program.run_decompositions({})  # makes changes in place functional, too
    graph = _copied(program.graph)
    inputs = _inputs(program, graph)
    for name, feature in zip(inputs, features, strict=True):
        LAYOUTS.get(feature.layout, _same)(graph, inputs[name], inputs)
    for node in list(graph.nodes):
        change = CHANGES.get(node.target) or (dynamic and CHANGES_WHERE_DYNAMIC.get(node.target))
        result = change(graph, node) if change else node
        if result is node:
            continue
        if result is not None:
            node.replace_all_uses_with(result)
            result.meta["val"] = node.meta["val"]
        graph.erase_node(node)
    _name_reshaped(program, graph)
    return _rebuilt(program, graph)


def _name_reshaped(program: ExportedProgram, graph: Graph) -> None:
    """Call what is only a parameter in another shape by its name: coremltools names the constant that it folds after it."""
    specs = program.graph_signature.input_specs
    owners = {spec.arg.name: spec.arg.name for spec in specs if spec.kind is InputKind.PARAMETER}
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_function" and node.args else None
        if node.target in RESHAPES and isinstance(source, Node) and source.name in owners:
            owner = owners[source.name]
            node._rename(f"{owner}_folded")
            owners[node.name] = owner


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and node.target not in NOTHING


def _copied(graph: Graph) -> Graph:
    new = Graph()
    mapped: dict[Node, Node] = {}
    result = new.graph_copy(graph, mapped)
    new.output(result)
    return new


def _inputs(program: ExportedProgram, graph: Graph) -> dict[str, Node]:
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    specs = program.graph_signature.input_specs
    return {spec.arg.name: nodes[spec.arg.name] for spec in specs if spec.kind is InputKind.USER_INPUT}


def _rebuilt(program: ExportedProgram, graph: Graph) -> ExportedProgram:
    """The program around a new graph. Its dialect is ATen, which is what coremltools takes."""
    graph.lint()
    return ExportedProgram(
        root=GraphModule(program.graph_module, graph),
        graph=graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        constants=program.constants,
    )


def _insert(graph: Graph, target: Callable[..., Any], *args: Any) -> Node:
    """A node without an example value: to compute it could fix a size that the program leaves open."""
    node = graph.call_function(target, args)
    node.meta["val"] = None
    return node


def _same(graph: Graph, node: Node, inputs: Mapping[str, Node]) -> None:
    pass


def _channels_first(graph: Graph, node: Node, _: Mapping[str, Node]) -> None:
    """(batch, channels, 1, sequence) back to (batch, sequence, channels)."""

    def back() -> Node:
        return _insert(graph, aten.permute.default, _insert(graph, aten.squeeze.dim, node, 2), [0, 2, 1])

    value = node.meta["val"]
    _reshape_input(graph, node, value.new_empty((value.shape[0], value.shape[2], 1, value.shape[1])), back)


def _first(graph: Graph, node: Node, size: Any) -> None:
    """An array whose values are all alike back to one of them."""
    _reshape_input(
        graph, node, node.meta["val"].new_empty((size,)), lambda: _insert(graph, aten.select.int, node, 0, 0)
    )


def _rows(graph: Graph, node: Node, inputs: Mapping[str, Node]) -> None:
    _first(graph, node, next(iter(inputs.values())).meta["val"].shape[0])


def _one(graph: Graph, node: Node, _: Mapping[str, Node]) -> None:
    _first(graph, node, 1)


LAYOUTS: dict[str, Callable[[Graph, Node, Mapping[str, Node]], None]] = {
    "channels_first": _channels_first,
    "rows": _rows,
    "one": _one,
}


def _reshape_input(graph: Graph, node: Node, value: torch.Tensor, back: Callable[[], Node]) -> None:
    """Make an input this value's shape, and let every user see what `back` makes of it."""
    users = list(node.users)
    node.meta["val"] = value
    last = [other for other in graph.nodes if other.op == "placeholder"][-1]
    with graph.inserting_after(last):
        marker = graph.call_function(operator.pos, (node,))
    with graph.inserting_before(marker):
        restored = back()
    graph.erase_node(marker)
    for user in users:
        user.replace_input_with(node, restored)


def _bypassed(_: Graph, node: Node) -> Any:
    return node.args[0]


def _dropped(_: Graph, __: Node) -> None:
    return None


def _cast(graph: Graph, node: Node) -> Any:
    source = node.args[0]
    assert isinstance(source, Node)
    dtype = node.meta["val"].dtype
    if source.meta["val"].dtype == dtype:
        return source
    with graph.inserting_before(node):
        cast = graph.call_function(aten._to_copy.default, (source,), {"dtype": dtype})
    cast.meta["val"] = node.meta["val"]
    return cast


def _split(graph: Graph, node: Node) -> Node:
    """`chunk` as a split into the sizes that it came to."""
    axis = node.args[2] if len(node.args) > 2 else 0
    sizes = [part.shape[axis] for part in node.meta["val"]]
    with graph.inserting_before(node):
        return _insert(graph, aten.split_with_sizes.default, node.args[0], sizes, axis)


def _flatten(graph: Graph, node: Node) -> Node:
    source, start, end = (*node.args, *(0, -1)[len(node.args) - 1 :])[:3]
    assert isinstance(source, Node)
    rank = source.meta["val"].dim()
    with graph.inserting_before(node):
        sizes = [_insert(graph, aten.sym_size.int, source, axis) for axis in range(rank)]
        shape = [*sizes[: start % rank], -1, *sizes[end % rank + 1 :]]
        return _insert(graph, aten.reshape.default, source, shape)


def _expand_group_norm(graph: Graph, node: Node) -> Node:
    """Group norm as its definition, since coremltools 9.0 cannot translate it where batch and size are open.

    "Cannot add const [is15, 16, 2]": `_group_norm_impl` mixes a symbol into a constant.
    """
    x, groups, *rest = node.args
    weight, bias, eps = (*rest, *(None, None, 1e-5)[len(rest) :])[:3]
    assert isinstance(x, Node)
    rank, channels = x.meta["val"].dim(), x.meta["val"].shape[1]
    with graph.inserting_before(node):
        sizes = [_insert(graph, aten.sym_size.int, x, axis) for axis in range(rank)]
        grouped = _insert(graph, aten.reshape.default, x, [sizes[0], groups, -1])
        centred = _insert(graph, aten.sub.Tensor, grouped, _insert(graph, aten.mean.dim, grouped, [2], True))
        power = _insert(graph, aten.mean.dim, _insert(graph, aten.mul.Tensor, centred, centred), [2], True)
        scale = _insert(graph, aten.rsqrt.default, _insert(graph, aten.add.Tensor, power, eps))
        result = _insert(graph, aten.mul.Tensor, centred, scale)
        result = _insert(graph, aten.reshape.default, result, [sizes[0], channels, *sizes[2:]])
        wide = [1, channels, *[1] * (rank - 2)]
        for parameter, change in ((weight, aten.mul.Tensor), (bias, aten.add.Tensor)):
            if parameter is not None:
                result = _insert(graph, change, result, _insert(graph, aten.reshape.default, parameter, wide))
    return result


def _double(graph: Graph, node: Node) -> Node:
    """Nearest upsampling to a size that is only known later: doubled, then cut to that size.

    Core ML's upsampling has constant factors. To 2n or 2n - 1 the nearest neighbour of each is that of the doubling:
    floor(i n / (2n - 1)) = floor(i / 2) for every i < 2n - 1.
    """
    x, size = node.args[:2]
    if size is None:
        return node
    assert isinstance(x, Node)
    assert isinstance(size, (list, tuple))
    for axis in (2, 3):
        wide, narrow = (_hint(n.meta["val"].shape[axis]) for n in (node, x))
        if wide not in (2 * narrow, 2 * narrow - 1):
            raise ExportError(
                f"Core ML upsamples by fixed factors, and this model goes from {narrow} to {wide}: export it with --static"
            )
    with graph.inserting_before(node):
        result = _insert(graph, aten.upsample_nearest2d.vec, x, None, [2.0, 2.0])
        for axis, end in zip((2, 3), size, strict=True):
            result = _insert(graph, aten.slice.Tensor, result, axis, 0, end)
    return result


def _floor_division(graph: Graph, node: Node) -> Node:
    """A quotient of sizes as a whole number: coremltools 9.0 makes a float of it, and then cannot reshape by it."""
    with graph.inserting_before(node):
        quotient = _insert(graph, operator.floordiv, *node.args)
        whole = graph.call_function(aten._to_copy.default, (quotient,), {"dtype": torch.int32})
    whole.meta["val"] = None
    return whole


def _hint(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


# What to do with an operator: the node that replaces it, itself, or None for one that nobody reads.
Change = Callable[[Graph, Node], Any]
CHANGES: dict[Any, Change] = {
    **dict.fromkeys(NOTHING, _bypassed),
    **dict.fromkeys(CASTS, _cast),
    aten._assert_tensor_metadata.default: _dropped,
    aten.chunk.default: _split,
    aten.flatten.using_ints: _flatten,
}
CHANGES_WHERE_DYNAMIC: dict[Any, Change] = {
    aten.group_norm.default: _expand_group_norm,
    aten.upsample_nearest2d.vec: _double,
    operator.floordiv: _floor_division,
}
