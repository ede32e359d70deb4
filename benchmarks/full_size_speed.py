"""Size, memory and seconds of a full-size UNet in every form: `python -m ingot.benchmarks.full_size_speed WORK [--steps ...]`.

Stable Diffusion 1.5's architecture with random weights, 512x512 pixels, two rows (one picture with guidance). Each form
runs in a process of its own, torch among them, and in `--rounds` rounds that go over all forms, so that a machine that is
busy for a while is busy for all. Quality says nothing on random weights: `scheme_table` measures it on Shapes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ingot
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.engines import open_with
from ingot.runtimes.errors import IngotError
from ingot.runtimes.manifest import Graph

from .contestants._process import peak_mib
from .random_checkpoint import saved

SCHEMES = {"onnx": ("int8-dynamic", "int8-static"), "openvino": ("int8-weights", "int8-static")}
PROMPTS = ["a lighthouse on a cliff", "a bowl of fruit"]  # random weights: any will do
ROLES = ("unet", "vae_decoder")
LEVEL = "extended"  # of ONNX Runtime's optimization: opened sooner, a little slower
HEAD = (
    "| {role} | form | MB | times smaller | seconds to open | seconds a call | times as fast as the first | peak GiB |"
)


def main() -> None:
    """Make what is not there yet, time every form, print the table; or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="needs 20 GB; a checkpoint that `full_size` made is used again")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--role", default="unet", choices=ROLES)
    parser.add_argument("--forms", nargs="+", metavar="FORM", help="of the table's second column (default: all)")
    parser.add_argument("--worker", metavar="FORM")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(run_here(options.work, options.role, options.worker)))
        return
    bundle = prepared(options.work)
    print("\n".join(table(options.work, bundle, options.role, options.rounds, options.forms)))


def prepared(work: Path) -> Bundle:
    """The checkpoint, its bundle and the quantized graphs, as far as they are not there yet."""
    checkpoint, folder = saved(work / "checkpoint"), work / "speed-bundle"
    if not folder.exists():
        command = ["export", str(checkpoint), "-o", str(folder), "--to", "onnx,openvino"]
        subprocess.run([sys.executable, "-m", "ingot.cli", *command], check=True)
    held = {(g.engine, g.precision) for g in Bundle.open(folder, hashes=False).component("unet").graphs}
    for engine, schemes in SCHEMES.items():
        for scheme in schemes:
            if (engine, scheme) not in held:
                quantized(folder, engine, scheme)
    return Bundle.open(folder, hashes=False)


def quantized(folder: Path, engine: str, scheme: str) -> None:
    """Add a scheme, its ranges found on a few calls of small pictures."""
    began = time.monotonic()
    try:
        ingot.quantize(
            folder, scheme, to=engine, components=ROLES, calibrate=PROMPTS, prompts=PROMPTS[:1], num_inference_steps=2, height=128,
            width=128, calls=4,
        )  # fmt: skip
    except IngotError as error:
        print(f"{engine} {scheme}: {error}", file=sys.stderr)
    print(f"{engine} {scheme}: {time.monotonic() - began:.0f} s", file=sys.stderr)


