"""The files of a bundle that are not graphs: configs as diffusers writes them, tokenizers, parity data, the manifest."""

from __future__ import annotations

import datetime
import inspect
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers import SchedulerMixin
from transformers import PreTrainedTokenizerBase

from ingot.runtimes import manifest as manifests
from ingot.runtimes.bundle import describe_file
from ingot.runtimes.errors import ExportError
from ingot.runtimes.manifest import ComponentEntry, Graph, Manifest, Provenance
from ingot.runtimes.parity_data import load_calls, save_calls
from ingot.runtimes.signature import Signature

from .checkpoint import Checkpoint
from .component import Call, Component, constants

PARITY_CALLS = 2  # per component: the first of each recording; more would only make the bundle larger
# Tokens; transformers' tokenizers without a limit say 1e30.
UNLIMITED = 10**6
_PACKAGES = (
    "ingot",
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "coremltools",
    "tensorrt",
)


def write_parity_data(component: Component, folder: Path) -> str:
    """Store recorded calls with the float32 torch component's answers; returns the file's name in the bundle."""
    halves = {
        tuple(sorted((name, tuple(t.shape)) for name, t in call.inputs.items())): call
        for call in reversed(component.calls)
    }
    calls = [_arrays(call) for call in list(halves.values())[:PARITY_CALLS]]
    name = f"parity/{component.role}.npz"
    save_calls(folder / name, calls)
    return name


def require_parity_data(component: Component, file: Path, signature: Signature) -> None:
    """See that the stored calls have one that a graph takes: one added to a bundle may have another fixed size."""
    stored = load_calls(file)
    if any(signature.admits(inputs) for inputs, _ in stored):
        return
    new = next(call for call in component.calls if signature.admits(call.inputs))
    save_calls(file, [*stored, _arrays(new)])


def _arrays(call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
    return {n: t.numpy() for n, t in call.inputs.items()}, {n: t.numpy() for n, t in call.outputs.items()}


def component_entry(
    component: Component, graphs: tuple[Graph, ...], parity_data: str, extras: Mapping[str, str] | None = None
) -> ComponentEntry:
    """What the manifest says of a component."""
    parameters = sum(p.numel() for p in component.source.parameters())
    method = component.module.method
    return ComponentEntry(
        class_name=type(component.source).__name__, graphs=graphs,
        config=plain({**config_of(component.source), **getattr(method, "config", {})}),
        parameters=parameters, parity_data=parity_data, arguments=plain(constants(component.module)),
        method=method if isinstance(method, str) else "forward", extras=dict(extras or {}),
    )  # fmt: skip


def write_configs(pipe: Any, components: list[Component], folder: Path) -> None:
    """`model_index.json`, each component's `config.json` and each scheduler's, for readers such as optimum."""
    pipe.save_config(folder)
    for name, part in pipe.components.items():
        if isinstance(part, SchedulerMixin):
            part.save_pretrained(folder / name)
    for component in components:
        (folder / component.role / "config.json").write_text(
            json.dumps(plain(config_of(component.source)), indent=2) + "\n"
        )


def write_tokenizers(pipe: Any, folder: Path) -> dict[str, str]:
    """Every tokenizer of the pipeline, as published and as one `tokenizer.json` that pads and cuts by itself."""
    written = {}
    for role, part in pipe.components.items():
        if not isinstance(part, PreTrainedTokenizerBase):
            continue
        fast = getattr(part, "backend_tokenizer", None)
        if fast is None:
            raise ExportError(
                f"{role} ({type(part).__name__}) has no fast form, as running needs it: pip install sentencepiece protobuf, and try again"
            )
        part.save_pretrained(folder / role)
        _write_vocabulary(json.loads(fast.to_str()), folder / role)
        if part.model_max_length < UNLIMITED:
            fast.enable_truncation(part.model_max_length)
            if part.pad_token is not None:
                fast.enable_padding(pad_id=part.pad_token_id, pad_token=part.pad_token, length=part.model_max_length)
        fast.save(str(folder / role / "tokenizer.json"))
        written[role] = f"{role}/tokenizer.json"
    return written


def _write_vocabulary(tokenizer: dict[str, Any], folder: Path) -> None:
    """`vocab.json` and `merges.txt`, which transformers 5 no longer writes and older readers want."""
    model = tokenizer["model"]
    if model.get("type") != "BPE" or not isinstance(model.get("merges"), list):
        return
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")


def make_manifest(
    folder: Path, pipe: Any, entries: dict[str, ComponentEntry], tokenizers: dict[str, str], origin: Provenance
) -> Manifest:
    """The manifest of everything that lies in `folder`, with the size and hash of every file."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != manifests.FILE_NAME]
    manifest = Manifest(
        schema=manifests.SCHEMA,
        pipeline=type(pipe).__name__,
        components=entries,
        tokenizers=tokenizers,
        scheduler=_scheduler_options(_scheduler(pipe)),
        files={file.relative_to(folder).as_posix(): describe_file(file) for file in files},
        provenance=origin,
    )
    return with_options(manifest, pipe)


def with_options(manifest: Manifest, pipe: Any) -> Manifest:
    """The manifest with the pipeline's own options, its further schedulers, and what prepares pictures for it."""
    return msgspec.structs.replace(
        manifest, config=_own_options(pipe), schedulers=_further_schedulers(pipe), processors=_processors(pipe)
    )


def _scheduler(pipe: Any) -> Any:
    """The denoiser's, or the first of a pipeline with several."""
    own = getattr(pipe, "scheduler", None)  # which has a length, and so may be false
    parts = [part for part in pipe.components.values() if isinstance(part, SchedulerMixin)]
    return next(iter(parts), None) if own is None else own


def _scheduler_options(scheduler: Any) -> dict[str, Any]:
    """What the checkpoint itself says of its scheduler: an option that nobody gave is left to each class's own default,
    which is how diffusers exchanges schedulers. Empty for a pipeline without one."""
    if scheduler is None:
        return {}
    defaulted = set(scheduler.config.get("_use_default_values", ()))
    given = {name: value for name, value in scheduler.config.items() if name not in defaulted}
    return {**plain(given), "_class_name": type(scheduler).__name__}


def _further_schedulers(pipe: Any) -> dict[str, dict[str, Any]]:
    """Those that a pipeline has beside its denoiser's, such as the one that noises an upscaler's picture."""
    own = _scheduler(pipe)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, SchedulerMixin)}
    return {name: _scheduler_options(part) for name, part in parts.items() if part is not own}


