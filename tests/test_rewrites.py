"""Rewrites: what is exact computes the same, what is not computes what was meant, and every module is restored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor2_0, FusedAttnProcessor2_0
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ingot
from ingot import Bundle, InputError
from ingot.exporters import rewrites
from ingot.exporters.capture import capture
from ingot.exporters.rewrites import applied, token_merging
from ingot.exporters.trace import trace
from ingot.runtimes.metrics import compare

from . import tiny

# The same sums in another order: 1e-6 measured on these models, in float32.
TOLERANCE = 1e-5
EXACT = ("fused_qkv", "sliced_attention", "sliced_attention=3")
ALL = ("fused_qkv", "token_merging=0.5", "sliced_attention=3")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Model = tuple[Any, Callable[[Any], Tensor]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Each tiny model that attends, and a call of it, with sizes that slices and windows do not divide."""
    folder = tmp_path_factory.mktemp("models")
    sd, sdxl, control = (getattr(tiny, name)(folder) for name in ("sd", "sdxl", "controlnet"))
    latents, words, wide = noise(2, 4, 9, 14), noise(2, 77, 32, seed=1), noise(2, 77, 64, seed=1)
    mask = (torch.arange(77) < torch.tensor([[50], [9]])).long()
    added = {"text_embeds": noise(2, 32, seed=2), "time_ids": 100 * noise(2, 6, seed=3).abs()}
    step, image = torch.tensor(7.0), noise(2, 3, 18, 28)
    return {
        "sd": (sd.unet.eval(), lambda m: m(latents, step, words).sample),
        "sd masked": (sd.unet, lambda m: m(latents, step, words, encoder_attention_mask=mask).sample),
        "sdxl": (sdxl.unet.eval(), lambda m: m(latents, step, wide, added_cond_kwargs=added).sample),
        "controlnet": (control.controlnet, lambda m: m(latents, step, words, image).mid_block_res_sample),
        "vae decoder": (sd.vae.eval(), lambda m: m.decode(latents).sample),
        "vae encoder": (sd.vae, lambda m: m.encode(image).latent_dist.parameters),
    }


def state(module: nn.Module) -> list[Any]:
    """Everything that a rewrite may change."""
    parts = [
        (name, getattr(part, "processor", None), "forward" in vars(part), len(part._forward_pre_hooks))
        for name, part in module.named_modules()
    ]
    return [*parts, *((name, id(tensor)) for name, tensor in module.state_dict(keep_vars=True).items())]


@pytest.mark.parametrize("rewrite", EXACT)
@pytest.mark.parametrize("name", ["sd", "sd masked", "sdxl", "controlnet", "vae decoder", "vae encoder"])
def test_exact_rewrites_compute_the_same_and_are_taken_away(models: dict[str, Model], name: str, rewrite: str) -> None:
    module, call = models[name]
    before = state(module)
    with torch.no_grad():
        expected = call(module)
        with applied((rewrite,), module):
            assert state(module) != before
            found = call(module)
        assert state(module) == before
        assert torch.equal(call(module), expected)
    assert compare(expected.numpy(), found.numpy()).rel_l2 < TOLERANCE


def test_fused_projections_are_one_product_each(models: dict[str, Model]) -> None:
    module, call = models["sd"]
    calls: list[str] = []
    with torch.no_grad(), applied(("fused_qkv",), module):
        hooks = [
            part.register_forward_hook(lambda _, __, ___, name=name: calls.append(name))
            for name, part in module.named_modules()
            if name.rpartition(".")[2].startswith("to_") and isinstance(part, nn.Linear)
        ]
        call(module)
        for hook in hooks:
            hook.remove()
    used = [{name.rpartition(".")[2] for name in calls if f".{own}." in name} for own in ("attn1", "attn2")]
    assert used == [{"to_qkv"}, {"to_q", "to_kv"}]


