"""Writing a folder so that it exists whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingot.runtimes.errors import ExportError, InputError

_PARTIAL, _OLD = ".ingot-partial-", ".ingot-old-"


@contextmanager
def atomic_folder(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `final`, renamed to it when the block ends well and removed when it does not.

    What a killed run left is removed by the next one. Raises InputError when `final` exists and may not be replaced,
    ExportError when its parent cannot be written.
    """
    partial = final.parent / f".{final.name}{_PARTIAL}{os.getpid()}"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(final)
        _check(final, overwrite)
        partial.mkdir()
    except OSError as error:
        raise ExportError(f"cannot write to {final.parent}: {error.strerror or error}") from error
    try:
        yield partial
        _replace(partial, final)
    except OSError as error:
        raise ExportError(f"writing {final} failed: {error.strerror or error}; nothing was kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(final: Path, overwrite: bool) -> None:
    if not final.exists():
        return
    if not overwrite:
        raise InputError(f"{final} exists; name another folder, or give --overwrite (overwrite=True) to replace it")
    if not (final / "ingot.json").is_file() and (not final.is_dir() or any(final.iterdir())):
        raise InputError(
            f"{final} exists and is no bundle; it is not replaced, not even with overwrite: name another folder"
        )


def _replace(partial: Path, final: Path) -> None:
    if not final.exists():
        partial.rename(final)
        return
    old = final.parent / f".{final.name}{_OLD}{os.getpid()}"
    final.rename(old)
    try:
        partial.rename(final)
    except OSError:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _clean_up(final: Path) -> None:
    """Remove what runs that are gone have left; a bundle that was moved aside and never replaced is put back."""
    for mark in (_OLD, _PARTIAL):
        for litter in final.parent.glob(f".{glob.escape(final.name)}{mark}*"):
            if _alive(litter.name.rsplit("-", 1)[1]):
                continue
            if mark == _OLD and not final.exists():
                litter.rename(final)
            else:
                shutil.rmtree(litter, ignore_errors=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
