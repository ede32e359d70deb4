"""optimum-onnx: diffusers' loop over ONNX Runtime. The model is the folder that `optimum-cli export onnx` wrote."""

from __future__ import annotations

from ._diffusers_loop import Loop, check, prepare
from .measure import Clock, Task

PACKAGES = ("optimum-onnx", "optimum", "onnxruntime", "diffusers", "transformers", "torch")


def load_libraries() -> None:
    """ONNX Runtime, and diffusers with torch, which its pipelines inherit."""
    import onnxruntime  # noqa: F401
    from optimum.onnxruntime import ORTDiffusionPipeline  # type: ignore[import-not-found]  # is in an environment of its own  # noqa: F401


def open_model(task: Task, clock: Clock) -> Loop:
    """The graphs on ONNX Runtime's CPU provider, the loop's own arithmetic on as many threads."""
    check(task, ())
    import torch
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTDiffusionPipeline

    torch.set_num_threads(task.threads)
    settings = SessionOptions()
    settings.intra_op_num_threads = task.threads
    pipe = ORTDiffusionPipeline.from_pretrained(
        task.model, session_options=settings, provider="CPUExecutionProvider", local_files_only=True
    )
    prepare(pipe, task, clock)
    return Loop(pipe, task, [task.model])
