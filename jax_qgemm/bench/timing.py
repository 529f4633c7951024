"""Timing contestants in alternation."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from jax_qgemm import native

_WARM_UP = 10e-3  # seconds that a program runs before its calls count
_TURN = 20e-3  # seconds that they count before the next program has its turn
_NATIVE = 10e-3  # seconds of the same turn in which its native calls are timed
_MIN_ROUNDS = 5


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
    turns: Mapping[str, Callable[[], list[float]]],
    seconds: float,
    rounds: int | None = None,
    between: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Give turns, A B C C B A A B C …, so that a busy machine slows all alike.

    Every second round goes backwards: who ran before leaves traces in caches and memory.

    Args:
      turns: what gives a contestant its turn and returns the seconds of each call in it.
      seconds: how long to go on, for each contestant on average.
      rounds: how many turns each gets instead.
      between: called after every turn.

    Returns:
      The seconds of all calls of each.
    """
    samples: dict[str, list[float]] = {name: [] for name in turns}
    end = time.perf_counter() + seconds * len(turns)
    done = 0
    while done < rounds if rounds else done < _MIN_ROUNDS or time.perf_counter() < end:
        for name, turn in list(turns.items())[:: -1 if done % 2 else 1]:
            samples[name] += turn()
            between()
        done += 1
    return samples


def time_calls(program: Callable[[], object]) -> list[float]:
    """One turn: seconds of each call in some milliseconds, at least one.

    The first calls do not count: they bring back the program's own data into the caches, wake its
    threads and the CPU from its rest. After a pause of 30 ms it took 2 to 4 ms until calls were as
    fast as they become.
    """
    _call_for(_WARM_UP, program)
    return _call_for(_TURN, program)


def native_shares(program: Callable[[], object]) -> list[float]:
    """Of some calls of a warm program the part of their time within this library's native calls.

    What is left is what JAX takes to make them. To look at the clock in each of them takes time, so
    these calls are no others' measure. Empty for a program that makes none.
    """
    if native.extension is None:
        return []
    spent = native.extension.seconds_in_calls
    native.extension.set_add_times(True)
    try:
        totals = [spent()]
        calls = _call_for(_NATIVE, lambda: program() or totals.append(spent()))
    finally:
        native.extension.set_add_times(False)
    within = [after - before for before, after in itertools.pairwise(totals)]
    return [part / whole for part, whole in zip(within, calls, strict=True) if part]


def _call_for(seconds: float, program: Callable[[], object]) -> list[float]:
    calls: list[float] = []
    while sum(calls) < seconds:
        start = time.perf_counter()
        program()
        calls.append(time.perf_counter() - start)
    return calls
