"""`ingot.load`: an open bundle becomes a pipeline."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .bundle import Bundle
from .choice import Choice, Precision, choose, pick
from .engines import Engine, Later, open_with
from .errors import BundleError
from .exchange import VAE_ROLES, other_vae, shared_precision, vae_graphs
from .loras import Loras
from .manifest import Graph
from .pipelines import pipeline_class
from .pipelines.base import Parts
from .pipelines.safety import ROLE as SAFETY_CHECKER
from .schedulers import from_config
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .textual_inversion import Inversions

Made = TypeVar("Made")

_log = logging.getLogger("ingot")

# Opening leaves Python to other threads meanwhile, sets nothing that all share, and reads what a file says without running it.
SIDE_BY_SIDE = {"onnx", "openvino"}
# What the first call uses and opening does not: imported while graphs are being opened.
LATE = ("PIL.Image", "numpy.random")
SMALL = 512 << 20  # bytes of graphs; the peaks of memory of larger ones would add up, and opening them uses all cores


@dataclass(frozen=True)
class _Wanted:
    """What the caller said of the graphs and their engine; `chosen` is whether an engine is to be chosen for them."""

    engine: str | None
    device: str | None
    precision: Precision
    form: str | None
    chosen: bool
    options: Mapping[str, Any]


@dataclass(frozen=True)
class _Found:
    """The graph of each role, the bundle that it lies in, why its engine, and what the engine is told."""

    graphs: dict[str, Graph]
    homes: dict[str, Bundle]
    choice: Choice | None
    options: dict[str, Any]


def load(
    path: str | Path,
    *,
    engine: str | None = None,
    device: str | None = None,
    precision: Precision = None,
    form: str | None = None,
    pipeline: str | None = None,
    loras: Loras = (),
    textual_inversions: Inversions = (),
    vae: str | Path | None = None,
    safety_checker: bool | None = True,
    verify: bool = True,
    **options: Any,
) -> Any:
    """The torch-free pipeline of a bundle, ready to call as diffusers' would be.

    `engine` (onnx, openvino, coreml, tensorrt, torch), `device` (cpu, cuda, mps, …) and `precision` choose among the
    bundle's graphs; what is not said follows from what this machine has: `pipe.choice` and the logger "ingot" say what
    was picked and why. `precision` is one name, float32 or int8-static, for every component that has it, or a name for
    each role, `{"unet": "int8-static"}`; `form=""` takes the graphs that every reader takes where there is one written
    for an engine alone. `pipeline` is another class of diffusers than the checkpoint's, of the same components, whose rules
    to follow. `loras`, [("style.safetensors", 0.8)], are added to the weights, as `pipe.set_loras` does later, and
    `textual_inversions`, [("cat.safetensors", "<cat>")], to the text encoders' vocabulary. `vae` is another bundle, to decode
    and encode with its VAE, such as a tiny one; `safety_checker=None` leaves the bundle's out.
    `verify=False` checks the sizes of the files in use but not their hashes. `options` go to the engine, such as
    `threads=`; an unknown one is answered with those that there are. Raises BundleError for a bundle that was changed or
    is not whole, InputError for names that the bundle or Ingot do not have and for a LoRA of another base, EngineError for
    an engine or a device that is not here.
    """
    bundle = Bundle.open(path, hashes=False)
    return build(
        bundle,
        engine=engine,
        device=device,
        precision=precision,
        form=form,
        pipeline=pipeline,
        loras=loras,
        textual_inversions=textual_inversions,
        vae=vae,
        safety_checker=safety_checker,
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
    loras: Loras = (),
    textual_inversions: Inversions = (),
    vae: str | Path | None = None,
    safety_checker: bool | None = True,
    hashes: bool = False,
    open_graph: Callable[[Bundle, Graph], Engine] | None = None,
    graphs: Mapping[str, Graph] | None = None,
    **options: Any,
) -> Any:
    """The pipeline of a bundle that is open already; `hashes` checks the files in use, `open_graph` stands in for the
    engine that the choice names, `graphs` by role for the choice itself."""
    class_name = pipeline or bundle.manifest.pipeline
    family = pipeline_class(class_name)
    wanted = _Wanted(engine, device, precision, form, chosen=open_graph is None, options=options)
    roles = [role for role in _known_roles(family, bundle) if safety_checker or role != SAFETY_CHECKER]
    found = _found(bundle, roles, wanted, None if vae is None else other_vae(bundle, vae), graphs)
    graphs, homes = found.graphs, found.homes
    quantized = {role: graph.quantization.scheme for role, graph in graphs.items() if graph.quantization}
    engines: dict[str, Engine] = {}
    try:
        openings: dict[str, Callable[[], Engine]] = {}
        for role, graph in graphs.items():
            opening = partial(open_graph or partial(open_engine, **found.options), homes[role], graph)
            openings[role] = partial(Later, opening, graph.signature) if role in family.lazy_roles else opening
        with _trusted(homes, graphs) if hashes else nullcontext():
            parts = _open_all(
                openings,
                engines,
                together=open_graph is None and _small(homes, graphs, found.options),
                meanwhile=partial(_parts, bundle, class_name, engines, homes),
            )
        if textual_inversions:
            from .textual_inversion import take_embeddings

            extended = take_embeddings(textual_inversions, engines, parts.tokenizers, quantized)
            parts = dataclasses.replace(parts, engines=extended)
        pipe = _of_family(family, parts, bundle)
        pipe.choice = found.choice
        pipe.quantized = quantized
        if loras:
            pipe.set_loras(loras)
    except BaseException:
        for opened in engines.values():
            opened.close()
        raise
    return pipe


def _known_roles(family: Any, bundle: Bundle) -> Sequence[str]:
    """The components that a pipeline of this family runs, whether the bundle has them or not; all of a bundle that has none."""
    known: tuple[str, ...] = (*family.roles, *getattr(family, "optional_roles", ()))
    return known if set(known) & set(bundle.manifest.components) else tuple(bundle.manifest.components)


def _found(
    bundle: Bundle, roles: Sequence[str], wanted: _Wanted, other: Bundle | None, graphs: Mapping[str, Graph] | None
) -> _Found:
    """The graphs of these roles as far as there are components for them: of the VAE from another bundle where there is one,
    of the rest `graphs` where they are given."""
    own = [role for role in roles if role in bundle.manifest.components and (other is None or role not in VAE_ROLES)]
    engine, device, form, options = wanted.engine, wanted.device, wanted.form, dict(wanted.options)
    if engine is None and "providers" in options:
        engine = "onnx"  # only ONNX Runtime has them
    precision, of_vae = (wanted.precision, None) if other is None else shared_precision(wanted.precision)
    choice = None
    if wanted.chosen:
        choice = choose(bundle, own, engine, device, precision)
        _log.info("%s: %s", bundle.path, choice)
        engine = choice.engine
        if choice.device is not None and (device is not None or "providers" not in options):
            options["device"] = choice.device
    if form is None and "providers" in options:
        form = ""  # any provider takes these
    if graphs is None:
        found = pick(bundle, own, engine, precision, form=form, device=options.get("device"))
    else:
        found = {role: graphs[role] for role in own}
    homes = dict.fromkeys(found, bundle)
    if other is not None:
        replaced = [role for role in VAE_ROLES if role in roles and role in other.manifest.components]
        theirs = vae_graphs(other, replaced, engine, device or options.get("device"), of_vae, form)
        found, homes = {**found, **theirs}, {**homes, **dict.fromkeys(theirs, other)}
    return _Found(found, homes, choice, options)


def _small(homes: Mapping[str, Bundle], graphs: Mapping[str, Graph], options: Mapping[str, Any]) -> bool:
    """Whether graphs are worth opening side by side: those that one thread compiles, on a processor that may use several."""
    if not {graph.engine for graph in graphs.values()} <= SIDE_BY_SIDE or options.get("threads") == 1:
        return False
    if options.get("device") not in (None, "cpu") or "providers" in options:
        return False
    return sum(homes[role].manifest.files[file].size for role in graphs for file in graphs[role].files) <= SMALL


def _open_all(
    openings: Mapping[str, Callable[[], Engine]],
    engines: dict[str, Engine],
    *,
    together: bool,
    meanwhile: Callable[[], Made],
) -> Made:
    """Put what is opened into `engines`, as far as it goes; returns what is made in this thread meanwhile. Raises the first
    error, by the roles' order."""
    if not together:
        for role, opening in openings.items():
            engines[role] = opening()
        return meanwhile()
    with ThreadPoolExecutor(max(1, len(openings))) as pool:
        futures = {role: pool.submit(opening) for role, opening in openings.items()}
        try:
            made = meanwhile()
            wait(futures.values())
        except BaseException:  # this does not stop them: what they open is closed as it comes
            for future in futures.values():
                future.add_done_callback(_close_opened)
            raise
    engines |= {role: future.result() for role, future in futures.items() if future.exception() is None}
    for future in futures.values():
        future.result()
    return made


