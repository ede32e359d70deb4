"""What makes diffusers faster, each by itself: the rungs of diffusers' own published ladder for Stable Diffusion XL.

Source: diffusers' documentation, tutorials/fast_diffusion, and github.com/huggingface/diffusion-fast.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is imported by a contestant, within what is timed
    import torch

OPTIONS = ("attention", "fuse_qkv", "quantize", "channels_last", "tf32")
FLAGS = ("fuse_qkv", "channels_last", "tf32")
ATTENTION = ("sdpa", "math")
SCHEMES = ("int8-dynamic",)
LEAST = 16  # inputs: layers with as many or fewer stay in floats

# (inputs, outputs) of the linear layers of Stable Diffusion XL that were slower in int8 on an A100, as the source has them.
SLOWER = frozenset({
    (256, 128), (320, 640), (512, 256), (512, 512), (512, 1536), (640, 320), (640, 640), (640, 1280), (640, 1920), (640, 5120),
    (960, 320), (960, 640), (1280, 640), (1920, 640), (1920, 1280), (2048, 1280), (2048, 2560), (2560, 1280), (2816, 1280),
})  # fmt: skip
# The layers that see one row a picture, not one for each place of it: torch's product of int8 wants more than 16 rows on CUDA.
ONE_ROW = ("time_emb", "add_embedding")


def check_values(options: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that an option does not have, and for options that cannot be together."""
    for name, known in (("attention", ATTENTION), ("quantize", SCHEMES)):
        if name in options and options[name] not in known:
            raise ValueError(f"{name}={options[name]!r}; there is {', '.join(known)}")
    require_flags(options, FLAGS)
    if options.get("fuse_qkv") and options.get("attention") == "math":
        raise ValueError(
            "fuse_qkv=true with attention=math: diffusers' fused projections attend by SDPA; leave one out"
        )
    if options.get("tf32") and not _device(options).startswith("cuda"):
        raise ValueError(f"tf32=true is for NVIDIA's GPUs, and the device is {_device(options)}: leave it out")
    if "quantize" in options and importlib.util.find_spec("torchao") is None:
        raise ValueError(
            "quantize needs torchao, which this Python does not have: pip install 'torchao>=0.18' beside its torch"
        )


def require_flags(options: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise ValueError for a flag that is neither true nor false."""
    for name in names:
        if not isinstance(options.get(name, False), bool):
            raise ValueError(f"{name}={options[name]!r}: true or false is needed")


def require_device(options: Mapping[str, Any]) -> None:
    """Raise ValueError where torch does not find a GPU that is asked for: its own error does not say what would do."""
    import torch

    if _device(options).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={_device(options)}: torch {torch.__version__} finds no NVIDIA GPU here")


def configure(pipe: Any, options: Mapping[str, Any]) -> list[str]:
    """Make a pipeline as the options say, and tell what they changed. Raises ValueError where its parts cannot be so."""
    import torch

    notes = []
    if options.get("tf32"):
        torch.set_float32_matmul_precision("high")  # cuDNN's convolutions do it by themselves
        notes.append("factors of float32 products rounded to TF32")
    if options.get("attention") == "math":
        _attend_by_products(pipe)
        notes.append("attention as products and a softmax, without SDPA")
    if options.get("fuse_qkv"):
        pipe.fuse_qkv_projections()
        notes.append("queries, keys and values from one product")
    if options.get("channels_last"):
        for module in (pipe.unet, pipe.vae):
            module.to(memory_format=torch.channels_last)
        notes.append("channels last")
    if "quantize" in options:
        counts = [quantize(module) for module in (pipe.unet, pipe.vae)]
        done, there = (sum(numbers) for numbers in zip(*counts, strict=True))
        notes.append(f"int8 weights and activations in {done} of {there} linear layers, by torchao")
    return notes


def quantize(module: torch.nn.Module) -> tuple[int, int]:
    """Weights in int8 with a scale for each output, activations as they come with one for each row; how many linear layers,
    and of how many."""
    import torch

    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of GPU kernels that nothing here uses
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    from torchao.utils import should_reduce_range

    linear = {name: part for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
    chosen = {name for name, part in linear.items() if is_worth_it(name, part)}
    # torch's kernel for processors without VNNI adds pairs of products in 16 bits, which 7-bit numbers do not overflow
    narrow = should_reduce_range(next(module.parameters()).device)
    quantize_(module, Int8DynamicActivationInt8WeightConfig(reduce_range=narrow), lambda _, name: name in chosen)
    return len(chosen), len(linear)


def is_worth_it(name: str, layer: torch.nn.Linear) -> bool:
    """The published filter, and the layers left out that see one row a picture."""
    sizes = layer.in_features, layer.out_features
    return layer.in_features > LEAST and sizes not in SLOWER and not any(part in name for part in ONE_ROW)


def _attend_by_products(pipe: Any) -> None:
    for role in ("unet", "vae"):
        module = getattr(pipe, role)
        if not hasattr(module, "set_default_attn_processor"):
            raise ValueError(f"attention=math: the {role}, {type(module).__name__}, has no attention to be changed")
        module.set_default_attn_processor()


def _device(options: Mapping[str, Any]) -> str:
    return str(options.get("device", "cpu"))
