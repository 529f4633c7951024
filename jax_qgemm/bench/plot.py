"""The results as a bar chart; needs matplotlib, which the extra `bench` installs."""

from __future__ import annotations

from jax_qgemm.bench.contestants import CONTESTANTS
from jax_qgemm.bench.results import Report

_COLOURS = ("#0b6e4f", "#3fb27f", "#9aa5b1", "#b9c2cb", "#d5dbe1")  # ours stand out


def save(report: Report, path: str) -> None:
    """Write GOPS of every contestant, grouped by shape, to an image file.

    The type follows the name's ending. Raises ModuleNotFoundError without matplotlib, ValueError
    for an ending that matplotlib does not know.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6, 1.5 * len(report.shapes)), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.85 / len(CONTESTANTS)
    for i, (contestant, colour) in enumerate(zip(CONTESTANTS, _COLOURS, strict=True)):
        offset = (i - (len(CONTESTANTS) - 1) / 2) * width
        places = [place + offset for place in range(len(report.shapes))]
        heights = [report.at(shape)[contestant.name].gops for shape in report.shapes]
        axes.bar(places, heights, width, label=contestant.title, color=colour)
    if report.peak is not None:
        axes.axhline(report.peak, color="black", linewidth=0.8, linestyle="--", label="int8 peak")
    axes.set_yscale("log")
    axes.set_ylabel("GOPS")
    axes.set_xticks(range(len(report.shapes)), list(map(str, report.shapes)), rotation=20)
    axes.set_xlabel("M×N×K")
    axes.set_title(
        "\n".join(report.environment.get(key, "") for key in ("CPU", "versions")), size=8
    )
    axes.grid(axis="y", linewidth=0.3)
    axes.set_axisbelow(True)
    figure.legend(ncols=3, fontsize=8, loc="outside lower center")
    figure.savefig(path, dpi=150)
