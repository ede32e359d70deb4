"""Opening an ONNX Runtime session, and opening it again with other weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from ..errors import EngineError
from ._onnx_providers import Provider
from ._onnx_weights import Stored, exchange, stored_weights
from ._weights import Change

# Providers that compile the graph from its file or keep what they compiled, whatever the session's weights are by then.
COMPILING = ("TensorrtExecutionProvider", "OpenVINOExecutionProvider", "CoreMLExecutionProvider")


@dataclass(frozen=True)
class Origin:
    """What a session was opened from, to open it again: the file, its providers, and how its options are made (None: they
    are the caller's, who alone can make them)."""

    file: Path
    providers: Sequence[Provider]
    options: Callable[[], ort.SessionOptions] | None

    def weights(self) -> dict[str, list[Stored]]:
        """The weights that can be exchanged. Raises EngineError where none can."""
        compiling = [name for one in self.providers if (name := one if isinstance(one, str) else one[0]) in COMPILING]
        if compiling:
            raise EngineError(
                f"{compiling[0]} compiles weights into its own graph, where they cannot be exchanged; open the bundle on cpu "
                "or cuda, or export with the LoRA in it (--lora)"
            )
        if self.options is None:
            raise EngineError(
                "the graph was opened with session_options, which cannot be made again for other weights; leave them out"
            )
        return stored_weights(self.file)

    def session(self, changes: Mapping[str, Change]) -> ort.InferenceSession:
        """A session with these weights changed."""
        assert self.options is not None
        options = self.options()
        model, held = exchange(self.file, changes, options) if changes else (os.fspath(self.file), [])
        session = open_session(self.file, self.providers, options, model)
        session.ingot_held = held  # ONNX Runtime reads these where they lie, for as long as the session lives
        return session


def open_session(
    file: Path, chosen: Sequence[Provider], options: ort.SessionOptions, model: str | bytes | None = None
) -> ort.InferenceSession:
    """A session of the file, or of what stands for it."""
    try:
        # without fallback: a CUDA library that does not load must not turn into a silent run on the CPU
        session = ort.InferenceSession(model or os.fspath(file), options, providers=chosen, enable_fallback=0)
    except Exception as error:  # as in run: no common base class
        raise EngineError(f"ONNX Runtime {ort.__version__} cannot open {file}: {error}") from error
    wanted = chosen[0] if isinstance(chosen[0], str) else chosen[0][0]
    if wanted not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime could not start {wanted}; the session has only {', '.join(session.get_providers())}"
        )
    return session
