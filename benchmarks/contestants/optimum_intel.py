"""optimum-intel: diffusers' loop over OpenVINO. The model is the folder that `optimum-cli export openvino` wrote.

Options: precision = f32 | bf16 | f16, OpenVINO's INFERENCE_PRECISION_HINT; without it the plugin chooses by the processor.
static = true fixes the graphs to the job's size and batch before they are compiled; as it comes, they take any.
"""

from __future__ import annotations

from ._diffusers_loop import Loop, check, prepare
from .measure import Clock, Task

PACKAGES = ("optimum-intel", "optimum", "openvino", "diffusers", "transformers", "torch", "nncf")
OPTIONS = ("precision", "static")


def load_libraries() -> None:
    """OpenVINO, and diffusers with torch, which its pipelines inherit."""
    import openvino  # noqa: F401
    from optimum.intel import OVDiffusionPipeline  # type: ignore[import-not-found]  # is in an environment of its own  # noqa: F401


def open_model(task: Task, clock: Clock) -> Loop:
    """The graphs compiled for the CPU: optimum compiles them all when it opens them."""
    check(task, OPTIONS)
    import torch
    from optimum.intel import OVDiffusionPipeline

    torch.set_num_threads(task.threads)
    static = bool(task.options.get("static", False))
    pipe = OVDiffusionPipeline.from_pretrained(
        task.model,
        device="CPU",
        ov_config=settings(task),
        compile=not static,
        local_files_only=True,
        safety_checker=None,
    )
    if static:
        pipe.reshape(batch_size=task.batch, height=task.height, width=task.width, num_images_per_prompt=1)
        pipe.compile()
    chosen = pipe.unet.request.get_property("INFERENCE_PRECISION_HINT").to_string()
    prepare(pipe, task, clock)
    return Loop(pipe, task, [task.model], notes(task, chosen))


def settings(task: Task) -> dict[str, str]:
    """OpenVINO's properties."""
    asked = {"INFERENCE_NUM_THREADS": str(task.threads)}
    if "precision" in task.options:
        asked["INFERENCE_PRECISION_HINT"] = str(task.options["precision"])
    return asked


def notes(task: Task, chosen: str) -> list[str]:
    """What differs from how the others run: sums that are not in float32, sizes that are fixed."""
    who = "asked for" if "precision" in task.options else "OpenVINO's own choice for this processor"
    found = [] if chosen == "f32" else [f"sums in {chosen}: {who}"]
    return found + (["graphs fixed to this size and batch"] if task.options.get("static", False) else [])
