"""What the names in LoRA files mean: which module of which component a tensor is for, and as what.

    diffusers, PEFT   unet.down_blocks.0.….attn1.to_q.lora_A.weight              text_encoder.….q_proj.lora_B.weight
    diffusers before  unet.….attn1.to_q.lora.down.weight, unet.….attn1.processor.to_q_lora.up.weight,
                      text_encoder.….q_proj.lora_linear_layer.down.weight
    kohya, A1111      lora_unet_down_blocks_0_….lora_down.weight, ….alpha          lora_te_….lora_up.weight
    LDM's blocks      lora_unet_input_blocks_1_1_….lora_down.weight, diffusion_model.input_blocks.1.1.….lora_A.weight

Points and underscores are one in kohya's names, so modules are compared with underscores throughout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

DENOISER = "the denoiser"  # as a target: names that say `unet` mean whatever denoises, and some say nothing
PART = re.compile(
    r"(?P<module>.+?)[._]lora[._](?:linear_layer\.)?(?P<part>A|B|down|up|mid)(?:\.(?!weight$)[^.]+)?\.weight"
)
ALPHA = re.compile(r"(?P<module>.+?)(?:[._]lora\..*)?\.alpha")
PARTS = {"A": "down", "B": "up"}
PREFIXES = {
    "lora_unet_": DENOISER, "lora_transformer_": DENOISER, "lycoris_": DENOISER,
    "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_3",
    "unet.": DENOISER, "transformer.": DENOISER, "prior.": DENOISER, "model.diffusion_model.": DENOISER,
    "diffusion_model.": DENOISER, "base_model.model.": DENOISER,
    "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2", "text_encoder_3.": "text_encoder_3",
    "vae.": "vae",
}  # fmt: skip
# what a name has that is none of up, down, mid and alpha, and the kind of adapter that it belongs to
OTHERS = {
    r"hada_": "LoHa", r"lokr_": "LoKr", r"dora_scale|lora_magnitude_vector": "DoRA", r"oft_": "OFT",
    r"\.diff(_b)?$": "full differences of weights", r"lora_(B|up)(\.\w+)?\.bias$": "a LoRA of biases", r"[wb]_norm$": "norms' weights",
}  # fmt: skip
# the rewrite fused_qkv lays matrices on one another: {module: (its part, the whole)}
FUSED = {
    "to_q": (("to_qkv", 0, 3),),
    "to_k": (("to_qkv", 1, 3), ("to_kv", 0, 2)),
    "to_v": (("to_qkv", 2, 3), ("to_kv", 1, 2)),
    "add_q_proj": (("to_added_qkv", 0, 3),),
    "add_k_proj": (("to_added_qkv", 1, 3),),
    "add_v_proj": (("to_added_qkv", 2, 3),),
}


@dataclass(frozen=True)
class Part:
    """A tensor of a LoRA: `part` is down, up, mid or alpha of a module, with underscores, of the component `target`."""

    target: str
    module: str
    part: str


@dataclass(frozen=True)
class Place:
    """Where a module's weight lies: in the weight of this name, whole, or as one of several equal parts of its rows."""

    weight: str
    part: int = 0
    parts: int = 1


def read_names(file: Path, names: Iterable[str]) -> dict[str, Part]:
    """Every name as what it means. Raises InputError for kinds that are no plain LoRA, and names that mean nothing here."""
    found, strange = {}, []
    for name in names:
        kind = next((kind for mark, kind in OTHERS.items() if re.search(mark, name)), None)
        if kind is not None:
            raise InputError(
                f"{file} holds {kind} ({name}), and Ingot adds plain LoRA only (up @ down, convolutions too): convert it, or "
                "fuse it into the checkpoint before the export"
            )
        part = _part(name)
        if part is None:
            strange.append(name)
        else:
            found[name] = part
    if strange or not found:
        examples = ", ".join(strange[:3]) or "it is empty"
        raise InputError(f"{file} is not a LoRA: {len(strange)} names in it mean nothing here, such as {examples}")
    return found


