import pytest

from jax_qgemm.bench.contestants import WrongResultError
from jax_qgemm.bench.libraries import LIBRARIES, Library, choose
from jax_qgemm.bench.measure import measure
from jax_qgemm.bench.shapes import Shape

SHAPES = Shape(3, 20, 70), Shape(4, 20, 70)


def names(results):
    return [(result.shape.m, result.contestant.name) for result in results]


def test_libraries_that_fail_are_left_out(library, quick_machine, capsys):
    good = library("good", 'VERSION = "good 1"\nPROGRAMS = {"dot": Program}')
    lost = library(
        "lost",
        """
        PROGRAMS = {
            "xla_f32": lambda layers: Program(layers, lambda: exit("out of luck")),
            "xla_bf16": lambda layers: 1 / 0,
        }
        """,
    )
    wrong = library("wrong", 'PROGRAMS = {"ort_dynamic": lambda layers: Program(layers[::-1])}')
    libraries = [
        Library("own", "Good", good),
        Library("xla", "Lost", lost),
        Library("ort", "Wrong", wrong),
        Library("torch_fbgemm", "Absent", "no_such_module"),
    ]
    found = measure(SHAPES, libraries, layers=2, seconds=1.0, rounds=2, notes=["as said"])
    assert names(found.results) == [(3, "dot"), (4, "dot")]
    assert "good 1" in found.environment["versions"] and found.bandwidth > 0
    expected = [
        "as said",
        "Absent: its process ended with exit status 1: "
        "ModuleNotFoundError: No module named 'no_such_module'",
        "XLA bf16: ZeroDivisionError: division by zero, at 3×20×70",
        "ONNX Runtime f32→f32 is off by",
        "Lost from 3×20×70 on: its process ended with exit status 1: out of luck",
        "ONNX Runtime f32→f32 is off by",
    ]
    assert len(found.notes) == len(expected)
    assert all(map(str.startswith, found.notes, expected))
    assert "[2/2] 4×20×70" in capsys.readouterr().err


def test_own_results_must_not_be_wrong(library, quick_machine):
    module = library("wrong", 'PROGRAMS = {"dot": lambda layers: Program(layers[::-1])}')
    with pytest.raises(WrongResultError, match="dot f32→f32 is off by"):
        measure(SHAPES, [Library("own", "Wrong", module)], 2, 1.0, 1)


def test_peers_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found, notes = choose()
    assert [library.name for library in found] == ["own", "xla"]
    assert notes[0] == "ONNX Runtime: pip install onnxruntime onnx adds it" and len(notes) == 3
    assert choose(["xla"]) == (found, [])


def test_peers_can_be_chosen(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert choose() == (list(LIBRARIES), [])
    found, _ = choose(["torch"])
    assert [library.name for library in found] == ["own", "torch_fbgemm", "torch_onednn"]
