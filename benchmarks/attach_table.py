"""What runs attached: `python -m ingot.benchmarks.attach_table [CLASS ...] [-o docs/pipelines.md]`.

Each class of `ingot.benchmarks.pipelines` is built tiny with random weights, exported by capture, every graph held against
its module, and the pipeline run twice with the same seed: in torch, and with the graphs attached. Every class has a process
of its own and a time limit. Results are kept as they come in a file beside what is written: a run that was stopped goes on
where it was, one that names classes makes these anew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ingot.benchmarks.pipelines import ROWS

RESULTS = Path("build/attach_table.jsonl")
NOT_RUN = "not run yet"
# Of the greatest value in torch's own answer: float32 arithmetic in another order, a few steps, tiny random models.
TOLERANCE = 1e-3
HEAD = (
    "| class | components exported | worst relative L2 | attached | relative difference | what stays torch, and why |"
)


@dataclass(frozen=True)
class Result:
    """One class.

    `fixed` are the components whose graphs have one size only; `parity` is the worst over its graphs; `difference` of the
    pipeline's answer, where it ran attached, and `scale` the greatest value in it; `torch` the roles that stay torch, with
    reasons; `error` what stopped it.
    """

    name: str
    target: str
    components: tuple[str, ...] = ()
    parity: float | None = None
    fixed: tuple[str, ...] = ()
    attached: tuple[str, ...] = ()
    difference: float | None = None
    scale: float | None = None
    torch: dict[str, str] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0

    @property
    def runs(self) -> bool:
        """Whether it ran on graphs, the denoiser or others, and answered what torch answers."""
        return bool(self.attached) and self.relative is not None and self.relative <= TOLERANCE

    @property
    def relative(self) -> float | None:
        """The difference by the greatest value of torch's own answer."""
        return None if self.difference is None else self.difference / (self.scale or 1.0)


def main() -> None:
    """Run the classes that are asked for, each by itself, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("classes", nargs="*", metavar="CLASS", help="default: all that are not in the results yet")
    parser.add_argument("-o", "--output", type=Path, help="the table as Markdown; printed where it is not given")
    parser.add_argument("--write", action="store_true", help="only write the table of the results that there are")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--to", default="onnx", choices=("onnx", "openvino"))
    parser.add_argument("--static", action="store_true", help="graphs of one size, which is several times quicker")
    parser.add_argument("--seconds", type=float, default=600, help="a class's limit")
    options = parser.parse_args()
    if strange := sorted(set(options.classes) - set(ROWS)):
        parser.error(f"no such class: {', '.join(strange)}; there are: {', '.join(ROWS)}")
    kept = read(options.results)
    missing = [] if options.write else [name for name in ROWS if name not in kept]
    for name in options.classes or missing:
        result = in_a_process(name, options.to, options.seconds, static=options.static)
        with keep_open(options.results) as file:
            file.write(json.dumps(asdict(result)) + "\n")
        print(line(result), flush=True)
    found = read(options.results)
    text = table(found.get(name, Result(name, "", error=NOT_RUN)) for name in ROWS)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text)


def in_a_process(name: str, target: str, limit: float, *, static: bool = False) -> Result:
    """Examine a class in a process of its own, forked so that torch is imported once; what ends it is the result's error."""
    warm(target)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    start = time.perf_counter()
    process = context.Process(target=_send, args=(theirs, name, target, static))
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(limit) else Result(name, target, error=f"not done within {limit:.0f} seconds")
    except EOFError:  # killed, for memory say
        process.join()
        found = Result(name, target, error=f"the process ended with {process.exitcode}")
    process.kill()
    process.join()
    return replace(found, seconds=round(time.perf_counter() - start, 1))


def _send(connection: Any, name: str, target: str, static: bool) -> None:
    try:
        result = examined(name, target, static=static)
    except Exception as error:  # a class that cannot be built is a row, too
        result = Result(name, target, error=f"{type(error).__name__}: {sentence(error)}")
    connection.send(result)
    connection.close()


def warm(target: str) -> None:
    """Import what every class needs."""
    import diffusers
    import torch

    import ingot.exporters.attach
    import ingot.exporters.piecewise  # noqa: F401  # for the processes to come
    from ingot.exporters.targets import target as toolchain

    toolchain(target)
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()


def examined(name: str, target: str, *, static: bool = False) -> Result:
    """Build, export, attach, compare."""
    import torch

    import ingot
    from ingot.exporters.capture import record_twice
    from ingot.exporters.piecewise import export_pieces
    from ingot.runtimes.bundle import Bundle
    from ingot.runtimes.engines import engine
    from ingot.runtimes.errors import IngotError

    torch.manual_seed(0)
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        pipe = row.build(Path(folder) / "parts")
        pipe.set_progress_bar_config(disable=True)
        try:
            pieces = export_pieces(
                pipe, Path(folder) / "bundle", to=target, dtype="float32", inputs=row.inputs, static=static
            )
        except IngotError as error:
            return Result(name, target, error=sentence(error))
        held = Bundle.open(pieces.path).manifest.components
        parity = max(graph.parity.rel_l2 for entry in held.values() for graph in entry.graphs if graph.parity)
        stay = {role: sentence(reason) for role, reason in {**pieces.refused, **row.torch_only}.items()}
        roles = tuple(role for role in pieces.roles if role not in stay)
        sizes, exact = record_twice(pipe, inputs=row.inputs)[1][0], dict(engine(target).PARITY_OPTIONS)
        wanted = answer(pipe, row.inputs, sizes)
        try:
            ingot.attach(pipe, pieces.path, engine=target, components=roles, threads=1, **exact)
            found = answer(pipe, row.inputs, sizes)
        except Exception as error:  # whatever the pipeline raises is what the table is to say
            return Result(name, target, pieces.roles, parity, pieces.fixed, torch=stay, error=sentence(error))
        far = max((float(abs(a - b).max()) for a, b in zip(wanted, found, strict=True)), default=float("nan"))
        scale = max(float(abs(a).max()) for a in wanted)
    return Result(name, target, pieces.roles, parity, pieces.fixed, roles, far, scale, stay)


