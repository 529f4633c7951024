"""Random layers, and their operands in float32 and as frameworks quantize them, in NumPy.

Every worker draws the same ones from the same seed.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jax_qgemm.bench.shapes import Shape

INT4_GROUP = 32  # along K


@dataclasses.dataclass(frozen=True)
class Layer:
    """One product in float32, of which each contestant makes what it needs.

    Attributes:
      x: f32 [M, K], standard normal.
      w: f32 [K, N], normal, scaled so that x @ w has unit variance.
      bias: f32 [N].
      product: f32 [M, N], x @ w: what contestants are checked against.
    """

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray
    product: np.ndarray

    @property
    def activated(self) -> np.ndarray:
        """relu(x @ w + bias), what the static contestants compute."""
        return np.maximum(self.product + self.bias, 0)

    @property
    def out_scale(self) -> np.float32:
        """The whole range of the uint8 result, zero point 0, is used."""
        return np.float32(self.activated.max() / 255) or np.float32(1)

    @property
    def x_scale(self) -> np.float32:
        """Of `x_uint8`."""
        return np.abs(self.x).max() / np.float32(127)

    @property
    def x_uint8(self) -> np.ndarray:
        """x around a zero point of 128, as frameworks quantize signed activations."""
        return (np.rint(self.x / self.x_scale) + 128).clip(0, 255).astype(np.uint8)

    @property
    def w_scale(self) -> np.ndarray:
        """f32 [N], of `w_int8`."""
        return np.abs(self.w).max(axis=0) / np.float32(127)

    @property
    def w_int4_scale(self) -> np.ndarray:
        """f16 [⌈K / INT4_GROUP⌉, N], of `w_int4`."""
        starts = np.arange(0, self.w.shape[0], INT4_GROUP)
        scale = np.maximum.reduceat(np.abs(self.w), starts, axis=0) / np.float32(7)
        return scale.astype(np.float16)

    @property
    def w_int4(self) -> np.ndarray:
        """uint8 [K, N] below 16, 8 standing for 0."""
        return (np.rint(self.w / self._each(self.w_int4_scale)).clip(-8, 7) + 8).astype(np.uint8)

    @property
    def int4_product(self) -> np.ndarray:
        """f32 [M, N], x times the values of `w_int4`."""
        values = self.w_int4.astype(np.float32) - 8
        return self.x @ (values * self._each(self.w_int4_scale))

    def _each(self, scale: np.ndarray) -> np.ndarray:
        """The scale of each element of w."""
        return scale.astype(np.float32).repeat(INT4_GROUP, axis=0)[: self.w.shape[0]]

    @property
    def w_int8(self) -> np.ndarray:
        """int8 [K, N], symmetric, a scale for each column."""
        return np.rint(self.w / self.w_scale).astype(np.int8)


def make_layers(shape: Shape, count: int, seed: int = 0) -> list[Layer]:
    """`count` layers with operands of their own: XLA would merge calls on equal ones."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(count):
        x = rng.standard_normal((shape.m, shape.k), np.float32)
        w = rng.standard_normal((shape.k, shape.n), np.float32) / np.sqrt(np.float32(shape.k))
        bias = rng.standard_normal(shape.n, np.float32) / 2
        layers.append(Layer(x, w, bias, x @ w))
    return layers
