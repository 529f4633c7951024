"""This library: weights are quantized and packed ahead of time, as in real inference."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jax_qgemm import linear, packing, quantization
from jax_qgemm.bench.layers import Layer
from jax_qgemm.bench.libraries.jitted import Jitted


def _dot(layers: list[Layer]) -> Jitted:
    return Jitted([(linear.dot, (layer.x, packing.pack_weight(layer.w))) for layer in layers])


def _float(form: str, dtype: type, layers: list[Layer]) -> Jitted:
    """With weights of 16 bits and x of a dtype."""

    def operands(layer: Layer):
        return layer.x.astype(dtype), packing.pack_weight(layer.w, form)

    return Jitted([(linear.dot, operands(layer)) for layer in layers])


def _int4(weight_only: bool, layers: list[Layer]) -> Jitted:
    def pack(layer: Layer):
        return packing.pack_blocks(layer.w_int4, layer.w_int4_scale, weight_only=weight_only)

    return Jitted([(linear.dot, (layer.x, pack(layer))) for layer in layers])


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


PROGRAMS = {
    "dot": _dot,
    "quantized_linear": _static,
    "dot_int4": functools.partial(_int4, False),
    "dot_int4_weight_only": functools.partial(_int4, True),
    "dot_fp16": functools.partial(_float, "fp16", jnp.float32),
    "dot_bf16": functools.partial(_float, "bf16", jnp.bfloat16),
}