def test_slices_are_what_attends(models: dict[str, Model]) -> None:
    module, call = models["sd"]
    lengths: list[tuple[int, int]] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "scaled_dot_product" in str(function):
                lengths.append((args[0].shape[2], args[1].shape[2]))
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), applied(("sliced_attention=3",), module), Seen():
        call(module)
    own = [length for length, keys in lengths if keys == 9 * 14]
    assert own == [42, 42, 42] * (len(own) // 3)
    assert own
    assert {length for length, keys in lengths if keys == 77} == {9 * 14, 5 * 7}  # a prompt is attended to whole


def test_what_is_not_plain_attention_is_refused_by_its_name(models: dict[str, Model]) -> None:
    module, _ = models["sd"]
    part = module.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    kept = part.processor
    part.processor = AttnAddedKVProcessor2_0()
    try:
        with (
            pytest.raises(
                InputError, match=r"down_blocks\.0\.attentions\.0\..*attn1: AttnAddedKVProcessor2_0 computes"
            ),
            applied(("fused_qkv",), module),
        ):
            pass
        with pytest.raises(InputError, match=r"attn1: AttnAddedKVProcessor2_0"), applied(("sliced_attention",), module):
            pass
    finally:
        part.processor = kept
    with (
        applied(("fused_qkv",), module),
        pytest.raises(InputError, match="its projections are fused already"),
        applied(("fused_qkv",), module),
    ):
        pass
    assert not any(isinstance(part.processor, FusedAttnProcessor2_0) for part in attentions(module))


def attentions(module: nn.Module) -> Iterator[Any]:
    return (part for part in module.modules() if isinstance(part, Attention))


def test_projections_that_are_no_linear_layers_are_refused() -> None:
    attention = Attention(8, heads=2, dim_head=4)
    attention.to_k = nn.Sequential(attention.to_k)
    with (
        pytest.raises(InputError, match="to_k is Sequential, no plain linear layer"),
        applied(("fused_qkv",), attention),
    ):
        pass
    shared = Attention(8, heads=2, kv_heads=1, dim_head=4)
    with pytest.raises(InputError, match="its heads share keys and values"), applied(("fused_qkv",), shared):
        pass


# Token merging


def merged_by_hand(x: NDArray[Any], height: int, width: int, share: float) -> tuple[list[list[int]], list[int]]:
    """The published algorithm in loops, for one picture (tokens, channels): groups of tokens that become one each,
    destinations first, and the sources that are left alone."""
    places = [(i, j) for i in range(height) for j in range(width)]
    destinations = [i * width + j for i, j in places if i % 2 == 0 and j % 2 == 0]
    sources = [i * width + j for i, j in places if i % 2 or j % 2]
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    likeness = {s: [float(unit[s] @ unit[d]) for d in destinations] for s in sources}
    count = int(height * width * share)
    order = sorted(sources, key=lambda s: -max(likeness[s]))
    groups = [[d] for d in destinations]
    for source in order[:count]:
        groups[int(np.argmax(likeness[source]))].append(source)
    return groups, order[count:]


@pytest.mark.parametrize(
    ("height", "width", "ratio"), [(4, 6, 0.5), (5, 7, 0.5), (4, 4, 0.3), (1, 9, 0.5), (6, 3, 0.125)]
)
def test_tokens_are_merged_and_unmerged_as_published(height: int, width: int, ratio: float) -> None:
    x, y = noise(2, height * width, 8), noise(2, height * width, 5, seed=1)
    matching = token_merging.match(x, height, width, ratio)
    made = matching.merge(y)
    back = matching.unmerge(made)
    for row in range(2):
        groups, left = merged_by_hand(x[row].numpy(), height, width, ratio)
        expected = torch.empty_like(y[row])
        for group in groups:
            expected[group] = y[row][group].mean(0)
        expected[left] = y[row][left]
        assert made.shape[1] == len(groups) + len(left)
        # means of up to a dozen float32 numbers, summed in another order
        torch.testing.assert_close(back[row], expected, atol=1e-6, rtol=0)


def test_half_of_the_tokens_is_half() -> None:
    merged = token_merging.match(noise(1, 64, 4), 8, 8, 0.5).merge(noise(1, 64, 4))
    assert merged.shape == (1, 32, 4)


@pytest.mark.parametrize(("name", "tokens", "merged"), [("sd", 126, 63), ("sdxl", 35, 18)])
def test_only_the_highest_resolution_that_attends_is_merged(
    models: dict[str, Model], name: str, tokens: int, merged: int
) -> None:
    module, call = models[name]
    before = state(module)
    seen: set[tuple[str, int]] = set()

    def watch(name: str, part: Any) -> Any:
        which = f"{name.split('.')[0]} {name.rpartition('.')[2]}"
        return part.to_q.register_forward_hook(lambda _, given, __: seen.add((which, given[0].shape[1])))

    with torch.no_grad(), applied(("token_merging=0.5",), module):
        hooks = [watch(name, part) for name, part in module.named_modules() if isinstance(part, Attention)]
        call(module)
        for hook in hooks:
            hook.remove()
    assert state(module) == before
    by_part = {which: {length for part, length in seen if part == which} for which, _ in seen}
    assert by_part["down_blocks attn1"] == by_part["up_blocks attn1"] == {merged}
    assert by_part["down_blocks attn2"] == {tokens}
    assert merged not in by_part["mid_block attn1"]


def test_rewrites_together_are_traced_for_every_size(tiny_sd: Any) -> None:
    """One program, run at sizes that it was not traced at, an odd one among them."""
    component = next(part for part in capture(tiny_sd.pipe, rewrites=ALL) if part.role == "unet")
    assert component.rewrites == ALL
    # without torch's own guards, which no engine has: the plain UNet's hold odd sizes to squares
    program = trace(component).module(check_guards=False)
    for height, width in ((8, 8), (7, 10)):
        call = {
            "sample": noise(2, 4, height, width),
            "timestep": torch.tensor(300.0),
            "encoder_hidden_states": noise(2, 77, 32, seed=1),
        }
        expected = component.run(call)["out_sample"]
        (found,) = program(*(call[spec.name] for spec in component.signature.inputs))
        assert compare(expected.numpy(), found.detach().numpy()).rel_l2 < TOLERANCE
        plain = tiny_sd.pipe.unet(call["sample"], call["timestep"], call["encoder_hidden_states"]).sample
        assert compare(plain.detach().numpy(), expected.numpy()).rel_l2 > 1e-4  # it is another model


# Names, values, components


BAD = {
    "wonder": "unknown rewrite 'wonder'; available: freeu, fused_qkv, sliced_attention, split_einsum, split_einsum_v2, token_merging",
    "fused_qkv=1": "the rewrite fused_qkv takes no value",
    "token_merging=": "token_merging=: the share of tokens",
    "token_merging=half": "token_merging=half: the share of tokens",
    "token_merging=0.8": r"above 0 and at most 0\.5",
    "token_merging=nan": "token_merging=nan: the share",
    "token_merging=0": "token_merging=0: the share",
    "sliced_attention=1": "a number of slices from 2 to 64",
    "sliced_attention=2.5": "a number of slices from 2 to 64",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_name_or_value_is_refused_before_anything_is_loaded(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=BAD[text]):
        ingot.export("a-model-that-is-nowhere", tmp_path / "bundle", to="torch", rewrites=(text,), progress=False)


def test_rewrites_that_exclude_each_other_say_so() -> None:
    with pytest.raises(
        InputError, match=r"fused_qkv and split_einsum each compute attention.*coreml\.attention=original"
    ):
        rewrites.canonical(("fused_qkv", "split_einsum"))
    with pytest.raises(InputError, match="split_einsum_v2 leaves sliced_attention nothing to slice"):
        rewrites.canonical(("sliced_attention=4", "split_einsum_v2"))
    with pytest.raises(InputError, match="token_merging is given 2 times"):
        rewrites.canonical(("token_merging", "token_merging=0.25"))


def test_canonical_names_carry_their_values() -> None:
    assert rewrites.canonical("token_merging") == ("token_merging=0.5",)
    assert rewrites.canonical(("sliced_attention", "fused_qkv")) == ("sliced_attention=4", "fused_qkv")
    assert rewrites.exact(("fused_qkv", "sliced_attention=4"))
    assert not rewrites.exact(("fused_qkv", "token_merging=0.5"))


@pytest.mark.parametrize("name", rewrites.available())
def test_every_rewrite_says_what_it_does_to_a_model(name: str, models: dict[str, Model]) -> None:
    assert rewrites.exact((name,)) is (name not in ("freeu", "token_merging"))
    assert rewrites.those_that_apply((name,), models["sd"][0]) == (name,)
    assert rewrites.those_that_apply((name,), nn.Linear(2, 2)) == ()


def test_components_keep_the_rewrites_that_change_them_and_their_answers(tiny_sd: Any) -> None:
    plain = {part.role: part for part in capture(tiny_sd.pipe)}
    merged = {part.role: part for part in capture(tiny_sd.pipe, rewrites=("fused_qkv", "token_merging"))}
    assert {role: part.rewrites for role, part in merged.items()} == {
        "text_encoder": (),
        "unet": ("fused_qkv", "token_merging=0.5"),
        "vae_decoder": ("fused_qkv",),
        "vae_encoder": ("fused_qkv",),
    }
    # the second call: the first has latents of one row, of which a window has no lower half
    call = merged["unet"].calls[-1]
    assert (
        compare(call.outputs["out_sample"].numpy(), merged["unet"].run(call.inputs)["out_sample"].numpy()).rel_l2 < 1e-5
    )
    assert (
        compare(call.outputs["out_sample"].numpy(), plain["unet"].run(call.inputs)["out_sample"].numpy()).rel_l2 > 1e-4
    )


def test_a_rewrite_that_finds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"token_merging=0\.5 finds nothing to change in this DDPMPipeline"):
        capture(tiny.ddpm(tmp_path), rewrites=("token_merging",))


@pytest.fixture(scope="module")
def bundle(tiny_sd: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fused, merged, and with two UNets: everything at once, in the format that is written fastest."""
    folder = tmp_path_factory.mktemp("rewritten") / "bundle"
    return ingot.export(
        tiny_sd.folder, folder, to="torch", rewrites=("fused_qkv", "token_merging=0.5"), deep_cache=0, progress=False
    )


def test_a_bundle_says_what_its_graphs_were_rewritten_by(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert {role: entry.graphs[0].rewrites for role, entry in manifest.components.items()} == {
        "text_encoder": (),
        "unet": ("fused_qkv", "token_merging=0.5"),
        "unet_shallow": ("fused_qkv", "token_merging=0.5"),
        "vae_decoder": ("fused_qkv",),
        "vae_encoder": ("fused_qkv",),
    }
    assert manifest.components["unet"].graphs[0].parity.rel_l2 <= 1e-4  # type: ignore[union-attr]  # exported ones have it
    # the damage of merging is shown, not refused
    assert 0 < manifest.parity["torch"].psnr_db < 60  # type: ignore[operator]  # not equal, so a number


def test_what_is_added_is_rewritten_alike(bundle: Path) -> None:
    ingot.add(bundle, to="openvino", dtype="float32", progress=False)
    manifest = Bundle.open(bundle).manifest
    for entry in manifest.components.values():
        assert [graph.engine for graph in entry.graphs] == ["torch", "openvino"]
        assert entry.graphs[0].rewrites == entry.graphs[1].rewrites
    call: dict[str, Any] = {"num_inference_steps": 3, "height": 64, "width": 64, "seed": 0, "output_type": "latent"}
    options = {"torch": {}, "openvino": {"inference_precision": "f32"}}
    found = [
        ingot.load(bundle, engine=name, **own)("a cat", cache_interval=2, progress=False, **call).images
        for name, own in options.items()
    ]
    assert np.linalg.norm(found[0] - found[1]) < 1e-4 * np.linalg.norm(found[0])
