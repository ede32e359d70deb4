"""Core ML: predictions on Apple's systems; anywhere else a package is read and checked, and not run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError, unknown
from ..signature import Signature
from . import Arrays
from ._coreml import PackagedGraph, Packages, Stage, stored_packages
from ._coreml_import import ct

PARITY_OPTIONS: dict[str, Any] = {"compute_units": "CPU_ONLY"}
# The best first. What a device lacks falls to the CPU, as Core ML decides.
DEVICES = {"all": "ALL", "ne": "CPU_AND_NE", "gpu": "CPU_AND_GPU", "cpu": "CPU_ONLY"}
FEATURE_TYPES = ct.proto.FeatureTypes_pb2.ArrayFeatureType
DTYPES = {
    FEATURE_TYPES.FLOAT32: "float32",
    FEATURE_TYPES.FLOAT16: "float16",
    FEATURE_TYPES.DOUBLE: "float64",
    FEATURE_TYPES.INT32: "int32",
}


def open_graph(
    file: Path,
    signature: Signature,
    *,
    stored: Mapping[str, Any] = MappingProxyType({}),
    device: str | None = None,
    compute_units: str | None = None,
) -> PackagedGraph:
    """Open a graph's packages; `file` is the first one's Manifest.json.

    `device` (all, ne, gpu, cpu) or `compute_units` (ALL, CPU_AND_NE, CPU_AND_GPU, CPU_ONLY) say where it runs, else what
    the export chose. Raises InputError for values that there are not, EngineError for packages that do not fit the
    signature, and off macOS, where packages can be read and not run.
    """
    packages = stored_packages(stored)
    units = _units(device, compute_units, packages.compute_units)
    paths = [file.parent.parent / name for name in packages.packages]
    specs = [_spec(path) for path in paths]
    _check(file, signature, packages, specs)
    if not _can_predict():
        raise EngineError(
            f"Core ML computes on macOS only, and this is {sys.platform}: open the bundle on a Mac; "
            f"here, `ingot verify --deep` computes {paths[0].name} step by step, slowly, to check it"
        )
    return PackagedGraph(
        signature, packages, [_stage(path, spec, units) for path, spec in zip(paths, specs, strict=True)]
    )


def devices() -> list[str]:
    """The devices of this machine, the best first; none off macOS."""
    return list(DEVICES) if _can_predict() else []


def report() -> dict[str, str]:
    """The version of coremltools, and whether packages run here."""
    where = "predictions: " + (", ".join(DEVICES) if _can_predict() else "not here, they need macOS")
    return {"version": str(ct.__version__), "devices": where}


def _can_predict() -> bool:
    return sys.platform == "darwin"


def _load(path: Path, units: str) -> Any:
    """The one place where Core ML itself is asked to open a package."""
    return ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[units])


def _stage(path: Path, spec: Any, units: str) -> Stage:
    try:
        model = _load(path, units)
    except Exception as error:  # Core ML's errors come through as RuntimeError or plain Exception
        raise EngineError(f"Core ML cannot open {path.name}: {error}") from error
    # Core ML's documentation: use a model on one thread at a time.
    lock = threading.Lock()

    def predict(features: Arrays) -> Mapping[str, NDArray[Any]]:
        try:
            with lock:
                found: Mapping[str, NDArray[Any]] = model.predict(dict(features))
        except Exception as error:  # as above
            shapes = {name: list(array.shape) for name, array in features.items()}
            raise EngineError(f"Core ML could not run {path.name} on {shapes}: {error}") from error
        return found

    return Stage(tuple(feature.name for feature in spec.description.input), predict)


def _units(device: str | None, compute_units: str | None, default: str) -> str:
    if device is not None and compute_units is not None:
        raise InputError(f"device={device!r} and compute_units={compute_units!r} say the same thing: give one of them")
    if device is not None:
        if device not in DEVICES:
            raise unknown("device for Core ML", device, DEVICES)
        return DEVICES[device]
    units = (compute_units or default).upper()
    if units not in DEVICES.values():
        raise unknown("compute_units", compute_units or default, DEVICES.values())
    return units


def _spec(path: Path) -> Any:
    try:
        return ct.utils.load_spec(str(path))
    except Exception as error:  # protobuf's, or the package reader's RuntimeError
        raise EngineError(f"{path} is not a Core ML package: {error}") from error


def _check(file: Path, signature: Signature, packages: Packages, specs: list[Any]) -> None:
    """Hold what the packages say of themselves against the signature. Raises EngineError listing every mismatch."""
    takes: dict[str, Any] = {}
    gives: dict[str, Any] = {}
    for spec in specs:
        takes |= {one.name: one.type.multiArrayType for one in spec.description.input if one.name not in gives}
        gives |= {one.name: one.type.multiArrayType for one in spec.description.output}
    problems = [f"unknown input {name!r}" for name in takes if name not in {f.name for f in packages.inputs.values()}]
    first = signature.inputs[0].shape
    for one in signature.inputs:
        feature = packages.inputs.get(one.name)
        if feature is None or feature.name not in takes:
            problems.append(f"no input for {one.name!r}")
            continue
        shape = feature.shape(one.shape, first[0] if first else 1)
        problems += _differences(feature.name, takes[feature.name], feature.dtype, shape)
    for one in signature.outputs:
        name = packages.outputs.get(one.name, "")
        if name not in gives:
            problems.append(f"no output for {one.name!r}")
        else:
            problems += _differences(name, gives[name], one.dtype, one.shape)
    if problems:
        raise EngineError(f"{file.parent.name} is not the package that the manifest describes: {'; '.join(problems)}")


def _differences(name: str, array: Any, dtype: str, shape: tuple[int | str, ...]) -> list[str]:
    """A package's declared array against what the manifest says; open dimensions may have any size.

    An output of a flexible package declares no shape at all.
    """
    problems = []
    if DTYPES.get(array.dataType) != np.dtype(dtype).name:
        problems.append(f"{name!r} is {DTYPES.get(array.dataType, array.dataType)}, not {dtype}")
    declared = tuple(array.shape)
    fits = len(declared) == len(shape) and all(
        isinstance(dim, str) or size == dim for size, dim in zip(declared, shape, strict=True)
    )
    if declared and not fits:
        problems.append(f"{name!r} has shape {list(declared)}, not {list(shape)}")
    return problems