def table(work: Path, bundle: Bundle, role: str, rounds: int, only: Sequence[str] | None = None) -> list[str]:
    """The table's lines; speeds are against the first form, torch in float32 where it is among them."""
    entry = bundle.component(role)
    lower = _has_bfloat16()
    forms = ["torch float32", *(["torch bfloat16"] if lower else [])]
    for graph in entry.graphs:
        forms.append(_name(graph))
        if graph.engine == "openvino" and graph.quantization is None:
            forms += [f"{_name(graph)} in bf16"] if lower else []
        if graph.engine == "onnx" and graph.quantization is None and graph.form:
            forms.append(f"{_name(graph)} at {LEVEL}")
    if unknown := [form for form in only or () if form not in forms]:
        raise SystemExit(f"unknown forms {', '.join(unknown)}; there are: {', '.join(forms)}")
    forms = [form for form in forms if only is None or form in only]
    found: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    for _ in range(rounds):
        for form in forms:
            found[form].append(run(work, role, form))
    full = next(_megabytes(bundle, graph) for graph in entry.graphs if graph.precision == "float32")
    base = statistics.median(one["seconds"] for one in found[forms[0]])
    lines = [HEAD.format(role=role), "|---" * (HEAD.count("|") - 1) + "|"]
    for form, runs in found.items():
        seconds, opening = (statistics.median(one[name] for one in runs) for name in ("seconds", "open_s"))
        megabytes = next((_megabytes(bundle, g) for g in entry.graphs if form.startswith(_name(g))), full)
        megabytes = full / 2 if form == "torch bfloat16" else megabytes
        peak = max(one["peak_mib"] for one in runs) / 1024
        lines.append(
            f"| {role} | {form} | {megabytes:,.0f} | {full / megabytes:.1f} | {opening:.1f} | {seconds:.2f} | {base / seconds:.2f} "
            f"| {peak:.1f} |"
        )
    return lines


def _has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16; without it torch takes minutes, and OpenVINO float32."""
    info = Path("/proc/cpuinfo")
    return info.exists() and bool({"avx512_bf16", "amx_bf16", "bf16"} & set(info.read_text().split()))


def run(work: Path, role: str, form: str) -> dict[str, float]:
    """One form in a process of its own."""
    command = [sys.executable, "-m", "ingot.benchmarks.full_size_speed", str(work), "--role", role, "--worker", form]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{form} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{form}: {found['seconds']:.2f} s, {found['peak_mib'] / 1024:.1f} GiB", file=sys.stderr)
    return found


def run_here(work: Path, role: str, form: str) -> dict[str, float]:
    """Seconds to open, of the first call and of the median of three after it, and the process's peak memory."""
    began = time.perf_counter()
    call = _torch(work, role, form) if form.startswith("torch") else _graph(work, role, form)
    opened = time.perf_counter() - began
    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    times = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return {"open_s": opened, "first_s": first, "seconds": statistics.median(times), "peak_mib": peak_mib()}


def _torch(work: Path, role: str, form: str) -> Any:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    dtype = getattr(torch, form.split()[1])
    if role == "unet":
        unet: Any = UNet2DConditionModel.from_pretrained(work / "checkpoint", subfolder="unet", torch_dtype=dtype)
        context = torch.zeros(2, 77, 768, dtype=dtype)
        return torch.no_grad()(lambda: unet(torch.zeros(2, 4, 64, 64, dtype=dtype), 999, context))
    vae: Any = AutoencoderKL.from_pretrained(work / "checkpoint", subfolder="vae", torch_dtype=dtype)
    return torch.no_grad()(lambda: vae.decode(torch.zeros(1, 4, 64, 64, dtype=dtype)))


def _graph(work: Path, role: str, form: str) -> Any:
    bundle = Bundle.open(work / "speed-bundle", hashes=False)
    graph = max((g for g in bundle.component(role).graphs if form.startswith(_name(g))), key=lambda g: len(_name(g)))
    options = {"inference_precision": form.split()[-1]} if " in " in form else {}
    options |= {"graph_optimization_level": form.split()[-1]} if " at " in form else {}
    engine = open_with(graph.engine, bundle.file(graph.files[0]), graph.signature, graph.options, options)
    generator = np.random.default_rng(0)
    sizes = {"2*batch": 2, "batch": 2, "height/8": 64, "width/8": 64}
    rows = 2 if role == "unet" else 1
    inputs = {}
    for spec in graph.signature.inputs:
        shape = [dim if isinstance(dim, int) else rows if "batch" in dim else sizes[dim] for dim in spec.shape]
        inputs[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return lambda: engine.run(inputs)


def _name(graph: Graph) -> str:
    return f"{graph.engine} {graph.precision}{f' for {graph.form}' if graph.form else ''}"


def _megabytes(bundle: Bundle, graph: Graph) -> float:
    return sum(bundle.manifest.files[file].size for file in graph.files) / 1e6


if __name__ == "__main__":
    main()
