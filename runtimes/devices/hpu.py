"""Habana Gaudi, as optimum-habana 1.21 drives it: lazy or eager mode, HPU graphs, mixed precision by a Gaudi
configuration, batches of one size. Not tried on a Gaudi; the tests hold the calls against optimum-habana's own.

Its schedulers (GaudiDDIMScheduler and others) make tables of all steps beforehand and roll them, so that a recorded graph
never reads a step's number. Ingot's schedulers run in NumPy on the host, where no graph is recorded, and give the same.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EngineError, InputError
from .policy import Policy, Wishes, as_it_is, nothing

HOW_TO_GET = "Gaudi needs Intel's driver and habana-torch-plugin, which brings its own torch (docs.habana.ai)"
LAZY = "PT_HPU_LAZY_MODE"
LISTS = ("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "PT_HPU_AUTOCAST_FP32_OPS_LIST")
PROMPT_ROWS = 2  # one prompt, with guidance: optimum-habana's batch_size of 1
WARM_UP_RUNS = 3  # optimum-habana's throughput_warmup_steps: the first runs compile
BACKEND = "hpu_backend"  # of torch.compile


@dataclass(frozen=True)
class GaudiConfig:
    """What of a `gaudi_config.json` matters to inference; the rest is for optimizers."""

    use_torch_autocast: bool = False
    autocast_bf16_ops: tuple[str, ...] | None = None
    autocast_fp32_ops: tuple[str, ...] | None = None
    use_dynamic_shapes: bool = False


def present() -> list[str]:
    """`hpu` where its plug-in is installed. It is not imported: that would settle the mode."""
    return ["hpu"] if "habana_frameworks" in sys.modules or importlib.util.find_spec("habana_frameworks") else []


def about() -> str:
    """The mode that the environment asks for."""
    return "plug-in installed, " + ("lazy mode" if _lazy_by_environment() else "eager mode")


def policy(device: str, wishes: Wishes) -> Policy:
    """Settles the mode, imports the plug-in, and wraps the graph. Raises EngineError where there is no Gaudi."""
    lazy = _lazy(wishes)
    config = read_config(wishes.gaudi_config)
    graphs = lazy if wishes.hpu_graphs is None else wishes.hpu_graphs
    if graphs and not lazy:
        raise InputError("hpu_graphs=True needs lazy mode; leave out lazy=False and compile, or hpu_graphs")
    _settle(LAZY, "1" if lazy else "0")
    _declare_autocast(config)
    core, hpu = _plug_in(config, lazy)
    return Policy(
        device=device,
        most_rows=wishes.most_rows or PROMPT_ROWS,
        pad=True,  # another size would be compiled anew
        one_at_a_time=True,
        channels_last=bool(wishes.channels_last),
        slice_above=0 if wishes.attention == "sliced" else None,
        threads=wishes.threads,
        autocast=wishes.autocast or ("bfloat16" if config.use_torch_autocast else None),
        compile_options={"backend": BACKEND} if wishes.compile else None,
        warm_up_runs=WARM_UP_RUNS,
        wrap=hpu.wrap_in_hpu_graph if graphs else as_it_is,
        after_run=core.mark_step if lazy and not graphs else nothing,
        explain=explain,
    )


def read_config(given: str | Path | Mapping[str, Any] | None) -> GaudiConfig:
    """A Gaudi configuration: a mapping, a `gaudi_config.json`, or a folder that holds one. Raises InputError."""
    if given is None:
        return GaudiConfig()
    try:
        if isinstance(given, Mapping):
            values = dict(given)
        else:
            path = Path(given)
            values = json.loads((path / "gaudi_config.json" if path.is_dir() else path).read_text())
        known = {name: values[name] for name in GaudiConfig.__dataclass_fields__ if values.get(name) is not None}
        lists = {name: tuple(value) for name, value in known.items() if name.endswith("_ops")}
        return GaudiConfig(**{**known, **lists})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"gaudi_config={given!r} is neither a mapping nor a gaudi_config.json nor a folder with one: {error}"
        ) from error


def explain(error: BaseException) -> str | None:
    """What would do when Gaudi's memory is full."""
    if "Allocation failed" in str(error) or "out of memory" in str(error):
        return "most_rows=1, a bundle in bfloat16 or a smaller picture needs less memory"
    return None


def _lazy(wishes: Wishes) -> bool:
    if wishes.compile and wishes.lazy:
        raise InputError("compile and lazy=True exclude each other on hpu: torch.compile works in eager mode")
    if wishes.lazy is not None:
        return wishes.lazy
    return not wishes.compile and _lazy_by_environment()


def _lazy_by_environment() -> bool:
    return os.environ.get(LAZY, "1") != "0"  # lazy is what optimum-habana takes an unset variable for


def _settle(name: str, value: str) -> None:
    """Set a variable that the plug-in reads once, when it is imported."""
    if "habana_frameworks.torch.core" in sys.modules and os.environ.get(name, "1") != value:
        raise EngineError(
            f"{name}={value} is needed, but habana_frameworks was imported with {os.environ.get(name, '1')}; "
            f"set it before Python starts, or open this graph first"
        )
    os.environ[name] = value


def _declare_autocast(config: GaudiConfig) -> None:
    """Write the operators of each precision to files, whose names the plug-in takes from the environment."""
    lists = (config.autocast_bf16_ops, config.autocast_fp32_ops)
    if lists[0] is None or lists[1] is None:
        return
    texts = ["".join(f"{operator}\n" for operator in operators or ()) for operators in lists]
    if [_declared(name) for name in LISTS] == texts:
        return  # another graph of the bundle did so
    if "habana_frameworks.torch.core" in sys.modules:
        raise EngineError(
            "this gaudi_config lists autocast operators, which habana_frameworks reads when it is imported, and it is "
            "imported already with other lists or none: open this graph first, or give every graph the same lists"
        )
    folder = Path(tempfile.mkdtemp(prefix="ingot-autocast-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, text in zip(LISTS, texts, strict=True):
        file = folder / f"{name.lower()}.txt"
        file.write_text(text)
        os.environ[name] = str(file)


def _declared(name: str) -> str | None:
    """The operators that the environment lists, as they stand in the file."""
    try:
        return Path(os.environ[name]).read_text()
    except (KeyError, OSError):
        return None


def _plug_in(config: GaudiConfig, lazy: bool) -> tuple[Any, Any]:
    """`habana_frameworks.torch.core` and `.hpu`, with a device behind them."""
    try:
        core = importlib.import_module("habana_frameworks.torch.core")
        hpu = importlib.import_module("habana_frameworks.torch.hpu")
    except ImportError as error:
        raise EngineError(f"habana_frameworks cannot be imported: {error}. {HOW_TO_GET}") from error
    if not hpu.is_available():
        raise EngineError(f"habana_frameworks finds no Gaudi on this machine. {HOW_TO_GET}")
    if lazy:
        (hpu.enable_dynamic_shape if config.use_dynamic_shapes else hpu.disable_dynamic_shape)()
    return core, hpu
