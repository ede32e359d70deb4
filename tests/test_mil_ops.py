"""Every MIL operation that the evaluator knows, written into a package and held against NumPy, and against coremltools'
own value inference where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - coremltools' own name for it
from coremltools.converters.mil.mil import Function
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from ingot.exporters.mil import Program, open_package
from ingot.exporters.mil.table import KERNELS

from . import mil_cases, mil_cases_compressed, mil_cases_shapes, mil_cases_spatial
from .mil_cases import Array, Case
from .mil_packages import write

# Float32 on our side, float64 in places on NumPy's; sums of at most 120 products in another order. 4e-7 is usual.
TOLERANCE = 2e-6
CASES = {
    **mil_cases.ELEMENTWISE,
    **mil_cases.ACTIVATIONS,
    **mil_cases.REDUCTIONS,
    **mil_cases.LINEAR,
    **mil_cases.NORMALIZATIONS,
    **mil_cases_spatial.CONVOLUTIONS,
    **mil_cases_spatial.POOLS,
    **mil_cases_spatial.RESIZES,
    **mil_cases_shapes.RESHAPING,
    **mil_cases_shapes.MAKING,
    **mil_cases_shapes.INDEXING,
    **mil_cases_compressed.COMPRESSED_18,
}
OLDER = mil_cases_compressed.COMPRESSED_16
GROUPS = {"iOS18": CASES, "iOS16": OLDER}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Program]:
    """One package with every case side by side for each set of operations: a conversion for each would take minutes."""
    return {
        name: open_package(_write(cases, tmp_path_factory.mktemp(name), getattr(ct.target, name)))
        for name, cases in GROUPS.items()
    }


def _inputs(cases: dict[str, Case]) -> dict[str, Array]:
    return {f"in_{n}_{i}": array for n, case in enumerate(cases.values()) for i, array in enumerate(case.inputs)}


def _write(cases: dict[str, Case], folder: Path, target: Any) -> Path:
    def build(**values: Any) -> dict[str, Any]:
        return {
            f"out_{n}": case.build(*(values[f"in_{n}_{i}"] for i in range(len(case.inputs))))
            for n, case in enumerate(cases.values())
        }

    return write(folder, _inputs(cases), build, target)


@pytest.fixture(scope="module")
def answers(programs: dict[str, Program]) -> dict[str, Array]:
    found = {}
    for name, cases in GROUPS.items():
        outputs = programs[name].run(_inputs(cases))
        found |= {case: outputs[f"out_{n}"] for n, case in enumerate(cases)}
    return found


@pytest.mark.parametrize("name", [*CASES, *OLDER])
def test_operation_answers_what_numpy_answers(answers: dict[str, Array], name: str) -> None:
    case = {**CASES, **OLDER}[name]
    expected = np.asarray(case.expect(*case.inputs))
    assert answers[name].shape == expected.shape
    np.testing.assert_allclose(answers[name], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_every_kernel_has_a_case(programs: dict[str, Program]) -> None:
    written = {op for program in programs.values() for op in program.operations}
    assert set(KERNELS) - written == set()


def test_every_input_of_every_version_of_an_operation_is_known() -> None:
    for name, kernel in KERNELS.items():
        specs = [version.input_spec.input_types for version in SSAOpRegistry.core_ops[name].values()]
        assert {key for spec in specs for key in spec} == set(kernel.conversions), name
        for spec in specs:
            assert kernel.required <= {key for key, kind in spec.items() if not kind.optional}, name


# What coremltools 9 infers otherwise than it documents, so that only NumPy can be asked
MISTAKEN = {
    "concat interleave": "joins without interleaving",
    "cumsum exclusive": "fails: an array for a dtype",
    "scatter_along_axis": "puts for every mode",
    "squeeze": "fails at an axis longer than 1, which is documented to stay",
}


def test_coremltools_infers_the_same_where_it_infers_at_all(answers: dict[str, Array]) -> None:
    compared = []
    for name, case in CASES.items():
        if name in MISTAKEN:
            continue
        with Function({}, opset_version=ct.target.iOS18):
            # copies: its inference of thresholded_relu writes into its input
            value = case.build(*(mb.const(val=array.copy()) for array in case.inputs)).val
        if value is not None:
            np.testing.assert_allclose(answers[name], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
            compared.append(name)
    assert len(compared) > 110
