"""Attention by heads is the attention that it stands in for, and is taken away again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, SlicedAttnProcessor
from torch import Tensor, nn

from ingot.exporters.rewrites import applied, split_einsum, split_einsum_v2
from ingot.exporters.rewrites.split_einsum import SplitProcessor
from ingot.runtimes.errors import ExportError, InputError
from ingot.runtimes.metrics import compare

from . import tiny

# The same sums in another order: 1e-6 measured on these models, in float32.
TOLERANCE = 1e-5
REWRITES = ("split_einsum", "split_einsum_v2")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Model = tuple[Any, Callable[[Any], Tensor]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Each tiny model that attends, and a call of it. 40x24 latents are 960 queries: one whole part of version 2 and a
    shorter one."""
    folder = tmp_path_factory.mktemp("models")
    sd, sdxl, control, pixart = (getattr(tiny, name)(folder) for name in ("sd", "sdxl", "controlnet", "pixart"))
    latents, words, wide = noise(2, 4, 40, 24), noise(2, 77, 32, seed=1), noise(2, 77, 64, seed=1)
    mask = (torch.arange(77) < torch.tensor([[50], [9]])).long()
    added = {"text_embeds": noise(2, 32, seed=2), "time_ids": 100 * noise(2, 6, seed=3).abs()}
    few = {"encoder_attention_mask": mask[:, 40:51]}
    step, steps, image = torch.tensor(7.0), torch.tensor([5, 5]), noise(2, 3, 80, 48)
    return {
        "sd": (sd.unet.eval(), lambda m: m(latents, step, words).sample),
        "sd masked": (sd.unet, lambda m: m(latents, step, words, encoder_attention_mask=mask).sample),
        "sdxl": (sdxl.unet.eval(), lambda m: m(latents, step, wide, added_cond_kwargs=added).sample),
        "controlnet": (control.controlnet, lambda m: m(latents, step, words, image).mid_block_res_sample),
        "vae": (sd.vae.eval(), lambda m: m.decode(latents).sample),
        "pixart": (pixart.transformer.eval(), lambda m: m(noise(2, 4, 8, 8), words[:, :11], steps, **few).sample),
    }


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("name", ["sd", "sd masked", "sdxl", "controlnet", "vae", "pixart"])
def test_it_computes_what_it_stands_in_for(models: dict[str, Model], name: str, rewrite: str) -> None:
    module, call = models[name]
    before = {part: part.processor for part in module.modules() if isinstance(part, Attention)}
    with torch.no_grad():
        expected = call(module)
        with applied((rewrite,), module):
            assert all(isinstance(part.processor, SplitProcessor) for part in before)
            found = call(module)
    assert before
    assert {part: part.processor for part in before} == before
    assert compare(expected.numpy(), found.numpy()).rel_l2 < TOLERANCE


def test_a_mask_counts(models: dict[str, Model]) -> None:
    module = models["sd"][0]
    with torch.no_grad(), split_einsum.applied(module):
        plain, masked = (models[name][1](module) for name in ("sd", "sd masked"))
    assert compare(plain.numpy(), masked.numpy()).rel_l2 > 100 * TOLERANCE


@pytest.mark.parametrize("queries", [1, 512, 513, 1024, 1500])
def test_parts_of_the_queries_are_the_whole(queries: int) -> None:
    query, key, value = noise(2, 8, 1, queries), noise(2, 77, 1, 8, seed=1), noise(2, 8, 1, 77, seed=2)
    for mask in (None, noise(2, 77, 1, 1), noise(2, 77, 1, queries)):
        whole, parts = (f(query, key, value, mask) for f in (split_einsum.attend, split_einsum_v2.attend_in_parts))
        assert parts.shape == (2, 8, 1, queries)
        assert compare(whole.numpy(), parts.numpy()).rel_l2 < 1e-6  # each part is a smaller product of the same numbers


def attention(**options: Any) -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=16, heads=4, dim_head=4, **options).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"qk_norm": "layer_norm"},
        {"norm_num_groups": 4},
        {"residual_connection": True, "rescale_output_factor": 2.0},
        {"cross_attention_dim": 24, "cross_attention_norm": "layer_norm"},
        {"scale_qk": False, "processor": AttnProcessor()},
        {"bias": True, "out_bias": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_an_attention(options: dict[str, Any]) -> None:
    part = attention(**options)
    context = noise(2, 7, 24, seed=1) if "cross_attention_dim" in options else None
    with torch.no_grad():
        for inputs in (noise(2, 9, 16), noise(2, 16, 3, 5)):
            expected = part(inputs, encoder_hidden_states=context)
            with split_einsum.applied(part):
                found = part(inputs, encoder_hidden_states=context)
            assert compare(expected.numpy(), found.numpy()).rel_l2 < TOLERANCE


def test_a_wrapped_projection_is_called_and_not_taken_apart() -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    part = attention()
    part.to_v = Twice(16, 16)
    with torch.no_grad():
        expected = part(noise(2, 9, 16))
        with split_einsum.applied(part):
            assert compare(expected.numpy(), part(noise(2, 9, 16)).numpy()).rel_l2 < TOLERANCE


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"processor": SlicedAttnProcessor(2)}, "SlicedAttnProcessor computes more than plain attention"),
        ({"kv_heads": 2}, "its heads share keys and values"),
    ],
)
@pytest.mark.parametrize("rewrite", [split_einsum.applied, split_einsum_v2.applied], ids=REWRITES)
def test_what_it_cannot_stand_in_for_is_named(
    rewrite: Callable[[nn.Module], AbstractContextManager[None]], options: dict[str, Any], reason: str
) -> None:
    module = nn.ModuleDict({"plain": attention(), "other": attention(**options)})
    before = [part.processor for part in module.values()]
    with pytest.raises(InputError, match=rf"attention='original' can be exported: other: {reason}"), rewrite(module):
        pass
    assert [part.processor for part in module.values()] == before


def test_it_is_taken_away_after_an_error() -> None:
    part = attention()
    before = part.processor
    with pytest.raises(RuntimeError), split_einsum.applied(part):
        raise RuntimeError
    assert part.processor is before


def test_version_2_wants_to_know_how_many_queries_there_are() -> None:
    class Head(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return split_einsum_v2.attend_in_parts(query, key, value, None)

    inputs = noise(2, 8, 1, 600), noise(2, 77, 1, 8), noise(2, 8, 1, 77)
    dynamic = ({3: torch.export.Dim.DYNAMIC}, {}, {})
    with pytest.raises(ExportError, match="needs fixed sizes: export with --static"):
        torch.export.export(Head(), inputs, dynamic_shapes=dynamic, strict=False)
