"""Attention in slices: `softmax(Q K^T / sqrt(d)) V` for a few heads or queries at a time, so that the scores stay small.

The rows of Q do not see each other, so the slices are what the whole would give, up to the order of additions. diffusers
advises it on Apple silicon with less than 64 GB of memory (its MPS page), where the scores of all heads would not fit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..errors import EngineError

SLICE_BYTES = 256 * 2**20  # of scores at a time: one head of a 128x128 latent in float32 is four slices
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def attend(
    query: Tensor,  # (..., heads, queries, size)
    key: Tensor,  # (..., heads, keys, size)
    value: Tensor,  # (..., heads, keys, size of the answer)
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot product attention of tensors that fit each other.

    torch 2.13's kernel on the CPU takes the number of keys from `value` and reads that many of `key`, however many it has.
    Raises EngineError for sizes that do not fit.
    """
    if key.shape[-2] != value.shape[-2] or query.shape[-1] != key.shape[-1]:
        raise EngineError(
            f"{ATTENTION}: query, key and value of {_shapes(query, key, value)} do not fit each other; export again"
        )
    if attn_mask is not None:
        scores = (*query.shape[:-1], key.shape[-2])
        pairs = zip(reversed(attn_mask.shape), reversed(scores), strict=False)
        if attn_mask.dim() > len(scores) or any(size not in (1, whole) for size, whole in pairs):
            raise EngineError(
                f"{ATTENTION}: a mask of {list(attn_mask.shape)} does not fit {_shapes(query, key)}; export again"
            )
    found: Tensor = ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return found


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)


def slice_attention(module: GraphModule, longer_than: int) -> int:
    """Make every attention over more than `longer_than` queries work in slices; how many attentions there are."""
    nodes = [node for node in module.graph.nodes if node.target is attend]
    for node in nodes:
        node.target = sliced_attention
        node.kwargs = {**node.kwargs, "longer_than": longer_than}
    module.recompile()
    return len(nodes)


def sliced_attention(
    query: Tensor,  # (..., heads, queries, size)
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    longer_than: int = 0,
    slice_bytes: int = SLICE_BYTES,
) -> Tensor:
    """Scaled dot product attention over a few heads, or a few queries of one head, at a time.

    Whole where there are at most `longer_than` queries, and where grouped heads or a causal mask tie the slices together.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if queries <= longer_than or is_causal or enable_gqa or query.dim() < 3:
        return attend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    lead = query.shape[:-2]
    q, k, v = (tensor.expand(*lead, *tensor.shape[-2:]).flatten(0, -3) for tensor in (query, key, value))
    mask = None if attn_mask is None else attn_mask.expand(*lead, queries, keys).flatten(0, -3)
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
    row_bytes = keys * q.element_size()
    rows = max(1, min(queries, slice_bytes // row_bytes))
    heads = max(1, slice_bytes // (row_bytes * queries))
    for head in range(0, q.shape[0], heads):
        at = slice(head, head + heads)
        for first in range(0, queries, rows):
            part = slice(first, first + rows)
            seen = None if mask is None else mask[at, part]
            out[at, part] = attend(q[at, part], k[at], v[at], seen, dropout_p, False, scale=scale)
    return out.reshape(*lead, *out.shape[-2:])
