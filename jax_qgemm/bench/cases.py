"""The products that are timed: their shapes, and random operands for them."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


SETS = {
    "default": (
        Shape(1024, 1024, 1024),
        Shape(256, 1024, 1024),
        Shape(128, 512, 1024),
        Shape(64, 800, 320),
        Shape(16, 1024, 1024),
        Shape(4, 768, 3072),
        Shape(1, 1024, 1024),
        Shape(1, 4096, 4096),
    ),
    "quick": (Shape(256, 1024, 1024), Shape(1, 1024, 1024)),
    "square": tuple(Shape(size, size, size) for size in (256, 512, 1024, 2048)),
    "vector": tuple(Shape(1, size, size) for size in (512, 1024, 2048, 4096)),
}


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The name of a set, or "MxNxK,MxNxK,…". ValueError for anything else."""
    if text in SETS:
        return SETS[text]
    shapes = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d*)[x×]([1-9]\d*)[x×]([1-9]\d*)\s*", part)
        if match is None:
            raise ValueError(
                f"{part!r} is no shape: expected MxNxK,MxNxK,… or one of {', '.join(SETS)}"
            )
        shapes.append(Shape(*map(int, match.groups())))
    return tuple(shapes)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One product in float32, of which each contestant makes what it needs.

    Attributes:
      x: f32 [M, K], standard normal.
      w: f32 [K, N], normal, scaled so that x @ w has unit variance.
      bias: f32 [N].
      product: f32 [M, N], x @ w by NumPy: what contestants are checked against.
    """

    x: jax.Array
    w: jax.Array
    bias: jax.Array
    product: np.ndarray

    @property
    def activated(self) -> np.ndarray:
        """relu(x @ w + bias), what the static contestants compute."""
        return np.maximum(self.product + np.asarray(self.bias), 0)


def make_layers(shape: Shape, count: int, seed: int = 0) -> list[Layer]:
    """`count` layers with operands of their own: XLA would merge calls on equal ones."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(count):
        x = rng.standard_normal((shape.m, shape.k), np.float32)
        w = rng.standard_normal((shape.k, shape.n), np.float32) / np.sqrt(np.float32(shape.k))
        bias = rng.standard_normal(shape.n, np.float32) / 2
        layers.append(Layer(jnp.asarray(x), jnp.asarray(w), jnp.asarray(bias), x @ w))
    return layers
