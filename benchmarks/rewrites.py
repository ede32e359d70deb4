"""What each rewrite does to Shapes' UNet on each engine: `python -m ingot.benchmarks.rewrites FOLDER [--latents 16 48]`.

Exports it with and without, and prints nodes, megabytes and seconds a call of two rows, the forms taking turns in one
process; as exported for ONNX Runtime's CPU, both its form and the portable one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx_ir as ir

import ingot
from ingot.exporters.onnx_graph import TRACED
from ingot.quantization.auto import seconds
from ingot.runtimes.bundle import Bundle, describe_graph
from ingot.runtimes.engines import Engine, open_with

from .profile_graph import inputs

FORMS = ("", "fused_qkv", "token_merging=0.5", "sliced_attention=4")
HEAD = "| graph | rewrite | latents | nodes (as traced) | MB | ms a call | times as fast |"


def main() -> None:
    """Make the bundles that are not there, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", default="onnx,openvino,torch")
    parser.add_argument("--latents", type=int, nargs="+", default=[16, 48], help="sides of the latents")
    options = parser.parse_args()
    bundles = {form: _exported(options.folder, form, options.to.split(",")) for form in FORMS}
    print(HEAD)
    print("|---" * (HEAD.count("|") - 1) + "|")
    for index, graph in enumerate(bundles[""].component("unet").graphs):
        for side in options.latents:
            for line in _rows(bundles, index, describe_graph(graph), side):
                print(line, flush=True)


def _exported(folder: Path, form: str, targets: list[str]) -> Bundle:
    bundle = folder / f"rewrite-{form or 'none'}"
    if not bundle.exists():
        ingot.export("shapes", bundle, to=targets, rewrites=[form] if form else [])
    return Bundle.open(bundle, hashes=False)


def _rows(bundles: dict[str, Bundle], index: int, name: str, side: int) -> list[str]:
    opened: list[Engine] = []
    for bundle in bundles.values():
        graph = bundle.component("unet").graphs[index]
        opened.append(open_with(graph.engine, bundle.file(graph.files[0]), graph.signature, graph.options, {}))
    times = seconds(opened, [inputs(bundles[""].component("unet").graphs[index], 2, side)], rounds=9)
    rows = []
    for (form, bundle), time in zip(bundles.items(), times, strict=True):
        graph = bundle.component("unet").graphs[index]
        size = sum(bundle.manifest.files[file].size for file in graph.files) / 1e6
        nodes = f"{graph.nodes or ''}{_traced(bundle.file(graph.files[0]))}"
        rows.append(
            f"| {name} | {form or 'none'} | {side}x{side} | {nodes} | {size:.1f} | {time * 1e3:.1f} | {times[0] / time:.2f} |"
        )
    for engine in opened:
        engine.close()
    return rows


def _traced(file: Path) -> str:
    """How many nodes an ONNX graph had before constants were folded and common subexpressions joined."""
    if file.suffix != ".onnx":
        return ""
    before = ir.load(file).metadata_props.get(TRACED)
    return f" ({before})" if before else ""


if __name__ == "__main__":
    main()
