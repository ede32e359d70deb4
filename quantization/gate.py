"""The quality gate: the largest set of layers that keeps the pictures above a floor.

Groups are ranked by their damage. The fewest of the most damaging that must stay floats are found by bisection, which
takes more floats to mean less damage; then each of them is tried once more, the largest first, so that one that the rest
does not need is quantized after all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ingot.exporters.graph_file import GraphFile
from ingot.runtimes.errors import InputError

from .sensitivity import GROUPS, Group, rank
from .workbench import Damage, Work, Workbench


@dataclass(frozen=True)
class Floor:
    """What the pictures must hold, against the float graphs with equal seeds: PSNR in dB, the checker's share."""

    min_psnr: float | None = None
    min_checker: float | None = None

    @property
    def given(self) -> bool:
        """Whether there is one at all."""
        return self.min_psnr is not None or self.min_checker is not None

    def holds(self, damage: Damage) -> bool:
        """Whether a set is good enough."""
        psnr = self.min_psnr is None or damage.psnr_db >= self.min_psnr
        return psnr and (self.min_checker is None or (damage.checker or 0.0) >= self.min_checker)

    def __str__(self) -> str:
        psnr = [] if self.min_psnr is None else [f"PSNR {self.min_psnr:g} dB"]
        return " and ".join(psnr + ([] if self.min_checker is None else [f"checker {self.min_checker:g}"]))


@dataclass(frozen=True)
class Chosen:
    """The graphs by role, the layers that stay floats in each, and the damage of all together."""

    files: dict[str, GraphFile]
    kept: dict[str, frozenset[str]]
    damage: Damage


def choose(
    bench: Workbench, works: Sequence[Work], floor: Floor, tell: Callable[[str], None], most: int = GROUPS
) -> Chosen:
    """The largest set that holds the floor. Raises InputError, saying what can be held, when none does."""
    everything = _quantized(bench, works, ())
    tell(f"all layers: {everything.damage}")
    if not floor.given or floor.holds(everything.damage):
        return everything
    ranking = [group for group, _ in rank(bench, works, tell, most)]
    low, high, best = 1, len(ranking), None
    tried = [everything]
    while low < high:
        middle = (low + high) // 2
        found = _quantized(bench, works, ranking[:middle])
        tried.append(found)
        tell(f"{middle} of {len(ranking)} groups in floats: {found.damage}")
        if floor.holds(found.damage):
            high, best = middle, (ranking[:middle], found)
        else:
            low = middle + 1
    if best is None:
        can = max(tried, key=lambda one: one.damage.psnr_db).damage
        raise InputError(
            f"no set of layers in {works[0].scheme} on {bench.engine} holds {floor}: the best that was found is {can}. "
            f"A lower floor, another scheme or fewer components would do"
        )
    return _refined(bench, works, floor, *best, tell)


def _refined(
    bench: Workbench, works: Sequence[Work], floor: Floor, kept: list[Group], found: Chosen, tell: Callable[[str], None]
) -> Chosen:
    for group in sorted(kept, key=lambda one: -one.parameters):
        fewer = [one for one in kept if one is not group]
        tried = _quantized(bench, works, fewer)
        if floor.holds(tried.damage):
            tell(f"{group.role} {group.name} quantized after all: {tried.damage}")
            kept, found = fewer, tried
    tell("kept in floats: " + (", ".join(f"{group.role} {group.name}" for group in kept) or "nothing"))
    return found


def _quantized(bench: Workbench, works: Sequence[Work], kept: Sequence[Group]) -> Chosen:
    """Everything quantized but these groups; a component of which nothing is left stays as it is."""
    by_role = {
        work.role: work.keep.union(*(group.names for group in kept if group.role == work.role)) for work in works
    }
    files = {
        work.role: bench.cast(work, by_role[work.role])
        for work in works
        if any(layer.name not in by_role[work.role] for layer in work.layers)
    }
    chosen = Chosen(files, by_role, bench.damage(files))
    for work in works:  # what is not the candidate at hand only fills the disk
        bench.forget_others(work, by_role[work.role])
    return chosen
