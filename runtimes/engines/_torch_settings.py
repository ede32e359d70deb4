"""What torch keeps for the whole process, set for the time of a run and put back after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Switch:
    """A process-wide value that runs may want differently: those that agree run together, the others wait."""

    def __init__(self, read: Any, write: Any) -> None:
        self._read, self._write = read, write
        self._free = threading.Condition()
        self._runs = 0
        self._wanted: Any = None
        self.before: Any = None  # the first holder's: what is written when the last one leaves

    @contextmanager
    def held_at(self, wanted: Any) -> Iterator[None]:
        """The value for the time of the context; None does not care and does not wait."""
        if wanted is None:
            yield
            return
        with self._free:
            self._free.wait_for(lambda: not self._runs or self._wanted == wanted)
            if not self._runs:
                self.before, self._wanted = self._read(), wanted
                self._write(wanted)
            self._runs += 1
        try:
            yield
        finally:
            with self._free:
                self._runs -= 1
                if not self._runs:
                    self._write(self.before)
                    self._free.notify_all()


_cudnn: Any = torch.backends.cudnn  # `conv` is made at run time, where a type checker does not see it


def _read_tf32() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, _cudnn.conv.fp32_precision


def _write_tf32(wanted: bool | tuple[str, str]) -> None:
    # torch 2.9's names; mixing them with allow_tf32, the older one, makes torch raise when either is read
    matmul, conv = wanted if isinstance(wanted, tuple) else (("tf32", "tf32") if wanted else ("ieee", "ieee"))
    torch.backends.cuda.matmul.fp32_precision = matmul
    _cudnn.conv.fp32_precision = conv


tf32 = Switch(_read_tf32, _write_tf32)


_threads = Switch(torch.get_num_threads, torch.set_num_threads)


@contextmanager
def thread_count(wanted: int | None) -> Iterator[None]:
    """This many threads inside an operator."""
    if wanted is None:
        yield
        return
    with _threads.held_at(wanted):
        # The number is the process's, the pool behind it (OpenMP's) the calling thread's: each thread has to be told, and
        # to be told again when it leaves, whether or not it is the last. MKL's number is the process's: those who stay
        # finish their run with fewer of its threads.
        before = _threads.before
        torch.get_num_threads()  # a thread's first question takes over the process's number, which may change meanwhile
        torch.set_num_threads(wanted)
        try:
            yield
        finally:
            torch.set_num_threads(before)
