"""Who is timed: two functions of this library, and the same products by XLA alone.

`prepare` turns a layer into the arguments of `call`, outside the timed program: weights are
quantized and packed, or cast, ahead of time, as in real inference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_qgemm import linear, packing, quantization
from jax_qgemm.bench.cases import Layer
from jax_qgemm.types import QuantizedArray


class WrongResultError(RuntimeError):
    """A contestant computes something else than the product: its time would mean nothing."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to compute a layer.

    Attributes:
      name, title: its key in the JSON file and its name in the table.
      prepare: Layer → arguments of `call`.
      call: the layer in JAX; returns one array.
      weight_bytes: of one element of the weight.
      tolerance: largest error allowed, in units of the root mean square of the exact result.
      static: whether it computes quantize(relu(x @ w + bias)), else x @ w.
      int8: whether it multiplies in int8, so that the machine's int8 peak is its measure.
      own: whether it is of this library.
    """

    name: str
    title: str
    prepare: Callable[[Layer], tuple[Any, ...]]
    call: Callable[..., jax.Array]
    weight_bytes: int
    tolerance: float
    static: bool = False
    int8: bool = False
    own: bool = False


def check(contestant: Contestant, layers: list[Layer], outputs: list[jax.Array]) -> float:
    """The largest error over all layers, relative as in `tolerance`.

    Raises:
      WrongResultError: it is above the tolerance, or not a number.
    """
    worst = 0.0
    for layer, output in zip(layers, outputs, strict=True):
        want = layer.activated if contestant.static else layer.product
        got = np.asarray(output, np.float32)
        if contestant.static:
            got = got * np.float32(_out_scale(layer))
        unit = np.sqrt(np.mean(np.square(want))) or 1.0
        worst = float(np.maximum(worst, np.max(np.abs(got - want)) / unit))
    if not worst <= contestant.tolerance:
        raise WrongResultError(
            f"{contestant.title} is off by {worst:.3g} of the result's root mean square, "
            f"{contestant.tolerance:g} is allowed"
        )
    return worst


def _out_scale(layer: Layer) -> float:
    """The whole range of the uint8 result, zero point 0, is used."""
    return float(layer.activated.max() / 255) or 1.0


def _dot(layer: Layer):
    return layer.x, packing.pack_weight(layer.w)


def _static(layer: Layer):
    """x in uint8 around a zero point of 128, as frameworks quantize signed activations."""
    scale = jnp.max(jnp.abs(layer.x)) / 127
    x = quantization.quantize(layer.x, "uint8", scale=scale, zero_point=128)
    return x, packing.pack_weight(layer.w), layer.bias, jnp.float32(_out_scale(layer))


def _call_static(x: QuantizedArray, w, bias, out_scale) -> jax.Array:
    return linear.quantized_linear(
        x, w, bias=bias, activation="relu", out_scale=out_scale, out_zero_point=0
    ).qvalue


def _xla_int8(layer: Layer):
    """The same product as `_static`; int8 for x too, which asks for no zero point."""
    x = quantization.quantize(layer.x, "int8")
    w = quantization.quantize(layer.w, "int8", channelwise_axes=[1])
    scale = (x.scale * w.scale)[0]
    return x.qvalue, w.qvalue, scale, layer.bias, jnp.float32(_out_scale(layer))


def _call_xla_int8(x, w, scale, bias, out_scale) -> jax.Array:
    acc = lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    y = jnp.maximum(acc.astype(jnp.float32) * scale + bias, 0)
    return jnp.clip(jnp.round(y * (1 / out_scale)), 0, 255).astype(jnp.uint8)


CONTESTANTS = (
    Contestant("dot", "dot f32→f32", _dot, linear.dot, 1, 0.25, int8=True, own=True),
    Contestant(
        "quantized_linear",
        "quantized_linear u8→u8",
        _static,
        _call_static,
        1,
        0.25,
        static=True,
        int8=True,
        own=True,
    ),
    Contestant("xla_f32", "XLA f32", lambda layer: (layer.x, layer.w), jnp.dot, 4, 1e-3),
    Contestant(
        "xla_bf16",
        "XLA bf16",
        lambda layer: (layer.x.astype(jnp.bfloat16), layer.w.astype(jnp.bfloat16)),
        jnp.dot,
        2,
        0.1,
    ),
    Contestant(
        "xla_int8",
        "XLA int8 s8→u8",
        _xla_int8,
        _call_xla_int8,
        1,
        0.25,
        static=True,
        int8=True,
    ),
)
