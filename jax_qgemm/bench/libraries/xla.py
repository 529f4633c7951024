"""XLA alone, in float32, bfloat16 and int8. Weights are cast or quantized ahead of time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_qgemm.bench.layers import Layer
from jax_qgemm.bench.libraries.jitted import Jitted


def _float32(layers: list[Layer]) -> Jitted:
    return Jitted([(jnp.dot, (layer.x, layer.w)) for layer in layers])


def _bfloat16(layers: list[Layer]) -> Jitted:
    def cast(*arrays):
        return tuple(array.astype(jnp.bfloat16) for array in arrays)

    return Jitted([(jnp.dot, cast(layer.x, layer.w)) for layer in layers])


def _int8(layers: list[Layer]) -> Jitted:
    """The static layer with int8 for x too, which asks for no zero point."""
    return Jitted([_int8_layer(layer) for layer in layers])


def _int8_layer(layer: Layer):
    def call(x, w, scale, bias) -> jax.Array:
        acc = lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
        y = jnp.maximum(acc.astype(jnp.float32) * scale + bias, 0)
        return jnp.clip(jnp.round(y * (1 / layer.out_scale)), 0, 255).astype(jnp.uint8)

    x = np.rint(layer.x / layer.x_scale).astype(np.int8)
    return call, (x, layer.w_int8, layer.x_scale * layer.w_scale, layer.bias)


PROGRAMS = {"xla_f32": _float32, "xla_bf16": _bfloat16, "xla_int8": _int8}
