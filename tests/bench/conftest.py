"""Libraries that behave and misbehave, small enough to be written into a test; made-up reports."""

import textwrap

import pytest

from jax_qgemm.bench import machine
from jax_qgemm.bench.contestants import CONTESTANTS
from jax_qgemm.bench.results import Report, Result
from jax_qgemm.bench.shapes import Shape
from jax_qgemm.bench.timing import Timing

PROGRAM = """
import os, signal, time

class Program:
    def __init__(self, layers, act=lambda: None):
        self.results, self.act = [layer.product for layer in layers], act

    def __call__(self):
        self.act()
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """library(NAME, CODE) writes a module that workers can import, with a class Program in it."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(PROGRAM + textwrap.dedent(code), encoding="utf-8")
        return name

    return write


@pytest.fixture
def quick_machine(monkeypatch):
    """What the machine can do is no subject of these tests."""
    monkeypatch.setattr(machine, "measure_peak", lambda arithmetic: 100.0)
    monkeypatch.setattr(machine, "_LEAST_BYTES", 4096)
    info = machine.native.cpu_info()
    monkeypatch.setattr(machine.native, "cpu_info", lambda: info | {"l3": 0})


@pytest.fixture
def make_report():
    """make_report(SECONDS, …): a report with one result for each contestant that has a time."""

    def make(seconds=None, peaks=(100.0,), notes=(), native=None):
        seconds = seconds or {"dot": 1e-3, "quantized_linear": 2e-3, **_XLA}
        results = [
            Result(
                *(Shape(3 + i, 20, 70), 2, c, Timing(time, time, 0.1, 5), 0.01, peak),
                native=native if c.own else None,
            )
            for i, peak in enumerate(peaks)
            for c in CONTESTANTS
            if (time := seconds.get(c.name))
        ]
        return Report(tuple(results), {"CPU": "one"}, 30.0, len(peaks), notes)

    return make


_XLA = {"xla_f32": 4e-3, "xla_bf16": 6e-3, "xla_int8": 8e-3}
