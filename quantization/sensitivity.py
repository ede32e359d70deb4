"""Which layers cost the pictures how much: one group is quantized at a time, and the final latents are compared.

    damage(g) = -20 log10(|x_0(g) - x_0| / |x_0|)  dB,

x_0 the final latents of the float graphs, x_0(g) those with only group g quantized, equal seeds. Not the layer's own
error: a step's error is carried, damped or grown by all later steps, and only the end is seen. A decoder leaves the
latents as they are; its groups are ranked by the pictures' PSNR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .scheme import Layer
from .workbench import DECODERS, Work, Workbench

GROUPS = 16  # as many quantizations and trajectories as there are groups: the cost of a ranking


@dataclass(frozen=True)
class Group:
    """Layers that are judged together: of one component, under one part of their names."""

    role: str
    name: str
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """How many weights they hold."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def names(self) -> frozenset[str]:
        """The layers' names."""
        return frozenset(layer.name for layer in self.layers)


def groups(work: Work, most: int = GROUPS) -> list[Group]:
    """The layers that may be quantized, in at most so many groups: by the longest beginnings of their names that are few
    enough."""
    free = [layer for layer in work.layers if layer.name not in work.keep]
    found: dict[str, list[Layer]] = {}
    for depth in range(1, 1 + max((layer.name.count(".") + 1 for layer in free), default=0)):
        cut: dict[str, list[Layer]] = {}
        for layer in free:
            cut.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
        if found and len(cut) > most:
            break
        found = cut
    return [Group(work.role, name, tuple(layers)) for name, layers in found.items()]


def rank(
    bench: Workbench, works: Sequence[Work], tell: Callable[[str], None], most: int = GROUPS
) -> list[tuple[Group, float]]:
    """Every group with the final latents' SQNR in dB when it alone is quantized: the most damaging first."""
    found = []
    for work in works:
        parts = groups(work, most)
        for group in parts:
            others = frozenset(layer.name for layer in work.layers) - group.names
            damage = bench.damage({work.role: bench.cast(work, others)})
            bench.forget(work, others)
            decoder = work.role in DECODERS
            cost = damage.psnr_db if decoder else damage.latents_sqnr_db
            found.append((group, cost))
            what = "pictures" if decoder else "latents"
            tell(f"{work.role} {group.name}: {group.parameters / 1e6:.2f} M weights, {what} {cost:.1f} dB")
    return sorted(found, key=lambda pair: pair[1])
