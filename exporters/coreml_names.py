"""What Apple's Swift package calls the models, their inputs and their outputs, and the layouts that it feeds them.

Read off ml-stable-diffusion at e12202c: `StableDiffusionPipeline+Resources.swift` and `StableDiffusionXL+Resources.swift` for
the models, `Unet.swift`, `TextEncoder.swift`, `TextEncoderXL.swift`, `Decoder.swift`, `Encoder.swift`, `ControlNet.swift` and
`SafetyChecker.swift` for the features. It feeds float32 arrays everywhere, token ids among them, which Core ML casts to what
a model declares, and reads ControlNet's outputs as float32 without a cast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ingot.runtimes.engines._coreml import Feature
from ingot.runtimes.signature import Signature, TensorSpec

PACKAGES = {
    "text_encoder": "TextEncoder",
    "text_encoder_2": "TextEncoder2",
    "unet": "Unet",
    "vae_decoder": "VAEDecoder",
    "vae_encoder": "VAEEncoder",
    "controlnet": "ControlNet",
    "safety_checker": "SafetyChecker",
}
SAFETY_SCORES = "SafetyScores"
# By role, else for every role: ours to Apple's.
INPUTS = {("vae_decoder", "latent_sample"): "z", ("vae_encoder", "sample"): "x"}
OUTPUTS = {
    ("unet", "out_sample"): "noise_pred",
    ("vae_decoder", "sample"): "image",
    ("vae_encoder", "latent_parameters"): "latent",
}
POOLED = ("pooler_output", "text_embeds")  # of a text encoder without and with a projection
DOWN_RESIDUALS = ("down_block_additional_residuals", "down_block_res_samples")
MID_RESIDUALS = ("mid_block_additional_residual", "mid_block_res_sample")
# Half precision holds integers up to 2048 and a timestep of 946.42 as 946.5; the rest of a float16 package takes float16.
# A default can be given in float32 only.
FLOAT32_INPUTS = ("timestep", "time_ids", "input_ids", "conditioning_scale")


def package_name(role: str, signature: Signature) -> str:
    """`Unet`, or `ControlledUnet` for one that takes a ControlNet's residuals; other roles in capitals: `ImageEncoder`."""
    if role == "safety_checker" and not any(spec.name == "images" for spec in signature.inputs):
        return SAFETY_SCORES  # beside Apple's, which takes pictures
    name = PACKAGES.get(role) or "".join(word.capitalize() for word in role.split("_"))
    controlled = any(spec.name.startswith(DOWN_RESIDUALS) for spec in signature.inputs)
    return f"Controlled{name}" if controlled else name


def inputs(role: str, signature: Signature, floats: str) -> dict[str, Feature]:
    """Each input of a graph as the package has it, its floats in the dtype `floats`."""
    names = _residuals(signature.inputs)

    def feature(spec: TensorSpec) -> Feature:
        name = INPUTS.get((role, spec.name)) or names.get(spec.name) or identifier(spec.name)
        dtype = "float32" if spec.name in FLOAT32_INPUTS else floats if spec.dtype.startswith("float") else "int32"
        return Feature(name, dtype, _layout(spec))

    return {spec.name: feature(spec) for spec in signature.inputs}


def outputs(role: str, signature: Signature) -> dict[str, str]:
    """The package's name of each output."""
    names = _residuals(signature.outputs)
    hidden = [spec.name for spec in signature.outputs if spec.name.startswith("hidden_states.")]
    if len(hidden) > 1:
        names[hidden[-2]] = "hidden_embeds"  # what SDXL takes of both its text encoders
    pooled = [spec.name for spec in signature.outputs if spec.name in POOLED]
    if hidden and pooled:
        names[pooled[0]] = "pooled_outputs"
    return {
        spec.name: OUTPUTS.get((role, spec.name)) or names.get(spec.name) or identifier(spec.name)
        for spec in signature.outputs
    }


def identifier(name: str) -> str:
    """A name as Core ML allows it: letters, digits and underscores."""
    return re.sub(r"\W", "_", name)


def _layout(spec: TensorSpec) -> str:
    if spec.name == "encoder_hidden_states" and len(spec.shape) == 3:
        return "channels_first"
    if not spec.shape:
        return "rows" if spec.name == "timestep" else "one"
    return "same"


def _residuals(specs: Iterable[TensorSpec]) -> dict[str, str]:
    """A ControlNet's residuals are counted through, the middle one last."""
    found = [spec.name for spec in specs if spec.name.startswith((*DOWN_RESIDUALS, *MID_RESIDUALS))]
    return {name: f"additional_residual_{index}" for index, name in enumerate(found)}
