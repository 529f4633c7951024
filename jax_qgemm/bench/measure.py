"""The run: a worker for each library, all contestants in turns at each shape."""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax_qgemm.bench import machine
from jax_qgemm.bench.contestants import WEIGHTS, WEIGHTS_AS, WrongResultError, contest
from jax_qgemm.bench.libraries import Library
from jax_qgemm.bench.process import Process, WorkerError
from jax_qgemm.bench.results import Report, Result, environment
from jax_qgemm.bench.shapes import Shape
from jax_qgemm.bench.timing import Timing, alternate
from jax_qgemm.config import config


def measure(
    shapes: Sequence[Shape],
    libraries: Sequence[Library],
    layers: int,
    seconds: float,
    rounds: int | None = None,
    notes: Iterable[str] = (),
    weights: str = "int8",
    weights_as: str = WEIGHTS_AS[0],
) -> Report:
    """Check and time all contestants of the libraries on up to `layers` layers of each shape.

    Progress goes to stderr. A library whose process fails is left out from there on, with a note.

    Args:
      notes: what the report is to say besides on contestants not timed.
      weights: whose contest it is, of `WEIGHTS`.
      weights_as: what they are of programs in JAX, of `WEIGHTS_AS`.

    Raises:
      WrongResultError: this library does not compute the product.
    """
    with Team(libraries, notes, weights, weights_as) as team:
        found = environment(team.versions)
        bandwidth = machine.Bandwidth()
        results: list[Result] = []
        rates: list[float] = []
        for i, shape in enumerate(shapes, 1):
            print(f"[{i}/{len(shapes)}] {shape}", file=sys.stderr, flush=True)
            results += team.measure(shape, layers, seconds, rounds)
            rates.append(bandwidth.measure())
    asked, noted = len(shapes), tuple(team.notes)
    return Report(tuple(results), found, max(rates), asked, noted, weights, weights_as)


class Team:
    """The workers of all libraries, in a `with`, whose end ends them.

    Attributes:
      notes: on what is not timed, and why.
      versions: of the libraries, where they say one.
    """

    def __init__(
        self,
        libraries: Sequence[Library],
        notes: Iterable[str] = (),
        weights: str = "int8",
        weights_as: str = WEIGHTS_AS[0],
    ):
        self.notes = list(notes)
        self.versions: list[str] = []
        self._weights, self._weights_as = weights, weights_as
        self._libraries = {library.name: library for library in libraries}
        self._workers: dict[str, Process] = {}

    def __enter__(self) -> Team:
        try:
            for library in self._libraries.values():  # all import at the same time
                self._workers[library.name] = Process(
                    library.module, config.max_isa, self._weights_as
                )
            for name in self._libraries:
                version = self._ask(name, Process.wait_until_ready)
                if version and version not in self.versions:
                    self.versions.append(version)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for worker in self._workers.values():
            worker.close()

    def measure(
        self, shape: Shape, layers: int, seconds: float, rounds: int | None
    ) -> list[Result]:
        """One shape; see the function `measure`."""
        count = shape.layers(layers)
        errors = self._prepare(shape, count)
        racing = {c.name: c for c in contest(self._weights) if c.name in errors}
        native: dict[str, list[float]] = {name: [] for name in racing}
        turns = {
            name: functools.partial(self._turn, c.library, name, shape, native[name])
            for name, c in racing.items()
        }
        peaks: list[float | None] = []
        arithmetic = WEIGHTS[self._weights]
        samples = alternate(
            turns, seconds, rounds, lambda: peaks.append(machine.measure_peak(arithmetic))
        )
        peak = statistics.median(known) if (known := list(filter(None, peaks))) else None
        return [
            Result(
                shape,
                count,
                c,
                Timing.of(samples[name], count),
                errors[name],
                peak,
                arithmetic,
                native=statistics.median(native[name]) if native[name] else None,
            )
            for name, c in racing.items()
            if c.library in self._workers
        ]

    def _prepare(self, shape: Shape, count: int) -> dict[str, float]:
        """The errors of those contestants that compute the product."""
        errors = {}
        for library in list(self._workers):
            found = self._ask(library, Process.prepare, shape, count, self._weights, at=shape)
            for name, answer in (found or {}).items():
                if "error" in answer:
                    errors[name] = answer["error"]
                elif "wrong" in answer and library == "own":
                    raise WrongResultError(answer["wrong"])
                else:
                    self.notes.append(f"{answer.get('wrong') or answer['fault']}, at {shape}")
        return errors

    def _turn(
        self, library: str, contestant: str, shape: Shape, native: list[float]
    ) -> list[float]:
        answer = self._ask(library, Process.turn, contestant, at=shape) or {}
        native += answer.get("native", [])
        return answer.get("seconds", [])

    def _ask(self, library: str, request: Callable, *arguments, at: Shape | None = None) -> Any:
        """What the worker answers; None once it has failed."""
        if library not in self._workers:
            return None
        try:
            return request(self._workers[library], *arguments)
        except WorkerError as error:
            self._workers.pop(library).close()
            place = f" from {at} on" if at else ""
            self.notes.append(f"{self._libraries[library].title}{place}: {error}")
            return None
