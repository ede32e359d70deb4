"""Text to token ids, with the `tokenizers` library alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as _Tokenizer

from .errors import BundleError

_log = logging.getLogger("ingot")


class Tokenizer:
    """A `tokenizer.json` whose padding and truncation are those of the checkpoint's tokenizer."""

    def __init__(self, file: Path) -> None:
        try:
            self._tokenizer = _Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{file} is not a tokenizer: {error}") from error
        if self._tokenizer.truncation is None or self._tokenizer.padding is None:
            raise BundleError(f"{file} does not say how to pad and truncate")
        self.length: int = self._tokenizer.truncation["max_length"]

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Ids, (len(prompts), length). What does not fit is cut, with a warning that names it."""
        encodings = self._tokenizer.encode_batch(list(prompts))
        for prompt, encoding in zip(prompts, encodings, strict=True):
            if encoding.overflowing:
                self._warn(prompt, encoding)
        return np.array([encoding.ids for encoding in encodings], dtype=np.int64)

    def _warn(self, prompt: str, encoding: Any) -> None:
        end = max(stop for _, stop in encoding.offsets)
        _log.warning(
            "the prompt is longer than %d tokens; this part of it was cut: %r", self.length, prompt[end:].strip()
        )
