"""What the machine can do: its threads, its peak, the bandwidth of its memory."""

from __future__ import annotations

import concurrent.futures
import os
import time

import numpy as np

from jax_qgemm import native

_LEAST_BYTES = 256 << 20  # of the array that is read
_READS = 3
_PARTS = 8  # of the array for each thread, so that one that is late leaves its share to others


def threads() -> int:
    """Threads that XLA's pool has: NPROC if set, else the CPUs this process may run on."""
    if os.environ.get("NPROC", "").isdecimal():
        return int(os.environ["NPROC"])
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measure_peak(arithmetic: str, seconds: float = 0.01) -> float | None:
    """GOPS of all threads in a loop on registers; None where the kernels have no such loop.

    Args:
      arithmetic: "int8", "f32" or "bf16", that is f32 on a CPU without products of bf16.
    """
    if native.extension is None:
        return None
    isa = native.cpu_info()["isa_selected"]
    return native.extension.measure_peak(isa, arithmetic, threads(), seconds) or None


class Bandwidth:
    """Reads an array far larger than the last cache with all threads."""

    def __init__(self, size: int | None = None):
        """`size`: bytes of the array, by default from the size of the L3."""
        size = size or max(_LEAST_BYTES, 4 * native.cpu_info()["l3"])
        self._array = np.ones(size, np.uint8)  # written: pages that are only allocated read as one

    def measure(self) -> float:
        """10⁹ bytes a second, the best of a few reads."""
        parts = np.array_split(self._array, threads() * _PARTS)
        best = float("inf")
        with concurrent.futures.ThreadPoolExecutor(threads()) as pool:
            for _ in range(_READS):
                start = time.perf_counter()
                list(
                    pool.map(np.max, parts)
                )  # NumPy lets go of the GIL, and this one is vectorised
                best = min(best, time.perf_counter() - start)
        return self._array.size / best / 1e9