def _own_options(pipe: Any) -> dict[str, Any]:
    """The options of the pipeline itself; its modules are named by a library and a class each."""
    # some options diffusers keeps as attributes alone: is_cosxl_edit
    attributes = {name: vars(pipe).get(name) for name in inspect.signature(type(pipe).__init__).parameters}
    options: dict[str, Any] = {n: v for n, v in attributes.items() if isinstance(v, bool | int | float | str)}
    options |= plain(dict(pipe.config))
    if isinstance(getattr(pipe, "labels", None), dict):  # DiT's classes, which diffusers reads and does not keep
        options["id2label"] = _by_number(pipe.labels)
    return {
        name: value
        for name, value in options.items()
        if name not in pipe.components and name not in ("_class_name", "_diffusers_version")
    }


def _by_number(labels: dict[str, int]) -> dict[str, str]:
    """Names of classes by their numbers, several of one joined by commas: as checkpoints have them."""
    return {
        str(n): ", ".join(name for name, number in labels.items() if number == n) for n in sorted(set(labels.values()))
    }


def _processors(pipe: Any) -> dict[str, dict[str, Any]]:
    """What transformers' image processors and feature extractors are set to."""
    kinds = ("ImageProcessor", "FeatureExtractor")
    return {
        name: plain(part.to_dict())
        for name, part in pipe.components.items()
        if hasattr(part, "to_dict") and type(part).__name__.removesuffix("Fast").removesuffix("Pil").endswith(kinds)
    }


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `ingot.json`."""
    (folder / manifests.FILE_NAME).write_bytes(manifests.encode(manifest))


def config_of(module: torch.nn.Module) -> dict[str, Any]:
    """A diffusers or transformers config as a mapping; empty for a module that has none."""
    config: Any = getattr(module, "config", {})
    return dict(config.to_dict()) if hasattr(config, "to_dict") else dict(config)


def plain(value: Any) -> Any:
    """The value as JSON can hold it; dtypes and the like by their names, private entries left out."""
    if isinstance(value, Mapping):
        return {
            str(k): plain(v)
            for k, v in value.items()
            if str(k) in ("_class_name", "_diffusers_version") or not str(k).startswith("_")
        }
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def provenance(checkpoint: Checkpoint, command: str | None) -> Provenance:
    """Where the model came from, and what it was cast with."""
    return Provenance(
        source=checkpoint.source, revision=checkpoint.revision, licence=checkpoint.licence, command=command, versions=versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), loras=checkpoint.loras,
        textual_inversions=checkpoint.textual_inversions,
    )  # fmt: skip


def versions() -> dict[str, str]:
    """The installed packages that a cast depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
