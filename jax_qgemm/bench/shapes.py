"""The shapes that are timed: typed in, or a named set."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_BUDGET = 600e6  # bytes of float32 operands and results in one program


class Shape(NamedTuple):
    """(M, K) times (K, N)."""

    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.m}×{self.n}×{self.k}"

    @property
    def operations(self) -> int:
        """Two for each multiplication with its addition."""
        return 2 * self.m * self.n * self.k

    def layers(self, at_most: int) -> int:
        """How many layers of this shape make one program: fewer where they are large."""
        one = 4 * (self.m * self.k + self.k * self.n + self.m * self.n)
        return max(1, min(at_most, int(_BUDGET // one)))


@dataclasses.dataclass(frozen=True)
class ShapeSet:
    """Shapes that belong together; `about` says in a line where they come from."""

    about: str
    shapes: tuple[Shape, ...]


def _each(rows: Iterable[int], weights: Sequence[tuple[int, int]]) -> tuple[Shape, ...]:
    """Every weight (N, K) at every M, each shape once."""
    return tuple(dict.fromkeys(Shape(m, n, k) for n, k in weights for m in rows))


def _mlp(*widths: int) -> list[tuple[int, int]]:
    """The weights (N, K) of layers from one width to the next."""
    return [(n, k) for k, n in itertools.pairwise(widths)]


def _decoder(hidden: int, inner: int) -> list[tuple[int, int]]:
    """The weights (N, K) of attention's projections and of the MLP, up and down."""
    return [(hidden, hidden), (inner, hidden), (hidden, inner)]


_COMPUTE_BOUND = (
    Shape(64, 800, 320),
    Shape(64, 768, 512),
    Shape(16, 256, 512),
    Shape(128, 128, 128),
    Shape(256, 512, 256),
    Shape(1024, 1024, 1024),
)
_BANDWIDTH_BOUND = (
    *_each([1], [(128, 512), (1024, 256), (2048, 512), (4096, 1024)]),
    *_each([6], [(256, 1024), (256, 2048), (512, 512), (1024, 256), (2048, 256), (2048, 512)]),
    *_each([6], [(4096, 256), (4096, 1024), (4096, 2048)]),
    *_each([10, 20], [(2048, 256), (4096, 1024)]),
    *_each([102], [(1024, 512), (2323, 256), (512, 256)]),
    *_each([1], [(800, 3200), (800, 8000), (128, 2876), (128, 2722)]),
    *_each([16], [(256, 1500), (256, 1567), (128, 1567)]),
    *_each([156800], [(4, 36), (8, 36), (16, 36)]),
)

SETS = {
    "default": ShapeSet(
        "a large, some middling and some small products",
        (
            Shape(1024, 1024, 1024),
            Shape(256, 1024, 1024),
            Shape(128, 512, 1024),
            Shape(64, 800, 320),
            Shape(16, 1024, 1024),
            Shape(4, 768, 3072),
            Shape(1, 1024, 1024),
            Shape(1, 4096, 4096),
        ),
    ),
    "quick": ShapeSet(
        "one of many rows, one of one row", (Shape(256, 1024, 1024), Shape(1, 1024, 1024))
    ),
    "square": ShapeSet(
        "M = N = K", tuple(Shape(size, size, size) for size in (256, 512, 1024, 2048))
    ),
    "vector": ShapeSet(
        "one row, N = K", tuple(Shape(1, size, size) for size in (512, 1024, 2048, 4096))
    ),
    "fbgemm": ShapeSet(
        "FBGEMM (arXiv:2101.05615): the shapes of its GEMM benchmarks, compute-bound first",
        _COMPUTE_BOUND + _BANDWIDTH_BOUND,
    ),
    "bert": ShapeSet(
        "BERT-base (768, 3072) and MiniLM (384, 1536) at 16, 128 and 8 × 128 tokens",
        _each([16, 128, 1024], _decoder(768, 3072) + _decoder(384, 1536)),
    ),
    "llm": ShapeSet(
        "decoders of 135M, 1B and 7B parameters: one token, prompts of 128 and 512",
        _each([1, 128, 512], _decoder(576, 1536) + _decoder(2048, 8192) + _decoder(4096, 11008)),
    ),
    "recsys": ShapeSet(
        "the two MLPs of DLRM (13 to 128, 479 to 1) at batches of 16, 64 and 256",
        _each([16, 64, 256], _mlp(13, 512, 256, 128) + _mlp(479, 1024, 1024, 512, 256, 1)),
    ),
}


def list_sets() -> str:
    """The named sets with what they are and their shapes."""
    return "\n\n".join(
        f"{name}: {found.about}\n  {', '.join(map(str, found.shapes))}"
        for name, found in SETS.items()
    )


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The name of a set, or "MxNxK,MxNxK,…". ValueError for anything else."""
    if text in SETS:
        return SETS[text].shapes
    shapes = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d*)[x×]([1-9]\d*)[x×]([1-9]\d*)\s*", part)
        if match is None:
            raise ValueError(
                f"{part!r} is no shape: expected MxNxK,MxNxK,… or one of {', '.join(SETS)}"
            )
        shapes.append(Shape(*map(int, match.groups())))
    return tuple(dict.fromkeys(shapes))  # each once
