"""torch: a traced program (`.pt2`) on the CPU, CUDA, Apple's MPS or Habana's Gaudi; or compiled code (AOTInductor).

Neither needs diffusers, transformers or tracing. A `.pt2` program is read as data: opening and running it runs ATen
operators and nothing of the bundle's own. An AOTInductor package is machine code: it is opened with `trust=True` only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import devices as kinds
from ..devices.policy import Policy, Throughput, Wishes, rows_of
from ..errors import EngineError, IngotError, InputError, unknown
from ..signature import Signature
from . import Arrays, fit
from ._torch_archive import Archive
from ._torch_attention import slice_attention
from ._torch_code import Compiled, require_machine, require_trust
from ._torch_graph import float_weights, read_program
from ._torch_settings import tf32 as tf32_switch
from ._torch_settings import thread_count
from ._weights import Change

EXACT = "exact"  # as a device: the CPU, or what the code was compiled for, with whole float32
PARITY_OPTIONS: dict[str, Any] = {"device": EXACT}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
ATTENTION = ("sdpa", "sliced")
HALF = ("bfloat16", "float16")
CHANNELS_LAST = torch.channels_last


class TorchEngine:
    """A graph on a device. Safe to run from several threads at once; where the device or a compiled graph takes one run at
    a time, the others wait. `throughput` counts its runs, the device's warm-up left out."""

    def __init__(
        self,
        call: Callable[..., Any],
        signature: Signature,
        policy: Policy,
        held: Iterable[Tensor] = (),
        file: Path | None = None,
    ) -> None:
        self.signature = signature
        self.changed = False
        self._file = file  # of a program, which can be opened again with other weights
        self.policy = policy
        self.most_rows = policy.most_rows
        self.pad = policy.pad
        self.throughput = Throughput(policy.warm_up_runs)
        self._call: Callable[..., Any] | None = call
        self._lock = threading.Lock() if policy.one_at_a_time else nullcontext()
        self._fresh = policy.discard_first
        self._own = self._held = _storages(held)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute every output; floats are cast to the graph's own precision. Raises EngineError with what would do."""
        fed = fit(self.signature, inputs)
        call = self._call
        if call is None:
            raise EngineError("this graph was closed; open it again")
        began = time.perf_counter()
        with self._lock, self._settings():
            try:
                tensors = tuple(self._put(fed[spec.name]) for spec in self.signature.inputs)
                if self._fresh:
                    self._fresh = False
                    self._compute(call, tensors)
                found = self._take(self._compute(call, tensors), tensors)
            except Exception as error:  # torch raises RuntimeError, NotImplementedError and dynamo's own
                raise self._failed(error, fed) from error
        self.throughput.add(rows_of(tensors), time.perf_counter() - began)
        return found

    def close(self) -> None:
        """Free the weights; a second call does nothing."""
        self._call = None

    def weights(self) -> dict[str, tuple[int, ...]]:
        """The float weights by the checkpoint's names, with its shapes."""
        return float_weights(Archive(self._program_file()))

    def with_weights(self, changes: Mapping[str, Change]) -> Callable[[], None]:
        """Open the program again with these weights changed; what is returned puts it in place."""
        file = self._program_file()
        with _opening(file, self.policy):
            module, call = _program(file, self.policy, changes)

        own = _storages(module.buffers())

        def take_effect() -> None:
            with self._lock:
                if self._call is not None:
                    self._held = self._own | own  # a run of the old program may still be under way
                    self._own, self._call, self.changed = own, call, bool(changes)
                    self._fresh = self.policy.discard_first

        return take_effect

    def _program_file(self) -> Path:
        if self._file is None or self._call is None:
            raise EngineError(
                "the graph was closed, or is compiled code, whose weights cannot be exchanged: a bundle with "
                "torch.format=exported takes other weights, and one exported with the LoRA in it (--lora) has them"
            )
        return self._file

    def _compute(self, call: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Any:
        self.policy.before_run()
        outputs = call(*tensors)
        self.policy.after_run()
        return outputs

    def _settings(self) -> ExitStack:
        policy, stack = self.policy, ExitStack()
        stack.enter_context(tf32_switch.held_at(policy.tf32))
        stack.enter_context(thread_count(policy.threads))
        stack.enter_context(torch.inference_mode())
        if policy.autocast:
            kind = policy.device.partition(":")[0]
            stack.enter_context(torch.autocast(kind, getattr(torch, policy.autocast)))
        return stack

    def _put(self, array: NDArray[Any]) -> Tensor:
        """The array as a tensor: the same memory on the CPU, where torch can use it."""
        if (
            not array.flags.c_contiguous
        ):  # torch refuses negative strides, and compiled code reads every layout as this one
            array = np.ascontiguousarray(array).reshape(array.shape)  # which makes (1,) of ()
        if not array.flags.writeable:
            array = array.copy()  # torch warns
        if self.policy.no_float64 and array.dtype == np.float64:
            array = array.astype(np.float32)
        tensor = torch.from_numpy(array).to(self.policy.device)
        if self.policy.channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=CHANNELS_LAST)
        return tensor

    def _take(self, outputs: Any, tensors: tuple[Tensor, ...]) -> Arrays:
        """The outputs as arrays of the caller's: copies where an output is an input or a weight, or two are one."""
        seen = self._held | {tensor.untyped_storage().data_ptr() for tensor in tensors}
        found = {}
        for spec, tensor in zip(self.signature.outputs, outputs, strict=True):
            place = tensor.untyped_storage().data_ptr()
            tensor = tensor.to("cpu", getattr(torch, spec.dtype)).contiguous()
            found[spec.name] = tensor.clone().numpy() if place in seen else tensor.numpy()
            seen.add(place)
        return found

    def _failed(self, error: Exception, fed: Arrays) -> EngineError:
        shapes = {name: list(array.shape) for name, array in fed.items()}
        would_do = self.policy.explain(error) or _compiler_is_missing(error)
        hint = f"; {would_do}" if would_do else ""
        return EngineError(f"torch could not run the graph on {self.policy.device} with {shapes}: {error}{hint}")


