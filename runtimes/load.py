"""`ingot.load`: an open bundle becomes a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .bundle import Bundle
from .engines import Engine, engine
from .errors import BundleError
from .manifest import Graph
from .pipelines import pipeline_class
from .schedulers import from_config
from .tokenizer import Tokenizer


def load(
    path: str | Path, *, engine: str | None = None, precision: str | None = None, verify: bool = True, **options: Any
) -> Any:
    """The torch-free pipeline of a bundle, ready to call as diffusers' would be.

    `engine` and `precision` choose among the bundle's graphs (default: the first of each component); `verify=False` checks
    file sizes but not hashes; `options` go to the engine, for ONNX Runtime `device=`, `providers=`, `threads=`, `arena=`,
    `session_options=`. Raises BundleError for a bundle that was changed or is not whole, InputError for names that the
    bundle or Ingot do not have, EngineError for an engine that is not installed here.
    """
    return build(Bundle.open(path, hashes=verify), engine=engine, precision=precision, **options)


def build(bundle: Bundle, *, engine: str | None = None, precision: str | None = None, **options: Any) -> Any:
    """The pipeline of a bundle that is open already."""
    manifest = bundle.manifest
    family = pipeline_class(manifest.pipeline)
    wanted = [role for role in family.roles if role in manifest.components] or list(manifest.components)
    engines = {role: open_engine(bundle, bundle.graph(role, engine, precision), **options) for role in wanted}
    tokenizers = {role: Tokenizer(bundle.file(file)) for role, file in manifest.tokenizers.items()}
    configs = {role: entry.config for role, entry in manifest.components.items()}
    try:
        return family(engines, tokenizers, from_config(manifest.scheduler), configs)
    except KeyError as error:
        raise BundleError(
            f"{bundle.path}: {manifest.pipeline} needs {error} in the bundle's tokenizers or configs"
        ) from error


def open_engine(bundle: Bundle, graph: Graph, **options: Any) -> Engine:
    """Open one graph of a bundle with the engine that it is for."""
    return engine(graph.engine).open_graph(bundle.file(graph.files[0]), graph.signature, **options)
