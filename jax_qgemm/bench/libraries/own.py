"""This library: weights are quantized and packed ahead of time, as in real inference."""

from __future__ import annotations

import jax

from jax_qgemm import linear, packing, quantization
from jax_qgemm.bench.layers import Layer
from jax_qgemm.bench.libraries.jitted import Jitted
from jax_qgemm.types import QuantizedArray


def _dot(layers: list[Layer]) -> Jitted:
    return Jitted(linear.dot, [(layer.x, packing.pack_weight(layer.w)) for layer in layers])


def _static(layers: list[Layer]) -> Jitted:
    return Jitted(_call_static, [_static_operands(layer) for layer in layers])


def _static_operands(layer: Layer):
    x = quantization.quantize(layer.x, "uint8", scale=layer.x_scale, zero_point=128)
    return x, packing.pack_weight(layer.w), layer.bias, layer.out_scale


def _call_static(x: QuantizedArray, w, bias, out_scale) -> jax.Array:
    return linear.quantized_linear(
        x, w, bias=bias, activation="relu", out_scale=out_scale, out_zero_point=0
    ).qvalue


PROGRAMS = {"dot": _dot, "quantized_linear": _static}
