"""The results as text: a head, a Markdown table that reads well in a terminal, a conclusion."""

from __future__ import annotations

from jax_qgemm.bench.contestants import CONTESTANTS, WEIGHTS
from jax_qgemm.bench.results import Report, Result, geometric_mean

_HEAD = ("M×N×K", "", "µs", "best", "spread", "GOPS", "peak", "GB/s")
_NOTES = """\
µs: median per layer of one program; best: the fastest call; spread: 10th to 90th percentile over
the median; peak: part of the peak, the median of a loop on registers that takes turns with
the programs, in brackets that of the native calls alone, without what JAX takes to make them;
GB/s: weights read, for few rows; then how many times faster than each other and than the best of
them. """
_OF_WEIGHTS = {
    "int8": """\
dot quantizes f32 activations on the fly. quantized_linear and XLA's int8 have
quantized activations, bias, relu and a requantized result; XLA's f32 and bf16 the bare product.""",
    "int4": """\
Weights have 4 bits and a scale for each 32 along K. Activations are quantized to int8 by the same
groups, by ONNX Runtime too (accuracy_level 4), or kept as they are.""",
    "fp16": "Activations and sums are f32.",
    "bf16": "Activations and results are bf16, too, but for XLA's f32; sums are f32.",
}
_OF_PROGRAMS = {
    "constants": "Weights are constants of JAX's programs, which XLA widens when it compiles.",
    "arguments": "Weights are arguments of JAX's programs.",
}
_PEER_NOTES = """\
Peers do what the function of this library does that they are compared with. Each library runs in
a process of its own, with as many threads and else with its defaults, and is stopped while others
have their turn. FBGEMM and oneDNN are those of PyTorch, called from Python layer by layer, which is
part of their time; all others run their layers as one program."""


def head(report: Report) -> str:
    """What was measured where, one line each."""
    lines = [f"- {name}: {value}" for name, value in report.environment.items()]
    arithmetic = WEIGHTS[report.weights]
    if report.peak is None:
        lines.append(f"- {arithmetic} peak: not known for this ISA")
    else:
        least = min(report.peaks)
        lines.append(
            f"- {arithmetic} peak: {least:.0f} to {report.peak:.0f} GOPS, by the shape's turn"
        )
    lines.append(f"- memory: {_short(report.bandwidth)} GB/s read by all threads")
    lines += [f"- not timed: {note}" for note in report.notes]
    if report.unsteady:
        lines.append(
            f"- **The machine is not quiet**: its peak drifted by {report.drift:.0%}. Ratios hold "
            "better than times; repeat when nothing else runs."
        )
    return "\n".join(lines)


def table(report: Report) -> str:
    """Markdown, its columns aligned."""
    columns = _columns(report)
    rows = [(*_HEAD, *(f"vs {column}" for column in columns), "vs best")]
    for shape in report.shapes:
        results = report.at(shape).values()
        rows += [_row(report, result, columns, first=i == 0) for i, result in enumerate(results)]
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
    lines, best = [], []
    for contestant in (c for c in CONTESTANTS if c.own):
        own = [result for result in report.results if result.contestant == contestant]
        ratios = list(filter(None, map(report.speedups, own)))
        if not ratios:
            continue
        parts = []
        for rival in CONTESTANTS:
            values = [ratio[rival.name] for ratio in ratios if rival.name in ratio]
            if values:
                parts.append(f"{_gain(values)} as fast as {rival.title}")
        lines.append(f"- {contestant.title}: {', '.join(parts)}")
        best.append(f"{contestant.title} {_gain([min(ratio.values()) for ratio in ratios])}")
    if best:
        lines.append(f"- vs the best peer of each shape: {', '.join(best)}")
    return "\n".join(lines)


def text(report: Report) -> str:
    """The whole that the command prints."""
    peers = any(not (r.contestant.own or r.contestant.library == "xla") for r in report.results)
    notes = f"{_NOTES}{_OF_WEIGHTS[report.weights]}\n{_OF_PROGRAMS[report.weights_as]}"
    if peers:
        notes += f"\n\n{_PEER_NOTES}"
    return "\n\n".join((head(report), table(report), notes, conclusion(report)))


def _columns(report: Report) -> dict[str, list[str]]:
    """Those of ratios: title → names of the contestants compared with, one for each row."""
    columns: dict[str, list[str]] = {}
    timed = {result.contestant.name for result in report.results}
    for contestant in CONTESTANTS:
        if contestant.name in timed and not contestant.own:
            columns.setdefault(contestant.column, []).append(contestant.name)
    return columns


def _row(
    report: Report, result: Result, columns: dict[str, list[str]], first: bool
) -> tuple[str, ...]:
    rate, timing = result.weight_rate, result.timing
    speedups = report.speedups(result)
    ratios = [
        next((f"{speedups[name]:.2f}×" for name in names if name in speedups), "")
        for names in columns.values()
    ]
    return (
        str(result.shape) if first else "",
        result.contestant.title,
        _short(timing.median * 1e6),
        _short(timing.best * 1e6),
        f"{timing.spread:.0%}",
        _short(result.gops),
        _parts_of_peak(result),
        "" if rate is None else _short(rate),
        *ratios,
        f"{min(speedups.values()):.2f}×" if speedups else "",
    )


def _parts_of_peak(result: Result) -> str:
    """Of the program, in brackets of the native calls."""
    whole, native = result.part_of_peak, result.native_part_of_peak
    if whole is None:
        return ""
    return f"{whole:.0%}" if native is None else f"{whole:.0%} ({native:.0%})"


def _gain(ratios: list[float]) -> str:
    mean, low, high = map(_two_digits, (geometric_mean(ratios), min(ratios), max(ratios)))
    return f"{mean}× ({low} to {high})" if len(ratios) > 1 else f"{mean}×"


def _short(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _two_digits(value: float) -> str:
    """At least two digits, no exponent."""
    return f"{value:.{2 if value < 0.95 else 1 if value < 9.95 else 0}f}"
