"""What opening an OpenVINO graph takes: devices by name, options as properties, sizes for named dimensions."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import EngineError, InputError, unknown
from ..signature import Signature
from ._openvino_import import ov
from ._sizes import resized

__all__ = ["configuration", "core", "plugin", "present", "resized", "take_float_timestep"]

HINTS = ("latency", "throughput", "cumulative_throughput")
CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


_lock = threading.Lock()


def core() -> ov.Core:
    """OpenVINO's plugins, loaded once a process, whichever thread asks first."""
    with _lock:
        return _core()


@cache
def _core() -> ov.Core:
    return ov.Core()


def present() -> list[str]:
    """The devices of this machine: `cpu`, `gpu.0`."""
    return [name.lower() for name in core().available_devices]


def plugin(device: str) -> str:
    """A device by OpenVINO's name: `CPU`, `GPU.0`, `AUTO:GPU,CPU`. Raises EngineError naming the devices that are here."""
    here = present()
    head, _, parts = device.lower().partition(":")
    for name in parts.split(",") if parts else [head]:
        among = [*here, *(one.partition(".")[0] for one in here), "auto"]
        if name not in among or (parts and head != "auto"):
            raise EngineError(
                f"OpenVINO has no device {device!r} here; it has: {', '.join(here)}, and auto, which picks among them"
            )
    return device.upper()


def configuration(
    device: str,
    *,
    performance_hint: str | None,
    streams: int | None,
    threads: int | None,
    precision: str | None,
    cache_dir: str | Path | None,
    keep_float32: bool,
) -> dict[str, Any]:
    """Options as OpenVINO's properties; those that are None are left to the device. Raises InputError."""
    if performance_hint is not None and performance_hint.lower() not in HINTS:
        raise unknown("performance_hint", performance_hint, HINTS)
    for name, value in (("streams", streams), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{name}={value!r}: a whole number of at least 1 is needed")
    _require_precision(device, precision)
    if precision is None and keep_float32 and (device != "CPU" or "FP16" in _able(device)):
        precision = "f32"
    given = {
        "PERFORMANCE_HINT": performance_hint.upper() if performance_hint else None,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "CACHE_DIR": str(cache_dir) if cache_dir is not None else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _require_precision(device: str, precision: str | None) -> None:
    """OpenVINO 2026.4.1 computes in float32 and says nothing when a CPU has not what was asked for."""
    if precision is None:
        return
    if precision not in CAPABILITIES:
        raise unknown("inference_precision", precision, CAPABILITIES)
    if device.startswith("AUTO"):
        return
    able = _able(device)
    if CAPABILITIES[precision] not in able:
        has = [name for name, flag in CAPABILITIES.items() if flag in able]
        raise InputError(f"inference_precision={precision!r}: this {device} computes in {', '.join(has)}")


def _able(device: str) -> list[str]:
    found: list[str] = core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    return found


def take_float_timestep(model: ov.Model, signature: Signature) -> None:
    """Give a UNet back the timestep of its signature, a float32 scalar, where the file has the vector of int64 that other
    readers feed: schedulers such as Euler step at fractions."""
    spec = next((spec for spec in signature.inputs if spec.name == "timestep"), None)
    old = next((node for node in model.get_parameters() if "timestep" in node.output(0).get_names()), None)
    if spec is None or old is None or old.get_element_type() != ov.Type.i64 or spec.dtype != "float32":
        return
    (convert,) = old.output(0).get_target_inputs()
    (reshape,) = convert.get_node().output(0).get_target_inputs()
    new = ov.opset14.parameter(ov.PartialShape(list(spec.shape)), ov.Type.f32, name="timestep")
    for target in reshape.get_node().output(0).get_target_inputs():
        target.replace_source_output(new.output(0))
    model.replace_parameter(model.get_parameter_index(old), new)
    new.output(0).get_tensor().set_names({"timestep"})
    model.validate_nodes_and_infer_types()