def answer(pipe: Any, inputs: Any, sizes: Any = None) -> list[Any]:
    """Everything that a pipeline answers, as arrays, at these sizes, else at the smallest that it takes."""
    import torch

    from ingot.exporters.capture import REFUSALS, sizes_to_try
    from ingot.exporters.dummies import call_inputs
    from ingot.exporters.recording import quietly
    from ingot.runtimes.errors import IngotError

    tried = [first for first, _ in sizes_to_try(pipe)] if sizes is None else [sizes]
    torch.manual_seed(0)  # for those that draw without the generator that they are given
    with torch.no_grad(), quietly(pipe):
        for size in tried[:-1]:
            try:
                return list(arrays(pipe(**call_inputs(pipe, size, inputs))))
            except IngotError:
                raise
            except REFUSALS:  # as capture finds the size
                continue
        return list(arrays(pipe(**call_inputs(pipe, tried[-1], inputs))))


def arrays(value: Any) -> Iterable[Any]:
    """The arrays in a nest of answers, floats where they are pictures."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        yield value.float().numpy()
    elif isinstance(value, np.ndarray):
        yield value.astype(np.float64)
    elif hasattr(value, "convert"):  # a picture of Pillow's
        yield np.asarray(value).astype(np.float64) / 255
    elif isinstance(value, dict):
        yield from (array for item in value.values() for array in arrays(item))
    elif isinstance(value, list | tuple):
        yield from (array for item in value for array in arrays(item))


def sentence(reason: object) -> str:
    """A message in one line, for a cell, less the places in OpenVINO's sources."""
    text = str(reason) if isinstance(reason, str) else str(reason).strip() or type(reason).__name__
    text = " ".join(text.split()).replace("|", "/")
    text = re.sub(r"/\S*\.bundle\.\S*?/", "", text)  # where the bundle lay for a while
    text = re.sub(r"Check '[^']*' failed at src/\S+: ", "", text)
    return text if len(text) <= 240 else text[:237] + "..."


def read(file: Path) -> dict[str, Result]:
    """The last result of each class, in the order of the list."""
    lines = file.read_text().splitlines() if file.is_file() else []
    found = {entry["name"]: Result(**entry) for entry in map(json.loads, lines)}
    return {name: found[name] for name in ROWS if name in found}


def keep_open(file: Path) -> Any:
    """The file of results, to be added to."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("a")


def line(result: Result) -> str:
    """A row of the table."""
    reasons = [f"{role}: {reason}" for role, reason in result.torch.items()]
    if result.relative is not None and not result.runs:
        reasons.append("attached it answers something else than torch, each graph by itself what its module does")
    parity = "" if result.parity is None else f"{result.parity:.1e}"
    far = "" if result.relative is None else f"{result.relative:.1e}"
    runs = "" if result.relative is None else "yes" if result.runs else "no, it differs"
    if result.runs and result.torch:
        runs = f"{len(result.attached)} of {len({*result.components, *result.torch})}"
    components = [f"{role}, one size" if role in result.fixed else role for role in result.components]
    reasons = [sentence(reason) for reason in (*reasons, result.error)]
    cells = result.name, "; ".join(components), parity, runs or "no", far, "; ".join(filter(None, reasons))
    return f"| {' | '.join(cell.strip('; ') for cell in cells)} |"


def table(results: Iterable[Result]) -> str:
    """The page."""
    results = list(results)
    whole = sum(result.runs and not result.torch for result in results)
    runs = sum(result.runs for result in results)
    targets = " or ".join(sorted({result.target for result in results if result.target}))
    exported = sum(bool(result.components) for result in results)
    return "\n".join(
        [
            "# diffusers' pipelines on compiled graphs",
            "",
            "`ingot.attach(pipe, bundle)` runs a pipeline of diffusers on a bundle's graphs. This table is written by",
            "`python -m ingot.benchmarks.attach_table --to openvino --static -o docs/pipelines.md`, some rows without `--static`:",
            "every class is built tiny with random weights,",
            f"exported by capture without a word of configuration for its models (target {targets}, float32), and called with",
            "the same seed in torch and attached.",
            "",
            f"Of {len(results)} classes, {exported} are exported, {runs} run attached, {whole} of them with every component",
            f"that they call on an engine; {sum(result.error == NOT_RUN for result in results)} were not run yet.",
            "",
            "- *One size*: the graph is fixed to the size of the recording. `--static` asks for that, as it is traced several",
            "  times faster; else it stands where a model fixes a size itself.",
            "- *Worst relative L2* is that of the graph furthest from its torch module on recorded inputs. A graph beyond 1e-4 is",
            "  refused.",
            "- *n of m*: so many of the components that the pipeline calls run on an engine, the others in torch.",
            "- *Relative difference* is the greatest over everything that the pipeline answers, by the greatest value in it; with",
            f"  more than {TOLERANCE} it does not count as running.",
            "",
            HEAD,
            "|---" * (HEAD.count("|") - 1) + "|",
            *map(line, results),
            "",
        ]
    )


if __name__ == "__main__":
    main()
