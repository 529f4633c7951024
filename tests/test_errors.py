"""Every error message: the argument, what was expected, what came; at trace time."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qgemm as jq

ONES = np.ones((8, 768), np.float32)
X = jnp.asarray(ONES)


@pytest.fixture(scope="module")
def w():
    return jq.pack_weight(np.ones((1024, 4096), np.float32))


@pytest.fixture(scope="module")
def small():
    return jq.pack_weight(np.ones((768, 3), np.float32))


@pytest.fixture(scope="module")
def xq():
    return jq.quantize(X, "uint8")


def refuses(kind, message):
    return pytest.raises(kind, match=re.escape(message))


def test_dot_k_mismatch(w, xq):
    message = (
        "dot: w has K=1024 but x has 768 in its last dimension "
        "(x: float32[8,768], w: PackedWeight int8[1024,4096])"
    )
    with refuses(ValueError, message):
        jq.dot(X, w)
    with refuses(ValueError, message):
        jax.jit(jq.dot)(X, w)
    with refuses(ValueError, "quantized_linear: w has K=1024 but x has 768"):
        jq.quantized_linear(xq, w, out_scale=1.0)
    with refuses(ValueError, "x has no dimensions in its last dimension (x: float32[]"):
        jq.dot(jnp.float32(1), w)


@pytest.mark.parametrize("dtype", ["float16", "int32", "int8", "bool"])
def test_unsupported_float_dtypes_say_what_to_use(dtype, small):
    x = X.astype(dtype)
    for name, call in {
        "dot: x": lambda: jq.dot(x, small),
        "quantize: x": lambda: jq.quantize(x, "int8"),
        "pack_weight: kernel": lambda: jq.pack_weight(x),
    }.items():
        argument = name.split()[-1]
        message = f"{name} must be float32 or bfloat16, got {dtype}[8,768]; use {argument}.astype("
        with refuses(TypeError, message):
            call()


def test_float64_under_x64(small):
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        x = jnp.ones((8, 768), jnp.float64)
        with refuses(TypeError, "dot: x must be float32 or bfloat16, got float64[8,768]"):
            jq.dot(x, small)
        y = jq.dot(x.astype(jnp.float32), small)
        q = jq.quantize(x.astype(jnp.float32), "uint8", channelwise_axes=[0])
        assert y.dtype == q.scale.dtype == jnp.float32 and q.zero_point.dtype == jnp.int32
        again = jq.quantized_linear(q, small, out_scale=0.5, out_zero_point=3)
        assert again.qvalue.dtype == jnp.uint8 and again.zero_point.dtype == jnp.int32


def test_weights_of_a_wrong_kind(xq):
    kernel = jnp.ones((768, 3))
    with refuses(
        TypeError,
        "dot: w must be a PackedWeight, got float32[768,3]; pack it once with "
        "jax_qgemm.pack_weight",
    ):
        jq.dot(X, kernel)
    with refuses(TypeError, "got QuantizedArray int8[768,3]; pack it once with jax_qgemm.pack"):
        jq.dot(X, jq.quantize(kernel, "int8"))
    with refuses(TypeError, "quantized_linear: w must be a PackedWeight, got None"):
        jq.quantized_linear(xq, None, out_scale=1.0)


def test_stacked_weights(small):
    stack = jax.tree.map(lambda a: jnp.stack([a, a]), small)
    message = "w is a stack of weights, PackedWeight int8[2,768,3]; use jax.vmap or jax.lax.scan"
    with refuses(ValueError, "dot: " + message):
        jq.dot(X, stack)
    with refuses(ValueError, "unpack: " + message):
        jq.unpack(stack)


def test_x_of_a_wrong_kind(small):
    with refuses(TypeError, "dot: x must be an array, got PackedWeight int8[768,3]"):
        jq.dot(small, small)
    with refuses(TypeError, "dot: x must be an array, got str"):
        jq.dot("x", small)
    with refuses(TypeError, "quantized_linear: x must be a QuantizedArray, got float32[8,768]"):
        jq.quantized_linear(X, small, out_scale=1.0)
    with refuses(TypeError, "dequantize: q must be QuantizedArray or PackedWeight, got float32[8"):
        jq.dequantize(X)


def test_activation(small, xq):
    for call in (
        lambda: jq.dot(X, small, activation="gelu"),
        lambda: jq.quantized_linear(xq, small, activation="gelu", out_scale=1.0),
    ):
        with refuses(ValueError, "activation must be one of None, 'relu', got 'gelu'"):
            call()


def test_bias(small):
    with refuses(ValueError, "dot: bias has shape (4,), expected (3,) (w: PackedWeight int8[768,"):
        jq.dot(X, small, bias=jnp.ones(4))
    with refuses(ValueError, "dot: bias has shape (1, 3), expected (3,)"):
        jq.dot(X, small, bias=jnp.ones((1, 3)))
    with refuses(
        TypeError, "dot: bias must be float32 or bfloat16, got int32[3]; use bias.astype("
    ):
        jq.dot(X, small, bias=jnp.ones(3, jnp.int32))


@pytest.mark.parametrize("wrong", [jnp.int32, "float16", "float33", object()])
def test_preferred_element_type(wrong, small):
    with refuses(ValueError, "dot: preferred_element_type must be float32 or bfloat16, got "):
        jq.dot(X, small, preferred_element_type=wrong)


@pytest.mark.parametrize("wrong", ["int4", "int16", jnp.float32, None, 8])
def test_qtype(wrong, small, xq):
    with refuses(ValueError, "quantize: qtype must be 'int8' or 'uint8', got "):
        jq.quantize(X, wrong)
    with refuses(ValueError, "pack_weight: qtype must be 'int8' or 'uint8', got "):
        jq.pack_weight(X, wrong)
    if wrong is not None:
        with refuses(ValueError, "quantized_linear: out_qtype must be 'int8' or 'uint8', got "):
            jq.quantized_linear(xq, small, out_scale=1.0, out_qtype=wrong)


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf, np.float64(1e39), np.float32(0)])
def test_scale_values_where_they_are_known(wrong, small, xq):
    with refuses(ValueError, "quantize: scale must be finite and > 0, got "):
        jq.quantize(X, "int8", scale=wrong)
    with refuses(ValueError, "quantized_linear: out_scale must be finite and > 0, got "):
        jax.jit(lambda x: jq.quantized_linear(x, small, out_scale=wrong))(xq)
    traced = jax.jit(lambda x, s: jq.quantize(x, "int8", scale=s).qvalue)
    assert (
        traced(X, np.float32(wrong) if abs(wrong) < 1e38 else np.float32(np.inf)).shape == X.shape
    )


def test_scale_shapes(small, xq):
    with refuses(ValueError, "quantize: scale has shape (8,), expected () or 2 dimensions of 1 or"):
        jq.quantize(X, "int8", scale=np.ones(8))
    with refuses(
        ValueError,
        "quantize: scale has shape (1, 768), expected (8, 1) for channelwise_axes=[0] "
        "(x: float32[8,768])",
    ):
        jq.quantize(X, "int8", channelwise_axes=[0], scale=np.ones((1, 768)))
    with refuses(ValueError, "quantize: zero_point has shape (8,), expected () or the shape of"):
        jq.quantize(X, "uint8", scale=np.ones((8, 1)), zero_point=np.ones(8, int))
    with refuses(ValueError, "quantized_linear: out_scale has shape (3,), expected () (a scalar)"):
        jq.quantized_linear(xq, small, out_scale=np.ones(3))
    with refuses(ValueError, "quantized_linear: out_zero_point has shape (1,), expected ()"):
        jq.quantized_linear(xq, small, out_scale=1.0, out_zero_point=np.ones(1, int))
    columns = jq.quantize(X, "int8", channelwise_axes=[1])
    with refuses(
        ValueError,
        "dot: x.scale has shape (1, 768), expected () (per tensor) or (8, 1) (per row) "
        "(x: QuantizedArray int8[8,768])",
    ):
        jq.dot(columns, small)
    with refuses(ValueError, "dequantize: scale has shape (768,), expected () or 1 or the full"):
        jq.QuantizedArray(xq.qvalue, jnp.ones(768), None, "uint8").dequantize()


@pytest.mark.parametrize("qtype,wrong", [("uint8", -1), ("uint8", 256), ("int8", 128)])
def test_zero_point_values(qtype, wrong, small, xq):
    low, high = {"uint8": (0, 255), "int8": (-128, 127)}[qtype]
    message = f"zero_point must be in [{low}, {high}], the range of {qtype}, got {wrong}"
    with refuses(ValueError, message):
        jq.quantize(X, qtype, scale=1.0, zero_point=wrong)
    with refuses(ValueError, message):
        jq.quantize(X, qtype, scale=1.0, zero_point=jnp.int32(wrong))
    with refuses(ValueError, "out_" + message):
        jq.quantized_linear(xq, small, out_scale=1.0, out_zero_point=wrong, out_qtype=qtype)


def test_zero_point_kinds(small, xq):
    with refuses(TypeError, "quantize: zero_point must be an integer, got float32[]"):
        jq.quantize(X, "uint8", scale=1.0, zero_point=1.0)
    with refuses(TypeError, "quantized_linear: out_zero_point must be an integer, got float32[]"):
        jq.quantized_linear(xq, small, out_scale=1.0, out_zero_point=0.0)
    with refuses(ValueError, "quantize: zero_point needs scale; pass both or neither"):
        jq.quantize(X, "uint8", zero_point=1)
    with refuses(ValueError, "quantize: symmetric=True fixes the zero point"):
        jq.quantize(X, "uint8", scale=1.0, zero_point=1, symmetric=True)


@pytest.mark.parametrize("axes", [[2], [-3], [0, 0], [0, -2]])
def test_channelwise_axes(axes):
    with refuses(
        ValueError, f"channelwise_axes must be distinct axes of x (float32[8,768]), got {axes}"
    ):
        jq.quantize(X, "int8", channelwise_axes=axes)


def test_pack():
    with refuses(TypeError, "pack: q must be a QuantizedArray, got float32[8,768]; quantize it"):
        jq.pack(X)
    with refuses(ValueError, "pack: q must have 2 dimensions (K, N), got QuantizedArray int8[768]"):
        jq.pack(jq.quantize(X[0], "int8"))
    with refuses(ValueError, "pack: q must have 2 dimensions (K, N), got QuantizedArray int8[1,8,"):
        jq.pack(jq.quantize(X[None], "int8"))
    with refuses(ValueError, "pack: scale has shape (8, 1), expected () or (1, 768): one per"):
        jq.pack(jq.quantize(X, "int8", channelwise_axes=[0]))
    with refuses(ValueError, "pack_weight: kernel must have 2 dimensions (K, N), got float32[768]"):
        jq.pack_weight(X[0])
    with refuses(TypeError, "unpack: w must be a PackedWeight, got float32[8,768]"):
        jq.unpack(X)


def test_altered_weight(small):
    altered = jax.tree.map(lambda a: a[..., :-1], small)
    with refuses(ValueError, "was the packed weight altered?"):
        jq.dot(X, altered)
