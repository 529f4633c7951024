"""Who is timed: two functions of this library, the same products by XLA alone, and by its peers.

This is what the report knows of them; `libraries/` has the code that computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from jax_qgemm.bench.layers import Layer
from jax_qgemm.bench.shapes import Shape


class WrongResultError(RuntimeError):
    """A contestant computes something else than the product: its time would mean nothing."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to compute a layer.

    Attributes:
      name, title: its key in the JSON file and its name in the table.
      library: the `Library` that computes it, in whose process it runs.
      column: the table's column with the ratios to it; empty for this library's own.
      element_bytes: of one element of x, of the weight and of the result.
      tolerance: largest error allowed; the exact product has a standard deviation of 1.
      static: whether it computes quantize(relu(x @ w + bias)), else x @ w.
      arithmetic: "int8", "f32" or "bf16", what it multiplies: the machine's peak of that is its
        measure.
      weights: of `WEIGHTS`, how its weight is stored; empty for a float one, which all are compared
        with.
    """

    name: str
    title: str
    library: str
    column: str
    element_bytes: tuple[float, float, float]
    tolerance: float
    static: bool = False
    arithmetic: str = "int8"
    weights: str = "int8"

    @property
    def own(self) -> bool:
        """Whether it is of this library."""
        return not self.column

    def rivals(self, other: Contestant) -> bool:
        """Whether the two are compared: XLA's with all, a peer's with that of its own kind."""
        alike = self.static == other.static and self.arithmetic == other.arithmetic
        return self.own and not other.own and (other.library == "xla" or alike)

    def bytes_moved(self, shape: Shape) -> float:
        """Of x, the weight and the result, each touched once."""
        x, w, result = self.element_bytes
        return shape.m * shape.k * x + shape.k * shape.n * w + shape.m * shape.n * result


# How weights are stored, and the arithmetic that products with them are measured by.
WEIGHTS = {"int8": "int8", "int4": "int8", "fp16": "f32", "bf16": "bf16"}

# What they are of programs in JAX.
WEIGHTS_AS = ("constants", "arguments")

_DYNAMIC = dict(element_bytes=(4, 1, 4), tolerance=0.25)
_STATIC = dict(element_bytes=(1, 1, 1), tolerance=0.2, static=True)
# 4 bits, and 16 for the scale of 32 of them.
_INT4 = dict(element_bytes=(4, 4.5 / 8, 4), tolerance=0.25, weights="int4")
_INT4_FLOAT = _INT4 | dict(tolerance=1e-3, arithmetic="f32")
_FP16 = dict(element_bytes=(4, 2, 4), tolerance=1e-2, arithmetic="f32", weights="fp16")
_BF16 = dict(element_bytes=(2, 2, 2), tolerance=0.1, arithmetic="bf16", weights="bf16")


def _pair(name: str, title: str, library: str, column: str) -> tuple[Contestant, Contestant]:
    """What peers offer: float32 quantized on the fly, and quantized from end to end."""
    return (
        Contestant(f"{name}_dynamic", f"{title} f32→f32", library, column, **_DYNAMIC),
        Contestant(f"{name}_static", f"{title} u8→u8", library, column, **_STATIC),
    )


CONTESTANTS = (
    Contestant("dot", "dot f32→f32", "own", "", **_DYNAMIC),
    Contestant("quantized_linear", "quantized_linear u8→u8", "own", "", **_STATIC),
    Contestant("dot_int4", "dot int4 f32→f32", "own", "", **_INT4),
    Contestant("dot_int4_weight_only", "dot int4, x kept", "own", "", **_INT4_FLOAT),
    Contestant("dot_fp16", "dot fp16 f32→f32", "own", "", **_FP16),
    Contestant("dot_bf16", "dot bf16 bf16→bf16", "own", "", **_BF16),
    Contestant("xla_f32", "XLA f32", "xla", "f32", (4, 4, 4), 1e-3, arithmetic="f32", weights=""),
    Contestant(
        "xla_bf16", "XLA bf16", "xla", "bf16", (2, 2, 2), 0.1, arithmetic="bf16", weights=""
    ),
    Contestant("xla_int8", "XLA int8 s8→u8", "xla", "int8", **_STATIC),
    *_pair("ort", "ONNX Runtime", "ort", "ORT"),
    *_pair("fbgemm", "FBGEMM", "torch_fbgemm", "FBGEMM"),
    *_pair("onednn", "oneDNN", "torch_onednn", "oneDNN"),
    Contestant("ort_int4", "ONNX Runtime int4", "ort", "ORT", **_INT4),
    Contestant("ort_int4_float", "ONNX Runtime int4, x kept", "ort", "ORT", **_INT4_FLOAT),
    Contestant("fbgemm_fp16", "FBGEMM fp16", "torch_fbgemm", "FBGEMM", **_FP16),
    Contestant("onednn_bf16", "oneDNN bf16", "torch_onednn", "oneDNN", **_BF16),
)


def contest(weights: str) -> tuple[Contestant, ...]:
    """Those with such weights, and with float ones."""
    return tuple(c for c in CONTESTANTS if c.weights in (weights, ""))


def _wanted(contestant: Contestant, layer: Layer) -> np.ndarray:
    """What it computes: with so few bits, the product with the values that they stand for."""
    if contestant.weights == "int4":
        return layer.int4_product
    return layer.activated if contestant.static else layer.product


def check(contestant: Contestant, layers: list[Layer], outputs: Iterable) -> float:
    """The largest error over all layers.

    Raises:
      WrongResultError: it is above the tolerance, or not a number.
    """
    worst = 0.0
    for layer, output in zip(layers, outputs, strict=True):
        want = _wanted(contestant, layer)
        got = np.asarray(output, np.float32)
        if contestant.static:
            got = got * layer.out_scale
        worst = float(np.maximum(worst, np.max(np.abs(got - want))))
    if not worst <= contestant.tolerance:
        raise WrongResultError(
            f"{contestant.title} is off by {worst:.3g} standard deviations of the product, "
            f"{contestant.tolerance:g} is allowed"
        )
    return worst
