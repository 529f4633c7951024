"""The command runs end to end on tiny shapes; its times are not judged."""

import importlib.util
import json

import pytest

import jax_qgemm as jq
from jax_qgemm.bench import __main__ as bench
from jax_qgemm.bench.contestants import WEIGHTS, WEIGHTS_AS, contest
from jax_qgemm.bench.libraries import Library

TIMED = [c for c in contest("int8") if c.library in ("own", "xla")]
OWN = {"dot", "quantized_linear"}


def test_command_prints_a_table_and_writes_json(tmp_path, capsys, quick_machine):
    path = tmp_path / "out.json"
    before = jq.config.max_isa
    options = ["--shapes", "3x20x70,17x16x5", "--repeats", "2", "--layers", "2"]
    bench.main([*options, "--against", "xla", "--isa", "portable", "--json", str(path)])
    assert jq.config.max_isa == before
    printed = capsys.readouterr()
    assert "[2/2] 17×16×5" in printed.err
    for word in (
        "CPU",
        "ceiling: portable",
        "threads",
        "jaxlib",
        "int8 peak: 100 to 100 GOPS",
        "GB/s read by all threads",
        "vs the best peer of each shape",
    ):
        assert word in printed.out
    assert "not timed" not in printed.out
    lines = [line for line in printed.out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * len(TIMED)
    assert all(c.title in printed.out for c in TIMED)

    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["peaks_gops"] == [100.0] * 2 and found["unsteady"] is False
    assert found["bandwidth_gb_per_s"] > 0 and found["not_timed"] == []
    assert [r["contestant"] for r in found["results"]] == 2 * [c.name for c in TIMED]
    for result in found["results"]:
        assert result["layers"] == 2 and result["calls"] >= 2
        assert 0 < result["best_us"] <= result["median_us"] and result["gops"] > 0
        assert result["ops_per_byte"] > 0
        rivals = {"xla_f32", "xla_bf16", "xla_int8"} if result["contestant"] in OWN else set()
        assert set(result["speedup_over"]) == rivals
        assert (result["weight_gb_per_s"] is None) == (result["shape"]["m"] > 16)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_kind_of_weights(weights, tmp_path, capsys, quick_machine):
    path = tmp_path / "out.json"
    options = ["--shapes", "3x20x70", "--repeats", "2", "--layers", "2", "--against", "xla"]
    bench.main([*options, "--weights", weights, "--json", str(path)])
    printed = capsys.readouterr().out
    assert f"{WEIGHTS[weights]} peak: 100 to 100 GOPS" in printed and "not timed" not in printed
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["weights"] == weights
    timed = [c for c in contest(weights) if c.library in ("own", "xla")]
    assert [r["contestant"] for r in found["results"]] == [c.name for c in timed]
    assert any(c.own for c in timed) and any(c.name == "xla_f32" for c in timed)
    for result, contestant in zip(found["results"], timed, strict=True):
        measured = contestant.arithmetic == WEIGHTS[weights]
        assert (result["part_of_peak"] is not None) == measured


@pytest.mark.parametrize("weights_as", WEIGHTS_AS)
def test_weights_as(weights_as, tmp_path, capsys, quick_machine, library, fake_libraries):
    code = """
    from jax_qgemm.bench.libraries.jitted import Jitted
    VERSION = f"of {Jitted.weights_as}"
    PROGRAMS = {"dot_fp16": Program}
    """
    fake_libraries(own=library("good", code))
    path = tmp_path / "out.json"
    options = ["--shapes", "3x20x70", "--repeats", "1", "--weights", "fp16"]
    bench.main([*options, "--weights-as", weights_as, "--json", str(path)])
    assert f"Weights are {weights_as} of JAX's programs" in capsys.readouterr().out
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["weights_as"] == weights_as
    assert f"of {weights_as}" in found["environment"]["versions"]


@pytest.fixture
def fake_libraries(monkeypatch):
    """fake_libraries(NAME=MODULE, …) in the place of the real ones."""

    def put(**modules):
        chosen = [Library(name, name, module) for name, module in modules.items()]
        monkeypatch.setattr(bench, "choose", lambda _: (chosen, []))

    return put


def test_wrong_results_are_not_timed(library, quick_machine, fake_libraries):
    code = 'PROGRAMS = {"dot": lambda layers: Program([layer for layer in layers[::-1]])}'
    fake_libraries(own=library("wrong", code))
    with pytest.raises(SystemExit, match="not timed: dot f32→f32 is off by"):
        bench.main(["--shapes", "4x20x70", "--repeats", "1", "--layers", "2"])


def test_the_command_fails_where_this_library_does(library, quick_machine, fake_libraries, capsys):
    options = ["--shapes", "4x20x70", "--repeats", "1", "--layers", "1"]
    good = library("good", 'PROGRAMS = {"xla_f32": Program}')
    fake_libraries(own="no_such_module", xla=good)
    with pytest.raises(SystemExit, match="not timed: own: .* No module named 'no_such_module'"):
        bench.main(options)
    assert "| 4×20×70 | XLA f32" in capsys.readouterr().out
    fake_libraries(own="no_such_module")
    with pytest.raises(SystemExit, match="not timed: own: .* No module named 'no_such_module'"):
        bench.main(options)
    assert capsys.readouterr().out == ""


def test_the_command_fails_where_a_shape_has_no_result(
    library, quick_machine, fake_libraries, tmp_path, capsys
):
    """What was timed before is printed and written."""
    code = """
        def program(layers):
            if layers[0].x.shape[0] == 4:
                os._exit(3)
            return Program(layers)

        PROGRAMS = {"dot_fp16": program}
    """
    fake_libraries(own=library("lost", code))
    path = tmp_path / "out.json"
    options = [
        "--shapes",
        "3x20x70,4x20x70",
        "--weights",
        "fp16",
        "--repeats",
        "1",
        "--layers",
        "1",
    ]
    with pytest.raises(SystemExit, match="not timed: own from 4×20×70 on: its process ended"):
        bench.main([*options, "--json", str(path)])
    assert "| 3×20×70 | dot" in capsys.readouterr().out
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [r["shape"]["m"] for r in found["results"]] == [3] and found["not_timed"]


def test_list_sets(capsys):
    bench.main(["--list-sets"])
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in ("default", "fbgemm", "bert", "llm", "recsys"))
    assert "arXiv:2101.05615" in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--shapes", "1x2"],
        ["--against", "xla,mkl"],
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


def test_peers_asked_for_must_be_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--against: not installed: ONNX Runtime: pip install"):
        bench.main(["--against", "xla,ort"])


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


@pytest.mark.parametrize("name", ["plot", "plot.foo"])
def test_a_plot_of_no_known_kind_is_refused_before_measuring(name, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(
        SystemExit, match=r"--plot: expected a path that ends in .png, .svg or .pdf"
    ):
        bench.main(["--plot", str(tmp_path / name)])


@pytest.mark.skipif(bool(importlib.util.find_spec("matplotlib")), reason="matplotlib is installed")
def test_plot_says_what_it_needs():
    with pytest.raises(SystemExit, match="pip install jax-qgemm"):
        bench.main(["--shapes", "3x20x70", "--plot", "out.png"])
