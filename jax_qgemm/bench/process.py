"""A worker's process as its parent sees it: asked one thing at a time, stopped in between.

Threads of most libraries spin for a while after their work. A process that is stopped (SIGSTOP)
takes nothing from those that run after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from typing import Any

from jax_qgemm.bench.contestants import WEIGHTS_AS
from jax_qgemm.bench.shapes import Shape

_START, _PREPARE, _TURN = 120.0, 600.0, 120.0  # seconds until a worker counts as hung

# For every library. glibc would take the memory of large results from the system anew at each call,
# page by page, which costs as much as a fifth of a product; libraries with an arena do not see it.
_MEMORY = {name: str(1 << 32) for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")}


class WorkerError(RuntimeError):
    """The worker died or hangs; the message says how."""


class Process:
    """The worker of one library; `close` it in the end."""

    def __init__(self, module: str, isa: str, weights_as: str = WEIGHTS_AS[0]):
        """Start it: `wait_until_ready` comes next.

        Args:
          isa: the highest that kernels may use.
          weights_as: of programs in JAX, see `Jitted`.
        """
        self._log = tempfile.TemporaryFile(  # noqa: SIM115, closed by `close`
            "w+", encoding="utf-8", errors="replace"
        )
        # With the same package as here, which a checkout in the folder may hide.
        flags = ["-P"] if sys.flags.safe_path else []
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-m", "jax_qgemm.bench.worker", module, isa, weights_as],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            encoding="utf-8",
            env=_MEMORY | os.environ | {"JAX_PLATFORMS": "cpu"},  # also where there is a GPU
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Kill the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # what it did not read before it died
            self._process.stdin.close()
        self._log.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def wait_until_ready(self, timeout: float = _START) -> str:
        """Wait until the library is imported; returns its version, "" if it says none.

        This and the other requests raise WorkerError.
        """
        return self._answer(timeout)

    def prepare(
        self, shape: Shape, layers: int, weights: str = "int8", timeout: float = _PREPARE
    ) -> dict[str, dict]:
        """`Worker.prepare`."""
        return self._ask(timeout, do="prepare", shape=shape, layers=layers, weights=weights)

    def turn(self, contestant: str, timeout: float = _TURN) -> dict[str, list[float]]:
        """`Worker.turn`."""
        return self._ask(timeout, do="turn", contestant=contestant)

    def _ask(self, timeout: float, **request) -> Any:
        self._process.send_signal(signal.SIGCONT)
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._died() from None
        return self._answer(timeout)

    def _answer(self, timeout: float) -> Any:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise WorkerError(f"no answer within {timeout:g} s") from None
        if not line:
            raise self._died()
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)["answer"]

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")  # the end

    def _died(self) -> WorkerError:
        status = self._process.wait()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        self._log.seek(0)
        return WorkerError(": ".join([f"its process ended with {how}", *_last_words(self._log)]))


def _last_words(log: Iterable[str]) -> list[str]:
    """The line of the last exception, else the last line, if there is one."""
    last: list[str] = []
    exception: list[str] = []
    inside = False  # a traceback, whose lines are indented
    for line in log:
        if line.startswith("Traceback "):
            inside = True
        elif inside and line.strip() and not line[0].isspace():
            exception, inside = [line.strip()], False
        last = [line.strip()] if line.strip() else last
    return exception or last
