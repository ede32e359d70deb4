"""What a cast was asked for, checked before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingot.runtimes.errors import InputError

from .rewrites import canonical, exact
from .stages import Stages
from .targets import check_options, dtype_for


@dataclass(frozen=True)
class Request:
    """Targets in order, the precision and the options of each, and what the model is recorded at: (height, width) in
    pixels, None for the smallest that will do, and pictures at once. `rewrites` hold for all targets, and so does
    `deep_cache`, the UNet's branch at which it is split. `long_prompts` leaves the number of tokens open, `safety_checker`
    has the checkpoint's own written where it has one. `stages` counts what the cast takes."""

    dtypes: dict[str, str]
    options: dict[str, dict[str, Any]]
    size: tuple[int, int] | None
    batch: int
    static: bool
    progress: bool
    rewrites: tuple[str, ...] = ()
    deep_cache: int | None = None
    long_prompts: bool = False
    safety_checker: bool = True
    stages: Stages = field(default_factory=Stages, compare=False)

    @property
    def exact(self) -> bool:
        """Whether the rewritten model makes the pictures of the model as it was."""
        return exact(self.rewrites)

    @property
    def targets(self) -> list[str]:
        """Their names."""
        return list(self.dtypes)


def request(
    to: str | Sequence[str], dtype: str | None, height: int | None, width: int | None, batch: int, static: bool,
    options: Mapping[str, Mapping[str, Any]] | None, progress: bool, rewrites: str | Sequence[str] = (),
    deep_cache: int | None = None,
) -> Request:  # fmt: skip
    """The arguments of `export` as a request. Raises InputError for those that cannot be used, ExportError for a target
    whose toolchain is not installed."""
    targets = [to] if isinstance(to, str) else list(dict.fromkeys(to))
    if not targets:
        raise InputError("no target was named")
    dtypes = {name: dtype_for(name, dtype) for name in targets}
    check_options(options or {}, targets)
    if batch < 1:
        raise InputError(f"batch={batch}: at least 1 picture is needed")
    given = {name: dict(values) for name, values in (options or {}).items()}
    if deep_cache is not None and (isinstance(deep_cache, bool) or not isinstance(deep_cache, int) or deep_cache < 0):
        raise InputError(f"deep_cache={deep_cache!r}: the number of a branch is needed, 0 for the outermost")
    names = canonical([rewrites] if isinstance(rewrites, str) else rewrites)
    return Request(dtypes, given, _size(height, width), batch, static, progress, names, deep_cache)


def _size(height: int | None, width: int | None) -> tuple[int, int] | None:
    if height is None and width is None:
        return None
    sides = (height or width, width or height)
    if any(not isinstance(side, int) or side < 1 for side in sides):
        raise InputError(f"a size of {sides[0]}x{sides[1]} pixels cannot be recorded")
    return sides  # type: ignore[return-value]  # both are ints now
