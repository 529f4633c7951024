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
      int8: whether it multiplies in int8, so that the machine's int8 peak is its measure.
    """

    name: str
    title: str
    library: str
    column: str
    element_bytes: tuple[int, int, int]
    tolerance: float
    static: bool = False
    int8: bool = True

    @property
    def own(self) -> bool:
        """Whether it is of this library."""
        return not self.column

    def rivals(self, other: Contestant) -> bool:
        """Whether the two are compared: XLA's with all, a peer's with that of its own kind."""
        return (
            self.own and not other.own and (other.library == "xla" or self.static == other.static)
        )

    def bytes_moved(self, shape: Shape) -> int:
        """Of x, the weight and the result, each touched once."""
        x, w, result = self.element_bytes
        return shape.m * shape.k * x + shape.k * shape.n * w + shape.m * shape.n * result


_DYNAMIC = dict(element_bytes=(4, 1, 4), tolerance=0.25)
_STATIC = dict(element_bytes=(1, 1, 1), tolerance=0.2, static=True)


def _pair(name: str, title: str, library: str, column: str) -> tuple[Contestant, Contestant]:
    """What peers offer: float32 quantized on the fly, and quantized from end to end."""
    return (
        Contestant(f"{name}_dynamic", f"{title} f32→f32", library, column, **_DYNAMIC),
        Contestant(f"{name}_static", f"{title} u8→u8", library, column, **_STATIC),
    )


CONTESTANTS = (
    Contestant("dot", "dot f32→f32", "own", "", **_DYNAMIC),
    Contestant("quantized_linear", "quantized_linear u8→u8", "own", "", **_STATIC),
    Contestant("xla_f32", "XLA f32", "xla", "f32", (4, 4, 4), tolerance=1e-3, int8=False),
    Contestant("xla_bf16", "XLA bf16", "xla", "bf16", (2, 2, 2), tolerance=0.1, int8=False),
    Contestant("xla_int8", "XLA int8 s8→u8", "xla", "int8", **_STATIC),
    *_pair("ort", "ONNX Runtime", "ort", "ORT"),
    *_pair("fbgemm", "FBGEMM", "torch_fbgemm", "FBGEMM"),
    *_pair("onednn", "oneDNN", "torch_onednn", "oneDNN"),
)


def check(contestant: Contestant, layers: list[Layer], outputs: Iterable) -> float:
    """The largest error over all layers.

    Raises:
      WrongResultError: it is above the tolerance, or not a number.
    """
    worst = 0.0
    for layer, output in zip(layers, outputs, strict=True):
        want = layer.activated if contestant.static else layer.product
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
