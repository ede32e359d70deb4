"""ONNX Runtime's execution providers: which there are, and how those of NVIDIA's GPUs are set up."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..errors import EngineError, InputError, unknown
from ..signature import Signature
from ._tensorrt_options import profile, ranges

Provider = str | tuple[str, dict[str, Any]]

DEVICES: dict[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "openvino": ("OpenVINOExecutionProvider", "CPUExecutionProvider"),
    "coreml": ("CoreMLExecutionProvider", "CPUExecutionProvider"),
    "directml": ("DmlExecutionProvider", "CPUExecutionProvider"),
}
BEST_FIRST = ("cuda", "tensorrt", "directml", "coreml", "openvino", "cpu")
HOW_TO_GET = {
    "CUDAExecutionProvider": "pip install onnxruntime-gpu in place of onnxruntime",
    # 1.31.1's links libnvinfer.so.10: TensorRT 11 does not serve it
    "TensorrtExecutionProvider": "pip install onnxruntime-gpu in place of onnxruntime, and TensorRT 10",
    "OpenVINOExecutionProvider": "pip install onnxruntime-openvino in place of onnxruntime",
    "DmlExecutionProvider": "pip install onnxruntime-directml in place of onnxruntime",
    "CoreMLExecutionProvider": "part of onnxruntime on macOS",
}
# The names that the two providers' libraries in onnxruntime-gpu 1.31.1 hold and that make sense from Python. Others are
# refused by ONNX Runtime only after it has opened the GPU, and without saying which there are.
_OPTIONS = {
    "CUDAExecutionProvider": """device_id gpu_mem_limit arena_extend_strategy cudnn_conv_algo_search cudnn_conv_use_max_workspace
        cudnn_conv1d_pad_to_nc1d do_copy_in_default_stream enable_cuda_graph enable_skip_layer_norm_strict_mode fuse_conv_bias
        prefer_nhwc sdpa_kernel tunable_op_enable tunable_op_tuning_enable tunable_op_max_tuning_duration_ms
        use_ep_level_unified_stream use_tf32 user_compute_stream has_user_compute_stream""",
    "TensorrtExecutionProvider": """device_id user_compute_stream has_user_compute_stream trt_auxiliary_streams trt_bf16_enable
        trt_build_heuristics_enable trt_builder_optimization_level trt_context_memory_sharing_enable trt_cuda_graph_enable
        trt_detailed_build_log trt_dla_core trt_dla_enable trt_dump_ep_context_model trt_dump_subgraphs
        trt_engine_cache_enable trt_engine_cache_path trt_engine_cache_prefix trt_engine_decryption_enable
        trt_engine_decryption_lib_path trt_engine_hw_compatible trt_ep_context_embed_mode trt_ep_context_file_path
        trt_extra_plugin_lib_paths trt_force_sequential_engine_build trt_force_timing_cache trt_fp16_enable
        trt_int8_calibration_table_name trt_int8_enable trt_int8_use_native_calibration_table trt_layer_norm_fp32_fallback
        trt_load_user_initializer trt_max_partition_iterations trt_max_workspace_size trt_min_subgraph_size
        trt_onnx_model_folder_path trt_op_types_to_exclude trt_preview_features trt_profile_max_shapes trt_profile_min_shapes
        trt_profile_opt_shapes trt_sparsity_enable trt_tactic_sources trt_timing_cache_enable trt_timing_cache_path
        trt_weight_stripped_engine_enable""",
}
OPTIONS = {provider: frozenset(names.split()) for provider, names in _OPTIONS.items()}


def providers_for(
    device: str,
    signature: Signature,
    *,
    tf32: bool | None = None,
    cuda_graph: bool = False,
    sizes: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    provider_options: Mapping[str, Any] | None = None,
) -> list[Provider]:
    """The providers of a device (`cuda:1` is the second GPU) with their options.

    `provider_options` are ONNX Runtime's own, by its own names, and replace what the rest leads to. Raises InputError for a
    device or an option that is not known.
    """
    kind, _, number = device.lower().partition(":")
    if kind not in DEVICES or not (number or "0").isdigit():
        raise InputError(f"unknown device {device!r} for ONNX Runtime; available: {', '.join(DEVICES)}")
    names = DEVICES[kind]
    given = dict(provider_options or {})
    known = frozenset().union(*(OPTIONS.get(name, ()) for name in names))
    for option in given:
        if option not in known:
            raise (
                unknown(f"provider option for the device {kind}", option, known)
                if known
                else InputError(f"provider_options: {option!r} is given, but Ingot knows none for the device {kind}")
            )
    options: dict[str, dict[str, Any]] = {
        "CUDAExecutionProvider": cuda_options(int(number or 0), tf32=tf32, graph=cuda_graph and kind == "cuda"),
        "TensorrtExecutionProvider": tensorrt_options(int(number or 0), signature, sizes, cache, graph=cuda_graph),
    }
    return [
        (name, options[name] | {key: value for key, value in given.items() if key in OPTIONS[name]})
        if name in options
        else name
        for name in names
    ]


def cuda_options(gpu: int, *, tf32: bool | None, graph: bool) -> dict[str, Any]:
    """For CUDAExecutionProvider. ONNX Runtime's default lets float32 products use TF32."""
    return {
        "device_id": gpu,
        **({} if tf32 is None else {"use_tf32": int(tf32)}),
        **({"enable_cuda_graph": 1} if graph else {}),
    }


