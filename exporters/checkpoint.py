"""From what the user named to a diffusers pipeline in memory: the packaged model, a folder, a hub id, or one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import torch
import transformers
from diffusers import DiffusionPipeline

from ingot.runtimes.errors import ExportError, InputError
from ingot.runtimes.manifest import AddedToken, FusedLora
from ingot.shapes import MODEL_DIR

PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_WHY_NOT_PICKLE = (
    "pickled weights can run any code when they are read. Convert them to safetensors, or give --allow-pickle "
    "(allow_pickle=True) if you trust whoever made them"
)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded pipeline, float32, with what is known of its origin, and the LoRAs and tokens that were added to it.

    `ours` is whether nobody else holds its modules, so that a cast may let go of weights that it has written.
    """

    pipe: Any
    source: str
    revision: str | None
    licence: str | None
    loras: tuple[FusedLora, ...] = ()
    textual_inversions: tuple[AddedToken, ...] = ()
    ours: bool = True


def load_checkpoint(
    model: str | Path, *, revision: str | None = None, allow_pickle: bool = False, config: str | Path | None = None
) -> Checkpoint:
    """Load MODEL: the word `shapes`, a folder, a `.safetensors` file (with `config`, a folder or hub id of the same
    architecture, where the hub cannot be reached), or a hub id.

    Raises InputError for a path that is no checkpoint or holds only pickled weights, ExportError when diffusers cannot
    read it.
    """
    if str(model) == "shapes" and not Path(model).exists():
        return Checkpoint(_from_folder(MODEL_DIR, allow_pickle), "shapes", None, "apache-2.0")
    path = Path(model)
    if path.is_dir():
        return Checkpoint(_from_folder(path, allow_pickle), str(path), None, _licence_of(path))
    if path.is_file():
        return Checkpoint(_from_file(path, allow_pickle, config), str(path), None, None)
    if (
        path.suffix in (".safetensors", *PICKLED)
        or path.is_absolute()
        or str(model).startswith((".", "~"))
        or str(model).count("/") != 1
    ):
        raise InputError(
            f"{model!s} is neither a file, a folder, a hub id such as 'stable-diffusion-v1-5/stable-diffusion-v1-5', nor 'shapes'"
        )
    return _from_hub(str(model), revision, allow_pickle)


def _from_hub(name: str, revision: str | None, allow_pickle: bool) -> Checkpoint:
    safe = None if allow_pickle else True
    try:
        pipe = _read(lambda: DiffusionPipeline.from_pretrained(name, revision=revision, use_safetensors=safe), name)
    except ExportError as error:
        if allow_pickle or "safetensors" not in str(error):
            raise
        raise ExportError(f"{error}; if it holds only pickled weights: {_WHY_NOT_PICKLE}") from error
    try:
        info = huggingface_hub.model_info(name, revision=revision)
    except Exception:  # offline, from the cache, less is known; the client's errors have no common base
        return Checkpoint(pipe, name, revision, None)
    return Checkpoint(pipe, name, info.sha or revision, getattr(info.card_data, "license", None))


def _from_folder(folder: Path, allow_pickle: bool) -> Any:
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is no diffusers checkpoint: it has no model_index.json")
    pickled = sorted({file.parent for file in folder.glob("*/*") if file.suffix in PICKLED})
    only_pickled = [part.name for part in pickled if not any(part.glob("*.safetensors"))]
    if only_pickled and not allow_pickle:
        raise InputError(
            f"{folder}: {', '.join(only_pickled)} only as pickle ({', '.join(PICKLED)}); {_WHY_NOT_PICKLE}"
        )
    # None lets diffusers fall back to .bin; True makes it refuse them, should one slip past the check above
    return _read(
        lambda: DiffusionPipeline.from_pretrained(folder, use_safetensors=None if allow_pickle else True),
        str(folder),
    )


def _from_file(file: Path, allow_pickle: bool, config: str | Path | None) -> Any:
    if file.suffix in PICKLED and not allow_pickle:
        raise InputError(f"{file}: {_WHY_NOT_PICKLE}")
    if file.suffix != ".safetensors" and file.suffix not in PICKLED:
        raise InputError(f"{file}: a single-file checkpoint ends in .safetensors, not {file.suffix!r}")
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    options = {} if config is None else {"config": str(config)}

    def load() -> Any:
        try:
            pipe = _single_file_class(file, config).from_single_file(str(file), **options)
        except SingleFileComponentError as error:
            # a bare Exception, which _read does not expect; after its first line it speaks of diffusers' own call
            raise ValueError(str(error).splitlines()[0]) from error
        except NotImplementedError as error:
            # torch's, when diffusers moves one of its own models off "meta": see below
            raise ValueError(
                "it lacks weights that the config asks for; is the config that of its architecture?"
            ) from error
        for name, part in pipe.components.items():
            # diffusers does not say what it found no weights for: it leaves that part of the model empty, on "meta"
            weights = part.state_dict().items() if isinstance(part, torch.nn.Module) else ()
            if lacking := [key for key, value in weights if value.is_meta]:
                raise ValueError(
                    f"it lacks {len(lacking)} of the {len(weights)} weights of the {name}, {lacking[0]} among them; "
                    "is the config that of its architecture?"
                )
        return pipe

    return _read(load, str(file))


def _single_file_class(file: Path, config: str | Path | None) -> Any:
    """The pipeline class of a single file: the config's, or the one whose published config diffusers infers from its keys."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    def inferred() -> str:
        return str(fetch_diffusers_config(load_single_file_checkpoint(str(file)))["pretrained_model_name_or_path"])

    reference = str(config) if config else inferred()
    try:
        return getattr(diffusers, DiffusionPipeline.load_config(reference)["_class_name"])
    except OSError as error:
        hint = "" if config else "; give --config (config=), a folder of the same architecture, to do without the hub"
        raise OSError(f"{error}{hint}") from error


def _read(load: Callable[[], Any], name: str) -> Any:
    try:
        with _quietly():
            loaded = load()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise ExportError(f"diffusers could not load {name}: {error}") from error
    # transformers 5 loads a float16 file as float16, diffusers as float32: one dtype for all
    for part in getattr(loaded, "components", {}).values():
        if isinstance(part, torch.nn.Module):
            part.float()
    return loaded


@contextmanager
def _quietly() -> Iterator[None]:
    """diffusers' and transformers' notes and bars off for the while of loading; their errors still come."""
    kept = [(log, log.get_verbosity()) for log in (diffusers.utils.logging, transformers.utils.logging)]
    for log, _ in kept:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level in kept:
            log.set_verbosity(level)
            log.enable_progress_bar()


def _licence_of(folder: Path) -> str | None:
    """The `license:` line of a checkpoint's README, where it has one."""
    readme = folder / "README.md"
    lines = readme.read_text(errors="replace").splitlines() if readme.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("license:")), None)