def open_graph(
    file: Path,
    signature: Signature,
    *,
    stored: Mapping[str, Any] = MappingProxyType({}),
    device: str | None = None,
    compile: str | None = None,
    channels_last: bool | None = None,
    tf32: bool | None = None,
    threads: int | None = None,
    attention: str | None = None,
    autocast: str | None = None,
    most_rows: int | None = None,
    lazy: bool | None = None,
    hpu_graphs: bool | None = None,
    gaudi_config: str | Path | Mapping[str, Any] | None = None,
    trust: bool | None = None,
) -> TorchEngine:
    """Open a `.pt2` program or package.

    `device`: cpu, cuda, cuda:1, mps, hpu; by default the best here. `compile`: default, reduce-overhead, max-autotune,
    done when the graph first runs. `channels_last`: convolutions with the channels innermost. `tf32`: on NVIDIA, 10-bit
    mantissas in float32 matrix products and convolutions (None: as torch is set). `threads` inside an operator on the CPU.
    `attention`: sdpa, or sliced to save memory. `autocast`: bfloat16 or float16 inside a float32 graph. `most_rows`: the
    largest batch of one run. On Gaudi: `lazy`, `hpu_graphs`, and a `gaudi_config`. `trust` allows compiled code (see
    the module's docstring). Raises InputError for options that cannot be used, EngineError for a device that is not here
    and for a file that cannot be opened.
    """
    packaged = stored.get("format") == "aoti"
    if packaged and device in (None, EXACT):
        tf32 = False if device == EXACT else tf32
        device = stored.get("device", "cpu")
    elif device == EXACT:
        device = "cpu"
    if channels_last is None:
        channels_last = stored.get("channels_last")
    wishes = Wishes(
        channels_last=channels_last, tf32=tf32, threads=threads, attention=attention, autocast=autocast, compile=compile,
        most_rows=most_rows, lazy=lazy, hpu_graphs=hpu_graphs, gaudi_config=gaudi_config,
    )  # fmt: skip
    _check(wishes)
    policy = kinds.policy_for(device, wishes)
    with _opening(file, policy):
        if packaged:
            compiled = _package(file, stored, policy, wishes, trust)
            return TorchEngine(compiled, signature, policy, compiled.weights.values())
        module, call = _program(file, policy)
        return TorchEngine(call, signature, policy, module.buffers(), file)


def devices() -> list[str]:
    """The devices of this machine, the best first."""
    return kinds.here()


def report() -> dict[str, str]:
    """The version, and each kind of device or how to get it."""
    return {"version": torch.__version__, **kinds.report()}


@contextmanager
def _opening(file: Path, policy: Policy) -> Iterator[None]:
    """Whatever a broken file or a full device raises, as an EngineError that says what would do."""
    try:
        yield
    except IngotError:
        raise
    except Exception as error:  # as many kinds as there are ways to break a file
        hint = policy.explain(error) or "is the file whole? ingot verify compares it with its bundle"
        raise EngineError(
            f"torch cannot open {file} on {policy.device}: {type(error).__name__}: {error}; {hint}"
        ) from error


def _storages(tensors: Iterable[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def _program(
    file: Path, policy: Policy, changes: Mapping[str, Change] = MappingProxyType({})
) -> tuple[torch.nn.Module, Callable[..., Any]]:
    module = read_program(Archive(file), device=policy.device, no_float64=policy.no_float64, changes=changes).eval()
    if policy.channels_last:
        module = module.to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]  # torch's stub lacks this form
    if policy.slice_above is not None:
        slice_attention(module, policy.slice_above)
    wrapped = policy.wrap(module)
    if policy.compile_options is None:
        return module, wrapped
    compiled: Callable[..., Any] = torch.compile(wrapped, **policy.compile_options)
    return module, compiled


def _package(file: Path, stored: Mapping[str, Any], policy: Policy, wishes: Wishes, trust: bool | None) -> Compiled:
    for option in ("compile", "channels_last", "attention", "autocast"):
        if getattr(wishes, option):
            raise InputError(
                f"{option} cannot be chosen for {file.name}, which is compiled already; a bundle with torch.format=exported "
                "takes it"
            )
    require_machine(file, stored, policy.device)
    require_trust(file, trust)
    return Compiled(file, policy.device)


def _check(wishes: Wishes) -> None:
    for name, value, known in (
        ("compile mode", wishes.compile, COMPILE_MODES),
        ("attention", wishes.attention, ATTENTION),
        ("autocast precision", wishes.autocast, HALF),
    ):
        if value is not None and value not in known:
            raise unknown(name, value, known)
    for name, number in (("threads", wishes.threads), ("most_rows", wishes.most_rows)):
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise InputError(f"{name}={number!r}: a whole number of at least 1 is needed")


def _compiler_is_missing(error: Exception) -> str | None:
    said = str(error)
    if "InvalidCxxCompiler" in type(error).__name__ + said or "No working C++ compiler" in said:
        return "torch.compile needs a C++ compiler (g++), or leave out compile"
    return None
