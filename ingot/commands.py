"""What each command does: read the options, call the library, print."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ingot import __version__
from ingot.runtimes import engines
from ingot.runtimes.bundle import Bundle, describe_graph
from ingot.runtimes.engines import Engine
from ingot.runtimes.errors import EngineError, ExportError, InputError
from ingot.runtimes.load import load
from ingot.runtimes.manifest import Certificate, Graph, ImageParity, Quality, Quantization

from . import controls, saving
from .asked import arguments, one_or_all


def export(options: argparse.Namespace) -> None:
    """`ingot export`."""
    import ingot

    rewriting = {"rewrites": options.rewrites, "deep_cache": options.deep_cache, "loras": options.loras}
    path = ingot.export(
        options.model, options.output, **_casting(options), **rewriting, **controls.export_arguments(options)
    )
    print(f'wrote {path}: `ingot generate {path} "PROMPT"` makes a picture')


def add(options: argparse.Namespace) -> None:
    """`ingot add`."""
    import ingot

    path = ingot.add(options.bundle, model=options.model, **_casting(options))
    print(f"added {options.to} to {path}")


def _casting(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that export and add have in common."""
    height, width = options.size or (None, None)
    return {
        "to": [name.strip() for name in options.to.split(",")],
        "dtype": options.dtype, "height": height, "width": width, "batch": options.batch,
        "static": options.static, "options": _of_targets(options.options), "vae": options.vae, "revision": options.revision,
        "config": options.config,
        "allow_pickle": options.allow_pickle, "overwrite": options.overwrite, "command": " ".join(["ingot", *sys.argv[1:]]),
    }  # fmt: skip


