import pytest

pytest.importorskip("matplotlib", reason="matplotlib is missing")

from jax_qgemm.bench import plot
from jax_qgemm.bench.contestants import CONTESTANTS, WEIGHTS, contest


def test_every_contestant_has_a_mark_of_its_own():
    assert set(plot.MARKS) == {c.name for c in CONTESTANTS}
    for weights in WEIGHTS:
        timed = contest(weights)
        assert len({plot.MARKS[c.name] for c in timed}) == len(timed)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
@pytest.mark.parametrize("peaks", [(100.0, 90.0), (None,)], ids=["peak", "unknown"])
def test_plot(tmp_path, make_report, ending, peaks):
    path = tmp_path / f"out.{ending}"
    plot.save(make_report(peaks=peaks), path)
    assert path.stat().st_size > 1000


def test_the_roof_is_the_lesser_of_memory_and_peak(make_report):
    places, heights = plot.roof(make_report(peaks=(60.0,)), 0.5, 10.0)  # 30 GB/s: ridge at 2
    assert places == [0.5, 2.0, 10.0] and heights == [15.0, 60.0, 60.0]
    assert plot.roof(make_report(peaks=(60.0,)), 3.0, 4.0) == ([3.0, 4.0], [60.0, 60.0])
    assert plot.roof(make_report(peaks=(None,)), 1.0, 4.0) == ([1.0, 4.0], [30.0, 120.0])
