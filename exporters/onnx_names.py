"""The names that graphs have on disk, where users' other tools expect another than the model's own.

optimum-onnx 0.1 (`modeling_diffusion.py`) feeds and reads its sessions by these names.
"""

from __future__ import annotations

from collections.abc import Container

_CONDITIONS = {"added_cond_kwargs.text_embeds": "text_embeds", "added_cond_kwargs.time_ids": "time_ids"}
INPUTS: dict[str, dict[str, str]] = {
    "unet": _CONDITIONS,
    "controlnet": _CONDITIONS,
    "vae_encoder": {"x": "sample"},
    "vae_decoder": {"z": "latent_sample", "x": "latent_sample"},  # the second is AutoencoderTiny's
}
OUTPUTS: dict[str, dict[str, str]] = {
    "unet": {"sample": "out_sample"},
    "transformer": {"sample": "out_hidden_states"},
    "vae_encoder": {
        "latent_dist.parameters": "latent_parameters",
        "latents": "latent_sample",
        "latent": "latent_sample",
    },
}


def input_name(role: str, name: str) -> str:
    """What the graph of `role` calls the argument `name`."""
    return INPUTS.get(role, {}).get(name, name)


def output_name(role: str, name: str, inputs: Container[str]) -> str:
    """What the graph of `role` calls the output field `name`; never an input's name, which no graph can hold twice."""
    renamed = OUTPUTS.get(role, {}).get(name, name)
    return f"out_{renamed}" if renamed in inputs else renamed
