"""What will I gain on this machine?

    python -m jax_qgemm.bench
    python -m jax_qgemm.bench --shapes quick --seconds 0.3
    python -m jax_qgemm.bench --shapes 32x3072x768,32x768x3072 --json gain.json --plot gain.png
    python -m jax_qgemm.bench --isa avx2

Times layers of one jitted program, all threads, for this library and for XLA's own float32,
bfloat16 and int8. Every result is compared with the float32 product before it is timed.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Sequence

import jax

from jax_qgemm.bench import plot, report
from jax_qgemm.bench.cases import SETS, Shape, make_layers, parse_shapes
from jax_qgemm.bench.contestants import CONTESTANTS, WrongResultError, check
from jax_qgemm.bench.measure import Program, alternate, measure_peak
from jax_qgemm.bench.results import Report, Result, environment
from jax_qgemm.config import config


def measure_shape(
    shape: Shape, layers: int, seconds: float, rounds: int | None = None
) -> list[Result]:
    """Check and time every contestant on up to `layers` layers of one shape.

    Raises WrongResultError if one of them does not compute the product.
    """
    drawn = make_layers(shape, shape.layers(layers))
    programs, errors = {}, {}
    for contestant in CONTESTANTS:
        program = Program(contestant.call, [contestant.prepare(layer) for layer in drawn])
        errors[contestant.name] = check(contestant, drawn, program.results)
        programs[contestant.name] = program
    peaks: list[float | None] = []
    timings = alternate(programs, seconds, rounds, lambda: peaks.append(measure_peak()))
    peak = statistics.median(known) if (known := list(filter(None, peaks))) else None
    return [
        Result(shape, len(drawn), c, timings[c.name], errors[c.name], peak) for c in CONTESTANTS
    ]


def measure(
    shapes: Sequence[Shape], layers: int, seconds: float, rounds: int | None = None
) -> Report:
    """All shapes. Progress goes to stderr."""
    found, results = environment(), []
    for i, shape in enumerate(shapes, 1):
        print(f"[{i}/{len(shapes)}] {shape}", file=sys.stderr, flush=True)
        results += measure_shape(shape, layers, seconds, rounds)
    return Report(tuple(results), found)


def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` without the program's name."""
    options = _parser().parse_args(argv)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        sys.exit("--plot needs matplotlib: pip install jax-qgemm[bench]")
    for option, path in (("--json", options.json), ("--plot", options.plot)):
        if path and (fault := _unwritable(pathlib.Path(path))):
            sys.exit(f"{option}: expected a file that can be written, got {path}: {fault}")
    jax.config.update("jax_platforms", "cpu")  # also where there is a GPU: CPUs are the subject
    with config.limit_isa(options.isa):
        try:
            found = measure(options.shapes, options.layers, options.seconds, options.repeats)
        except WrongResultError as error:
            sys.exit(f"not timed: {error}")
    print(report.text(found))
    if options.json:
        text = json.dumps(found.to_json(), indent=2, ensure_ascii=False)
        pathlib.Path(options.json).write_text(text + "\n", encoding="utf-8")
    if options.plot:
        plot.save(found, options.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m jax_qgemm.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shapes",
        type=_shapes,
        default="default",
        help=f"MxNxK,MxNxK,… or one of {', '.join(SETS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--isa",
        choices=config.isa_names,
        default=config.max_isa,
        help="highest instruction set that the kernels may use (default: %(default)s)",
    )
    parser.add_argument(
        "--layers",
        type=_positive(int),
        default=8,
        help="layers in a program, fewer where they are large (default: %(default)s)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds",
        type=_positive(float),
        default=1.0,
        help="time for each contestant at each shape (default: %(default)s)",
    )
    length.add_argument(
        "--repeats", type=_positive(int), help="turns of each contestant, instead of a time"
    )
    parser.add_argument("--json", metavar="PATH", help="write all numbers to this file")
    parser.add_argument("--plot", metavar="PATH", help="draw them (png, svg, pdf)")
    return parser


def _unwritable(path: pathlib.Path) -> str:
    """Why no file can be written at `path`, "" if one can: asked before minutes of measuring."""
    if path.is_dir():
        return "it is a folder"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return "no permission"
    return ""


def _shapes(text: str) -> tuple[Shape, ...]:
    try:
        return parse_shapes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(kind):
    """A type of argument: `kind` above zero."""

    def convert(text: str):
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"
    return convert


if __name__ == "__main__":
    main()
