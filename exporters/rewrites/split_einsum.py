"""Attention head by head, with the channels where the Apple Neural Engine wants them.

    S_i = softmax_k(K_i^T Q_i / sqrt(d)),   A_i = V_i S_i,   A = [A_1; ...; A_h]

Tensors are (batch, channels, 1, sequence) throughout and every head i is a slice of the channels, so that no reshape or
transpose stands between the projections, which are 1x1 convolutions. Both products are `nchw,nwhu->nchu`, the one einsum
that Core ML computes without moving its operands.

Source: "Deploying Transformers on the Apple Neural Engine", Apple Machine Learning Research, 2022; the names of the axes
are of its second principle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from ingot.runtimes.errors import InputError

# What it can stand in for: plain attention, its scale from the module or from the size of a head.
SUPPORTED = (AttnProcessor, AttnProcessor2_0)
EXACT = True
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def applies(module: nn.Module) -> bool:
    """Whether the module attends."""
    return any(isinstance(part, Attention) for part in module.modules())


@contextmanager
def applied(module: nn.Module) -> Iterator[None]:
    """Give every attention of the module this processor. Raises InputError naming those that it cannot stand in for."""
    with replaced(module, attend):
        yield


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """One head: query (B, C, 1, Q), already scaled, key (B, K, 1, C), value (B, C, 1, K), mask (B, K, 1, Q or 1).

    Returns (B, C, 1, Q).
    """
    scores = torch.einsum("bkhc,bchq->bkhq", key, query)
    if mask is not None:
        scores = scores + mask
    return torch.einsum("bchk,bkhq->bchq", value, scores.softmax(dim=1))


@contextmanager
def replaced(module: nn.Module, attend_head: Attend) -> Iterator[None]:
    """The module's attention processors replaced by one that computes each head with `attend_head`."""
    found = {name: part for name, part in module.named_modules() if isinstance(part, Attention)}
    refused = {name: why for name, part in found.items() if (why := _refusal(part))}
    if refused:
        listed = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise InputError(f"attention cannot be split into heads here, attention='original' can be exported: {listed}")
    before = {name: part.processor for name, part in found.items()}
    try:
        for part in found.values():
            part.processor = SplitProcessor(attend_head, isinstance(part.processor, AttnProcessor))
        yield
    finally:
        for name, part in found.items():
            part.processor = before[name]


def _refusal(attention: Any) -> str | None:
    if type(attention.processor) not in SUPPORTED:
        return f"{type(attention.processor).__name__} computes more than plain attention"
    if attention.inner_kv_dim != attention.inner_dim:
        return "its heads share keys and values"
    return None


class SplitProcessor:
    """Drop-in for diffusers' processors: takes and gives (B, S, C) or (B, C, H, W) as they do.

    `own_scale` is whether the module's own scale counts, as with `AttnProcessor`, in place of 1/sqrt(head).
    """

    def __init__(self, attend_head: Attend, own_scale: bool) -> None:
        self.attend_head = attend_head
        self.own_scale = own_scale

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, **_: Any,
    ) -> Tensor:  # fmt: skip
        """Attention as `attn` says, in the layout of this file."""
        x = hidden_states if attn.spatial_norm is None else attn.spatial_norm(hidden_states, temb)
        height_width = x.shape[2:] if x.dim() == 4 else None
        x = x.flatten(2)[:, :, None] if height_width else _channels_first(x)  # (B, C, 1, S)
        if attn.group_norm is not None:
            x = attn.group_norm(x)
        context = x if encoder_hidden_states is None else _channels_first(_normed(attn, encoder_hidden_states))
        mask = self._mask(attn, attention_mask, context.shape[3], x.shape[0])
        x = _project(attn.to_out[0], self._heads(attn, x, context, mask))
        x = x.reshape(*x.shape[:2], *height_width) if height_width else x[:, :, 0].transpose(1, 2)
        if attn.residual_connection:
            x = x + hidden_states
        return x if attn.rescale_output_factor == 1 else x / attn.rescale_output_factor

    def _heads(self, attn: Any, x: Tensor, context: Tensor, mask: list[Tensor | None]) -> Tensor:
        size = attn.inner_dim // attn.heads
        scale = attn.scale if self.own_scale else size**-0.5
        queries = [_head_norm(attn.norm_q, part) * scale for part in torch.split(_project(attn.to_q, x), size, dim=1)]
        keys = [_head_norm(attn.norm_k, part) for part in torch.split(_project(attn.to_k, context), size, dim=1)]
        values = torch.split(_project(attn.to_v, context), size, dim=1)
        heads = zip(queries, keys, values, mask, strict=True)
        return torch.cat([self.attend_head(q, k.transpose(1, 3), v, part) for q, k, v, part in heads], dim=1)

    @staticmethod
    def _mask(attn: Any, mask: Tensor | None, keys: int, batch: int) -> list[Tensor | None]:
        """The mask of each head as (B, K, 1, Q or 1)."""
        if mask is None:
            return [None] * attn.heads
        prepared = attn.prepare_attention_mask(mask, keys, batch)  # (B * heads, 1 or Q, K)
        split = prepared.reshape(batch, attn.heads, *prepared.shape[1:])
        return [split[:, head].transpose(1, 2)[:, :, None] for head in range(attn.heads)]


def _channels_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2)[:, :, None]


def _normed(attn: Any, context: Tensor) -> Tensor:
    normed: Tensor = attn.norm_encoder_hidden_states(context) if attn.norm_cross else context
    return normed


def _head_norm(norm: nn.Module | None, part: Tensor) -> Tensor:
    """A norm over a head's channels, which its module wants last."""
    if norm is None:
        return part
    normed: Tensor = norm(part.transpose(1, 3)).transpose(1, 3)
    return normed


def _project(linear: nn.Module, x: Tensor) -> Tensor:
    """A linear layer over the channels of (B, C, 1, S): a 1x1 convolution; wrapped layers (LoRA) are called as they are."""
    if type(linear) is nn.Linear:
        return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)
    projected: Tensor = linear(x.transpose(1, 3)).transpose(1, 3)
    return projected
