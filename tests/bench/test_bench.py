"""The benchmark runs end to end on tiny shapes; its times are not judged."""

import dataclasses
import importlib.util
import json

import pytest

import jax_qgemm as jq
from jax_qgemm.bench import __main__ as bench
from jax_qgemm.bench import contestants, report
from jax_qgemm.bench.cases import SETS, Shape, make_layers, parse_shapes
from jax_qgemm.bench.measure import Program, Timing, alternate
from jax_qgemm.bench.results import Report, Result

NAMES = [c.name for c in contestants.CONTESTANTS]
TINY = Shape(3, 20, 70)


@pytest.fixture
def no_peak(monkeypatch):
    """The peak is no subject of these tests."""
    monkeypatch.setattr(bench, "measure_peak", lambda: 100.0)


def a_report(seconds=(1e-3, 2e-3, 4e-3, 6e-3, 8e-3), peaks=(100.0,)):
    timings = [Timing(s, s, 0.1, 5) for s in seconds]
    results = [
        Result(TINY._replace(m=3 + i), 2, c, t, 0.01, peak)
        for i, peak in enumerate(peaks)
        for c, t in zip(contestants.CONTESTANTS, timings, strict=True)
    ]
    return Report(tuple(results), {"CPU": "one"})


def test_command_prints_a_table_and_writes_json(tmp_path, capsys, no_peak):
    path = tmp_path / "out.json"
    before = jq.config.max_isa
    options = ["--shapes", "3x20x70,17x16x5", "--repeats", "2", "--layers", "2"]
    bench.main([*options, "--isa", "portable", "--json", str(path)])
    assert jq.config.max_isa == before
    printed = capsys.readouterr()
    assert "[2/2] 17×16×5" in printed.err
    for word in (
        "CPU",
        "ceiling: portable",
        "threads",
        "jaxlib",
        "int8 peak: 100 to 100 GOPS",
    ):
        assert word in printed.out
    lines = [line for line in printed.out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * len(NAMES)
    assert len({len(line) for line in lines}) == 1 and len({line.count("|") for line in lines}) == 1
    assert all(c.title in printed.out for c in contestants.CONTESTANTS)

    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["peaks_gops"] == [100.0] * 2 and found["unsteady"] is False
    assert [r["contestant"] for r in found["results"]] == 2 * NAMES
    for result in found["results"]:
        assert result["layers"] == 2 and result["calls"] >= 2
        assert 0 < result["best_us"] <= result["median_us"] and result["gops"] > 0
        own = result["contestant"] in ("dot", "quantized_linear")
        assert set(result["speedup_over"]) == (
            {"xla_f32", "xla_bf16", "xla_int8"} if own else set()
        )
        assert (result["weight_gb_per_s"] is None) == (result["shape"]["m"] > 16)


def test_wrong_results_are_not_timed(monkeypatch, no_peak):
    broken = [
        dataclasses.replace(c, call=lambda *a, call=c.call: call(*a).at[-1, -1].add(2))
        if c.name == "dot"
        else c
        for c in contestants.CONTESTANTS
    ]
    monkeypatch.setattr(bench, "CONTESTANTS", broken)
    with pytest.raises(SystemExit, match="not timed: dot f32→f32 is off by"):
        bench.main(["--shapes", "4x20x70", "--repeats", "1", "--layers", "1"])


@pytest.mark.parametrize("contestant", contestants.CONTESTANTS, ids=NAMES)
def test_nan_is_a_wrong_result(contestant):
    layers = make_layers(TINY, 1)
    with pytest.raises(contestants.WrongResultError, match="nan"):
        contestants.check(contestant, layers, [layers[0].product * float("nan")])


@pytest.mark.parametrize("contestant", contestants.CONTESTANTS, ids=NAMES)
def test_contestants_stay_far_below_their_tolerance(contestant):
    layers = make_layers(Shape(5, 200, 300), 2)
    program = Program(contestant.call, [contestant.prepare(layer) for layer in layers])
    assert contestants.check(contestant, layers, program.results) < contestant.tolerance / 2


def test_a_program_keeps_all_its_layers_and_reuses_its_results():
    layers = make_layers(TINY, 3)
    program = Program(lambda x, w: x @ w, [(layer.x, layer.w) for layer in layers])
    before = program.results
    assert program() > 0 and program.depth == 3
    assert all(old.is_deleted() for old in before)
    assert len({float(result[0, 0]) for result in program.results}) == 3


def test_alternate_goes_on_for_the_seconds_given():
    layers = [(layer.x, layer.w) for layer in make_layers(TINY, 1)]
    programs = {name: Program(lambda x, w: x @ w, layers) for name in "ab"}
    timings = alternate(programs, seconds=1e-6)
    assert list(timings) == ["a", "b"]
    assert all(t.calls >= 5 and 0 < t.best <= t.median and t.spread >= 0 for t in timings.values())


def test_timing():
    timing = Timing.of([float(s) for s in range(11, 0, -1)], layers=2)
    assert timing == Timing(median=3.0, best=0.5, spread=8 / 6, calls=11)


def test_parse_shapes():
    assert parse_shapes("default") == SETS["default"]
    assert parse_shapes("1x2x3, 4×5×6") == (Shape(1, 2, 3), Shape(4, 5, 6))
    for text in ("", "1x2", "0x1x1", "1x2x3,", "huge"):
        with pytest.raises(ValueError, match="no shape: expected MxNxK,MxNxK,… or one of default"):
            parse_shapes(text)


@pytest.mark.parametrize(
    "options",
    [
        ["--shapes", "1x2"],
        ["--isa", "sse9"],
        ["--seconds", "0"],
        ["--repeats", "-1"],
        ["--seconds", "1", "--repeats", "1"],
    ],
)
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as raised:
        bench.main(options)
    assert raised.value.code == 2 and options[0] in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_output_that_cannot_be_written_is_refused_before_measuring(option, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for path, fault in (
        (tmp_path / "no" / "x", f"there is no folder {tmp_path / 'no'}"),
        (tmp_path, "it is a folder"),
    ):
        with pytest.raises(SystemExit) as raised:
            bench.main([option, str(path)])
        message = raised.value.code
        assert message == f"{option}: expected a file that can be written, got {path}: {fault}"


def test_large_shapes_get_fewer_layers():
    assert [s.layers(8) for s in SETS["default"]] == [8] * 8
    assert Shape(4096, 4096, 4096).layers(8) == 2
    assert Shape(1, 65536, 65536).layers(8) == 1


def test_derived_numbers():
    found = a_report()
    dot, *_, int8 = found.results
    assert found.speedups(dot) == {"xla_f32": 4.0, "xla_bf16": 6.0, "xla_int8": 8.0}
    assert found.speedups(int8) == {}
    assert dot.gops == pytest.approx(2 * 3 * 20 * 70 / 1e-3 / 1e9)
    assert dot.weight_rate == pytest.approx(20 * 70 / 1e-3 / 1e9)
    assert dot.part_of_peak == pytest.approx(dot.gops / 100)
    assert found.results[2].part_of_peak is None  # float32 has another peak
    assert "4.0×" in report.conclusion(found)
    faster = a_report(seconds=(1e-5, 2e-3, 1.2e-3, 6e-3, 8e-3))
    assert "120× as fast as XLA f32" in report.conclusion(faster)


def test_drift_and_unknown_peak_are_said():
    assert "drifted by 20%" in report.head(a_report(peaks=(100.0, 80.0, 90.0)))
    assert "drifted" not in report.head(a_report(peaks=(100.0, 99.0)))
    assert a_report(peaks=(1e-6, 1e-6)).unsteady  # results above the peak
    unknown = a_report(peaks=(None,))
    assert unknown.peak is None and "not known" in report.text(unknown)


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="matplotlib is missing")
def test_plot(tmp_path, no_peak):
    path = tmp_path / "out.png"
    bench.main(["--shapes", "3x20x70", "--repeats", "1", "--layers", "1", "--plot", str(path)])
    assert path.stat().st_size > 0


@pytest.mark.skipif(bool(importlib.util.find_spec("matplotlib")), reason="matplotlib is installed")
def test_plot_says_what_it_needs():
    with pytest.raises(SystemExit, match="pip install jax-qgemm"):
        bench.main(["--shapes", "3x20x70", "--plot", "out.png"])