def _part(name: str) -> Part | None:
    match = PART.fullmatch(name) or ALPHA.fullmatch(name)
    if match is None:
        return None
    part = match.groupdict().get("part") or "alpha"
    module = match["module"]
    target = DENOISER
    for prefix, meant in PREFIXES.items():
        if module.startswith(prefix):
            module, target = module.removeprefix(prefix), meant
            break
    return Part(target, flat(module.replace(".processor.", ".")), PARTS.get(part, part))


def flat(module: str) -> str:
    """A module's path with underscores for points."""
    return module.replace(".", "_")


def places(weights: Iterable[str]) -> dict[str, Place]:
    """Where the weight of a module lies, by every name, with underscores, that a LoRA may have for it."""
    modules = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    found = {flat(module): Place(f"{module}.weight") for module in modules}
    depth = 1 + max(
        (int(m[1]) for name in modules if (m := re.match(r"down_blocks\.0\.resnets\.(\d+)", name))), default=0
    )
    for module in modules:
        for other, place in _others(module, depth):
            found.setdefault(other, place)
    return found


def _others(module: str, depth: int) -> Iterator[tuple[str, Place]]:
    """Other names of a module, and those of the modules that are fused in it."""
    own = Place(f"{module}.weight")
    # transformers 5 has no `text_model.` before a CLIP encoder's names, those before it have
    bare = module.removeprefix("text_model.")
    for name in (bare, f"text_model.{bare}"):
        yield flat(name), own
        if ".self_attn." in name:  # diffusers' first names: to_q_lora for q_proj
            yield flat(re.sub(r"(\w+)_proj$", r"to_\1", name)), own
    if module.endswith(".to_out.0"):
        yield flat(module.removesuffix(".0")), own
    yield from ((flat(name), own) for name in ldm_names(module, depth))
    parent, _, last = module.rpartition(".")
    for name, wholes in FUSED.items():
        for whole, part, parts in wholes:
            if last == whole:
                place = Place(own.weight, part, parts)
                yield from ((flat(f"{other}.{name}"), place) for other in (parent, *ldm_names(parent, depth)))


LDM_INNER = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
LDM_OUTER = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.?(.*)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.?(.*)")


def ldm_names(module: str, depth: int) -> list[str]:
    """What latent diffusion's own UNet (Rombach et al. 2022, `openaimodel.py`) calls a module of diffusers' UNet.

    It counts blocks through: with `depth` resnets in a block down, input block 1 + i * (depth + 1) + j is resnet j of
    block i; on the way up a block has one resnet more.
    """
    if module in LDM_OUTER:
        return [LDM_OUTER[module]]
    if found := MIDDLE.fullmatch(module):
        kind, number, rest = found.groups()
        index = 1 if kind == "attentions" else 2 * int(number)
        return [_join("middle_block", index, _inner(kind, rest))]
    found = BLOCK.fullmatch(module)
    if found is None:
        return []
    way, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    first, blocks = (1, "input_blocks") if way == "down_blocks" else (0, "output_blocks")
    start = first + block * (depth + 1)
    if kind == "downsamplers":
        return [_join(blocks, start + depth, 0, rest.replace("conv", "op"))]
    if kind == "upsamplers":  # behind the attention, where the block has one
        return [_join(blocks, start + depth, index, rest) for index in (1, 2)]
    return [_join(blocks, start + number, 0 if kind == "resnets" else 1, _inner(kind, rest))]


def _inner(kind: str, rest: str) -> str:
    return LDM_INNER.get(rest, rest) if kind == "resnets" else rest


def _join(*parts: object) -> str:
    return ".".join(str(part) for part in parts if part != "")


def roles_of(target: str, roles: Mapping[str, object]) -> list[str]:
    """The components that a target means: one by its name or its beginning (`unet_shallow` has the weights of `unet`), but
    not the second text encoder for the first."""
    if target == DENOISER:
        target = next((role for role in ("unet", "transformer", "prior") if role in roles), "unet")
    return [role for role in roles if role == target or (role.startswith(f"{target}_") and not _numbered(role, target))]


def _numbered(role: str, target: str) -> bool:
    return role.removeprefix(f"{target}_")[:1].isdigit()
