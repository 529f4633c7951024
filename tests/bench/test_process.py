"""A worker seen from its parent: it answers, it fails, and it never outlives anyone."""

import contextlib
import pathlib
import subprocess
import sys
import time

import pytest

from jax_qgemm.bench.process import Process, WorkerError
from jax_qgemm.bench.shapes import Shape

TINY = Shape(3, 20, 70)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def started(module, isa="portable"):
    return contextlib.closing(Process(module, isa))


def state(pid):
    """As in /proc: R running, S sleeping, T stopped, Z ended; empty once it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@linux
def test_a_worker_answers_and_stands_still_in_between(library):
    code = """
    from jax_qgemm.config import config
    print("what libraries print is no answer")
    VERSION = f"fake of {config.max_isa}"
    PROGRAMS = {
        "xla_f32": lambda layers: Program(layers, lambda: time.sleep(1e-3)),
        "xla_bf16": lambda layers: Program(layers[::-1]),
        "xla_int8": lambda layers: layers.nothing,
    }
    """
    with started(library("fake", code)) as worker:
        assert worker.wait_until_ready() == "fake of portable"
        found = worker.prepare(TINY, 2)
        assert found["xla_f32"] == {"error": 0.0}
        assert found["xla_bf16"]["wrong"].startswith("XLA bf16 is off by")
        fault = "XLA int8 s8→u8: AttributeError: 'list' object has no attribute 'nothing'"
        assert found["xla_int8"] == {"fault": fault}
        for _ in range(2):
            turn = worker.turn("xla_f32")
            assert turn.keys() == {"seconds"}
            assert all(1e-3 <= seconds < 1 for seconds in turn["seconds"])
            assert wait_for(lambda: state(worker.pid) == "T")
    assert state(worker.pid) == ""


def test_a_library_that_cannot_be_imported(library):
    code = "raise ImportError('libmissing.so: cannot open\\nno such file')"
    with started(library("broken", code)) as worker:
        want = "ended with exit status 1: ImportError: libmissing.so: cannot open"
        with pytest.raises(WorkerError, match=want):
            worker.wait_until_ready()
        with pytest.raises(WorkerError, match=want):
            worker.turn("dot")


def test_a_worker_that_dies_or_hangs_says_so(library):
    code = """
    PROGRAMS = {
        "dot": lambda layers: Program(layers, lambda: time.sleep(60)),
        "xla_f32": lambda layers: Program(layers, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    }
    """
    module = library("deadly", code)
    with started(module) as hanging, started(module) as dying:
        for worker in (hanging, dying):
            worker.wait_until_ready()
            worker.prepare(TINY, 1)
        with pytest.raises(WorkerError, match="no answer within 0.2 s"):
            hanging.turn("dot", timeout=0.2)
        with pytest.raises(WorkerError, match="ended with signal SIGKILL"):
            dying.turn("xla_f32")
        start = time.monotonic()
    assert time.monotonic() - start < 10


@linux
def test_a_stopped_worker_dies_with_its_parent(library):
    module = library("orphan", "PROGRAMS = {}")
    code = f"""if True:
        import os
        from jax_qgemm.bench.process import Process
        worker = Process({module!r}, "portable")
        worker.wait_until_ready()
        print(worker.pid, flush=True)
        os.kill(os.getpid(), 9)
    """
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    pid = int(parent.stdout)
    assert wait_for(lambda: state(pid) in ("", "Z"))


@linux
def test_large_results_keep_their_memory(library, monkeypatch):
    # Unless whoever runs the benchmark says otherwise.
    code = """
    VERSION = " ".join(os.environ[f"MALLOC_{name}_THRESHOLD_"] for name in ("MMAP", "TRIM"))
    """
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    with started(library("memory", code)) as worker:
        assert worker.wait_until_ready() == f"{2**32} 65536"
