"""Where candidates are made and measured: quantized graphs of one bundle and engine, and what they do to its pictures."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.exporters.graph_file import GraphFile
from ingot.exporters.parity import open_exactly
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.engines import Arrays, Engine, fit, run_in_batches
from ingot.runtimes.errors import InputError, ParityError
from ingot.runtimes.manifest import Graph
from ingot.runtimes.metrics import compare, decibels, image_psnr, image_ssim
from ingot.runtimes.parity_data import load_calls
from ingot.runtimes.signature import Signature

from .defaults import Checker
from .scheme import Layer, Source
from .toolchains import needs_calls, toolchain
from .trajectory import Trajectory, draw, float_graph, spread

DECODERS = ("vae_decoder",)


@dataclass(frozen=True)
class Damage:
    """What a set of graphs does to the pictures of a trajectory. Infinite decibels where nothing differs."""

    latents_sqnr_db: float
    psnr_db: float
    ssim: float
    checker: float | None

    def __str__(self) -> str:
        checker = "" if self.checker is None else f", checker {self.checker:.0%}"
        return f"PSNR {self.psnr_db:.1f} dB, SSIM {self.ssim:.3f}{checker}, latents {self.latents_sqnr_db:.1f} dB"


@dataclass(frozen=True)
class Work:
    """One component to quantize: its float graph, scheme, what may be quantized, and what must not be."""

    role: str
    scheme: str
    source: Source
    graph: Graph
    layers: tuple[Layer, ...]
    keep: frozenset[str]

    @property
    def fingerprint(self) -> str:
        """A hash of the layers' names and sizes: the same for every fine-tune of an architecture, another for another."""
        text = "\n".join(sorted(f"{layer.name} {layer.kind} {layer.parameters}" for layer in self.layers))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Workbench:
    """Candidates of one engine. Their files lie in `folder`, this run's own, until the chosen ones are moved."""

    bundle: Bundle
    engine: str
    folder: Path
    options: Mapping[str, Any]
    reference: Trajectory  # of the evaluation plan, by the float graphs
    reference_graphs: Mapping[str, Graph]
    calls: Mapping[str, Sequence[Arrays]]  # calibration data by role
    checker: Checker | None = None
    base: dict[str, GraphFile] = field(default_factory=dict)  # quantized before, and part of what is measured
    made: dict[tuple[str, str, frozenset[str]], GraphFile] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def work(self, role: str, scheme: str, patterns: Collection[str] = ()) -> Work:
        """What there is to quantize of a component. Raises InputError for a pattern that fits no layer of it."""
        graph = float_graph(self.bundle, role, self.engine)
        source = source_of(self.bundle, role, graph)
        module = toolchain(self.engine)
        layers = tuple(module.layers(source, scheme, **self._options_of(module.layers)))
        kept = matching(layers, patterns)
        own = getattr(module, "default_keep", None)
        unable = own(source, scheme, **self._options_of(own)) if own else frozenset()
        return Work(role, scheme, source, graph, layers, frozenset(kept | unable))

    def _options_of(self, function: Callable[..., Any]) -> dict[str, Any]:
        """The options that say what is quantized at all, where a toolchain has such."""
        known = inspect.signature(function).parameters
        return {name: value for name, value in self.options.items() if name in known}

    def cast(self, work: Work, keep: Collection[str] = ()) -> GraphFile:
        """The component's quantized graph with these layers left in floats; made once."""
        kept = frozenset(keep) | work.keep
        key = work.role, work.scheme, kept
        if key not in self.made:
            folder = self.folder / str(next(self.numbers)) / work.role
            folder.mkdir(parents=True)
            self.made[key] = toolchain(self.engine).quantize(
                work.source, folder, scheme=work.scheme, keep=kept, name=f"{stem(work)}_{work.scheme}",
                calls=self._calls(work) if needs_calls(self.engine, work.scheme) else (), **self.options,
            )  # fmt: skip
        return self.made[key]

    def _calls(self, work: Work) -> list[Arrays]:
        """The calibration data as the graph takes it: of its size, where that is fixed, and in its dtypes."""
        signature = work.source.signature
        found = [fit(signature, part) for call in self.calls.get(work.role, ()) for part in in_parts(signature, call)]
        if not found:
            raise InputError(no_call(work.role, self.engine, signature, "calibration"))
        return found

    def forget(self, work: Work, keep: Collection[str]) -> None:
        """Remove a candidate's files."""
        file = self.made.pop((work.role, work.scheme, frozenset(keep) | work.keep), None)
        if file is not None:
            shutil.rmtree(self.folder / file.path.relative_to(self.folder).parts[0])

    def forget_others(self, work: Work, keep: Collection[str], most: int = 6) -> None:
        """Keep the latest candidates of a component only: each may be as large as the model."""
        mine = [key for key in self.made if key[:2] == (work.role, work.scheme)]
        for _, _, kept in mine[:-most]:
            if kept != frozenset(keep) | work.keep:
                self.forget(work, kept)

    def open(self, file: GraphFile) -> Engine:
        """A candidate at its engine's most exact, or as it is emulated where this machine lacks the engine."""
        return open_exactly(self.engine, file.path, file.signature, file.stored)

    def damage(self, files: Mapping[str, GraphFile]) -> Damage:
        """Make the evaluation's pictures with these graphs in their components' places."""
        all_files = {**self.base, **files}
        standing = {id(self.reference_graphs[role]): file for role, file in all_files.items() if role in self.used}

        def opened(bundle: Bundle, graph: Graph) -> Engine:
            file = standing.get(id(graph))
            if file is not None:
                return self.open(file)
            return open_exactly(graph.engine, bundle.file(graph.files[0]), graph.signature, graph.options)

        # a decoder has no part in the latents, which need not be made again
        latents = self.reference.latents if set(all_files) <= set(DECODERS) else None
        height, width = self.reference.pictures.shape[1:3]  # a graph of another fixed size says so
        plan = replace(self.reference.plan, height=height, width=width)
        found = draw(self.bundle, self.reference_graphs, plan, open_graph=opened, latents=latents)
        return measured(self.reference, found, self.checker)

    @property
    def used(self) -> set[str]:
        """The components that the pipeline runs, of which there are answers to hold others against."""
        return set(self.reference.calls)

    def trajectory_sqnr(self, role: str, file: GraphFile, most: int = 16) -> float:
        """Signal to noise of a candidate's answers over the trajectory, given the float graph's inputs.

        Components that the pipeline does not run are asked the bundle's stored calls. Raises ParityError for an answer
        that is not finite where the float graph's was.
        """
        pairs = [pair for pair in self._pairs(role) if in_parts(file.signature, pair[0])]
        if not pairs:
            raise InputError(no_call(role, self.engine, file.signature, "recorded"))
        engine = self.open(file)
        wrong = right = 0.0
        try:
            for inputs, answers in spread(pairs, most):
                found = run_in_batches(engine, {spec.name: inputs[spec.name] for spec in file.signature.inputs})
                for name, answer in answers.items():
                    if not np.all(np.isfinite(found[name])) and np.all(np.isfinite(answer)):
                        raise ParityError(f"{role} in {file.dtype} on {self.engine} answers no number for {name}")
                    wrong += float(np.sum((np.asarray(found[name], np.float64) - answer) ** 2))
                    right += float(np.sum(np.asarray(answer, np.float64) ** 2))
        finally:
            engine.close()
        return decibels(float(np.sqrt(wrong / right))) if right else float("inf")

    def _pairs(self, role: str) -> list[tuple[Arrays, Arrays]]:
        if self.reference.calls.get(role):
            return list(zip(self.reference.calls[role], self.reference.answers[role], strict=True))
        data = self.bundle.component(role).parity_data
        return load_calls(self.bundle.file(data)) if data else []


