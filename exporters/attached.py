"""A module whose method runs on an engine: the same class, attributes and answer, the graph in the place of torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ingot.runtimes.engines import Engine
from ingot.runtimes.errors import InputError
from ingot.runtimes.manifest import ComponentEntry
from ingot.runtimes.signature import TensorSpec

from .answers import Answer
from .bundle_writer import plain
from .component import leaves
from .flatten import ALWAYS, AS_FLOAT, NEVER
from .ip_adapter import SCALE, scales_of
from .onnx_names import INPUTS
from .recording import Place, bound

# What changes how a module computes; a graph computes as it was made, so that these would be lost without a word.
REFUSED = (
    "set_attn_processor", "set_default_attn_processor", "load_attn_procs", "load_lora_adapter", "load_adapter",
    "add_adapter", "set_adapter", "set_adapters", "fuse_lora", "unfuse_lora", "enable_freeu", "disable_freeu",
    "fuse_qkv_projections", "unfuse_qkv_projections", "load_ip_adapter", "_load_ip_adapter_weights",
)  # fmt: skip
# Says what to answer, not how to compute.
_ABOUT_THE_ANSWER = (*ALWAYS, *NEVER, "output_hidden_states")


class EngineMethod:
    """A method of a module, computed by a graph.

    Arguments are bound as the method binds them and go to the graph by their dotted paths; those that it folds in must be
    what they were. No tensor is copied on a CPU but where its dtype must change.
    """

    def __init__(self, place: Place, entry: ComponentEntry, engine: Engine) -> None:
        original = getattr(place.module, place.method)
        self.role = place.role
        self.engine = engine
        self.signature = inspect.signature(original)
        self._module = place.module
        self._constants = self._plain(self._completed(_nested(entry.arguments)))
        self._paths = {spec.name: self._path(spec.name) for spec in engine.signature.inputs}
        self._states = bool(entry.arguments.get("output_hidden_states"))
        self._answer = Answer(place, original, engine.signature)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer what the torch method would. Raises InputError naming each argument that the graph was not made for."""
        asked = dict(leaves(self._completed(bound(self.signature, args, kwargs))))
        given = {path: value for path, value in asked.items() if path in self._paths.values()}
        self._require_constants({path: value for path, value in asked.items() if path not in given})
        tensors = [value for value in given.values() if isinstance(value, Tensor)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise InputError(f"{self.role} runs on an engine, which has no gradients: detach it for that")
        found = self.engine.run(self._arrays(given))
        device = tensors[0].device if tensors else torch.device("cpu")
        answered = {name: _tensor(array, device, self._dtype) for name, array in found.items()}
        return self._answer(answered, fields=self._fields(asked), return_dict=self._wants_fields(asked))

    @property
    def _dtype(self) -> torch.dtype:
        """What the module's own floats are in: its answers', too."""
        return next((p.dtype for p in self._module.parameters() if p.is_floating_point()), torch.float32)

    def _completed(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """With the method's defaults for what is not given."""
        defaults = {n: p.default for n, p in self.signature.parameters.items() if p.default is not p.empty}
        return {**defaults, **arguments}

    def _plain(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {path: plain(value) for path, value in leaves(arguments) if value is not None}

    def _path(self, name: str) -> str:
        """Where in a call's arguments the graph's input of this name stands."""
        renamed = [path for path, written in INPUTS.get(self.role, {}).items() if written == name]
        for path in (*renamed, name):
            if path.partition(".")[0] in self.signature.parameters:
                return path
        return name

    def _require_constants(self, asked: Mapping[str, Any]) -> None:
        """Hold what is no input against what the graph folds in."""
        known = {path: value for path, value in self._constants.items() if path not in self._paths.values()}
        wrong = []
        for path in sorted({*asked, *known}):
            if path.partition(".")[0] in _ABOUT_THE_ANSWER:
                continue
            value = asked.get(path)
            if isinstance(value, Tensor) or plain(value) != known.get(path):
                wrong.append(f"{path} is {_describe(value)} and the graph was made with {_describe(known.get(path))}")
        if wrong:
            raise InputError(f"{self.role}: {'; '.join(wrong)}")

    def _arrays(self, given: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        specs = self.engine.signature.inputs
        if SCALE in self._paths:  # no argument in diffusers: the module's processors have it
            given = {**given, SCALE: scales_of(self._module)}
        absent = [self._paths[spec.name] for spec in specs if given.get(self._paths[spec.name]) is None]
        if absent:
            raise InputError(f"{self.role}: the graph takes {', '.join(absent)}, which this call does not give")
        arrays = {spec.name: _array(spec, given[self._paths[spec.name]]) for spec in specs}
        rows = _rows(specs, arrays)
        arrays = {spec.name: _spread(spec, arrays[spec.name], rows, self._paths[spec.name]) for spec in specs}
        wrong = [_mismatch(self._paths[spec.name], spec, arrays[spec.name]) for spec in specs]
        if any(wrong):
            raise InputError(f"{self.role}: {'; '.join(filter(None, wrong))}")
        return arrays

    def _fields(self, asked: Mapping[str, Any]) -> tuple[str, ...]:
        """Fields that the graph answers and the call did not ask for."""
        wanted = asked.get("output_hidden_states")
        if wanted is None:
            wanted = getattr(getattr(self._module, "config", None), "output_hidden_states", False)
        if wanted and not self._states:
            raise InputError(f"{self.role}: output_hidden_states is True and the graph was made without them")
        return () if wanted or not self._states else ("hidden_states",)

    def _wants_fields(self, asked: Mapping[str, Any]) -> bool:
        wanted = asked.get("return_dict")
        return bool(getattr(getattr(self._module, "config", None), "return_dict", True) if wanted is None else wanted)


def module_with(original: nn.Module, methods: Sequence[tuple[Place, EngineMethod]]) -> nn.Module:
    """A stand-in for `original`, over the same weights, whose methods are these."""
    several = methods[0][0].inside
    if several is None:
        return _stand_in(original, {place.method: method for place, method in methods})
    copy = _stand_in(original, {})
    parts = list(getattr(original, several[0]))
    for place, method in methods:
        assert place.inside is not None
        parts[place.inside[1]] = _stand_in(place.module, {place.method: method})
    copy._modules = {**original._modules, several[0]: nn.ModuleList(parts)}
    return copy


def _stand_in(module: nn.Module, methods: Mapping[str, EngineMethod]) -> nn.Module:
    """An instance of a class below the module's own, with the module's own attributes: what pipelines check and read."""
    kind = type(module)
    refused = {name: _refuser(name) for name in REFUSED if methods and hasattr(kind, name)}
    below = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__, **refused})
    made: nn.Module = object.__new__(below)
    vars(made).update(vars(module))
    for name, method in methods.items():
        # on the instance, where nn.Module.__call__ finds it before the class's own
        vars(made)[name] = _function(getattr(module, name), method)
    return made


def _function(original: Any, method: EngineMethod) -> Any:
    """A function for the method, which pipelines may look at the parameters of."""

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return run


def _refuser(name: str) -> Any:
    def refuse(self: Any, *_: Any, **__: Any) -> None:
        raise InputError(
            f"{name} would not change a {type(self).__name__} that runs on an engine: call it before the model is exported, "
            "or detach the pipeline"
        )

    return refuse


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by dotted path, with None for the parameter itself where the path goes on."""
    heads = {path.partition(".")[0]: None for path in flat}
    return {**heads, **flat}


def _array(spec: TensorSpec, value: Any) -> NDArray[Any]:
    if not isinstance(value, Tensor):
        return np.asarray(value, spec.dtype)
    tensor = value.detach().cpu()
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    wanted = np.dtype(spec.dtype)
    if array.dtype.kind == wanted.kind or (spec.name in AS_FLOAT and array.dtype.kind in "iu"):
        return array.astype(wanted, copy=False)
    return array


def _rows(specs: Sequence[TensorSpec], arrays: Mapping[str, NDArray[Any]]) -> int:
    """The batch of a call: of the first input that has one."""
    return next((arrays[s.name].shape[0] for s in specs if s.shape[:1] == ("batch",) and arrays[s.name].ndim), 1)


def _spread(spec: TensorSpec, array: NDArray[Any], rows: int, path: str) -> NDArray[Any]:
    """One timestep for a batch, or a batch of equal ones for a graph that takes one, as diffusers' models do it."""
    if path not in AS_FLOAT or array.ndim == len(spec.shape):
        return array
    if len(spec.shape) == 1 and array.ndim == 0:
        return np.full(spec.shape[0] if isinstance(spec.shape[0], int) else rows, array)
    if not spec.shape and array.size and (array == array.flat[0]).all():
        return array.reshape(-1)[0:1].reshape(())
    return array


def _mismatch(path: str, spec: TensorSpec, array: NDArray[Any]) -> str | None:
    """Why an array does not go into the graph; None where it does. The engine checks equally named dimensions."""
    if array.dtype != np.dtype(spec.dtype):
        return f"{path} is {array.dtype} and the graph takes {spec.dtype}"
    fixed = [(got, dim) for got, dim in zip(array.shape, spec.shape, strict=False) if isinstance(dim, int)]
    if array.ndim != len(spec.shape) or any(got != dim for got, dim in fixed):
        return f"{path} has the shape {list(array.shape)} and the graph takes {list(spec.shape)}"
    return None


def _tensor(array: NDArray[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {list(value.shape)}"
    return "nothing" if value is None else repr(value)
