"""Attention as one operator of ONNX Runtime, which never stores the whole matrix of scores.

    softmax(scale * Q K^T + mask) V, with heads split off the last axis before and merged into it after,
    becomes MultiHeadAttention(Q, K, V, attention_bias=mask, num_heads, scale)

Q (batch, length, heads * width), K and V of their own length; the mask (batch or 1, heads or 1, queries, keys), added.
Source: the operator's definition in ONNX Runtime, `docs/ContribOperators.md`, com.microsoft.MultiHeadAttention.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .onnx_tuned_match import (
    CONTRIB,
    Outcome,
    Refused,
    Size,
    attribute,
    equal,
    is_finite,
    made_by,
    only_use,
    permutes,
    rank,
    scalar,
    size,
    sizes,
    take_over,
)

SPLIT = (0, 2, 1, 3)  # (batch, length, heads, width) to (batch, heads, length, width) and back
FLAT = "ingot.flat"  # the initializer by which a view's heads and width become one axis


@dataclass(frozen=True)
class Attention:
    """Where an attention lies in a graph. `query`, `key` and `value` are (batch, length, heads, width); `flat` is the
    Reshape that merges the last two."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    scale: float
    heads: int
    flat: ir.Node


def fuse(model: ir.Model) -> Outcome:
    """Replace every attention that the operator can say; reasons for the others."""
    applied, refused = 0, []
    for node in [node for node in model.graph if node.op_type == "Softmax"]:
        try:
            _replace(model.graph, find(node))
            applied += 1
        except Refused as reason:
            refused.append(f"attention at {node.name}: {reason}")
    return Outcome(applied, tuple(refused))


def find(softmax: ir.Node) -> Attention:
    """The attention around a Softmax. Raises Refused."""
    scores, mask, scale = _scores(softmax)
    weighted, guarded = _weighted(softmax)
    if guarded and mask is not None and not is_finite(mask):
        raise Refused("the mask may hold -inf, and rows that it hides whole are zero here, which the operator has not")
    query, query_scale = _scaled(scores.inputs[0])
    key, key_scale = _scaled(scores.inputs[1])
    views = _split(query, "queries"), _key(key), _split(weighted.inputs[1], "values")
    heads = size(views[0], 2)
    if not isinstance(heads, int) or not equal(views[0], views[1], 2) or not equal(views[0], views[2], 2):
        raise Refused("queries, keys and values are not known to have one number of heads")
    if not set.intersection(*(_batches(view) for view in views)):
        raise Refused("queries, keys and values are not known to have one batch, over which the operator repeats none")
    if mask is not None:
        _require_whole(mask, views[0], views[1])
    return Attention(*views, mask, scale * query_scale * key_scale, heads, _flattened(weighted, views[0], views[2]))


def _scores(softmax: ir.Node) -> tuple[ir.Node, ir.Value | None, float]:
    """The product of queries and keys, what is added to it, and what it is multiplied with."""
    if attribute(softmax, "axis", -1) not in (-1, 3):
        raise Refused("the Softmax is not over the last axis")
    given, mask = softmax.inputs[0], None
    added = made_by(given, "Add")
    if added is not None:
        products = [index for index in (0, 1) if made_by(_scaled(added.inputs[index])[0], "MatMul")]
        if len(products) != 1:
            raise Refused("what is added to the scores cannot be told from them")
        given, mask = added.inputs[products[0]], added.inputs[1 - products[0]]
    given, scale = _scaled(given)
    product = made_by(given, "MatMul")
    if product is None:
        raise Refused("no product of queries and keys goes into the Softmax")
    return product, mask, scale


def _scaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """A value without the constant factor on it, and the factor."""
    node = made_by(value, "Mul", "Div")
    if node is None:
        return value, 1.0
    left, right = scalar(node.inputs[0]), scalar(node.inputs[1])
    if right is not None:
        return node.inputs[0], right if node.op_type == "Mul" else 1 / right
    if left is not None and node.op_type == "Mul":
        return node.inputs[1], left
    return value, 1.0


def _weighted(softmax: ir.Node) -> tuple[ir.Node, bool]:
    """The product with the values, and whether rows without a number are made zero before it."""
    output, guarded = softmax.outputs[0], False
    users = {node.op_type: node for node in output.consumers()}
    if set(users) == {"IsNaN", "Where"} and len(output.consumers()) == 2 and not output.is_graph_output():
        where = users["Where"]
        condition = made_by(where.inputs[0], "IsNaN")
        same = condition is not None and condition.inputs[0] is output and where.inputs[2] is output
        if not same or scalar(where.inputs[1]) != 0.0:
            raise Refused("the Where after the Softmax is not the one that makes rows without a number zero")
        output, guarded = where.outputs[0], True
    product = only_use(output)
    if product is None or product.op_type != "MatMul" or product.inputs[0] is not output:
        raise Refused("the Softmax is used for more than one product with values")
    return product, guarded


