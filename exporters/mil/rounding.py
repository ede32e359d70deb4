"""Half precision, emulated in float32: the numbers of a tensor rounded to what half precision holds."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# So much is rounded at a time that the halves between stay in a processor's cache: 8 times faster than all at once, most
# of whose time goes into fresh memory (134 MB: 23 ms of processor time instead of 181 ms).
STEP = 1 << 15


def round_to_half(values: Tensor, given: Iterable[Tensor], copy: bool) -> Tensor:
    """A result of an operation on the given tensors, rounded.

    It is rounded where it lies if the memory is its own. A view of a given tensor holds rounded numbers already, unless
    the operation is a cast: then `copy` says so.
    """
    if _memory(values) in {_memory(tensor) for tensor in given}:
        return values.half().float() if copy else values
    whole = values.as_strided((values.untyped_storage().nbytes() // values.element_size(),), (1,), 0)
    for part in torch.split(whole, STEP):
        part.copy_(part.half())
    return values


def _memory(values: Tensor) -> int:
    return values.untyped_storage().data_ptr()
