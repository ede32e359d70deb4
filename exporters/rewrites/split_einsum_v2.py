"""Split einsum with the queries in parts of 512, so that a large picture's attention maps fit the Neural Engine's cache.

    A_i[:, q:q+512] = V_i softmax_k(K_i^T Q_i[:, q:q+512] / sqrt(d))

which is exact, since softmax runs over the keys. The last part is whatever is left. Source: `SPLIT_EINSUM_V2` of Apple's
ml-stable-diffusion, which its tables of mobile devices use; there, queries past the last multiple of 512 are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ingot.runtimes.errors import ExportError

from .split_einsum import EXACT, applies, attend, replaced

__all__ = ["CHUNK", "EXACT", "applied", "applies", "attend_in_parts"]
CHUNK = 512


@contextmanager
def applied(module: nn.Module) -> Iterator[None]:
    """Give every attention of the module this processor. Raises InputError naming those that it cannot stand in for."""
    with replaced(module, attend_in_parts):
        yield


def attend_in_parts(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """As `split_einsum.attend`, the queries in parts. Raises ExportError where their number is left open."""
    length = query.shape[3]
    if not isinstance(length, int):
        raise ExportError(
            "split_einsum_v2 counts its parts while it is traced, so it needs fixed sizes: export with --static"
        )
    if length <= CHUNK:
        return attend(query, key, value, mask)

    def part(start: int) -> Tensor:
        rows = slice(start, min(start + CHUNK, length))
        own = mask if mask is None or mask.shape[3] == 1 else mask[..., rows]
        return attend(query[..., rows], key, value, own)

    return torch.cat([part(start) for start in range(0, length, CHUNK)], dim=3)