def _split(value: ir.Value | None, name: str) -> ir.Value:
    """Before heads were put in front of the length."""
    node = made_by(value, "Transpose")
    if node is None or not permutes(node, *SPLIT) or node.inputs[0] is None:
        raise Refused(f"the {name} are not a view of (batch, length, heads, width)")
    return node.inputs[0]


def _key(value: ir.Value | None) -> ir.Value:
    """The keys, from their transposed form: one Transpose, or a Transpose of matrices between two Reshapes."""
    node = made_by(value, "Transpose")
    if node is not None and permutes(node, 0, 2, 3, 1) and node.inputs[0] is not None:
        return node.inputs[0]
    if permutes(node, 0, 1, 3, 2) and node is not None:
        return _split(node.inputs[0], "keys")
    after = made_by(value, "Reshape")
    turned = made_by(after.inputs[0], "Transpose") if after is not None else None
    before = made_by(turned.inputs[0], "Reshape") if turned is not None and permutes(turned, 0, 2, 1) else None
    if after is None or before is None or before.inputs[0] is None:
        raise Refused("the keys are not transposed in a way that is known")
    keys = before.inputs[0]
    if rank(keys) != 4:
        raise Refused("the keys are not known to have four axes")
    batch, heads, length, width = (size(keys, axis) for axis in range(4))
    turned_sizes, whole = sizes(before.inputs[1]), sizes(after.inputs[1])
    expected = [[first, second, width, length] for first in (batch, -1) for second in (heads, -1)]
    if None in (length, width) or not turned_sizes or turned_sizes[1:] != [length, width] or whole not in expected:
        raise Refused("the keys' last two axes may not be the ones that are exchanged")
    return _split(keys, "keys")


def _require_whole(mask: ir.Value, query: ir.Value, key: ir.Value) -> None:
    """The operator repeats a mask over batch and heads, and over nothing else."""
    if rank(mask) != 4 or size(mask, 2) != size(query, 1) or size(mask, 3) != size(key, 1):
        raise Refused("the mask is not known to have four axes, a row for every query and a column for every key")


def _flattened(weighted: ir.Node, query: ir.Value, value: ir.Value) -> ir.Node:
    """The Reshape to (batch, length, heads * width), after the Transpose that puts heads behind the length."""
    node = only_use(weighted.outputs[0])
    if node is not None and node.op_type == "Reshape":  # to the shape that was there already, as CLIP's is
        same = rank(node.outputs[0]) == 4 and all(equal(node.outputs[0], weighted.outputs[0], n) for n in (1, 2, 3))
        node = only_use(node.outputs[0]) if same else None
    flat = only_use(node.outputs[0]) if node is not None and permutes(node, *SPLIT) else None
    if flat is None or flat.op_type != "Reshape" or not _is_flat(flat.outputs[0], query, size(value, 3)):
        raise Refused("the result is not known to be merged into (batch, length, heads * width)")
    return flat


def _replace(graph: ir.Graph, found: Attention) -> None:
    last = found.flat
    query, key, value = (_flat(graph, view, last) for view in (found.query, found.key, found.value))
    attention = ir.node(
        "MultiHeadAttention",
        [query, key, value] if found.mask is None else [query, key, value, None, None, found.mask],
        {"num_heads": found.heads, "scale": found.scale},
        domain=CONTRIB,
        name=f"{last.name}_attention",
    )
    graph.insert_before(last, attention)
    take_over(attention.outputs[0], last.outputs[0])
    graph.remove(last, safe=True)


def _flat(graph: ir.Graph, view: ir.Value, before: ir.Node) -> ir.Value:
    """(batch, length, heads * width): what the view is of, where that is known to be the same, or the view flattened."""
    source = _source(view)
    if source is not None:
        return source
    shape = graph.initializers.get(FLAT)  # one for all views, of which some are flattened several times
    if shape is None:
        shape = ir.Value(name=FLAT, const_value=ir.tensor(np.array([0, 0, -1]), name=FLAT))
        graph.register_initializer(shape)
    flat = ir.node("Reshape", [view, shape], name=f"{view.name}_flattened")
    graph.insert_before(before, flat)
    return flat.outputs[0]


def _source(view: ir.Value) -> ir.Value | None:
    """What the view is of, where that is known to be (batch, length, heads * width)."""
    node = made_by(view, "Reshape")
    source = node.inputs[0] if node is not None else None
    return source if source is not None and _is_flat(source, view, size(view, 3)) else None


def _batches(view: ir.Value) -> set[Size]:
    """What is known of a view's batch, its own or that of what it is of: shape inference knows none of a -1."""
    return {size(value, 0) for value in (view, _source(view)) if value is not None} - {None}


def _is_flat(value: ir.Value, view: ir.Value, width: Size) -> bool:
    """Whether a value of three axes has the view's batch and length: it follows from one of them and the last axis."""
    heads = size(view, 2)
    if rank(value) != 3 or not isinstance(heads, int) or not isinstance(width, int):
        return False
    return size(value, 2) == heads * width and any(equal(value, view, axis) for axis in (0, 1))