def tensorrt_options(
    gpu: int, signature: Signature, sizes: Mapping[str, Any] | None, cache: str | Path | None, *, graph: bool
) -> dict[str, Any]:
    """For TensorrtExecutionProvider: engines and timings are kept in the cache; with `sizes` one engine serves them all,
    where else each new shape builds another."""
    folder = str(cache_folder(cache))
    options: dict[str, Any] = {
        "device_id": gpu,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": folder,
    }
    if any(spec.dtype == "float16" for spec in signature.inputs):
        options["trt_fp16_enable"] = True  # its networks are not strongly typed: without it float16 may run as float32
    if graph:
        options["trt_cuda_graph_enable"] = True
    if sizes:
        shapes = profile(signature, ranges(sizes))
        for end, name in enumerate(("min", "opt", "max")):
            options[f"trt_profile_{name}_shapes"] = ",".join(
                f"{tensor}:{'x'.join(map(str, ends[end]))}" for tensor, ends in shapes.items()
            )
    return options


def cache_folder(given: str | Path | None) -> Path:
    """Where engines go that ONNX Runtime's TensorRT provider builds: what the caller says, else
    `$INGOT_CACHE/onnxruntime-tensorrt`, else `~/.cache/ingot/onnxruntime-tensorrt`."""
    if given is not None:
        return Path(given)
    root = os.environ.get("INGOT_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "ingot") / "onnxruntime-tensorrt"


def require(chosen: Sequence[Provider]) -> None:
    """Raise EngineError for providers that the installed package does not have, with the package for each."""
    here = ort.get_available_providers()
    names = [entry if isinstance(entry, str) else entry[0] for entry in chosen]
    missing = [f"{name} ({HOW_TO_GET.get(name, 'not known to Ingot')})" for name in names if name not in here]
    if missing:
        raise EngineError(f"this onnxruntime has no {', '.join(missing)}; it has: {', '.join(here)}")


def devices() -> list[str]:
    """Devices whose provider is in the package and whose hardware may be here: the package for GPUs lists CUDA and
    TensorRT on machines without a GPU as well."""
    here = ort.get_available_providers()
    gpu = any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg")) or shutil.which("nvidia-smi") is not None
    present = {"cuda": gpu, "tensorrt": gpu, "coreml": sys.platform == "darwin"}
    return [name for name in BEST_FIRST if DEVICES[name][0] in here and present.get(name, True)]
