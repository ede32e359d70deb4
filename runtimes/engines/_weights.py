"""What an engine offers whose graph can be opened again with other weights in place of some of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From a weight to what stands in its place: float32, in the shape that the checkpoint has it in."""


@runtime_checkable
class Adaptable(Protocol):
    """An engine whose weights can be exchanged between runs."""

    @property
    def changed(self) -> bool:
        """Whether weights other than the file's are in use."""
        ...

    def weights(self) -> Mapping[str, tuple[int, ...]]:
        """The float weights that the graph has by the checkpoint's names, with the checkpoint's shapes. Raises EngineError
        where they cannot be exchanged, saying what would do."""
        ...

    def with_weights(self, changes: Mapping[str, Change]) -> Callable[[], None]:
        """Open the graph again with these weights changed, from what its file holds; none gives the graph as it was.

        What is returned puts it in place: runs that began before it end with what they began with. Raises EngineError.
        """
        ...


def changed_weight(change: Change, weight: NDArray[Any]) -> NDArray[Any]:
    """A weight after a change, in its own dtype: added to in float32, then rounded once."""
    return change(weight.astype(np.float32)).astype(weight.dtype)
