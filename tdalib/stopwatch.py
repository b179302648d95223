"""Seconds and memory of a call."""

from collections.abc import Callable
from threading import Event, Thread
from time import perf_counter
from typing import NamedTuple

import psutil
import torch

from tdalib.workers import free_memory


class Cost(NamedTuple):
    """Seconds, and the highest memory in GB."""

    seconds: float
    memory: float

    def times(self, count: float) -> "Cost":
        """That of so many calls one after another."""
        return Cost(self.seconds * count, self.memory)


def timed(call: Callable, on_gpu: bool) -> Cost:
    """The cost of a call; its memory is that of this process meanwhile, or of the GPU."""
    free_memory()
    seen, done = [_memory(on_gpu)], Event()

    def watch():
        while not done.wait(0.005):
            seen.append(_memory(on_gpu))

    thread = Thread(target=watch, daemon=True)
    thread.start()
    start = perf_counter()
    try:
        call()
        seconds = perf_counter() - start
    finally:
        done.set()
        thread.join()
    return Cost(seconds, max(seen))


def _memory(on_gpu: bool) -> float:
    """GB that this process takes now; on a GPU, of the GPU's."""
    return (torch.cuda.memory_reserved() if on_gpu else psutil.Process().memory_info().rss) / 1e9
