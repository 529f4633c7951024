"""What a benchmark found, and the numbers that follow from it."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from collections.abc import Sequence

import jax
import jaxlib
import numpy as np

from jax_qgemm import native
from jax_qgemm.bench.contestants import WEIGHTS_AS, Contestant, contest
from jax_qgemm.bench.machine import threads
from jax_qgemm.bench.shapes import Shape
from jax_qgemm.bench.timing import Timing
from jax_qgemm.config import config
from jax_qgemm.version import __version__

_DRIFT = 0.05  # of the peak: more is worth a warning
_FEW_ROWS = 16  # up to this M the weights' bytes decide


@dataclasses.dataclass(frozen=True)
class Result:
    """One contestant at one shape.

    Attributes:
      error: as measured by `contestants.check`.
      peak: GOPS of the machine's peak, the median of samples taken between the turns at this
        shape; None where it is not known.
      peak_of: the arithmetic whose peak that is.
      native: the part of the time within this library's native calls, the median; the rest is what
        JAX takes to make them. None for others.
    """

    shape: Shape
    layers: int
    contestant: Contestant
    timing: Timing
    error: float
    peak: float | None
    peak_of: str = "int8"
    native: float | None = None

    @property
    def gops(self) -> float:
        """10⁹ operations a second, at the median."""
        return self.shape.operations / self.timing.median / 1e9

    @property
    def weight_rate(self) -> float | None:
        """10⁹ bytes of weights a second; None where M is so large that it says nothing."""
        if self.shape.m > _FEW_ROWS:
            return None
        _, element, _ = self.contestant.element_bytes
        return self.shape.n * self.shape.k * element / self.timing.median / 1e9

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: operations for each byte of x, weight and result."""
        return self.shape.operations / self.contestant.bytes_moved(self.shape)

    @property
    def part_of_peak(self) -> float | None:
        """The part of the peak that a contestant with its arithmetic reaches."""
        alike = self.contestant.arithmetic == self.peak_of
        return self.gops / self.peak if self.peak and alike else None

    @property
    def native_part_of_peak(self) -> float | None:
        """That of the native calls alone."""
        whole = self.part_of_peak
        return whole / self.native if whole and self.native else None


@dataclasses.dataclass(frozen=True)
class Report:
    """All results, and where they were measured.

    Attributes:
      bandwidth: 10⁹ bytes a second that all threads read from memory, the best over the run.
      asked: how many shapes were to be timed; at some there may be no result.
      notes: on contestants that were not timed.
      weights: whose contest it was.
      weights_as: what they were of programs in JAX.
    """

    results: tuple[Result, ...]
    environment: dict[str, str]
    bandwidth: float
    asked: int
    notes: tuple[str, ...] = ()
    weights: str = "int8"
    weights_as: str = WEIGHTS_AS[0]

    @property
    def peaks(self) -> tuple[float, ...]:
        """The machine's peak at each shape, GOPS; empty where it is not known."""
        firsts = (next(iter(self.at(shape).values())) for shape in self.shapes)
        return tuple(result.peak for result in firsts if result.peak)

    @property
    def peak(self) -> float | None:
        """The best of `peaks`."""
        return max(self.peaks, default=None)

    @property
    def drift(self) -> float:
        """How far the peaks are apart, as a part of the best."""
        return 1 - min(self.peaks) / max(self.peaks) if self.peaks else 0.0

    @property
    def unsteady(self) -> bool:
        """Whether the machine was too busy for its times to be trusted."""
        above = any((result.part_of_peak or 0) > 1 + _DRIFT for result in self.results)
        return self.drift > _DRIFT or above

    @property
    def complete(self) -> bool:
        """Whether this library was timed at every shape asked for, by all that it offers."""
        offered = sum(contestant.own for contestant in contest(self.weights))
        timed = sum(result.contestant.own for result in self.results)
        return timed == offered * self.asked

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Each shape once, in the order measured."""
        return tuple(dict.fromkeys(result.shape for result in self.results))

    def at(self, shape: Shape) -> dict[str, Result]:
        """The results of one shape by the contestant's name."""
        return {r.contestant.name: r for r in self.results if r.shape == shape}

    def speedups(self, result: Result) -> dict[str, float]:
        """How many times faster than each rival timed at its shape; empty for those themselves."""
        return {
            name: other.timing.median / result.timing.median
            for name, other in self.at(result.shape).items()
            if result.contestant.rivals(other.contestant)
        }

    def to_json(self) -> dict:
        """Everything as plain values; times in microseconds per layer, parts as numbers ≤ 1."""
        return {
            "environment": self.environment,
            "weights": self.weights,
            "weights_as": self.weights_as,
            "peaks_gops": list(self.peaks),
            "bandwidth_gb_per_s": self.bandwidth,
            "unsteady": self.unsteady,
            "not_timed": list(self.notes),
            "results": [
                {
                    "shape": dict(result.shape._asdict()),
                    "layers": result.layers,
                    "contestant": result.contestant.name,
                    "median_us": result.timing.median * 1e6,
                    "best_us": result.timing.best * 1e6,
                    "spread": result.timing.spread,
                    "calls": result.timing.calls,
                    "gops": result.gops,
                    "ops_per_byte": result.intensity,
                    "part_of_peak": result.part_of_peak,
                    "native_part_of_time": result.native,
                    "native_part_of_peak": result.native_part_of_peak,
                    "weight_gb_per_s": result.weight_rate,
                    "speedup_over": self.speedups(result),
                    "error": result.error,
                }
                for result in self.results
            ],
        }


def geometric_mean(values: list[float]) -> float:
    """The mean for ratios."""
    return math.exp(sum(map(math.log, values)) / len(values))


def environment(peers: Sequence[str] = ()) -> dict[str, str]:
    """The machine and the versions, also those of the peers, for the head of the report."""
    cpu = native.cpu_info()
    caches = ", ".join(f"{c.upper()} {cpu[c] // 1024} KiB" for c in ("l1d", "l2", "l3") if cpu[c])
    isa = f"{cpu['isa_selected']} (available: {', '.join(cpu['isa_available']) or 'none'}"
    versions = (
        f"jax-qgemm {__version__}",
        f"jax {jax.__version__}",
        f"jaxlib {jaxlib.__version__}",
        f"numpy {np.__version__}",
        f"Python {platform.python_version()}",
    )
    found = {
        "CPU": ", ".join(filter(None, (cpu["brand"] or platform.machine(), caches))),
        "ISA": f"{isa}; ceiling: {config.max_isa})",
        "threads": str(threads()),
        "load": f"{os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else "",
        "versions": ", ".join((*versions, *peers)),
        "system": f"{platform.system()} {platform.release()}, {platform.libc_ver()[0]} "
        f"{platform.libc_ver()[1]}",
    }
    return {name: value.strip() for name, value in found.items() if value.strip()}
