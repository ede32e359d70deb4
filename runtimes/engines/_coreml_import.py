"""coremltools, without what it warns of on every import away from a Mac, and of what Ingot checks by itself.

It says eight times that Apple's libraries are missing where they cannot be, that this torch is newer than the one it was
tested with, and of each int64 constant that it becomes an int32.
"""

from __future__ import annotations

import logging
import sys

KNOWN = (
    "has not been tested with coremltools",
    "might lose precision",
    *(("Failed to load _ML",) if sys.platform != "darwin" else ()),
)
logging.getLogger("coremltools").addFilter(lambda record: not any(known in record.getMessage() for known in KNOWN))

import coremltools as ct  # noqa: E402 - after the filter, since it warns while it is imported

__all__ = ["ct"]
