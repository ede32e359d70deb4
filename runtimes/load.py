"""`ingot.load`: an open bundle becomes a pipeline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .choice import Precision, choose, pick
from .engines import Engine, Later, open_with
from .errors import BundleError
from .manifest import Graph
from .pipelines import pipeline_class
from .pipelines.base import Parts
from .schedulers import from_config
from .tokenizer import Tokenizer

_log = logging.getLogger("ingot")


def load(
    path: str | Path,
    *,
    engine: str | None = None,
    device: str | None = None,
    precision: Precision = None,
    form: str | None = None,
    pipeline: str | None = None,
    verify: bool = True,
    **options: Any,
) -> Any:
    """The torch-free pipeline of a bundle, ready to call as diffusers' would be.

    `engine` (onnx, openvino, coreml, tensorrt, torch), `device` (cpu, cuda, mps, …) and `precision` choose among the
    bundle's graphs; what is not said follows from what this machine has: `pipe.choice` and the logger "ingot" say what
    was picked and why. `precision` is one name, float32 or int8-static, for every component that has it, or a name for
    each role, `{"unet": "int8-static"}`; `form=""` takes the graphs that every reader takes where there is one written
    for an engine alone. `pipeline` is another class of diffusers than the checkpoint's, of the same components, whose rules
    to follow. `verify=False` checks the sizes of the files in use but not their hashes. `options` go to the
    engine, such as `threads=`; an unknown one is answered with those that there are. Raises BundleError for a bundle
    that was changed or is not whole, InputError for names that the bundle or Ingot do not have, EngineError for an
    engine or a device that is not here.
    """
    bundle = Bundle.open(path, hashes=False)
    return build(
        bundle,
        engine=engine,
        device=device,
        precision=precision,
        form=form,
        pipeline=pipeline,
        hashes=verify,
        **options,
    )


def build(
    bundle: Bundle,
    *,
    engine: str | None = None,
    device: str | None = None,
    precision: Precision = None,
    form: str | None = None,
    pipeline: str | None = None,
    hashes: bool = False,
    open_graph: Callable[[Bundle, Graph], Engine] | None = None,
    graphs: Mapping[str, Graph] | None = None,
    **options: Any,
) -> Any:
    """The pipeline of a bundle that is open already; `hashes` checks the files in use, `open_graph` stands in for the
    engine that the choice names, `graphs` by role for the choice itself."""
    manifest = bundle.manifest
    class_name = pipeline or manifest.pipeline
    family = pipeline_class(class_name)
    known = (*family.roles, *getattr(family, "optional_roles", ()))
    wanted = [role for role in known if role in manifest.components] or list(manifest.components)
    if engine is None and "providers" in options:
        engine = "onnx"  # only ONNX Runtime has them
    if open_graph is None:
        chosen = choose(bundle, wanted, engine, device, precision)
        _log.info("%s: %s", bundle.path, chosen)
        engine = chosen.engine
        if chosen.device is not None and (device is not None or "providers" not in options):
            options["device"] = chosen.device
    if form is None and "providers" in options:
        form = ""  # any provider takes these
    if graphs is None:
        graphs = pick(bundle, wanted, engine, precision, form=form, device=options.get("device"))
    else:
        graphs = {role: graphs[role] for role in wanted}
    if hashes:
        bundle.require([*(file for graph in graphs.values() for file in graph.files), *manifest.tokenizers.values()])
    engines: dict[str, Engine] = {}
    try:
        for role, graph in graphs.items():
            opening = partial(open_graph or partial(open_engine, **options), bundle, graph)
            engines[role] = Later(opening, graph.signature) if role in family.lazy_roles else opening()
    except BaseException:
        for opened in engines.values():
            opened.close()
        raise
    try:
        pipe = family(_parts(bundle, class_name, engines))
    except KeyError as error:
        raise BundleError(f"{bundle.path}: {class_name} needs {error} in the bundle's tokenizers or configs") from error
    pipe.choice = chosen if open_graph is None else None
    return pipe


def _parts(bundle: Bundle, class_name: str, engines: Mapping[str, Engine]) -> Parts:
    manifest = bundle.manifest
    return Parts(
        class_name=class_name,
        engines=engines,
        tokenizers={role: Tokenizer(bundle.file(file)) for role, file in manifest.tokenizers.items()},
        scheduler=from_config(manifest.scheduler),
        configs={role: entry.config for role, entry in manifest.components.items()},
        config=manifest.config,
        processors=manifest.processors,
        extras={
            role: {name: bundle.file(file) for name, file in entry.extras.items()}
            for role, entry in manifest.components.items()
        },
    )


def open_engine(bundle: Bundle, graph: Graph, **options: Any) -> Engine:
    """Open one graph of a bundle with the engine that it is for."""
    return open_with(graph.engine, bundle.file(graph.files[0]), graph.signature, graph.options, options)
