"""Capture finds roles, inputs, axes and constants by itself; nothing here or there configures a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.exporters import capture as capturing
from ingot.exporters.axes import distinguishable, in_terms_of, name_shapes
from ingot.exporters.capture import capture
from ingot.exporters.component import Component, constants
from ingot.exporters.flatten import flatten
from ingot.exporters.recording import RawCall, Recorded
from ingot.runtimes.errors import ExportError, InputError

Shapes = dict[str, tuple[Any, ...]]


def by_role(pipe: Any, **options: Any) -> dict[str, Component]:
    return {component.role: component for component in capture(pipe, **options)}


def inputs(component: Component) -> Shapes:
    return {spec.name: spec.shape for spec in component.signature.inputs}


def outputs(component: Component) -> Shapes:
    return {spec.name: spec.shape for spec in component.signature.outputs}


LATENT = ("batch", 4, "height/2", "width/2")
UNET = {"sample": LATENT, "timestep": (), "encoder_hidden_states": ("batch", 77, 32)}


def test_stable_diffusion_is_four_components(tiny_sd: Any) -> None:
    found = by_role(tiny_sd.pipe)
    assert list(found) == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert inputs(found["unet"]) == UNET
    assert outputs(found["unet"]) == {"out_sample": LATENT}
    assert inputs(found["text_encoder"]) == {"input_ids": ("batch", 77)}
    assert list(outputs(found["text_encoder"])) == [
        "last_hidden_state", "pooler_output", *(f"hidden_states.{i}" for i in range(4))
    ]  # fmt: skip
    assert inputs(found["vae_decoder"]) == {"latent_sample": LATENT}
    assert outputs(found["vae_decoder"]) == {"sample": ("batch", 3, "height", "width")}
    assert inputs(found["vae_encoder"]) == {"sample": ("batch", 3, "height", "width")}
    assert outputs(found["vae_encoder"]) == {"latent_parameters": ("batch", 8, "height/2", "width/2")}


def test_timesteps_are_floats_and_tokens_are_not(tiny_sd: Any) -> None:
    dtypes = {s.name: s.dtype for component in capture(tiny_sd.pipe) for s in component.signature.inputs}
    assert dtypes["timestep"] == "float32"
    assert dtypes["input_ids"] == "int64"


def test_stable_diffusion_xl_has_two_text_encoders_and_its_conditions(tiny_sdxl: Any) -> None:
    found = by_role(tiny_sdxl.pipe)
    assert list(found) == ["text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"]
    wide = ("batch", 77, 64)
    conditions = {"text_embeds": ("batch", 32), "time_ids": ("batch", 6)}
    assert inputs(found["unet"]) == UNET | {"encoder_hidden_states": wide} | conditions
    # optimum takes the first output for the pooled one.
    assert list(outputs(found["text_encoder_2"]))[:2] == ["text_embeds", "last_hidden_state"]


def test_controlnet_and_its_unet_agree_on_the_residuals(tiny_controlnet: Any) -> None:
    found = by_role(tiny_controlnet.pipe)
    net, unet = found["controlnet"], found["unet"]
    image = {"controlnet_cond": ("batch", 3, "height", "width"), "conditioning_scale": ()}
    assert inputs(net) == UNET | image
    residuals = list(outputs(net).values())
    assert len(residuals) == 5
    assert list(inputs(unet).values())[3:] == residuals
    assert list(inputs(unet))[3:] == [
        *(f"down_block_additional_residuals.{i}" for i in range(4)), "mid_block_additional_residual"
    ]  # fmt: skip


def test_pipelines_that_no_table_names(tmp_path: Path) -> None:
    from . import tiny

    pixart = by_role(tiny.pixart(tmp_path))
    assert list(pixart) == ["text_encoder", "transformer", "vae_decoder", "vae_encoder"]
    assert inputs(pixart["transformer"])["timestep"] == ("batch",)
    assert inputs(pixart["transformer"])["encoder_attention_mask"] == ("batch", 300)
    ddpm = by_role(tiny.ddpm(tmp_path))
    assert inputs(ddpm["unet"]) == {"sample": ("batch", 3, 8, 8), "timestep": ()}


def test_recorded_calls_are_what_the_module_answers(tiny_sd: Any) -> None:
    for component in capture(tiny_sd.pipe):
        assert len(component.calls) >= 2
        for call in component.calls:
            again = component.run(call.inputs)
            assert list(again) == list(call.outputs)
            # The same function on the same tensors.
            assert all(torch.equal(again[name], tensor) for name, tensor in call.outputs.items())


def test_the_first_recording_has_the_size_that_was_asked_for(tiny_sd: Any) -> None:
    found = by_role(tiny_sd.pipe, size=(64, 32), batch=2)
    assert found["unet"].calls[0].inputs["sample"].shape == (4, 4, 32, 16)  # two images, each twice for guidance
    assert found["vae_encoder"].calls[0].inputs["sample"].shape == (2, 3, 64, 32)
    assert inputs(found["unet"]) == UNET


def test_the_pipeline_is_left_as_it_was(tiny_sd: Any) -> None:
    pipe = tiny_sd.pipe
    pipe.set_progress_bar_config(disable=True, desc="mine")
    capture(pipe)
    assert pipe._progress_bar_config == {"disable": True, "desc": "mine"}
    assert not {"forward", "decode", "encode"} & (set(vars(pipe.unet)) | set(vars(pipe.vae)))


def test_what_the_pipeline_refuses_is_said(tiny_sd: Any) -> None:
    with pytest.raises(ExportError, match="divisible by 8 but are 12 and 16"):
        capture(tiny_sd.pipe, size=(12, 16))
    with pytest.raises(InputError, match="must be positive, not 0 and 16x16"):
        capture(tiny_sd.pipe, size=(16, 16), batch=0)


def test_an_argument_without_an_example_is_named(tiny_sd: Any) -> None:
    class Unheard(type(tiny_sd.pipe)):  # type: ignore[misc]  # the fixture's pipeline is untyped
        def __call__(self, prompt: str, height: int, width: int, wind_speed: float) -> None:  # noqa: ARG002  # for its signature
            raise AssertionError

    with pytest.raises(ExportError, match="wind_speed: give them in `inputs`"):
        capture(Unheard(**tiny_sd.pipe.components, requires_safety_checker=False))


AXES = ({"batch": 1, "height": 16, "width": 32}, {"batch": 2, "height": 24, "width": 16})


def test_dimensions_get_the_names_that_explain_them() -> None:
    pairs = {"x": ((2, 8, 16, 77), (4, 12, 8, 77)), "tokens": ((2, 32), (4, 24)), "odd": ((5,), (9,))}
    named = name_shapes(pairs, AXES)
    assert named["x"] == ("batch", "height/2", "width/2", 77)  # 2*batch, counted in the graph's own batch
    assert named["tokens"] == ("batch", "height*width/16")
    assert named["odd"] == ("size_5_9",)
    assert name_shapes({"x": ((1,), (2,)), "doubled": ((2,), (4,))}, AXES) == {"x": ("batch",), "doubled": ("2*batch",)}


def test_sizes_must_tell_the_axes_apart() -> None:
    assert distinguishable(*AXES)
    assert not distinguishable(AXES[0], {"batch": 2, "height": 32, "width": 16})  # height doubles as the batch does
    assert not distinguishable(AXES[0], {"batch": 1, "height": 24, "width": 16})


def test_output_dimensions_are_written_in_terms_of_the_inputs() -> None:
    assert in_terms_of("height", {"batch", "height/8"}) == "height/8 * 8"
    assert in_terms_of("height/8", {"batch", "height"}) == "height / 8"
    assert in_terms_of("batch", {"batch"}) == "batch"
    assert in_terms_of("size_5_9", {"batch"}) == "size_5_9"


def test_each_net_of_several_is_a_component(tiny_controlnet: Any) -> None:
    import copy

    from diffusers import StableDiffusionControlNetPipeline

    base = tiny_controlnet.pipe
    nets = [base.controlnet, copy.deepcopy(base.controlnet)]
    pipe = StableDiffusionControlNetPipeline(**{**base.components, "controlnet": nets}, requires_safety_checker=False)
    found = by_role(pipe)
    assert list(found) == ["text_encoder", "controlnet", "controlnet_2", "unet", "vae_decoder", "vae_encoder"]
    assert [found[role].source for role in ("controlnet", "controlnet_2")] == nets
    assert inputs(found["controlnet"]) == inputs(found["controlnet_2"])


class Counts(torch.nn.Module):
    """A model that is told its rows as a whole number, and another argument."""

    def forward(self, x: torch.Tensor, rows: int, other: Any = None) -> torch.Tensor:  # noqa: ARG002  # recorded only
        return x.reshape(rows, -1) * 2


def recorded(module: Counts, rows: int, **more: Any) -> Recorded:
    x = torch.arange(4.0 * rows)
    return Recorded(module, "forward", [RawCall({"x": x, "rows": rows, **more}, [("output", module(x, rows))])])


def test_a_whole_number_that_follows_the_size_fixes_the_graph_to_it() -> None:
    module = Counts()
    flat, runs = flatten(recorded(module, 2), recorded(module, 3))
    assert flat.input_names == ("x",)
    assert constants(flat) == {"rows": 2}
    assert runs[0] is runs[1]
    assert {name: t.tolist() for name, t in flat.named_outputs(torch.ones(8)).items()} == {"output": [[2.0] * 4] * 2}
    _, free = flatten(recorded(module, 2), recorded(module, 2))
    assert free[0] is not free[1]


def test_an_argument_that_no_graph_takes_is_named() -> None:
    module = Counts()
    with pytest.raises(ExportError, match="argument 'other' is a Counts, which no graph takes"):
        flatten(recorded(module, 2, other=module), recorded(module, 3, other=module))


def test_a_component_that_cannot_be_captured_may_be_left_out(tiny_sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(role: str, *rest: Any) -> Component:
        if role == "unet":
            raise ExportError("why")
        return original(role, *rest)

    original = capturing._component
    monkeypatch.setattr(capturing, "_component", refuse)
    refused: dict[str, str] = {}
    assert [c.role for c in capture(tiny_sd.pipe, refused=refused)] == ["text_encoder", "vae_decoder", "vae_encoder"]
    assert refused == {"unet": "why"}
    with pytest.raises(ExportError, match="why"):
        capture(tiny_sd.pipe)
