"""Text to token ids, with the `tokenizers` library alone."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, InputError
from .late import Late

if TYPE_CHECKING:
    import tokenizers
else:
    tokenizers = Late("tokenizers")

_log = logging.getLogger("ingot")

# bytes that UTF-8 has nowhere (RFC 3629, section 1), as a byte-level vocabulary writes them
NEVER_IN_UTF8 = "".join(map(chr, (0xC0, 0xC1, *range(0xF5, 0x100))))
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Tokenizer:
    """A `tokenizer.json` whose padding and truncation are those of the checkpoint's tokenizer.

    A token that was added with several vectors, `<cat>` beside `<cat>_1`, `<cat>_2`, stands for all of them, as in
    diffusers.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{file} is not a tokenizer: {error}") from error
        if self._tokenizer.truncation is None or self._tokenizer.padding is None:
            raise BundleError(f"{file} does not say how to pad and truncate")
        self.length: int = self._tokenizer.truncation["max_length"]
        self.pad: int = self._tokenizer.padding["pad_id"]
        self._rows: dict[int, int] = {}  # of tokens that were added here: their rows in the encoder's table
        self._find_several()

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Ids, (len(prompts), length). What does not fit is cut, with a warning that names it."""
        texts = [self._written_out(prompt) for prompt in prompts]
        encodings = self._tokenizer.encode_batch(texts)
        for text, encoding in zip(texts, encodings, strict=True):
            if encoding.overflowing:
                self.warn_of_cut(text[max(stop for _, stop in encoding.offsets) :])
        return np.array([self._in_table(encoding.ids) for encoding in encodings], dtype=np.int64)

    def whole(self, text: str) -> list[int]:
        """The ids of a text alone: neither cut nor padded, without a beginning and an end."""
        return self._in_table(self._plain.encode(self._written_out(text), add_special_tokens=False).ids)

    @cached_property
    def ends(self) -> tuple[int, int]:
        """The ids that a text begins and ends with. Raises InputError for a tokenizer that does not put one at each end."""
        ids = self._plain.encode("").ids
        if len(ids) != 2:
            raise InputError(
                f"this model's tokenizer puts {len(ids)} tokens around a text, not a beginning and an end as CLIP's does: weights "
                "and long prompts are for CLIP's"
            )
        return ids[0], ids[1]

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, near what was written."""
        return str(self._tokenizer.decode(list(ids)))

    def masked(self, prompts: Sequence[str], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of another length, and 1 where they are not padding: (len(prompts), length) each. What does not fit is cut
        before the one end token, with a warning that names it."""
        ids = np.full((len(prompts), length), self.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            row = self._in_table(self._plain.encode(self._written_out(prompt)).ids)
            if len(row) > length:
                self.warn_of_cut(self.text(row[length - 1 : -1]), length)
                row = row[: length - 1] + row[-1:]
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask

    def warn_of_cut(self, rest: str, length: int | None = None) -> None:
        """Say what part of a prompt did not fit."""
        _log.warning(
            "the prompt is longer than %d tokens; this part of it was cut: %r", length or self.length, rest.strip()
        )

    def add(self, token: str, rows: Sequence[int]) -> None:
        """Add a token whose vectors stand in these rows of the encoder's table. Raises InputError for one that it has."""
        if self._tokenizer.token_to_id(token) is not None or not token or token != token.strip():
            raise InputError(
                f"the token {token!r} cannot be added: it is empty, or the tokenizer has it; give another name"
            )
        names = [token, *(f"{token}_{i}" for i in range(1, len(rows)))]
        self._tokenizer.add_tokens([tokenizers.AddedToken(name, normalized=True) for name in names])
        for name, row in zip(names, rows, strict=True):
            added = self._tokenizer.token_to_id(name)
            assert added is not None  # as of the line above
            self._rows[added] = row
        self.__dict__.pop("_plain", None)
        self._find_several()

    def unused(self) -> list[int]:
        """Ids that no text can give: of bytes that UTF-8 has nowhere and, where letters are made small, of capitals.

        A CLIP vocabulary has 78 of them. Empty for a tokenizer that does not work on bytes.
        """
        said = json.loads(self._tokenizer.to_str())
        if said["model"].get("type") != "BPE" or "ByteLevel" not in json.dumps(said["pre_tokenizer"]):
            return []
        lowers = '"Lowercase"' in json.dumps(said["normalizer"])
        never = set(NEVER_IN_UTF8 + (CAPITALS if lowers else ""))
        added = {token["content"] for token in said["added_tokens"]}
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        free = [id for token, id in vocabulary.items() if token not in added and never & set(token)]
        return sorted(set(free) - set(self._rows.values()))

    @cached_property
    def _plain(self) -> Any:
        """The tokenizer without cutting and padding."""
        plain = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        plain.no_truncation()
        plain.no_padding()
        return plain

    def _find_several(self) -> None:
        added = self._tokenizer.get_added_tokens_decoder().values()
        names = {token.content for token in added if not token.special}
        self._several = {name: _vectors(name, names) for name in names if f"{name}_1" in names}
        longest = sorted(self._several, key=len, reverse=True)
        self._pattern = re.compile(f"(?:{'|'.join(map(re.escape, longest))})(?!_[0-9])") if longest else None

    def _written_out(self, text: str) -> str:
        return self._pattern.sub(lambda found: self._several[found[0]], text) if self._pattern else text

    def _in_table(self, ids: list[int]) -> list[int]:
        return [self._rows.get(id, id) for id in ids] if self._rows else ids


def _vectors(name: str, names: set[str]) -> str:
    """Every token of one that has several vectors."""
    several = [name]
    while (following := f"{name}_{len(several)}") in names:
        several.append(following)
    return " ".join(several)
