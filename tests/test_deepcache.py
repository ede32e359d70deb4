"""DeepCache: two graphs that together are the UNet, and a loop that is DeepCache's, against torch."""

from __future__ import annotations

import cmath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import ingot
from ingot import Bundle, InputError
from ingot.exporters import deepcache
from ingot.exporters.capture import capture
from ingot.exporters.checkpoint import load_checkpoint
from ingot.exporters.component import Component
from ingot.runtimes import schedulers
from ingot.runtimes.metrics import compare
from ingot.runtimes.pipelines.common import State
from ingot.runtimes.pipelines.deep_cache import Features, full_steps
from ingot.runtimes.pipelines.denoiser import Acceleration, Denoiser
from ingot.runtimes.signature import Signature, TensorSpec

from . import tiny
from .lora_cases import random_lora

# float32 over a few steps, as in test_stable_diffusion.
ATOL = 1e-4
CALL: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 6, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pipes")
    return {"sd": tiny.sd(folder), "sdxl": tiny.sdxl(folder), "shapes": load_checkpoint("shapes").pipe}


@pytest.fixture(scope="module")
def components(pipes: dict[str, Any]) -> dict[str, list[Component]]:
    """Each pipeline's components, recorded once."""
    return {name: capture(pipe) for name, pipe in pipes.items()}


