"""The results as a roofline; needs matplotlib, which the extra `bench` installs."""

from __future__ import annotations

import itertools
import os

from jax_qgemm.bench.contestants import CONTESTANTS, WEIGHTS
from jax_qgemm.bench.results import Report

MARKS = {  # ours stand out; circles for float32 in and out, squares for quantized, else crosses
    "dot": ("o", "#0b6e4f"),
    "quantized_linear": ("s", "#3fb27f"),
    "dot_int4": ("o", "#0b6e4f"),
    "dot_int4_weight_only": ("s", "#3fb27f"),
    "dot_fp16": ("o", "#0b6e4f"),
    "dot_bf16": ("o", "#0b6e4f"),
    "xla_f32": ("x", "#6b7680"),
    "xla_bf16": ("+", "#6b7680"),
    "xla_int8": ("1", "#6b7680"),
    "ort_dynamic": ("o", "#4a7fb5"),
    "ort_static": ("s", "#4a7fb5"),
    "fbgemm_dynamic": ("o", "#c77d2e"),
    "fbgemm_static": ("s", "#c77d2e"),
    "onednn_dynamic": ("o", "#8e5ea2"),
    "onednn_static": ("s", "#8e5ea2"),
    "ort_int4": ("o", "#4a7fb5"),
    "ort_int4_float": ("s", "#4a7fb5"),
    "fbgemm_fp16": ("o", "#c77d2e"),
    "onednn_bf16": ("o", "#8e5ea2"),
}
_NAMED = 10  # shapes: names of more would cover each other
_ENDS = 0.6, 2.5  # the roof reaches that much beyond the outermost points


def save(report: Report, path: str | os.PathLike) -> None:
    """Write achieved GOPS over arithmetic intensity, a mark for each result, to an image file.

    The roofs are the peak and what memory delivers at that intensity; what stays in caches
    reaches above. The type follows the name's ending. Raises ModuleNotFoundError without
    matplotlib, ValueError for an ending that matplotlib does not know.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for contestant in CONTESTANTS:
        own = [result for result in report.results if result.contestant == contestant]
        if not own:
            continue
        marker, colour = MARKS[contestant.name]
        points = [r.intensity for r in own], [r.gops for r in own]
        filled = (
            {} if marker not in "os" else {"markerfacecolor": colour if contestant.own else "none"}
        )
        axes.plot(*points, marker, color=colour, label=contestant.title, markersize=6, **filled)
    _draw_roof(axes, report)
    if len(report.shapes) <= _NAMED:
        _name_shapes(axes, report)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte of x, weight and result")
    axes.set_ylabel("GOPS")
    axes.set_title(
        "\n".join(report.environment.get(key, "") for key in ("CPU", "versions")), size=8
    )
    axes.grid(linewidth=0.3)
    axes.set_axisbelow(True)
    figure.legend(ncols=4, fontsize=8, loc="outside lower center")
    figure.savefig(path, dpi=150)


def roof(report: Report, low: float, high: float) -> tuple[list[float], list[float]]:
    """The corners: intensities from `low` to `high`, and the GOPS that can be had there."""
    peak = report.peak or float("inf")
    ridge = peak / report.bandwidth
    places = [low, ridge, high] if low < ridge < high else [low, high]
    return places, [min(report.bandwidth * place, peak) for place in places]


def _draw_roof(axes, report: Report) -> None:
    found = [result.intensity for result in report.results]
    label = f"memory, {report.bandwidth:.0f} GB/s"
    if report.peak is not None:
        label = f"{WEIGHTS[report.weights]} peak, {report.peak:.0f} GOPS; {label}"
    corners = roof(report, min(found) * _ENDS[0], max(found) * _ENDS[1])
    axes.plot(*corners, color="black", linewidth=0.9, label=label)


def _name_shapes(axes, report: Report) -> None:
    """Beside the highest of the library's own points of each shape."""
    for shape, results in itertools.groupby(report.results, lambda result: result.shape):
        own = [result for result in results if result.contestant.own]
        if own:
            top = max(own, key=lambda result: result.gops)
            place = (top.intensity, top.gops)
            axes.annotate(
                str(shape), place, (4, 3), textcoords="offset points", fontsize=6, color="#444444"
            )
