"""What will I gain on this machine?

    python -m jax_qgemm.bench
    python -m jax_qgemm.bench --shapes quick --seconds 0.3
    python -m jax_qgemm.bench --shapes 32x3072x768,32x768x3072 --json gain.json --plot gain.png
    python -m jax_qgemm.bench --shapes bert --against xla,ort
    python -m jax_qgemm.bench --weights int4 --shapes llm
    python -m jax_qgemm.bench --isa avx2

Times the same layers, all threads, by this library, by XLA's own float32, bfloat16 and int8, and
by ONNX Runtime and PyTorch (FBGEMM, oneDNN) where they are installed: pip install
jax-qgemm[bench-peers]. Each library has a process of its own and they take turns. Every result is
compared with the float32 product before it is timed.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from jax_qgemm.bench import plot, report
from jax_qgemm.bench.contestants import WEIGHTS, WEIGHTS_AS, WrongResultError
from jax_qgemm.bench.libraries import PEERS, choose
from jax_qgemm.bench.measure import measure
from jax_qgemm.bench.results import Report
from jax_qgemm.bench.shapes import SETS, Shape, list_sets, parse_shapes
from jax_qgemm.config import config


def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` without the program's name."""
    options = _parser().parse_args(argv)
    if options.list_sets:
        print(list_sets())
        return
    libraries, notes = choose(options.against or PEERS)
    if options.against and notes:
        sys.exit(f"--against: not installed: {'; '.join(notes)}")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        sys.exit("--plot needs matplotlib: pip install jax-qgemm[bench]")
    for option, path in (("--json", options.json), ("--plot", options.plot)):
        if path and (fault := _unwritable(pathlib.Path(path))):
            sys.exit(f"{option}: expected a file that can be written, got {path}: {fault}")
    if options.plot and pathlib.Path(options.plot).suffix not in (".png", ".svg", ".pdf"):
        sys.exit(f"--plot: expected a path that ends in .png, .svg or .pdf, got {options.plot}")
    length = options.layers, options.seconds, options.repeats
    weights = options.weights, options.weights_as
    with config.limit_isa(options.isa):
        try:
            found = measure(options.shapes, libraries, *length, notes, *weights)
        except WrongResultError as error:
            sys.exit(f"not timed: {error}")
    if not found.results:
        sys.exit(_failures(found))
    # Files first: to print may fail.
    if options.json:
        text = json.dumps(found.to_json(), indent=2, ensure_ascii=False)
        pathlib.Path(options.json).write_text(text + "\n", encoding="utf-8")
    if options.plot:
        plot.save(found, options.plot)
    print(report.text(found))
    if not found.complete:
        sys.exit(_failures(found))


def _failures(found: Report) -> str:
    return "\n".join(f"not timed: {note}" for note in found.notes)


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
    parser.add_argument("--list-sets", action="store_true", help="print those sets and end")
    parser.add_argument(
        "--against",
        metavar="PEER,…",
        type=_peers,
        help=f"of {', '.join(PEERS)} (default: all that are installed)",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="int8",
        help="how the weights are stored (default: %(default)s)",
    )
    parser.add_argument(
        "--weights-as",
        choices=WEIGHTS_AS,
        default=WEIGHTS_AS[0],
        help="of the jitted programs: constants, as of ONNX Runtime's, or arguments of each call, "
        "which takes JAX longer (default: %(default)s)",
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


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no peer: expected some of {','.join(PEERS)}"
            )
    return names


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
