"""OpenVINO, without its converter of other formats, which no graph of a bundle needs.

`import openvino` imports the converter where it is there, and that takes two thirds of the import's processor time
(2026.4.1: 85 of 132 ms). It is left out as if it were not installed, and imported when `openvino.convert_model` is first
asked for.
"""

from __future__ import annotations

import sys
from typing import Any

CONVERTER = "openvino.tools.ovc"


def _converter(name: str) -> Any:
    if name != "convert_model":
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    from openvino.tools.ovc import convert_model

    return convert_model


leave_out = "openvino" not in sys.modules and CONVERTER not in sys.modules
if leave_out:
    sys.modules[CONVERTER] = None  # type: ignore[assignment]  # how Python is told that a module is not to be found
try:
    import openvino as ov
finally:
    if leave_out:
        del sys.modules[CONVERTER]
if leave_out and not hasattr(ov, "convert_model"):
    ov.__getattr__ = _converter

__all__ = ["ov"]
