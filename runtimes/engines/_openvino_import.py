"""OpenVINO, without its converter of other formats, which no graph of a bundle needs.

`import openvino` imports the converter where it is there, and that takes two thirds of the import's processor time
(2026.4.1: 85 of 132 ms). It is left out as if it were not installed, and imported when `openvino.convert_model` or
`openvino.tools.ovc` is first asked for. Another thread that imports the converter by itself in these milliseconds is told
that it is not installed.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

CONVERTER = "openvino.tools.ovc"


def _find_later(module: Any, names: tuple[str, ...]) -> None:
    """Have a module look into itself for these again once the converter is imported; it may have a `__getattr__` already."""
    own = vars(module).get("__getattr__")

    def found(name: str) -> Any:
        if name in names:
            converter = importlib.import_module(CONVERTER)
            return converter.convert_model if name == "convert_model" else sys.modules["openvino.tools"]
        if own is not None:
            return own(name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    module.__getattr__ = found


leave_out = "openvino" not in sys.modules and CONVERTER not in sys.modules
if leave_out:
    sys.modules[CONVERTER] = None  # type: ignore[assignment]  # how Python is told that a module is not to be found
try:
    import openvino as ov
finally:
    if leave_out:
        del sys.modules[CONVERTER]
if leave_out:
    _find_later(ov, tuple(name for name in ("convert_model", "tools") if not hasattr(ov, name)))

__all__ = ["ov"]
