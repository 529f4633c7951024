"""Two real processes on loopback, as the example has them."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("absl", reason="the examples need absl-py")

import two_processes as example

SCRIPT = pathlib.Path(example.__file__)


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.parametrize("form", ["int8", "int8:32", "fp16", "int4"])
def test_equal_to_one_process(form):
    result = run(f"--format={form}")
    assert result.returncode == 0, result.stdout + result.stderr
    for kind in ("tensor", "data"):
        assert f"{kind} parallel: the same bits as one process" in result.stdout
    assert "2 processes" in result.stdout


def test_wrong_arguments():
    assert "unknown argument what" in run("what").stderr
    result = run("--format=int5", "--processes=1")
    assert result.returncode == 1 and "int5" in result.stderr
    assert "expected HOST:PORT" in run("--coordinator=foo").stderr


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_dies_ends_all(stop):
    command = [sys.executable, SCRIPT, "--processes=2"]
    # Where the tests are a shell's background job, they ignore Ctrl-C, and so would this.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    signal.signal(signal.SIGINT, ours)
    children = pathlib.Path(f"/proc/{started.pid}/task/{started.pid}/children")
    while len(found := children.read_text().split()) < 2:
        assert started.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)  # until the start of the second has returned, too
    # Ctrl-C and SIGTERM are for the one that started the others.
    os.kill(int(found[1]) if stop == signal.SIGKILL else started.pid, stop)
    assert started.wait(timeout=60) == 1
    assert not any(pathlib.Path(f"/proc/{child}").exists() for child in found)
