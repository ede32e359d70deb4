"""Reading a report back."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ingot.runtimes.errors import InputError

from .record import SCHEMA, Report


def read_report(path: str | Path) -> Report:
    """A report from its file, or from the folder that it lies in. Raises InputError for what is none."""
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    try:
        report = msgspec.json.decode(file.read_bytes(), type=Report)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise InputError(f"{file} is no report of `ingot bench`: {error}") from error
    if any(not 0 <= row.job < len(report.jobs) for row in report.rows):
        raise InputError(f"{file} is no report of `ingot bench`: it has rows of jobs that it does not have")
    return report


def require_schema(*paths: str | Path) -> None:
    """Raise InputError where one of the reports is of another schema, and name what each has."""
    found = {path: _schema(path) for path in paths}
    if any(schema != SCHEMA for schema in found.values()):
        said = ", ".join(f"{path} has schema {schema!r}" for path, schema in found.items())
        raise InputError(f"{said}; this Ingot reads schema {SCHEMA}: measure again, or use the Ingot that wrote it")


def _schema(path: str | Path) -> object:
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    try:
        return msgspec.json.decode(file.read_bytes()).get("schema")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except (msgspec.DecodeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is no report of `ingot bench`: {error}") from error
