"""Queries, keys and values from one product instead of three.

    self-attention:   [Q K V] = x [W_q; W_k; W_v]^T + [b_q; b_k; b_v]
    cross-attention:  Q = x W_q^T + b_q,   [K V] = c [W_k; W_v]^T + [b_k; b_v]

which is exact: the same sums in matrices laid on one another. Source: diffusers' `Attention.fuse_projections` and
`FusedAttnProcessor2_0` (0.39), which do it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0
from torch import nn

from ingot.runtimes.errors import InputError

EXACT = True
FUSED = ("to_qkv", "to_kv", "to_added_qkv")


def applies(module: nn.Module) -> bool:
    """Whether the module attends."""
    return any(isinstance(part, Attention) for part in module.modules())


@contextmanager
def applied(module: nn.Module) -> Iterator[None]:
    """Fuse every attention's projections. Raises InputError naming those that are not plain attention."""
    found = {name: part for name, part in module.named_modules() if isinstance(part, Attention)}
    refused = {name: why for name, part in found.items() if (why := _refusal(part))}
    if refused:
        listed = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise InputError(f"fused_qkv cannot fuse this attention, leave it out: {listed}")
    before = [(part, part.processor, part.fused_projections) for part in found.values()]
    try:
        with torch.no_grad():
            for part in found.values():
                part.fuse_projections(fuse=True)
                part.processor = FusedAttnProcessor2_0()
        yield
    finally:
        for part, processor, fused in before:
            part.processor, part.fused_projections = processor, fused
            for name in FUSED:
                if hasattr(part, name):
                    delattr(part, name)


def _refusal(attention: Any) -> str | None:
    processor = attention.processor
    if attention.fused_projections:
        return "its projections are fused already"
    if type(processor) not in (AttnProcessor, AttnProcessor2_0):
        return f"{type(processor).__name__} computes more than plain attention"
    if attention.inner_kv_dim != attention.inner_dim:
        return "its heads share keys and values, so that the parts are not of one size"
    if attention.scale != (attention.inner_dim // attention.heads) ** -0.5 and type(processor) is AttnProcessor:
        return f"its scale is {attention.scale}, which the fused form does not know"
    wrapped = [name for name in ("to_q", "to_k", "to_v") if type(getattr(attention, name)) is not nn.Linear]
    if wrapped:
        return f"{', '.join(wrapped)} is {type(getattr(attention, wrapped[0])).__name__}, no plain linear layer (LoRA: fuse it first)"
    biases = {getattr(attention, name).bias is not None for name in ("to_q", "to_k", "to_v")}
    return "some of its projections have biases and some have not" if len(biases) > 1 else None
