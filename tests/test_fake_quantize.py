"""fake_quantize: the values of inference, straight-through gradients, learned scales, training."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jax_qgemm as jq

FORMS = [
    {"qtype": "int8"},
    {"qtype": "uint8"},
    {"qtype": "int8", "symmetric": False},
    {"qtype": "int8", "channelwise_axes": [1]},
    {"qtype": "uint8", "channelwise_axes": (0,)},
    {"qtype": "int8", "group_size": 16},
    {"qtype": "uint8", "group_size": 32, "symmetric": True},
    {"qtype": np.int8},
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradient(form, dtype, rng):
    x = jnp.asarray(rng.standard_normal((40, 12)), dtype)
    q = jq.quantize(x, **form)
    for f in (
        jq.fake_quantize,
        jax.jit(lambda x, qtype, **_: jq.fake_quantize(x, **form), static_argnames="qtype"),
    ):
        y = f(x, **(form if f is jq.fake_quantize else {"qtype": "int8"}))
        assert y.dtype == x.dtype and np.array_equal(y, q.dequantize().astype(dtype))
    ct = jnp.asarray(rng.standard_normal((40, 12)), dtype)
    y, pullback = jax.vjp(lambda x: jq.fake_quantize(x, **form), x)
    assert np.array_equal(pullback(ct)[0], ct)
    assert np.array_equal(jax.jvp(lambda x: jq.fake_quantize(x, **form), (x,), (ct,))[1], ct)
    stack = jnp.stack([x, 2 * x])
    mapped = jax.vmap(jax.grad(lambda x: (jq.fake_quantize(x, **form) ** 2).sum()))(stack)
    want = jnp.stack([2 * jq.fake_quantize(x, **form), 2 * jq.fake_quantize(2 * x, **form)])
    assert np.array_equal(mapped, want)


@pytest.mark.parametrize(
    "form",
    [
        *("int4:32", "int4:64:bf16", "int8_blocks", "fp16", "bf16", "int8:32"),
        *(jnp.float16, jnp.bfloat16, jnp.int4),
    ],
)
def test_formats_of_weights(form, rng):
    kernel = jnp.asarray(rng.standard_normal((64, 7)), jnp.float32)
    assert np.array_equal(jq.fake_quantize(kernel, form), jq.pack_weight(kernel, form).dequantize())
    grad = jax.jit(jax.grad(lambda k: (jq.fake_quantize(k, form) ** 2).sum()))(kernel)
    np.testing.assert_allclose(grad, 2 * jq.fake_quantize(kernel, form), rtol=1e-6)


@pytest.mark.parametrize("qtype,zero_point", [("int8", None), ("int8", 5), ("uint8", 100)])
@pytest.mark.parametrize("axes", [(), (1,)])
def test_learned_scales(axes, qtype, zero_point, rng):
    """LSQ, equation 3, element by element."""
    x = jnp.asarray(4 * rng.standard_normal((30, 6)), jnp.float32)
    scale = jnp.full((1, 6) if axes else (), 0.02, jnp.float32)
    form = {"qtype": qtype, "channelwise_axes": axes, "zero_point": zero_point}

    def f(x, scale):
        return jq.fake_quantize(x, scale=scale, **form)

    q = jq.quantize(x, scale=scale, **form)
    assert np.array_equal(f(x, scale), q.dequantize())
    ct = rng.standard_normal((30, 6)).astype(np.float32)
    of_x, of_scale = jax.jit(lambda x, s: jax.vjp(f, x, s)[1](ct))(x, scale)
    low, high = (-128, 127) if qtype == "int8" else (0, 255)
    zero = zero_point or 0
    steps = np.rint(np.asarray(x, np.float64) / np.float64(scale)) + zero
    inside = (steps >= low) & (steps <= high)
    assert 0 < inside.sum() < inside.size
    assert np.array_equal(of_x, np.where(inside, ct, 0))
    terms = ct * (np.clip(steps, low, high) - zero - np.where(inside, x / scale, 0))
    want = terms.sum(0, keepdims=True) if axes else terms.sum()
    np.testing.assert_allclose(of_scale, want, rtol=1e-4, atol=1e-4)
    tangents = jnp.ones_like(x), jnp.ones_like(scale)
    tangent = jax.jvp(f, (x, scale), tangents)[1]
    np.testing.assert_allclose(tangent, inside + terms / ct, rtol=1e-4, atol=1e-4)


def test_bfloat16_with_a_scale():
    x = jnp.asarray([0.3, 100], jnp.bfloat16)
    grad = jax.grad(lambda x: jq.fake_quantize(x, "int8", scale=0.1).sum())(x)
    assert grad.dtype == ml_dtypes.bfloat16 and grad.tolist() == [1, 0]


def test_second_order(rng):
    x = jnp.asarray(rng.standard_normal(5), jnp.float32)
    hessian = jax.hessian(lambda x: (jq.fake_quantize(x, "int8") ** 2).sum())(x)
    np.testing.assert_allclose(hessian, 2 * np.eye(5), atol=1e-6)


def test_training_and_serving(rng):
    """A regression trained through 4-bit weights and 8-bit activations, with a learned scale of
    the activations, then served by packed weights."""
    x = jnp.asarray(rng.standard_normal((256, 32)), jnp.float32)
    target = x @ jnp.asarray(rng.standard_normal((32, 8)) / 6, jnp.float32)

    def model(params, x):
        xq = jq.fake_quantize(x, "int8", scale=params["scale"])
        return xq @ jq.fake_quantize(params["kernel"], "int4:32") + params["bias"]

    def loss(params):
        return ((model(params, x) - target) ** 2).mean()

    params = {"kernel": jnp.zeros((32, 8)), "bias": jnp.zeros(8), "scale": jnp.float32(0.002)}
    step = jax.jit(
        lambda p: jax.tree.map(
            lambda v, g, rate: v - rate * g,
            p,
            jax.grad(loss)(p),
            {"kernel": 0.5, "bias": 0.5, "scale": 1e-4},
        )
    )
    start = loss(params)
    for _ in range(300):
        params = step(params)
    assert params["scale"] > 0.004 and loss(params) < start / 50
    w = jq.pack_weight(params["kernel"], "int4:32:weight_only")
    served = jq.dot(jq.fake_quantize(x, "int8", scale=params["scale"]), w, bias=params["bias"])
    np.testing.assert_allclose(served, model(params, x), atol=1e-5)


def test_trained_layers_are_served_by_int8(rng):
    kernel = jnp.asarray(rng.standard_normal((48, 20)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((3, 5, 48)), jnp.float32)
    trained = jnp.matmul(
        jq.fake_quantize(x, "uint8", channelwise_axes=range(2)),
        jq.fake_quantize(kernel, "int8", channelwise_axes=[1]),
        precision="highest",
    )
    served = jq.dot(x, jq.pack_weight(kernel, "int8"))
    np.testing.assert_allclose(served, trained, rtol=1e-4, atol=1e-4)


def test_strict_promotion(rng):
    x = jnp.asarray(rng.standard_normal((5, 33)), jnp.float32)
    more = dict(scale=jnp.full((1, 33), 0.1), zero_point=3, channelwise_axes=[1])
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        strict = jq.fake_quantize(x, "uint8", **more)
    assert np.array_equal(strict, jq.fake_quantize(x, "uint8", **more))


def test_errors():
    x = jnp.ones((32, 3))
    for error, message, arguments in [
        (
            TypeError,
            "fake_quantize: x must be float32, bfloat16 or float16, got int32",
            (x.astype(int), {"qtype": "int8"}),
        ),
        (
            ValueError,
            "fake_quantize: scale is for qtype 'int8' and 'uint8', got 'int4'",
            (x, {"qtype": "int4", "scale": 0.1}),
        ),
        (
            ValueError,
            "group_size, channelwise_axes is for",
            (x, {"qtype": "fp16", "group_size": 32, "channelwise_axes": [1]}),
        ),
        (
            ValueError,
            "'int4' is for a kernel (K, N), got float32[1,32,3]",
            (x[None], {"qtype": "int4"}),
        ),
        (ValueError, "got 'int5'", (x, {"qtype": "int5"})),
        (
            ValueError,
            "fake_quantize: scale is for qtype 'int8' and 'uint8', got 'float16'",
            (x, {"qtype": jnp.float16, "scale": 0.1}),
        ),
        (ValueError, "or 'int8_blocks', got None", (x, {"qtype": None})),
        (ValueError, "scale has shape (2,)", (x, {"qtype": "int8", "scale": jnp.ones(2)})),
        (ValueError, "zero_point needs scale", (x, {"qtype": "int8", "zero_point": 1})),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            jq.fake_quantize(arguments[0], **arguments[1])
