"""Write small Core ML packages for tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
from coremltools.converters.mil import Builder as mb  # noqa: N813 - coremltools' own name for it
from coremltools.converters.mil.mil import Function, Program, types

logging.getLogger("coremltools").setLevel(logging.ERROR)


def write(
    folder: Path,
    inputs: Mapping[str, Any],
    build: Callable[..., Mapping[str, Any]],
    target: Any = ct.target.iOS18,
) -> Path:
    """A package of what `build` makes of its inputs by name, exactly as built: no pass of coremltools' folds or fuses."""
    program = Program()
    specs = {
        name: mb.placeholder(array.shape, types.numpy_type_to_builtin_type(array.dtype))
        for name, array in inputs.items()
    }
    with Function(specs, opset_version=target) as function:
        outputs = build(**function.inputs)
        function.set_outputs([mb.identity(x=value, name=name) for name, value in outputs.items()])
    program.add_function("main", function)
    path = folder / "model.mlpackage"
    ct.convert(
        program,
        convert_to="mlprogram",
        pass_pipeline=ct.PassPipeline.EMPTY,
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    return path
