import pytest

from jax_qgemm.bench import report

PEERS = {"ort_dynamic": 3e-3, "ort_static": 1e-3, "onednn_static": 5e-3}
OWN = {"dot": 1e-3, "quantized_linear": 2e-3}


def test_derived_numbers(make_report):
    found = make_report()
    dot, *_, int8 = found.results
    assert found.speedups(dot) == {"xla_f32": 4.0, "xla_bf16": 6.0, "xla_int8": 8.0}
    assert found.speedups(int8) == {}
    assert dot.gops == pytest.approx(2 * 3 * 20 * 70 / 1e-3 / 1e9)
    assert dot.weight_rate == pytest.approx(20 * 70 / 1e-3 / 1e9)
    assert dot.intensity == 2 * 3 * 20 * 70 / (3 * 70 * 4 + 20 * 70 + 3 * 20 * 4)
    assert dot.part_of_peak == pytest.approx(dot.gops / 100)
    assert found.results[2].part_of_peak is None  # float32 has another peak
    assert "4.0×" in report.conclusion(found)
    faster = make_report({"dot": 1e-5, "xla_f32": 1.2e-3})
    assert "120× as fast as XLA f32" in report.conclusion(faster)


def test_peers_are_compared_with_their_own_kind(make_report):
    found = make_report({**OWN, "xla_f32": 4e-3, **PEERS})
    dot, static, *_ = found.results
    assert found.speedups(dot) == {"xla_f32": 4.0, "ort_dynamic": 3.0}
    assert found.speedups(static) == {"xla_f32": 2.0, "ort_static": 0.5, "onednn_static": 2.5}
    lines = report.conclusion(found).splitlines()
    assert lines[0].endswith("4.0× as fast as XLA f32, 3.0× as fast as ONNX Runtime f32→f32")
    assert lines[1].endswith("0.50× as fast as ONNX Runtime u8→u8, 2.5× as fast as oneDNN u8→u8")
    best = "- vs the best peer of each shape: dot f32→f32 3.0×, quantized_linear u8→u8 0.50×"
    assert lines[2:] == [best]


def test_table(make_report):
    lines = report.table(make_report({**OWN, "xla_f32": 4e-3, **PEERS}, (100.0, 90.0))).splitlines()
    assert len(lines) == 2 + 2 * 6 and len(set(map(len, lines))) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0][-4:] == ["vs f32", "vs ORT", "vs oneDNN", "vs best"]
    assert cells[2][:2] == ["3×20×70", "dot f32→f32"] and cells[3][0] == ""
    assert cells[2][-4:] == ["4.00×", "3.00×", "", "3.00×"]
    assert cells[3][-4:] == ["2.00×", "0.50×", "2.50×", "0.50×"]
    assert cells[4][-4:] == ["", "", "", ""]


def test_native_calls_have_a_part_of_the_peak_too(make_report):
    found = make_report({"dot": 1e-6, "ort_dynamic": 1e-6}, peaks=(10.0,), native=0.9)
    dot, peer = found.results
    assert dot.native_part_of_peak == pytest.approx(dot.part_of_peak / 0.9)
    assert "| 84% (93%) |" in report.table(found) and peer.native_part_of_peak is None
    numbers = found.to_json()["results"]
    assert [n["native_part_of_time"] for n in numbers] == [0.9, None]


def test_notes_on_peers_only_where_there_are_some(make_report):
    assert "PyTorch" not in report.text(make_report())
    assert "called from Python layer by layer" in report.text(make_report({**OWN, **PEERS}))


def test_what_was_not_timed_is_said(make_report):
    found = make_report({"xla_f32": 1e-3}, notes=("dot: no luck",))
    assert "- not timed: dot: no luck" in report.head(found) and report.conclusion(found) == ""


def test_drift_and_unknown_peak_are_said(make_report):
    assert "drifted by 20%" in report.head(make_report(peaks=(100.0, 80.0, 90.0)))
    assert "drifted" not in report.head(make_report(peaks=(100.0, 99.0)))
    assert "memory: 30.0 GB/s" in report.head(make_report())
    assert make_report(peaks=(1e-6, 1e-6)).unsteady  # results above the peak
    unknown = make_report(peaks=(None,))
    assert unknown.peak is None and "not known" in report.text(unknown)