def source_of(bundle: Bundle, role: str, graph: Graph) -> Source:
    """A graph of a bundle as toolchains take it."""
    static = all(isinstance(dim, int) for spec in graph.signature.inputs for dim in spec.shape)
    return Source(
        role, bundle.file(graph.files[0]), graph.signature, graph.options, graph.precision, static, bundle.component(role).config
    )  # fmt: skip


def stem(work: Work) -> str:
    """What a quantized file's name begins with: as its engine's readers know their files."""
    return {"openvino": "openvino_model", "tensorrt": "tensorrt"}.get(work.graph.engine, "model")


def matching(layers: Sequence[Layer], patterns: Collection[str]) -> set[str]:
    """The layers that a pattern names: `*.conv_in`, or the name of a module, which means all that is in it."""
    return {
        layer.name
        for pattern in patterns
        for layer in layers
        if fnmatchcase(layer.name, pattern) or layer.name.startswith(f"{pattern}.")
    }


def in_parts(signature: Signature, call: Arrays) -> list[Arrays]:
    """A call as a graph takes it: cut into the rows that it fixes, the last part filled up; none where another dimension
    is fixed to something else."""
    first = signature.inputs[0]
    total, rows = len(call[first.name]), first.shape[0] if first.shape else 1
    parts = [call]
    if isinstance(rows, int) and rows != total:
        chosen = (np.minimum(np.arange(start, start + rows), total - 1) for start in range(0, total, rows))
        parts = [
            {name: array[index] if np.shape(array)[:1] == (total,) else array for name, array in call.items()}
            for index in chosen
        ]
    return [part for part in parts if signature.admits(part)]


def no_call(role: str, engine: str, signature: Signature, kind: str) -> str:
    """Why a graph of a fixed size cannot be fed."""
    shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in signature.inputs)
    return (
        f"no {kind} call has the size that {role} on {engine} takes ({shapes}); height and width of the graph would do"
    )


def measured(reference: Trajectory, found: Trajectory, checker: Checker | None) -> Damage:
    """How far one trajectory's end is from another's."""
    return Damage(
        latents_sqnr_db=compare(reference.latents, found.latents).sqnr_db,
        psnr_db=image_psnr(reference.pictures, found.pictures),
        ssim=image_ssim(reference.pictures, found.pictures) if np.all(np.isfinite(found.pictures)) else 0.0,
        checker=checker(reference.prompts, found.pictures) if checker else None,
    )


def calibration_calls(trajectory: Trajectory, roles: Mapping[str, int], bundle: Bundle) -> dict[str, list[Arrays]]:
    """What each component is calibrated with, at most so many of its own calls, for a VAE's encoder the pictures.

    Raises InputError for a component that no picture asks anything of.
    """
    found: dict[str, list[Arrays]] = {}
    for role, most in roles.items():
        if trajectory.calls.get(role):
            found[role] = spread(trajectory.calls[role], most)
        elif role == "vae_encoder":
            name = bundle.component(role).graphs[0].signature.inputs[0].name
            found[role] = [{name: _as_input(picture)} for picture in trajectory.pictures[:most]]
        else:
            raise InputError(
                f"{role} is not run by {bundle.manifest.pipeline} itself, so there is nothing to calibrate it with: "
                f"leave it out of the components, or choose a scheme of weights alone"
            )
    return found


def _as_input(picture: NDArray[Any]) -> NDArray[Any]:
    """(height, width, 3) in 0..1 as a VAE's encoder takes it: (1, 3, height, width) in -1..1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None] * 2 - 1, dtype=np.float32)