def quantize(options: argparse.Namespace) -> None:
    """`ingot quantize`."""
    import ingot

    height, width = options.size or (None, None)
    prompts = _lines(options.prompt_file) if options.prompt_file else None
    path = ingot.quantize(
        options.bundle, _names(options.scheme), to=_names(options.to), components=_names(options.components),
        keep=options.keep, calibrate=options.calibrate, calls=options.calls, prompts=prompts, min_psnr=options.min_psnr,
        min_checker=options.min_checker, auto=options.auto, recipe=options.recipe, num_inference_steps=options.steps,
        guidance_scale=options.guidance, height=height, width=width, seed=options.seed, options=_of_targets(options.options),
        overwrite=options.overwrite, command=" ".join(["ingot", *sys.argv[1:]]),
    )  # fmt: skip
    print(f"quantized {path}: `ingot inspect {path}` shows what it has now, and what that costs")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _of_targets(options: list[tuple[str, str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for target, name, value in options:
        found.setdefault(target, {})[name] = value
    return found


def resources(options: argparse.Namespace) -> None:
    """`ingot resources`."""
    try:
        from ingot.exporters.coreml_resources import resources as lay_out
    except ModuleNotFoundError as error:
        raise ExportError(f"this needs {error.name}: pip install 'ingot[export,coreml]'") from error
    written = lay_out(options.bundle, options.output, overwrite=options.overwrite)
    print(f"wrote {written.folder}")
    for note in written.notes:
        print(note)


def generate(options: argparse.Namespace) -> None:
    """`ingot generate`."""
    prompts = _prompts(options)
    if options.count < 1:
        raise InputError(f"--count {options.count}: at least 1 picture is needed")
    output = saving.output_of(options.output, options.bundle, as_grid=options.grid)
    pictures = {"image": _opened(options.image), "mask_image": _opened(options.mask), "strength": options.strength}
    pictures["control_image"] = one_or_all([_opened(file) for file in options.control_images])
    threads = {} if options.threads is None else {"threads": options.threads}
    pipe = load(
        options.bundle, engine=options.engine, device=options.device, precision=options.precision, loras=options.loras,
        **threads, **controls.load_arguments(options),
    )  # fmt: skip
    if not options.quiet:
        print(f"engine: {pipe.choice}", file=sys.stderr)
    if options.scheduler:
        from ingot.runtimes import schedulers

        pipe.scheduler = schedulers.from_config({**pipe.scheduler.config, "_class_name": options.scheduler})
    if options.tile is not None:
        _in_tiles(pipe, options.tile)
    made = pipe(**arguments(options, prompts, pictures, pipe), progress=not options.quiet)
    for file in saving.save(made, output, as_grid=options.grid):
        print(file)


def _in_tiles(pipe: Any, side: int) -> None:
    if not hasattr(pipe, "enable_vae_tiling"):
        raise InputError(f"--tile is not for {pipe.class_name}, which has no VAE that is tiled")
    pipe.enable_vae_tiling(side)


def inspect(options: argparse.Namespace) -> None:
    """`ingot inspect`."""
    from ingot.runtimes import manifest as manifests

    bundle = Bundle.open(options.bundle, hashes=False)
    if options.recipes:
        print(_recipes(bundle))
        return
    if options.json:
        print(manifests.encode(bundle.manifest).decode(), end="")
        return
    manifest, origin = bundle.manifest, bundle.manifest.provenance
    total = sum(entry.size for entry in manifest.files.values())
    print(f"{bundle.path}: {manifest.pipeline}, {total / 1e6:,.1f} MB in {len(manifest.files)} files")
    revision = f" @ {origin.revision}" if origin.revision else ""
    print(f"from {origin.source}{revision}, licence {origin.licence or 'not stated'}, {origin.created}")
    print("made with " + ", ".join(f"{name} {version}" for name, version in origin.versions.items()))
    print(f"scheduler {manifest.scheduler.get('_class_name')}; tokenizers: {', '.join(manifest.tokenizers) or 'none'}")
    for lora in origin.loras:
        print(f"with the LoRA {lora.file} at {lora.scale:g}, sha256 {lora.sha256}")
    for added in origin.textual_inversions:
        print(f"with the textual inversion {added.file} as {added.token}, sha256 {added.sha256}")
    for role, entry in manifest.components.items():
        print(f"\n{role} ({entry.class_name}, {entry.parameters / 1e6:.2f} M parameters)")
        for graph in entry.graphs:
            _print_graph(bundle, graph)
    for addition in origin.additions:
        print(f"added {', '.join(addition.targets)} on {addition.created}")
    for engine, parity in manifest.parity.items():
        print(f"\nwhole pipeline on {engine}: {_picture(parity)}")
    for name, quality in manifest.quality.items():
        print(f"\nquantized, {name}: {_quality(quality)}")


def verify(options: argparse.Namespace) -> None:
    """`ingot verify`."""
    from ingot.runtimes.verify import checks

    threads = {} if options.threads is None else {"threads": options.threads}
    for line in checks(options.bundle, deep=options.deep, open_graph=_stand_in(), **threads):
        print(line)


def _stand_in() -> Callable[[Bundle, Graph], Engine] | None:
    """How exporting runs the graphs whose engine this machine does not have; None where it is not installed."""
    try:
        from ingot.exporters.parity import open_in_bundle
    except ModuleNotFoundError:
        return None
    return open_in_bundle


def doctor(options: argparse.Namespace) -> None:
    """`ingot doctor`."""
    found: dict[str, Any] = {
        "ingot": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    found["engines"] = {name: _engine_report(name) for name in engines.available()}
    found["export"] = _export_packages()
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"ingot {found['ingot']} on Python {found['python']}, {found['machine']}")
    for name, report in found["engines"].items():
        print(f"\nengine {name}")
        for key, value in report.items():
            print(f"  {key:28} {value}")
    print("\nexporting needs")
    for key, value in found["export"].items():
        print(f"  {key:28} {value}")


def _engine_report(name: str) -> dict[str, str]:
    try:
        return engines.engine(name).report()
    except EngineError as error:
        return {"missing": str(error)}


def _prompts(options: argparse.Namespace) -> list[str]:
    prompts = [
        line for prompt in options.prompts for line in (sys.stdin.read().splitlines() if prompt == "-" else [prompt])
    ]
    if options.prompt_file:
        prompts += _lines(options.prompt_file)
    return prompts


def _lines(file: Path) -> list[str]:
    """The prompts in a file: a line each, empty ones left out."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read prompts from {file} as UTF-8: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def _opened(file: Path | None) -> Image.Image | None:
    """A picture, the way up that its camera says."""
    if file is None:
        return None
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read a picture from {file}: {error}") from error


def _print_graph(bundle: Bundle, graph: Graph) -> None:
    size = sum(bundle.manifest.files[file].size for file in graph.files)
    nodes = f", {graph.nodes} nodes" if graph.nodes else ""
    print(f"  {describe_graph(graph)}: {graph.files[0]}, {size / 1e6:,.1f} MB{nodes}")
    for arrow, specs in (("in ", graph.signature.inputs), ("out", graph.signature.outputs)):
        for spec in specs:
            print(f"    {arrow} {spec.name}: {spec.dtype}[{', '.join(map(str, spec.shape))}]")
    if graph.quantization:
        print(f"    quantized: {_recipe(graph.quantization)}")
    if graph.parity:
        print(f"    parity: {_figures(graph.parity)}")
    for dtype, parity in graph.computed.items():
        print(f"    computed in {dtype}: {_figures(parity)}")


def _figures(parity: Certificate) -> str:
    sqnr = "equal" if parity.sqnr_db is None else f"SQNR {parity.sqnr_db:.1f} dB"
    return f"relative L2 {parity.rel_l2:.2e} (limit {parity.limit:.0e}), worst error {parity.max_abs:.2e}, {sqnr}, {parity.calls} calls"


def _picture(parity: ImageParity) -> str:
    psnr = "equal" if parity.psnr_db is None else f"{parity.psnr_db:.1f} dB"
    return (
        f"{psnr} against diffusers (limit {parity.limit_db:.0f} dB), {parity.height}x{parity.width}, "
        f"{parity.num_inference_steps} steps, seed {parity.seed}{f', {parity.prompt!r}' if parity.prompt else ''}"
    )


def _quality(quality: Quality) -> str:
    psnr = "equal pictures" if quality.psnr_db is None else f"PSNR {quality.psnr_db:.1f} dB"
    checker = (
        "" if quality.checker is None else f", checker {quality.checker:.0%} (floats {quality.checker_float or 0:.0%})"
    )
    roles = ", ".join(f"{role} {name}" for role, name in quality.graphs.items())
    return (
        f"{psnr}, SSIM {quality.ssim:.3f}{checker} against the float graphs, over {quality.prompts} pictures of "
        f"{quality.height}x{quality.width} in {quality.num_inference_steps} steps ({roles})"
    )


def _recipe(recipe: Quantization) -> str:
    sqnr = "equal" if recipe.sqnr_db is None else f"SQNR {recipe.sqnr_db:.1f} dB"
    faster = (
        f", {recipe.timing.float_seconds / recipe.timing.seconds:.2f} times as fast on {recipe.timing.machine}"
        if recipe.timing
        else ""
    )
    return f"{recipe.layers - len(recipe.keep)} of {recipe.layers} layers of the {recipe.source} graph, {sqnr} over a trajectory{faster}"


def _recipes(bundle: Bundle) -> str:
    try:
        from ingot.quantization import recipe
    except ModuleNotFoundError as error:
        raise ExportError(f"this needs {error.name}: pip install 'ingot[export]'") from error
    return recipe.dump(recipe.recipes_of(bundle))


def _export_packages() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in ("torch", "diffusers", "transformers", "onnx", "onnxscript"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed: pip install 'ingot[export]'"
    return found
