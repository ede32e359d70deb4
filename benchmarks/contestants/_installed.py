"""Versions and installed size of what a contestant needs: its distributions, and what those require."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def installed_mb(packages: Iterable[str], sources: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """Megabytes by distribution, the largest first, and "total". `sources` are folders of distributions that lie elsewhere.

    A requirement counts when it is installed and is not of an extra that nobody asked for.
    """
    left, found = [_plain(name) for name in packages], dict[str, float]()
    places = {_plain(name): list(folders) for name, folders in sources.items()}
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = _size_of(distribution) + size_mb(places.get(name, ()))
        left += _required(distribution)
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {**dict(ordered), "total": sum(found.values())}


def size_mb(paths: Iterable[str]) -> float:
    """Megabytes of files and folders, bytecode left out."""
    total = 0
    for path in map(Path, paths):
        files = path.rglob("*") if path.is_dir() else [path]
        total += sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
    return total / 1e6


def _required(distribution: metadata.Distribution) -> list[str]:
    names = []
    for line in distribution.requires or ():
        requirement, _, marker = line.partition(";")
        match = _NAME.match(requirement.strip())
        if match and "extra" not in marker:
            names.append(_plain(match.group()))
    return names


def _size_of(distribution: metadata.Distribution) -> float:
    """Megabytes of a distribution's files, by its own list."""
    total = 0
    for file in distribution.files or ():
        place = Path(str(distribution.locate_file(file)))
        if place.suffix != ".pyc" and place.is_file():
            total += place.stat().st_size
    return total / 1e6


def _plain(name: str) -> str:
    """As indexes compare names: https://packaging.python.org/en/latest/specifications/name-normalization/."""
    return re.sub(r"[-_.]+", "-", name).lower()