def _close_opened(future: Future[Engine]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()


def _of_family(family: Any, parts: Parts, bundle: Bundle) -> Any:
    try:
        return family(parts)
    except KeyError as error:
        raise BundleError(
            f"{bundle.path}: {parts.class_name} needs {error} in the bundle's tokenizers or configs"
        ) from error


@contextmanager
def _trusted(homes: Mapping[str, Bundle], graphs: Mapping[str, Graph]) -> Iterator[None]:
    """Hash the files in use while the block opens them, where an engine only reads what a file says; before it, where opening
    may run it. A file that was changed is why opening failed, whatever the engine says of it. Raises BundleError."""
    if not {graph.engine for graph in graphs.values()} <= SIDE_BY_SIDE:
        _require(homes, graphs)
        yield
        return
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(_require, homes, graphs)
        try:
            yield
        finally:
            hashing.result()


def _require(homes: Mapping[str, Bundle], graphs: Mapping[str, Graph]) -> None:
    """Hash the files in use of each bundle. Raises BundleError."""
    for bundle in {id(home): home for home in homes.values()}.values():
        own = [role for role, home in homes.items() if home is bundle]
        files = [file for role in own for file in graphs[role].files]
        extras = [file for role in own for file in bundle.manifest.components[role].extras.values()]
        bundle.require([*files, *extras, *bundle.manifest.tokenizers.values()])


def _parts(
    bundle: Bundle, class_name: str, engines: Mapping[str, Engine], homes: Mapping[str, Bundle] | None = None
) -> Parts:
    """All but the engines, which may still be on their way into their dictionary."""
    for name in LATE:
        importlib.import_module(name)
    manifest = bundle.manifest
    components = {role: (bundle, entry) for role, entry in manifest.components.items()}
    for role, home in (homes or {}).items():
        components[role] = home, home.manifest.components[role]
    return Parts(
        class_name=class_name,
        engines=engines,
        tokenizers={role: Tokenizer(bundle.file(file)) for role, file in manifest.tokenizers.items()},
        scheduler=from_config(manifest.scheduler),
        configs={role: entry.config for role, (_, entry) in components.items()},
        config=manifest.config,
        schedulers=manifest.schedulers,
        processors=manifest.processors,
        extras={
            role: {name: home.file(file) for name, file in entry.extras.items()}
            for role, (home, entry) in components.items()
        },
    )


def open_engine(bundle: Bundle, graph: Graph, **options: Any) -> Engine:
    """Open one graph of a bundle with the engine that it is for."""
    return open_with(graph.engine, bundle.file(graph.files[0]), graph.signature, graph.options, options)
