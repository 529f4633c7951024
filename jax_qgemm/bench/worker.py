"""The process of one library: prepares its programs and runs them when it is told to.

    python -m jax_qgemm.bench.worker MODULE ISA WEIGHTS_AS

Requests come as lines of JSON on stdin, each gets a line on stdout; `process.py` is the other end.
What libraries print goes to stderr.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from typing import TextIO

from jax_qgemm.bench.contestants import (
    CONTESTANTS,
    Contestant,
    WrongResultError,
    check,
    contest,
)
from jax_qgemm.bench.layers import make_layers
from jax_qgemm.bench.libraries.jitted import Jitted
from jax_qgemm.bench.shapes import Shape
from jax_qgemm.bench.timing import native_shares, time_calls
from jax_qgemm.config import config

_OWN = {contestant.name for contestant in CONTESTANTS if contestant.own}


class Worker:
    """Answers requests. `modules` as described in `libraries`."""

    def __init__(self, module):
        self._makers = module.PROGRAMS
        self._programs = {}

    def prepare(self, shape: list[int], layers: int, weights: str) -> dict[str, dict]:
        """Make the programs of a shape and check them; for each contestant its error or fault."""
        self._programs.clear()
        drawn = make_layers(Shape(*shape), layers)
        return {c.name: self._make(c, drawn) for c in contest(weights) if c.name in self._makers}

    def _make(self, contestant: Contestant, drawn: list) -> dict:
        try:
            program = self._makers[contestant.name](drawn)
            found = {"error": check(contestant, drawn, program.results)}
        except WrongResultError as error:
            return {"wrong": str(error)}
        except Exception as error:  # whatever a library raises is the report's to tell
            return {"fault": f"{contestant.title}: {describe(error)}"}
        self._programs[contestant.name] = program
        return found

    def turn(self, contestant: str) -> dict[str, list[float]]:
        """Seconds of each call of one turn; of this library also parts within native calls."""
        program = self._programs[contestant]
        found = {"seconds": time_calls(program)}
        if contestant in _OWN:
            found["native"] = native_shares(program)
        return found


def describe(error: BaseException) -> str:
    """An exception in a line."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


def serve(worker: Worker, requests: TextIO, answers: TextIO) -> None:
    """Until there are no more requests: {"do": method, argument: value, …} → {"answer": value}."""
    for line in requests:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        print(json.dumps({"answer": answer}), file=answers, flush=True)


def _die_with_parent() -> None:
    """Also while stopped, when the end of its requests would go unnoticed. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    module, isa, weights_as = sys.argv[1:]
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    config.max_isa = isa
    Jitted.weights_as = weights_as
    loaded = importlib.import_module(module)
    print(json.dumps({"answer": getattr(loaded, "VERSION", "")}), file=answers, flush=True)
    serve(Worker(loaded), sys.stdin, answers)


if __name__ == "__main__":
    main()
