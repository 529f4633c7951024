"""This library: weights are quantized and packed ahead of time, as in real inference."""

from __future__ import annotations

import dataclasses

import jax

from jax_qgemm import linear, packing, quantization
from jax_qgemm.bench.layers import Layer
from jax_qgemm.bench.libraries.jitted import Jitted


def _dot(layers: list[Layer]) -> Jitted:
    return Jitted([(linear.dot, (layer.x, packing.pack_weight(layer.w))) for layer in layers])


def _static(layers: list[Layer]) -> Jitted:
    return Jitted([_static_layer(layer) for layer in layers])


def _static_layer(layer: Layer):
    """Scales and zero points of activations are constants, as in ONNX Runtime and PyTorch."""
    x = quantization.quantize(layer.x, "uint8", scale=layer.x_scale, zero_point=128)

    def call(qvalue, w, bias) -> jax.Array:
        quantized = dataclasses.replace(x, qvalue=qvalue)
        return linear.quantized_linear(
            quantized, w, bias=bias, activation="relu", out_scale=layer.out_scale, out_zero_point=0
        ).qvalue

    return call, (x.qvalue, packing.pack_weight(layer.w), layer.bias)


PROGRAMS = {"dot": _dot, "quantized_linear": _static}
