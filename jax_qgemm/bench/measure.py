"""Timing programs in alternation, and the peak of the machine they run on."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_qgemm import native

_TURN = 5e-3  # seconds that a program runs before the next one has its turn
_MIN_ROUNDS = 5


class Program:
    """Several layers in one jitted function, called again and again on the same operands.

    A call writes its results over those of the call before (donated), so that the time holds
    no page faults of fresh memory.
    """

    def __init__(self, call: Callable[..., jax.Array], layers: Sequence[tuple[Any, ...]]):
        """Compile `[call(*operands) for operands in layers]` and run it once.

        Args:
          call: one layer in JAX.
          layers: operands of each layer, different in every one.
        """

        def run(results, layers):
            del results
            return [call(*operands) for operands in layers]

        self._run = jax.jit(run, donate_argnums=0, keep_unused=True)
        self._layers = list(layers)
        shapes = jax.eval_shape(lambda layers: run(None, layers), self._layers)
        self.results: list[jax.Array] = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        self()

    def __call__(self) -> float:
        """One call, waited for; returns the seconds it took."""
        start = time.perf_counter()
        self.results = self._run(self.results, self._layers)
        jax.block_until_ready(self.results)
        return time.perf_counter() - start

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self._layers)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per layer: median, minimum, and the 10th to 90th percentile over the median."""

    median: float
    best: float
    spread: float
    calls: int

    @classmethod
    def of(cls, samples: Sequence[float], layers: int) -> Timing:
        """From the seconds of each call of a program of `layers` layers."""
        ordered = sorted(samples)
        median = statistics.median(ordered)
        low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.1, 0.9))
        return cls(median / layers, ordered[0] / layers, (high - low) / median, len(ordered))


def alternate(
    programs: Mapping[str, Program],
    seconds: float,
    rounds: int | None = None,
    between: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time the programs in turns, A B C C B A A B C …, so that a busy machine slows all alike.

    Every second round goes backwards: who ran before leaves traces in caches and memory.

    In its turn a program runs for some milliseconds, at least twice. The first call does not
    count: it brings back the program's own data into the caches and wakes the threads.

    Args:
      seconds: how long to go on, for each program on average.
      rounds: how many turns each gets instead.
      between: called after every turn.
    """
    samples: dict[str, list[float]] = {name: [] for name in programs}
    end = time.perf_counter() + seconds * len(programs)
    done = 0
    while done < rounds if rounds else done < _MIN_ROUNDS or time.perf_counter() < end:
        order = list(programs.items())[:: -1 if done % 2 else 1]
        for name, program in order:
            samples[name] += _turn(program)
            between()
        done += 1
    return {name: Timing.of(samples[name], programs[name].depth) for name in programs}


def _turn(program: Program) -> list[float]:
    program()
    calls = [program()]
    while sum(calls) < _TURN:
        calls.append(program())
    return calls


def threads() -> int:
    """Threads that XLA's pool has: NPROC if set, else the CPUs this process may run on."""
    if os.environ.get("NPROC", "").isdecimal():
        return int(os.environ["NPROC"])
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measure_peak(seconds: float = 0.01) -> float | None:
    """Int8 GOPS of all threads in a loop on registers; None where the kernels have no such loop."""
    if native.extension is None:
        return None
    isa = native.cpu_info()["isa_selected"]
    return native.extension.measure_peak(isa, threads(), seconds) or None
