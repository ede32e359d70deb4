"""NNCF, loaded where it is first needed and without its noise."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import openvino as ov

from ingot.runtimes.errors import ExportError

TELEMETRY = "openvino_telemetry"


@cache
def nncf() -> Any:
    """The module: 3 to 5 seconds to load. Raises ExportError where it is not installed.

    It reports each call to its makers unless `openvino_telemetry` cannot be imported, and makes its own class of loggers
    everyone's; neither is left to happen.
    """
    loggers = logging.getLoggerClass()
    with _hidden(TELEMETRY):
        try:
            module = importlib.import_module("nncf")
        except ModuleNotFoundError as error:
            raise ExportError(
                f"quantizing OpenVINO graphs needs {error.name}, which is not installed: pip install nncf"
            ) from error
        finally:
            logging.setLoggerClass(loggers)
    return module


def apply(function: str, model: ov.Model, **arguments: Any) -> ov.Model:
    """Call a function of NNCF without its log and progress bars. Raises ExportError for what it refuses."""
    module = nncf()
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made: ov.Model = getattr(module, function)(model, **arguments)
            return made
    except (module.ValidationError, module.InternalError, RuntimeError, ValueError) as error:
        raise ExportError(f"NNCF {module.__version__} cannot quantize this graph: {error}") from error
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _hidden(name: str) -> Iterator[None]:
    """As if a package were not installed."""
    before: ModuleType | None = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # what Python takes for "cannot be imported"
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
