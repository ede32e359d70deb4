"""Core ML: ML program packages with the names, inputs and outputs that Apple's Swift package ml-stable-diffusion reads.

Attention is `split_einsum` unless the user says otherwise, as in Apple's own converter: that is the form for the Neural
Engine, which takes fixed or listed sizes only. Packages of a range of sizes run on the CPU and GPU, so theirs is `original`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ingot.exporters import coreml_convert, coreml_names, parity
from ingot.exporters.component import Component
from ingot.exporters.coreml_chunks import package_files, split_package
from ingot.exporters.coreml_safety import safety_component
from ingot.exporters.coreml_shapes import Shapes, shapes
from ingot.exporters.graph_file import GraphFile, Progress
from ingot.exporters.mil import open_package
from ingot.exporters.trace import precision, trace
from ingot.runtimes.engines._coreml import Feature, PackagedGraph, Packages, Stage, stored_packages
from ingot.runtimes.errors import InputError, unknown
from ingot.runtimes.signature import Signature, TensorSpec

DTYPES = ("float16", "float32")
ATTENTIONS: dict[str, tuple[str, ...]] = {
    "original": (),
    "split_einsum": ("split_einsum",),
    "split_einsum_v2": ("split_einsum_v2",),
}


@dataclass(frozen=True)
class Plan:
    """What to write, after every option was checked."""

    precision: str
    shapes: Shapes
    attention: str
    target: Any
    units: str
    packages: tuple[str, ...]
    inputs: dict[str, Feature]
    outputs: dict[str, str]


def export(
    component: Component,
    folder: Path,
    *,
    dtype: str = DTYPES[0],
    static: bool = False,
    progress: Progress | None = None,
    attention: str | None = None,
    deployment_target: str = "iOS17",
    compute_units: str = "ALL",
    sizes: Sequence[Sequence[int]] | None = None,
    largest: int = 1024,
    chunks: int = 1,
) -> GraphFile:
    """Write `<Name>.mlpackage` into the folder, or two with `chunks=2`, named as Apple's Swift package names them.

    float16 computes and stores in half precision, with inputs in it too; outputs are float32 always. `sizes` are pairs of
    height and width in pixels that the package takes, the recorded one among them; without them and `static` every side
    goes up to `largest` pixels, and batches to 8 rows. `attention` is of the denoiser: split_einsum, split_einsum_v2
    (queries in parts of 512, one size only) or original. Raises InputError for options that cannot be used, ExportError
    for what Core ML cannot express.
    """
    plan = _plan(component, dtype, static, attention, deployment_target, compute_units, sizes, largest, chunks)
    packages = _write(component, plan, folder, progress or (lambda _, __: None))
    files = [file for package in packages for file in package_files(package)]
    return GraphFile(
        role=component.role,
        path=files[0],
        extra_files=tuple(files[1:]),
        dtype=plan.precision,
        static=plan.shapes.fixed,
        signature=_written(plan),
        node_count=coreml_convert.operation_count(packages),
        stored=_stored(plan),
    )


def _write(component: Component, plan: Plan, folder: Path, say: Progress) -> list[Path]:
    say("trace", 0.0)
    program = trace(component, static=plan.shapes.fixed, rewrites=ATTENTIONS[plan.attention])
    say("convert", 0.0)
    packages = [_fresh(folder / name) for name in plan.packages]
    whole = packages[0] if len(packages) == 1 else _fresh(folder / "Whole.mlpackage")
    coreml_convert.convert(
        component.role, program, plan.shapes, plan.inputs, plan.outputs, whole,
        float16=plan.precision == "float16", target=plan.target, units=plan.units,
    )  # fmt: skip
    if len(packages) > 1:
        say("split", 0.0)
        split_package(whole, packages)
    return packages


def open_for_parity(file: Path, signature: Signature, stored: Mapping[str, Any]) -> PackagedGraph:
    """A graph computed by the evaluator, on any machine: what was written, not what Core ML makes of it.

    A float16 package is computed with every intermediate value rounded to half precision.
    """
    packages = stored_packages(stored)
    half = packages.precision == "float16"

    def stage(name: str) -> Stage:
        program = open_package(file.parent.parent / name)
        return Stage(tuple(port.name for port in program.inputs), lambda features: program.run(features, float16=half))

    return PackagedGraph(signature, packages, [stage(name) for name in packages.packages])


def finish(folder: Path, pipe: Any, entries: Mapping[str, GraphFile]) -> None:
    """The safety checker's package, where the pipeline has one: it is no component that a loop calls, but Apple's Swift
    package judges pictures with it. Raises ParityError like a component's."""
    component = safety_component(pipe)
    if component is None or not entries:
        return
    like = next(iter(entries.values()))
    packages = stored_packages(like.stored)
    written = export(
        component, folder / component.role, dtype=packages.precision, static=True,
        deployment_target=packages.deployment_target, compute_units=packages.compute_units,
    )  # fmt: skip
    graph = open_for_parity(written.path, written.signature, written.stored)
    parity.check(component, graph.run, written.dtype, signature=written.signature)


