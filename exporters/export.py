"""Casting: a checkpoint becomes a verified bundle. Start reading here."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import torch
from tqdm import tqdm

from ingot.runtimes.errors import InputError
from ingot.runtimes.loras import Loras
from ingot.runtimes.manifest import Manifest
from ingot.runtimes.pipelines import FAMILIES
from ingot.runtimes.textual_inversion import Inversions

from .atomic import atomic_folder
from .bundle_writer import make_manifest, provenance, save_manifest, write_configs, write_tokenizers
from .capture import capture
from .cast import cast_components, finish
from .checkpoint import Checkpoint, load_checkpoint
from .component import Component
from .estimate import estimate, require_disk
from .long_prompts import require_long_prompts, with_any_tokens
from .lora import fuse, restored
from .picture import Reference, compare_pictures, default_size, reference_picture
from .request import Request, request
from .safety import safety_scores
from .stages import CHECKS, HASHES, LOAD, RECORD
from .textual_inversion import with_textual_inversions
from .vae import with_vae


def export(
    model: Any,
    output: str | Path,
    *,
    to: str | Sequence[str] = "onnx",
    dtype: str | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    static: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    rewrites: str | Sequence[str] = (),
    deep_cache: int | None = None,
    loras: Loras = (),
    textual_inversions: Inversions = (),
    long_prompts: bool = False,
    safety_checker: bool = True,
    vae: Any = None,
    revision: str | None = None,
    config: str | Path | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> Path:
    """Cast a checkpoint into a bundle at `output`, and return its path.

    `model` is the word "shapes", a folder, a hub id, a .safetensors file (with `config`, a folder of the same
    architecture), or a diffusers pipeline on the CPU, which is cast to float32 in place. `to` names targets (onnx,
    openvino, coreml, tensorrt, torch); `dtype` is float32, float16 or bfloat16, where it is not given each target's
    own first; `options` are those of a target by its name, `{"coreml": {"attention": "split_einsum"}}`. `height` and
    `width` (pixels) and `batch` are what the model is recorded at; `static` fixes the graphs to them. `rewrites`
    ("fused_qkv", "token_merging=0.5", "sliced_attention=4") change the model for every target; `deep_cache` is a branch of
    the UNet, 0 the outermost, at which it is written as two graphs (`cache_interval` of the pipeline's call uses them);
    `loras`, [("style.safetensors", 0.8)], are added to the checkpoint's weights first, for good, and
    `textual_inversions`, [("cat.safetensors", "<cat>")], to its vocabulary; `long_prompts` has the denoiser take any number of
    tokens; `safety_checker=False` leaves the checkpoint's own out;
    `vae` is a diffusers folder or a module to decode with in place of the checkpoint's own. `command` goes into the
    provenance. Every graph is held against the torch component and the whole pipeline against diffusers; the bundle
    appears only after all of them passed. Raises InputError for arguments that cannot be used, ExportError for a model, a
    toolchain or a disk that cannot, ParityError for a graph that computes something else.
    """
    wanted = request(to, dtype, height, width, batch, static, options, progress, rewrites, deep_cache)
    wanted = dataclasses.replace(wanted, long_prompts=long_prompts, safety_checker=safety_checker)
    require_long_prompts(wanted)
    final = Path(output).resolve()
    with atomic_folder(final, overwrite=overwrite) as folder, ExitStack() as afterwards:
        with wanted.stages(LOAD):
            checkpoint = load(model, revision=revision, allow_pickle=allow_pickle, config=config, vae=vae)
            if loras:
                afterwards.enter_context(restored(model))
            checkpoint = _with_additions(checkpoint, textual_inversions, loras)
        wanted = prepare(checkpoint, wanted, final)
        manifest, reference = cast(checkpoint, folder, wanted, command)
        del checkpoint  # the engines that make the picture need the memory that the torch model holds
        gc.collect()
        manifest = msgspec.structs.replace(manifest, parity=compare_pictures(folder, manifest, reference, wanted))
        save_manifest(folder, manifest)  # last, so that an unfinished folder does not open
    if progress:
        tqdm.write(str(wanted.stages))
    return Path(output)


def _with_additions(checkpoint: Checkpoint, textual_inversions: Inversions, loras: Loras) -> Checkpoint:
    """The checkpoint with further words in its vocabulary, and with LoRAs in its weights."""
    if textual_inversions:
        pipe, added = with_textual_inversions(checkpoint.pipe, textual_inversions)
        checkpoint = dataclasses.replace(checkpoint, pipe=pipe, textual_inversions=added)
    if loras:
        checkpoint = dataclasses.replace(checkpoint, loras=fuse(checkpoint.pipe, loras))
    return checkpoint


def prepare(checkpoint: Checkpoint, wanted: Request, final: Path) -> Request:
    """Say what a cast will need, refuse a disk that is too small, and settle a static size that nobody named."""
    needs = estimate(checkpoint.pipe, wanted.dtypes.values())
    if wanted.progress:
        tqdm.write(f"{checkpoint.source}: {needs}")
    require_disk(final, needs.disk)
    if wanted.static and wanted.size is None:
        return dataclasses.replace(wanted, size=default_size(checkpoint.pipe))
    return wanted


def cast(
    checkpoint: Checkpoint, folder: Path, wanted: Request, command: str | None
) -> tuple[Manifest, Reference | None]:
    """Fill an empty folder: capture, graphs with their certificates, configs. Returns the manifest, yet to be written, and
    the picture that the whole bundle is still to be held against."""
    pipe = checkpoint.pipe
    with tqdm(desc="recording the pipeline", disable=not wanted.progress, bar_format="{desc} {elapsed}") as bar:
        with wanted.stages(CHECKS):
            reference = reference_of(pipe, wanted)
        with wanted.stages(RECORD):
            components = components_of(pipe, wanted)
        bar.set_description("recorded " + ", ".join(component.role for component in components))
    entries, files = cast_components(components, folder, wanted, let_go=checkpoint.ours)
    write_configs(pipe, components, folder)
    tokenizers = write_tokenizers(pipe, folder)
    finish(folder, pipe if wanted.safety_checker else _unchecked(pipe), files)
    with wanted.stages(HASHES):
        manifest = make_manifest(folder, pipe, entries, tokenizers, provenance(checkpoint, command))
    return manifest, reference


def reference_of(pipe: Any, wanted: Request) -> Reference | None:
    """The picture that the bundle's is held against, of the one size and batch of a static one."""
    return reference_picture(pipe, wanted.size, wanted.batch) if wanted.static else reference_picture(pipe, None, 1)


def _unchecked(pipe: Any) -> Any:
    """The pipeline as if it had no safety checker, for targets that write it in a form of their own."""
    shown = copy.copy(pipe)
    vars(shown).update({"safety_checker": None} if "safety_checker" in vars(pipe) else {})
    return shown


def components_of(pipe: Any, wanted: Request) -> list[Component]:
    """What is cast of a pipeline: what it runs, in the order of use, and the safety checker, which judges what it made."""
    found = capture(pipe, size=wanted.size, batch=wanted.batch, rewrites=wanted.rewrites, deep_cache=wanted.deep_cache)
    if wanted.long_prompts:
        found = with_any_tokens(found)
    runs = type(pipe).__name__ in FAMILIES  # others are attached, and keep theirs
    if wanted.safety_checker and runs:
        found += safety_scores(pipe, wanted.batch) if wanted.static else safety_scores(pipe)
    return found


def load(model: Any, *, vae: Any = None, **options: Any) -> Checkpoint:
    """A checkpoint from what `export` takes for one, with another VAE where one is named."""
    checkpoint = _loaded(model, **options)
    if vae is None:
        return checkpoint
    pipe = with_vae(checkpoint.pipe, vae, allow_pickle=options.get("allow_pickle", False))
    return dataclasses.replace(checkpoint, pipe=pipe, ours=checkpoint.ours and isinstance(vae, str | Path))


def _loaded(model: Any, **options: Any) -> Checkpoint:
    if isinstance(model, str | Path):
        return load_checkpoint(model, **options)
    if hasattr(model, "components") and hasattr(model, "config"):
        modules = [part for part in model.components.values() if isinstance(part, torch.nn.Module)]
        devices = {str(p.device) for module in modules for p in module.parameters()} - {"cpu"}
        if devices:
            raise InputError(
                f"the pipeline is on {', '.join(sorted(devices))}; export works on the CPU: pipe.to('cpu')"
            )
        for module in modules:
            module.float()
        return Checkpoint(model, type(model).__name__, None, None, ours=False)
    raise InputError(f"a model is a name, a path or a diffusers pipeline, not {type(model).__name__}")
