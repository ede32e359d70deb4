"""A traced program to an .mlpackage, by coremltools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from ingot.runtimes.engines._coreml import Feature
from ingot.runtimes.engines._coreml_import import ct
from ingot.runtimes.errors import ExportError, unknown
from ingot.runtimes.signature import Dim

from .coreml_chunks import MODEL
from .coreml_program import prepared
from .coreml_shapes import Shapes

COMPUTE_UNITS = tuple(unit.name for unit in ct.ComputeUnit)
UNKNOWN_NODE = "Unsupported fx node"
# What may be left out: a ControlNet's scale, which the Swift package does not know.
DEFAULTS = {"conditioning_scale": 1.0}
# coremltools' own trail for a debugger, which it leaves at the package's top; nothing reads it.
DEBUG_FILE = "executorch_debug_handle_mapping.json"


def deployment_target(name: str) -> Any:
    """The target by its name, in any case. Raises InputError naming those that ML programs can be written for."""
    names = {one.lower(): one for one, target in ct.target.__members__.items() if target >= ct.target.iOS15}
    if not isinstance(name, str) or name.lower() not in names:
        raise unknown("deployment_target", name, names.values())
    return ct.target[names[name.lower()]]


def takes_float16(target: Any) -> bool:
    """Whether a package for this target can have float16 inputs."""
    return bool(target >= ct.target.iOS16)


def takes_lists(target: Any) -> bool:
    """Whether more than one input can have a list of shapes."""
    return bool(target >= ct.target.iOS18)


def compute_units(name: str) -> str:
    """The compute units by their name, in any case. Raises InputError naming those that there are."""
    if not isinstance(name, str) or name.upper() not in COMPUTE_UNITS:
        raise unknown("compute_units", name, COMPUTE_UNITS)
    return name.upper()


def convert(
    role: str, program: ExportedProgram, shapes: Shapes, features: dict[str, Feature], outputs: dict[str, str],
    package: Path, *, float16: bool, target: Any, units: str,
) -> None:  # fmt: skip
    """Write the program as a package with these features. Raises ExportError for what Core ML cannot express."""
    settings: dict[str, Any] = {
        "convert_to": "mlprogram",
        "outputs": [ct.TensorType(name=name, dtype=np.float32) for name in outputs.values()],
        "minimum_deployment_target": target,
        "compute_precision": ct.transform.FP16ComputePrecision(InFloat16()) if float16 else ct.precision.FLOAT32,
        "compute_units": ct.ComputeUnit[units],
        "package_dir": str(package),
        "skip_model_load": True,
    }
    for decomposed in (False, True):
        ready = prepared(program, list(features.values()), dynamic=not shapes.fixed, decomposed=decomposed)
        try:
            with _quietly(), _checked_once():
                model = ct.convert(ready, inputs=_tensor_types(shapes, features), **settings)
        except Exception as error:  # coremltools raises whatever its translations run into
            if UNKNOWN_NODE in str(error) and not decomposed:
                continue
            hint = "" if shapes.fixed else "; --static, or sizes=[[height, width], ...], leave less open to it"
            raise ExportError(f"{role} cannot be written as a Core ML package: {error}{hint}") from error
        break
    _describe(package, model.get_spec(), role)


class InFloat16:
    """Which operations compute in half precision: all but those that lead to a sine or cosine, or to a size.

    A timestep's phases go up to 1000 radians, which half precision holds to 0.25; a size above 2048 it holds to 2.
    """

    def __init__(self) -> None:
        self._kept: set[str] | None = None

    def __call__(self, operation: Any) -> bool:
        """Whether an operation of a MIL program is cast."""
        if self._kept is None:
            self._kept = _exact(operation.enclosing_block)
        return operation.name not in self._kept


def _exact(block: Any) -> set[str]:
    phases = [operation for operation in block.operations if operation.op_type in ("sin", "cos")]
    sizes = [
        value.op
        for operation in block.operations
        if operation.op_type == "cast" and str(operation.dtype.val).startswith(("int", "uint"))
        for value in _inputs(operation)
        if not value.shape
    ]
    return _leading_to(phases, lambda _: True) | _leading_to(sizes, lambda value: not value.shape)


def _leading_to(operations: list[Any], follow: Callable[[Any], bool]) -> set[str]:
    """These operations and those that they are computed from, by name."""
    found: set[str] = set()
    waiting = [operation for operation in operations if operation is not None]
    while waiting:
        operation = waiting.pop()
        if operation.name not in found:
            found.add(operation.name)
            waiting += [value.op for value in _inputs(operation) if value.op is not None and follow(value)]
    return found


def _inputs(operation: Any) -> list[Any]:
    given = operation.inputs.values()
    values = [value for one in given for value in (one if isinstance(one, (list, tuple)) else [one])]
    return [value for value in values if value is not None]


def _tensor_types(shapes: Shapes, features: dict[str, Feature]) -> list[Any]:
    ranges = {
        name: ct.RangeDim(lower_bound=least, upper_bound=most, default=default)
        for name, (least, most, default) in shapes.ranges.items()
    }
    batch = shapes.signature.inputs[0].shape[:1]

    def one(name: str, ours: tuple[Dim, ...]) -> Any:
        feature = features[name]
        if name in shapes.enumerated:
            listed = [feature.shape(shape, shape[0]) for shape in shapes.enumerated[name]]
            shape: Any = ct.EnumeratedShapes(shapes=listed, default=listed[0])
        else:
            shape = tuple(
                ranges.get(dim, dim) if isinstance(dim, str) else dim for dim in feature.shape(ours, *batch or (1,))
            )
        default = np.full(shape, DEFAULTS[name], feature.dtype) if name in DEFAULTS else None
        return ct.TensorType(name=feature.name, shape=shape, dtype=np.dtype(feature.dtype).type, default_value=default)

    return [one(spec.name, spec.shape) for spec in shapes.signature.inputs]


def _describe(package: Path, spec: Any, role: str) -> None:
    """Write the package's own description, which coremltools keeps in memory only, and take out what it left there."""
    spec.description.metadata.shortDescription = f"{role}, written by Ingot"
    model = package / MODEL
    if not model.is_file():
        raise ExportError(f"coremltools {ct.__version__} wrote no {model.relative_to(package)}")
    model.write_bytes(spec.SerializeToString())
    model.chmod(0o644)  # coremltools leaves it to its owner alone
    (package / DEBUG_FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def _checked_once() -> Iterator[None]:
    """Without coremltools' check of the whole program after each of its 112 passes: 45 % of the time of a conversion (10.4
    to 5.8 seconds for a tiny UNet), which then writes the same package. The evaluator checks what comes out of it."""
    program = ct.converters.mil.Program
    check = program.validate
    program.validate = lambda *_, **__: None
    try:
        yield
    finally:
        program.validate = check


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without coremltools' progress bars, which it cannot be asked to leave out."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def operation_count(packages: Iterable[Path]) -> int:
    """The operations of packages, constants left out."""
    count = 0
    for package in packages:
        (function,) = ct.utils.load_spec(str(package)).mlProgram.functions.values()
        count += sum(one.type != "const" for one in function.block_specializations[function.opset].operations)
    return count