def _plan(
    component: Component, dtype: str, static: bool, attention: str | None, deployment_target: str, compute_units: str,
    sizes: Sequence[Sequence[int]] | None, largest: int, chunks: int,
) -> Plan:  # fmt: skip
    _check(dtype, static, sizes, chunks)
    target = coreml_convert.deployment_target(deployment_target)
    units = coreml_convert.compute_units(compute_units)
    found = shapes(
        component, static=static, sizes=sizes, largest=largest, several_inputs=coreml_convert.takes_lists(target)
    )
    written = precision(component, dtype)
    floats = written if coreml_convert.takes_float16(target) else "float32"
    name = coreml_names.package_name(component.role, component.signature)
    halved = chunks == 2 and _is_denoiser(component)  # the other parts of a pipeline are far below a gigabyte
    if halved and not found.fixed:
        raise InputError("chunks=2 needs one size, that what crosses from one half to the other has a shape: --static")
    return Plan(
        precision=written,
        shapes=found,
        attention=_attention(attention, found, component),
        target=target,
        units=units,
        packages=tuple(f"{name}{part}.mlpackage" for part in (("Chunk1", "Chunk2") if halved else ("",))),
        inputs=coreml_names.inputs(component.role, component.signature, floats),
        outputs=coreml_names.outputs(component.role, component.signature),
    )


def _check(dtype: str, static: bool, sizes: Sequence[Sequence[int]] | None, chunks: int) -> None:
    if dtype not in DTYPES:
        raise unknown("dtype for the target coreml", dtype, DTYPES)
    if chunks not in (1, 2):
        raise InputError(f"chunks={chunks!r}: a package is written whole (1) or in two (2)")
    if static and sizes is not None:
        raise InputError("a static package has one size, and `sizes` lists several: give one of them")


def _attention(attention: str | None, found: Shapes, component: Component) -> str:
    """The form of the denoiser's attention; the other parts of a pipeline keep theirs, as with Apple's converter."""
    chosen = attention or ("original" if found.ranges else "split_einsum")
    if chosen not in ATTENTIONS:
        raise unknown("attention", attention, ATTENTIONS)
    if not _is_denoiser(component):
        return "original"
    if chosen != "original" and found.ranges:
        raise InputError(
            f"attention={chosen!r} is for the Neural Engine, which takes no ranges of sizes: export with --static or with "
            "sizes=[[height, width], ...], or take attention='original'"
        )
    if chosen == "split_einsum_v2" and not found.fixed:
        raise InputError("split_einsum_v2 counts the parts of one size: export with --static, or take split_einsum")
    return chosen


def _is_denoiser(component: Component) -> bool:
    """What attends over a whole picture, step by step."""
    return any(spec.name == "timestep" for spec in component.signature.inputs)


def _fresh(package: Path) -> Path:
    """The place for a package, where none lies."""
    if package.exists():
        shutil.rmtree(package)
    package.parent.mkdir(parents=True, exist_ok=True)
    return package


def _written(plan: Plan) -> Signature:
    """The bundle's signature of what was written: integers stay what a tokenizer gives, the adapter casts them."""

    def taken(spec: TensorSpec) -> TensorSpec:
        dtype = plan.inputs[spec.name].dtype if spec.dtype.startswith("float") else spec.dtype
        return TensorSpec(spec.name, dtype, spec.shape)

    signature = plan.shapes.signature
    return Signature(tuple(map(taken, signature.inputs)), signature.outputs)


def _stored(plan: Plan) -> dict[str, Any]:
    packages = Packages(
        packages=plan.packages,
        precision=plan.precision,
        inputs=plan.inputs,
        outputs=plan.outputs,
        attention=plan.attention,
        deployment_target=plan.target.name,
        compute_units=plan.units,
        shapes=plan.shapes.enumerated,
        ranges={name: (least, most) for name, (least, most, _) in plan.shapes.ranges.items()},
    )
    plain: dict[str, Any] = msgspec.to_builtins(packages)
    return plain