def parts(components: list[Component], branch: int) -> tuple[Component, Component]:
    unet = next(component for component in components if component.role == "unet")
    shapes = [call.inputs["sample"].shape for call in (unet.calls[0], unet.calls[-1])]
    first, last = ({"batch": b // 2, "height": 8 * h, "width": 8 * w} for b, _, h, w in shapes)
    with torch.no_grad():
        by_role = {component.role: component for component in deepcache.split(components, branch, (first, last))}
    return by_role["unet"], by_role["unet_shallow"]


BRANCHES = [(name, branch) for name, count in (("sd", 3), ("sdxl", 3), ("shapes", 5)) for branch in range(count)]


@pytest.mark.parametrize(("name", "branch"), BRANCHES)
def test_with_features_of_the_same_step_the_shallow_one_is_the_full_one(
    pipes: dict[str, Any], components: dict[str, list[Component]], name: str, branch: int
) -> None:
    full, shallow = parts(components[name], branch)
    assert [spec.name for spec in full.signature.outputs] == ["out_sample", "deep_features"]
    assert [spec.name for spec in shallow.signature.outputs] == ["out_sample"]
    for whole, cheap in zip(full.calls, shallow.calls, strict=True):
        assert torch.equal(whole.outputs["deep_features"], cheap.inputs["deep_features"])
        # the same operations on the same numbers
        assert compare(whole.outputs["out_sample"].numpy(), cheap.outputs["out_sample"].numpy()).rel_l2 < 1e-5
        plain = pipes[name].unet(**arguments(full, whole.inputs)).sample
        assert compare(plain.detach().numpy(), whole.outputs["out_sample"].numpy()).rel_l2 < 1e-5


def arguments(component: Component, inputs: dict[str, Any]) -> dict[str, Any]:
    """A call of diffusers' own UNet."""
    known = {"text_embeds", "time_ids"}
    added = {name: tensor for name, tensor in inputs.items() if name in known}
    own = {name: tensor for name, tensor in inputs.items() if name not in known}
    assert len(inputs) == len(component.signature.inputs)
    return own | ({"added_cond_kwargs": added} if added else {})


def test_the_shallow_one_has_the_fulls_own_weights_under_their_names(components: dict[str, list[Component]]) -> None:
    full, shallow = parts(components["shapes"], 1)
    names = dict(full.source.named_parameters())
    own = dict(shallow.source.named_parameters())
    assert own
    assert all(names[name] is parameter for name, parameter in own.items())
    blocks = {name.rpartition(".")[0] for name in own if "resnets" in name and name.endswith("conv1.weight")}
    # skips 0 and 1 are the input convolution's and the first resnet's; the last two layers consume them
    assert blocks == {"down_blocks.0.resnets.0.conv1", "up_blocks.2.resnets.0.conv1", "up_blocks.2.resnets.1.conv1"}
    assert sum(parameter.numel() for parameter in own.values()) < sum(p.numel() for p in names.values()) / 4
    assert shallow.source.config["deep_cache_branch"] == 1


def test_what_the_shallow_one_does_not_look_at_is_no_input(components: dict[str, list[Component]]) -> None:
    """SDXL's outermost layers do not attend to the prompt, Stable Diffusion's do."""
    names = {
        (name, branch): [spec.name for spec in parts(components[name], branch)[1].signature.inputs]
        for name, branch in (("sd", 0), ("sdxl", 0), ("sdxl", 2))
    }
    assert names["sd", 0] == ["sample", "timestep", "encoder_hidden_states", "deep_features"]
    assert names["sdxl", 0] == ["sample", "timestep", "text_embeds", "time_ids", "deep_features"]
    assert "encoder_hidden_states" in names["sdxl", 2]


def test_the_features_dimensions_have_names(pipes: dict[str, Any]) -> None:
    full = next(component for component in capture(pipes["sd"], deep_cache=2) if component.role == "unet")
    assert full.signature.outputs[1].shape == ("batch", 64, "height/4", "width/4")


@pytest.mark.parametrize("branch", [-1, 5, True, "0", 1.0])
def test_a_branch_that_is_none_is_refused(pipes: dict[str, Any], branch: Any) -> None:
    with pytest.raises(InputError, match=r"branches 0 \(the outermost, cheapest\) to 4"):
        capture(pipes["shapes"], deep_cache=branch)


def test_a_bad_branch_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="deep_cache=-1: the number of a branch is needed"):
        ingot.export("a-model-that-is-nowhere", tmp_path / "b", to="torch", deep_cache=-1)


def test_models_that_it_is_not_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be given with a ControlNet or adapter"):
        capture(tiny.controlnet(tmp_path), deep_cache=0)
    with pytest.raises(InputError, match="is for a UNet2DConditionModel, and this pipeline has UNet2DModel"):
        capture(tiny.ddpm(tmp_path), deep_cache=0)
    with pytest.raises(InputError, match="this pipeline has nothing of that role"):
        capture(tiny.pixart(tmp_path), deep_cache=0)


# When the whole one runs


def test_uniform_steps() -> None:
    assert full_steps(10, 3) == {0, 3, 6, 9}
    assert full_steps(10, 1) == set(range(10))
    assert full_steps(3, 5) == {0}


@pytest.mark.parametrize(
    ("steps", "interval", "center", "power"), [(50, 5, 15, 1.4), (50, 10, 15, 1.2), (20, 3, 6, 1.4)]
)
def test_non_uniform_steps_are_the_papers(steps: int, interval: int, center: int, power: float) -> None:
    found = full_steps(steps, interval, "non-uniform", center, power)
    count = -(-steps // interval)
    assert len(found) == count
    assert 0 in found
    # the equation at some power of the search, one number at a time
    searched = np.arange(power, 1, -0.02)
    assert any(found == by_equation(steps, count, center, p) for p in searched)
    near = [step for step in found if abs(step - center) <= steps // 5]
    assert len(near) >= count * 2 / 5 - 1


def by_equation(steps: int, count: int, center: int, power: float) -> set[int]:
    first, last = (cmath.exp(cmath.log(end) / power) for end in (complex(-center), complex(steps - center)))
    points = [first + (last - first) * i / count for i in range(count + 1)]
    values = sorted({int(cmath.exp(power * cmath.log(point)).real) for point in points})
    return {0, *(value + center for value in values[1:-1])}


def test_steps_by_hand() -> None:
    assert full_steps(8, 1, [2, 5]) == {0, 2, 5}


WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "no interval": ((10, 0), "cache_interval must be a whole number of at least 1, not 0"),
    "a part of one": ((10, 1.5), "cache_interval must be a whole number"),
    "another schedule": (
        (10, 2, "linear"),
        "cache_schedule must be 'uniform', 'non-uniform' or a list of steps, not 'linear'",
    ),
    "a step past the end": ((10, 2, [1, 10]), r"names the steps \[10\], and there are the steps 0 to 9"),
    "no number": ((10, 2, ["1"]), "names the steps"),
    "a centre past the end": (
        (10, 2, "non-uniform", 10),
        "cache_center=10 lies behind the last of 10 steps; 9 would do",
    ),
    "a power of one": ((10, 2, "non-uniform", 3, 1.0), "cache_power must be above 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_schedules_say_what_would_do(name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        full_steps(*given)


# The loop


@pytest.fixture(scope="module")
def bundle(tiny_sd: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingot.export(
        tiny_sd.folder, tmp_path_factory.mktemp("cached") / "bundle", to="torch", deep_cache=1, progress=False
    )


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Iterator[Any]:
    with ingot.load(bundle) as opened:
        opened.scheduler = schedulers.DDIMScheduler.from_config(opened.scheduler.config)
        yield opened


@contextmanager
def deep_cached(unet: Any, branch: int, full: set[int]) -> Iterator[None]:
    """DeepCache by another way: the whole UNet runs at every step, and at those that are not `full` what enters the
    consumer of the branch's skip is replaced by what entered it at the last that was."""
    consumers = [resnet for block in unet.up_blocks for resnet in block.resnets]
    skips = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        skips += [resnet.out_channels for resnet in block.resnets]
        skips += [sampler.out_channels for sampler in block.downsamplers or ()]
    kept: list[torch.Tensor] = []
    step = -1

    def replace(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal step
        step += 1
        deep = given[0].shape[1] - skips[branch]
        if step in full:
            kept[:] = [given[0][:, :deep].clone()]
        return (torch.cat([kept[0], given[0][:, deep:]], dim=1), *given[1:])

    hook = consumers[-1 - branch].register_forward_pre_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def by_torch(theirs: Any, branch: int, full: set[int], **call: Any) -> NDArray[np.float32]:
    with deep_cached(theirs.unet, branch, full):
        made = theirs(**call, generator=torch.Generator().manual_seed(0), output_type="latent").images
    latents: NDArray[np.float32] = made.numpy()
    return latents


def ours(pipe: Any, **call: Any) -> NDArray[np.float32]:
    latents: NDArray[np.float32] = pipe(**call, seed=0, output_type="latent", progress=False).images
    return latents


LOOPS: dict[str, tuple[dict[str, Any], set[int]]] = {
    "every second": ({"cache_interval": 2}, {0, 2, 4}),
    "every third": ({"cache_interval": 3}, {0, 3}),
    "by hand": ({"cache_schedule": [1, 4]}, {0, 1, 4}),
    "without guidance": ({"cache_interval": 3, "guidance_scale": 1.0}, {0, 3}),
    "every step": ({"cache_interval": 1}, set(range(6))),
}


@pytest.mark.parametrize("name", LOOPS)
def test_the_loop_is_deep_caches(pipe: Any, tiny_sd: Any, name: str) -> None:
    call, full = LOOPS[name]
    theirs = {name: value for name, value in call.items() if not name.startswith("cache")}
    expected = by_torch(tiny_sd.pipe, 1, full, **CALL, **theirs)
    np.testing.assert_allclose(ours(pipe, **CALL, **call), expected, atol=ATOL, rtol=0)


def test_caching_changes_the_picture(pipe: Any) -> None:
    """Else the tests above would hold for a loop that never caches."""
    assert np.abs(ours(pipe, **CALL, cache_interval=6) - ours(pipe, **CALL)).max() > 10 * ATOL


@contextmanager
def counted(pipe: Any) -> Iterator[list[tuple[str, int]]]:
    """The runs of both UNets while it is entered, with their rows."""
    seen: list[tuple[str, int]] = []
    kept = {role: pipe.engines[role].run for role in ("unet", "unet_shallow")}

    def counting(role: str) -> Callable[..., Any]:
        def run(inputs: Any) -> Any:
            seen.append((role.removeprefix("unet") or "_full", len(inputs["sample"])))
            return kept[role](inputs)

        return run

    for role in kept:
        vars(pipe.engines[role])["run"] = counting(role)
    try:
        yield seen
    finally:
        for role in kept:
            vars(pipe.engines[role]).pop("run")


def test_features_of_rows_that_are_left_are_used(pipe: Any) -> None:
    """Where guidance starts, the whole UNet runs again; where it stops, the guided half's features are there."""
    call = {**CALL, "num_inference_steps": 6, "cache_schedule": [0]}
    with counted(pipe) as seen:
        ours(pipe, **call, guidance_start=0.3, guidance_end=0.8)
    steps = [("_full", 1), ("_shallow", 1), ("_full", 2), ("_shallow", 2), ("_shallow", 1), ("_shallow", 1)]
    assert seen == steps


def test_the_half_that_is_left_is_the_guided_one() -> None:
    unguided, guided = (object(), "embeds"), (object(), "embeds")
    kept = Features(np.arange(4.0).reshape(4, 1, 1, 1), (unguided, guided))
    assert kept.of((unguided, guided)) is kept.value
    for row, values in ((unguided, [0, 1]), (guided, [2, 3])):
        found = kept.of((row,))
        assert found is not None
        assert found.ravel().tolist() == values
    assert kept.of((unguided, (object(), "embeds"))) is None
    alike = Features(np.arange(3.0).reshape(3, 1, 1, 1), (guided, unguided, unguided))
    assert alike.of((guided, unguided, unguided)) is alike.value
    assert alike.of((unguided,)) is None
    kept.value = None
    assert kept.of((guided,)) is None


def test_a_prompt_changed_half_way_is_another_batch(pipe: Any) -> None:
    with counted(pipe) as seen:
        for state in pipe.steps(**CALL, cache_schedule=[0], seed=0):
            if state.step == 2:
                state.prompt_embeds = state.prompt_embeds.copy()
    assert [role for role, _ in seen] == ["_full", "_shallow", "_shallow", "_full", "_shallow", "_shallow"]


def exchanged(**changes: Callable[[Any], Any]) -> Callable[..., dict[str, Any]]:
    """A callback that exchanges these after step 2."""

    def change(_: Any, step: int, __: float, given: dict[str, Any]) -> dict[str, Any]:
        return {name: made(given[name]) for name, made in changes.items()} if step == 2 else given

    return change


def test_latents_changed_half_way_are_another_picture(pipe: Any) -> None:
    """Features of the latents that were there before are not used: the whole UNet runs at the next step."""
    call = {**CALL, "callback_on_step_end": exchanged(latents=lambda array: array[..., ::-1].copy())}
    with counted(pipe) as seen:
        found = ours(pipe, **call, cache_schedule=[0])
    assert [role for role, _ in seen] == ["_full", "_shallow", "_shallow", "_full", "_shallow", "_shallow"]
    np.testing.assert_array_equal(found, ours(pipe, **call, cache_schedule=[0, 3]))

    def overwritten(_: Any, step: int, __: float, given: dict[str, Any]) -> dict[str, Any]:
        given["latents"][...] = given["latents"][..., ::-1].copy() if step == 2 else given["latents"]
        return {}

    in_place = {**CALL, "callback_on_step_end": overwritten}
    np.testing.assert_array_equal(found, ours(pipe, **in_place, cache_schedule=[0]))
    with counted(pipe) as seen:  # what is only looked at, or handed back as it was, changes nothing
        ours(pipe, **CALL, cache_schedule=[0], callback_on_step_end=lambda *given: given[-1])
    assert [role for role, _ in seen] == ["_full", *["_shallow"] * 5]


class Counting:
    """A UNet in two graphs that answers zeros."""

    def __init__(self, more: tuple[str, ...], *, shallow: bool) -> None:
        batch = ("batch", 1, 1, 1)
        inputs = [TensorSpec("sample", "float32", batch), TensorSpec("timestep", "float32", ())]
        inputs += [TensorSpec(name, "float32", ("batch", 1, 1)) for name in ("encoder_hidden_states", *more)]
        features = TensorSpec("deep_features", "float32", batch)
        out = TensorSpec("out_sample", "float32", batch)
        self.signature = (
            Signature((*inputs, features), (out,)) if shallow else Signature(tuple(inputs), (out, features))
        )
        self.runs = 0

    def run(self, inputs: Any) -> dict[str, Any]:
        self.runs += 1
        return {spec.name: np.zeros_like(inputs["sample"]) for spec in self.signature.outputs}

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("change", ["nothing", "prompt_embeds", "conditions", "guidance_scale", "latents", "weights"])
def test_features_are_of_one_batch_of_conditions(change: str) -> None:
    """A UNet with a further condition and a guidance embedding (LCM's): whatever is exchanged, the whole one runs again."""
    engines = {
        "unet": Counting(("text_embeds", "timestep_cond"), shallow=False),
        "unet_shallow": Counting(("text_embeds", "timestep_cond"), shallow=True),
    }
    denoiser = Denoiser(engines, 4)  # type: ignore[arg-type]  # stand-ins
    one = np.ones((1, 1, 1), np.float32)
    state = State(-1, 3, 0.0, one[None], one[None], 8.0, 0.0, one, None, {"text_embeds": one})
    plan = denoiser.plan(3, Acceleration(cache_schedule=[0]))
    for step in range(3):
        if step == 1 and change == "weights":
            denoiser.weights = object()
        elif step == 1 and change == "latents":
            state.changed = True
        elif step == 1 and change != "nothing":
            new = {"prompt_embeds": one * 2, "conditions": {"text_embeds": one * 2}, "guidance_scale": 2.0}[change]
            setattr(state, change, new)
        denoiser.predict(state, plan, step, state.latents, 1.0)
        state.changed = False
    runs = (engines["unet"].runs, engines["unet_shallow"].runs)
    assert runs == ((1, 2) if change == "nothing" else (2, 1))


def test_loras_between_calls_and_between_steps_leave_no_old_features(
    bundle: Path, pipe: Any, tiny_sd: Any, tmp_path: Path
) -> None:
    file = random_lora(tiny_sd.pipe, seed=1).peft(tmp_path / "a.safetensors")
    call = {**CALL, "cache_schedule": [0]}
    plain = ours(pipe, **call)
    try:
        with ingot.load(bundle, loras=[(file, 1.0)]) as fresh:
            fresh.scheduler = schedulers.DDIMScheduler.from_config(fresh.scheduler.config)
            expected = ours(fresh, **call)
        pipe.set_loras([(file, 1.0)])
        np.testing.assert_array_equal(ours(pipe, **call), expected)
        assert np.abs(expected - plain).max() > 10 * ATOL
        pipe.set_loras([])
        np.testing.assert_array_equal(ours(pipe, **call), plain)
        with counted(pipe) as seen:
            for state in pipe.steps(**call, seed=0):
                if state.step == 2:
                    pipe.set_loras([(file, 1.0)])
        assert [role for role, _ in seen] == ["_full", "_shallow", "_shallow", "_full", "_shallow", "_shallow"]
    finally:
        pipe.set_loras([])


def test_a_batch_in_parts_is_the_batch(pipe: Any) -> None:
    whole = ours(pipe, **CALL, cache_interval=2)
    engines = [pipe.engines[role] for role in ("unet", "unet_shallow")]
    try:
        for engine in engines:
            vars(engine)["most_rows"] = 1
        with counted(pipe) as seen:
            found = ours(pipe, **CALL, cache_interval=2)
    finally:
        for engine in engines:
            vars(engine).pop("most_rows")
    assert {rows for _, rows in seen} == {1}
    # products of one row and of two round differently, and latents go up to 10
    np.testing.assert_allclose(found, whole, atol=1e-5 * np.abs(whole).max(), rtol=0)


def test_a_bundle_without_the_shallow_one_says_how_to_get_it(pipe: Any) -> None:
    plain = Denoiser({"unet": pipe.engines["unet"]}, None)
    for how in (Acceleration(cache_interval=2), Acceleration(cache_schedule=[2])):
        with pytest.raises(
            InputError, match=r"DeepCache's unet_shallow, which this bundle does not have: .* --deep-cache 0"
        ):
            plain.plan(4, how)
    assert plain.plan(4, Acceleration()).full == {0, 1, 2, 3}


def test_the_manifest_has_both_and_each_is_certified(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert list(manifest.components) == ["text_encoder", "unet", "unet_shallow", "vae_decoder", "vae_encoder"]
    for role in ("unet", "unet_shallow"):
        certificate = manifest.components[role].graphs[0].parity
        assert certificate is not None
        assert certificate.rel_l2 <= 1e-4
    assert manifest.components["unet_shallow"].config["deep_cache_branch"] == 1
    assert manifest.components["unet_shallow"].parameters < manifest.components["unet"].parameters / 2
    assert deepcache.SHALLOW in manifest.components
    picture = manifest.parity["torch"]  # over all steps with the whole UNet: exact
    assert picture.psnr_db is None or picture.psnr_db >= 60
