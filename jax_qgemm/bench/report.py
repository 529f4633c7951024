"""The results as text: a head, a Markdown table that reads well in a terminal, a conclusion."""

from __future__ import annotations

from jax_qgemm.bench.contestants import CONTESTANTS
from jax_qgemm.bench.results import Report, Result, geometric_mean

_BASELINES = {c.name: c.title for c in CONTESTANTS if not c.own}
_HEAD = ("M×N×K", "", "µs", "best", "spread", "GOPS", "peak", "GB/s")
_NOTES = """\
µs: median per layer of one jitted program; best: the fastest call; spread: 10th to 90th percentile
over the median; peak: part of the int8 peak, the median of a loop on registers that takes turns
with the programs; GB/s: weights read, for few rows; then how many times faster than XLA. dot
quantizes f32 activations on the fly. quantized_linear and XLA's int8 have quantized activations,
bias, relu and a requantized result; XLA's f32 and bf16 the bare product."""


def head(report: Report) -> str:
    """What was measured where, one line each."""
    lines = [f"- {name}: {value}" for name, value in report.environment.items()]
    if report.peak is None:
        lines.append("- int8 peak: not known for this ISA")
    else:
        least = min(report.peaks)
        lines.append(f"- int8 peak: {least:.0f} to {report.peak:.0f} GOPS, by the shape's turn")
    if report.unsteady:
        lines.append(
            f"- **The machine is not quiet**: its peak drifted by {report.drift:.0%}. Ratios hold "
            "better than times; repeat when nothing else runs."
        )
    return "\n".join(lines)


def table(report: Report) -> str:
    """Markdown, its columns aligned."""
    gains = [f"vs {title.removeprefix('XLA ').split()[0]}" for title in _BASELINES.values()]
    rows = [(*_HEAD, *gains)]
    for shape in report.shapes:
        results = report.at(shape).values()
        rows += [_row(report, result, first=i == 0) for i, result in enumerate(results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = zip(row, widths, strict=True)
        aligned = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(cells)]
        lines.append(f"| {' | '.join(aligned)} |")
    return "\n".join(lines)


def conclusion(report: Report) -> str:
    """What each function gains over all shapes: geometric mean and range."""
    lines = []
    for contestant in (c for c in CONTESTANTS if c.own):
        ratios = [report.speedups(report.at(shape)[contestant.name]) for shape in report.shapes]
        parts = []
        for name, title in _BASELINES.items():
            values = [ratio[name] for ratio in ratios]
            mean, low, high = map(_two_digits, (geometric_mean(values), min(values), max(values)))
            reach = f" ({low} to {high})" if len(values) > 1 else ""
            parts.append(f"{mean}×{reach} as fast as {title}")
        lines.append(f"- {contestant.title}: {', '.join(parts)}")
    return "\n".join(lines)


def text(report: Report) -> str:
    """The whole that the command prints."""
    return "\n\n".join((head(report), table(report), _NOTES, conclusion(report)))


def _row(report: Report, result: Result, first: bool) -> tuple[str, ...]:
    peak, rate, timing = result.part_of_peak, result.weight_rate, result.timing
    speedups = report.speedups(result)
    return (
        str(result.shape) if first else "",
        result.contestant.title,
        _short(timing.median * 1e6),
        _short(timing.best * 1e6),
        f"{timing.spread:.0%}",
        _short(result.gops),
        "" if peak is None else f"{peak:.0%}",
        "" if rate is None else _short(rate),
        *(f"{speedups[name]:.2f}×" if name in speedups else "" for name in _BASELINES),
    )


def _short(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _two_digits(value: float) -> str:
    """At least two digits, no exponent."""
    return f"{value:.{1 if value < 9.95 else 0}f}"
