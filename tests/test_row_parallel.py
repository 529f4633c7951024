"""Weights in parts of K: the same as whole ones."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qgemm as jq
from jax_qgemm.row_parallel import RowParallelWeight

FORMATS = ["int8", "uint8", "int8:16", "int8:weight_only", "fp16", "bf16", "int4", "int8_blocks:16"]
K, N = 128, 70


def array(rng, *shape, dtype=jnp.float32):
    return jnp.asarray(rng.standard_normal(shape), dtype)


def exact(form):
    """Where sums are of integers over all of K."""
    return form in ("int8", "uint8")


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("form", FORMATS)
def test_equal_to_whole_weights(form, parts, rng):
    kernel, bias = array(rng, K, N), array(rng, N)
    whole, split = jq.pack_weight(kernel, form), jq.pack_row_parallel(kernel, form, parts=parts)
    assert split.shape == (K, N) and split.nbytes >= whole.nbytes
    assert np.array_equal(split.dequantize(), whole.dequantize())
    for shape in ((5,), (2, 3), ()):
        x, residual = array(rng, *shape, K), array(rng, *shape, N)
        for more in ({}, {"bias": bias, "residual": residual, "activation": "relu"}):
            want = jq.dot(x, whole, **more)
            for got in (
                jq.dot(x, split, **more),
                jax.jit(jq.dot)(x, split, **more) if not more else want,
            ):
                if exact(form):
                    assert np.array_equal(got, want)
                else:
                    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    x = array(rng, 4, K, dtype=jnp.bfloat16)
    assert jq.dot(x, split).dtype == jnp.bfloat16
    assert jq.dot(x, split, preferred_element_type="float32").dtype == jnp.float32


@pytest.mark.parametrize("form", ["int8", "uint8", "int8:16"])
@pytest.mark.parametrize("qtype", ["int8", "uint8"])
@pytest.mark.parametrize("axes", [(), (0, 1)])
def test_quantized_rows(form, qtype, axes, rng):
    kernel = array(rng, K, N)
    whole, split = jq.pack_weight(kernel, form), jq.pack_row_parallel(kernel, form, parts=4)
    x = jq.quantize(array(rng, 2, 3, K), qtype, channelwise_axes=axes)
    got, want = jq.dot(x, split), jq.dot(x, whole)
    if exact(form):
        assert np.array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMATS)
def test_gradients(form, rng):
    split = jq.pack_row_parallel(array(rng, K, N), form, parts=2)
    x, bias, ct = array(rng, 3, K), array(rng, N), array(rng, 3, N)
    _, pullback = jax.vjp(lambda x, b: jq.dot(x, split, bias=b), x, bias)
    back, of_bias = jax.jit(pullback)(ct)
    np.testing.assert_allclose(back, ct @ split.dequantize().T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_bias, ct.sum(0), rtol=1e-5)
    tangent = jax.jvp(lambda x: jq.dot(x, split), (x,), (x,))[1]
    np.testing.assert_allclose(tangent, x @ split.dequantize(), rtol=1e-3, atol=1e-3)


def test_long_sums(rng):
    """Beyond what int32 holds parts are added as floats."""
    kernel, x = array(rng, 2**17, 16), array(rng, 2, 2**17)
    split, whole = jq.pack_row_parallel(kernel, parts=4), jq.pack_weight(kernel)
    np.testing.assert_allclose(jq.dot(x, split), jq.dot(x, whole), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("form", ["int8", "int8:16", "uint8"])
def test_scales_have_no_gradient(form, rng):
    w, x = jq.pack_row_parallel(array(rng, K, N), form, parts=2), array(rng, 3, K)

    def f(x, scale):
        parts = dataclasses.replace(w.parts, scale=scale)
        return jq.dot(x, dataclasses.replace(w, parts=parts)).sum()

    assert jax.grad(f)(x, w.parts.scale).any()
    for rows in (x, jq.quantize(x, "uint8")):
        with pytest.raises(NotImplementedError, match="scale of a RowParallelWeight: not diff"):
            jax.grad(lambda s, rows=rows: f(rows, s))(w.parts.scale)


def test_strict_promotion(rng):
    w, x = jq.pack_row_parallel(array(rng, K, N), parts=2), array(rng, 3, K)
    want = jq.dot(x, w, bias=jnp.ones(N))
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        assert np.array_equal(jq.dot(x, w, bias=jnp.ones(N)), want)


def test_errors(rng):
    kernel, x = array(rng, K, N), array(rng, 3, K)
    for error, message, call in [
        (
            ValueError,
            "parts=3 does not divide K=128",
            lambda: jq.pack_row_parallel(kernel, parts=3),
        ),
        (
            ValueError,
            "parts=8 does not divide K=128 into parts of whole groups of 32",
            lambda: jq.pack_row_parallel(kernel, "int4", parts=8),
        ),
        (
            ValueError,
            "dot: w.parts must be a stack of weights (parts, K / parts, N), got PackedWeight int8[",
            lambda: jq.dot(x, RowParallelWeight(jq.pack_weight(kernel))),
        ),
        (ValueError, "parts must be an integer", lambda: jq.pack_row_parallel(kernel, parts=2.0)),
        (
            TypeError,
            "pack_row_parallel: clamp must be True or False",
            lambda: jq.pack_row_parallel(kernel, parts=2, clamp="yes"),
        ),
        (
            ValueError,
            "clamp is for fp16 and bf16, got qtype 'int8'",
            lambda: jq.pack_row_parallel(kernel, parts=2, clamp=True),
        ),
        (
            TypeError,
            "pack_row_parallel: symmetric must be True or False or None",
            lambda: jq.pack_row_parallel(kernel, parts=2, symmetric="no"),
        ),
        (ValueError, "2 dimensions (K, N)", lambda: jq.pack_row_parallel(kernel[0], parts=2)),
        (TypeError, "kernel must be float32", lambda: jq.pack_row_parallel(kernel > 0, parts=2)),
        (
            ValueError,
            "dot: w has K=128 but x has 127",
            lambda: jq.dot(x[:, :-1], jq.pack_row_parallel(kernel, parts=2)),
        ),
        (
            ValueError,
            "dot: bias has shape (3,)",
            lambda: jq.dot(x, jq.pack_row_parallel(kernel, parts=2), bias=jnp.ones(3)),
        ),
        (
            TypeError,
            "dot: x must be float32, bfloat16 or float16 for a weight of float16",
            lambda: jq.dot(jq.quantize(x, "int8"), jq.pack_row_parallel(kernel, "fp16", parts=2)),
        ),
        (
            TypeError,
            "quantized_linear: w must be a PackedWeight",
            lambda: jq.quantized_linear(
                jq.quantize(x, "int8"), jq.pack_row_parallel(kernel, parts=2), out_scale=1.0
            ),
        ),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            call()
