"""What the Gaudi policy assumes, held against optimum-habana itself, as far as that imports without a Gaudi.

It pins an older transformers, so it stays in a folder of its own:
`pip install --no-deps --target build/optimum-habana optimum-habana==1.21.2`; INGOT_OPTIMUM_HABANA names another folder.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ingot.runtimes import schedulers
from ingot.runtimes.devices import hpu
from ingot.runtimes.devices.policy import Policy
from ingot.runtimes.engines import run_in_batches
from ingot.runtimes.engines.torch import TorchEngine
from ingot.runtimes.signature import Signature, TensorSpec

from .test_schedulers import drive

SIGNATURE = Signature((TensorSpec("x", "float32", ("rows", 3)),), (TensorSpec("y", "float32", ("rows", 3)),))


FOLDER = Path(os.environ.get("INGOT_OPTIMUM_HABANA", Path(__file__).parent.parent / "build" / "optimum-habana"))
HABANA = FOLDER / "optimum" / "habana"
needs_optimum_habana = pytest.mark.skipif(
    not HABANA.exists(), reason=f"optimum-habana is not in {FOLDER}; see this file's docstring"
)


def tree(file: str) -> ast.Module:
    return ast.parse((HABANA / file).read_text())


def names(file: str) -> set[str]:
    """Every attribute and imported name."""
    found = {node.attr for node in ast.walk(tree(file)) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}:{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


@needs_optimum_habana
def test_what_we_call_of_the_plug_in_is_what_optimum_habana_calls() -> None:
    trainer = names("transformers/trainer.py")
    assert {"habana_frameworks.torch.core", "habana_frameworks.torch.hpu", "mark_step"} <= trainer
    assert {"habana_frameworks.torch.hpu:wrap_in_hpu_graph", "enable_dynamic_shape", "disable_dynamic_shape"} <= trainer
    assert {hpu.LAZY, hpu.BACKEND} <= names("transformers/training_args.py")
    assert {"is_available"} <= names("utils/misc.py")
    assert set(hpu.LISTS) <= names("transformers/gaudi_configuration.py")


@needs_optimum_habana
def test_a_gaudi_configuration_has_their_fields_and_defaults() -> None:
    popped = {
        node.args[0].value: node.args[1].value
        for node in ast.walk(tree("transformers/gaudi_configuration.py"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "pop"
        and all(isinstance(argument, ast.Constant) for argument in node.args)
    }  # fmt: skip
    ours = {name: field.default for name, field in hpu.GaudiConfig.__dataclass_fields__.items()}
    assert ours == {name: popped[name] for name in ours}
    assert set(popped) - set(ours) == {"use_fused_adam", "use_fused_clip_norm"}  # of training


@needs_optimum_habana
def test_as_many_warm_up_runs_and_parts_as_theirs() -> None:
    pipeline = tree("diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py")
    warm_up = [
        node.args[1].value
        for node in ast.walk(pipeline)
        if isinstance(node, ast.Call)
        and node.args
        and getattr(node.args[0], "value", None) == "throughput_warmup_steps"
    ]
    assert warm_up == [hpu.WARM_UP_RUNS]
    split = next(
        n for n in ast.walk(pipeline) if isinstance(n, ast.FunctionDef) and n.name == "_split_inputs_into_batches"
    )
    split.decorator_list = []
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([split], []), "optimum-habana", "exec"), scope)
    for total, size in ((5, 2), (4, 2), (1, 2), (7, 3)):
        latents = torch.arange(3.0 * total).reshape(total, 3)
        batches, _, dummies = scope["_split_inputs_into_batches"](None, size, latents, latents, None)
        seen: list[Tensor] = []
        engine = TorchEngine(
            lambda x, seen=seen: (seen.append(x.clone()), (x * 2,))[1],
            SIGNATURE,
            Policy("cpu", most_rows=size, pad=True),
        )
        found = run_in_batches(engine, {"x": latents.numpy()})
        assert [batch.shape for batch in batches] == [x.shape for x in seen]
        # they fill up with zeros, we with the last row: it is cut off again either way
        np.testing.assert_array_equal(found["y"], 2 * batches.reshape(-1, 3)[: len(batches) * size - dummies].numpy())


def habana_scheduler(file: str, name: str) -> Any:
    """A scheduler's class from its file alone: the package imports habana_frameworks."""
    optimum, utils = types.ModuleType("optimum"), types.ModuleType("optimum.utils")
    utils.logging = types.SimpleNamespace(get_logger=logging.getLogger)  # type: ignore[attr-defined]  # what it asks of it
    spec = importlib.util.spec_from_file_location(f"_{name}", HABANA / "diffusers" / "schedulers" / file)
    assert spec is not None
    assert spec.loader is not None
    import diffusers.schedulers  # noqa: F401  # before the stand-ins: it asks which optimum is installed

    module = importlib.util.module_from_spec(spec)
    before = {key: sys.modules.get(key) for key in ("optimum", "optimum.utils")}
    sys.modules.update({"optimum": optimum, "optimum.utils": utils})
    try:
        spec.loader.exec_module(module)
    finally:
        for key, old in before.items():
            sys.modules.pop(key) if old is None else sys.modules.update({key: old})
    return getattr(module, name)


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
SCHEDULERS = {
    "DDIMScheduler": ("scheduling_ddim.py", {"clip_sample": False, "set_alpha_to_one": False}),
    "EulerDiscreteScheduler": ("scheduling_euler_discrete.py", {"timestep_spacing": "leading"}),
    "EulerAncestralDiscreteScheduler": ("scheduling_euler_ancestral_discrete.py", {}),
}


@needs_optimum_habana
@pytest.mark.parametrize("steps", [1, 10, 50])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_our_schedulers_give_what_gaudis_give(name: str, steps: int) -> None:
    file, options = SCHEDULERS[name]
    theirs = habana_scheduler(file, f"Gaudi{name}")(**SD, **options)
    ours = getattr(schedulers, name)(**SD, **options)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    theirs.reset_timestep_dependent_params()  # as their pipelines do
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())
    # Chained steps in float32: they divide by square roots of tables, we by the tables' square roots.
    assert drive(ours, theirs, forced=False) < 2e-5


@needs_optimum_habana
def test_gaudis_noisy_ddim_is_ours_but_for_its_guard_against_zero() -> None:
    file, options = SCHEDULERS["DDIMScheduler"]
    theirs, ours = (
        habana_scheduler(file, "GaudiDDIMScheduler")(**SD, **options),
        schedulers.DDIMScheduler(**SD, **options),
    )
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    theirs.reset_timestep_dependent_params()
    # They add 1e-8 to 1 - alpha (8.5e-4 at least) in the variance: 6e-6 of the noise.
    assert drive(ours, theirs, forced=False, eta=1.0) < 5e-5
