"""Derivatives of products: against float32 products of the real weights, of every order."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import jet
from jax.test_util import check_grads

import jax_qgemm as jq

FORMATS = [
    "int8",
    "uint8",
    "int8:32",
    "int8:weight_only",
    "fp16",
    "bf16",
    "int4",
    "int4:64:bf16:weight_only",
    "int8_blocks:16",
]
SMOOTH = [f for f in FORMATS if f in ("fp16", "bf16") or "weight_only" in f]  # x is not quantized
ACTIVATIONS = {
    None: lambda y: y,
    "relu": jax.nn.relu,
    "gelu": lambda y: jax.nn.gelu(y, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
}
M, N, K = 6, 70, 45


def weight(rng, form, shape=(K, N)):
    kernel = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[-2]))
    more = {"symmetric": False} if form.startswith("int4") else {}
    pack = lambda kernel: jq.pack_weight(kernel, form, **more)  # noqa: E731
    for _ in shape[2:]:
        pack = jax.vmap(pack)
    return pack(kernel)


def array(rng, *shape, dtype=jnp.float32):
    return jnp.asarray(rng.standard_normal(shape), dtype)


def close(got, want, tolerance=2e-6):
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    assert got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= tolerance * np.abs(want).max(initial=1e-30)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("form", FORMATS)
def test_cotangent_of_x(form, dtype, rng, each_isa):
    """ȳ · Wᵀ, by a kernel: the same bits on all instruction sets."""
    w, tolerance = weight(rng, form), 2e-6 if dtype == "float32" else 1e-2
    x, ct = array(rng, 2, 3, K, dtype=dtype), array(rng, 2, 3, N, dtype=dtype)
    real = w.dequantize()
    found = []
    for isa in each_isa():
        for f in (jq.dot, jax.jit(jq.dot)):
            y, pullback = jax.vjp(lambda x, f=f: f(x, w), x)
            (back,) = pullback(ct)
            assert np.array_equal(y, jq.dot(x, w)) and back.dtype == x.dtype, isa
            close(back, ct.astype(jnp.float32) @ real.T, tolerance)
            found.append(np.asarray(back, np.float32))
    assert all(np.array_equal(back, found[0]) for back in found)


def test_no_real_weight_in_the_program(rng):
    """The gradient is computed from the packed weight: no float32[K,N] anywhere."""
    for form in FORMATS:
        w = weight(rng, form)
        f = jax.jit(lambda x, w: jax.grad(lambda x: jq.dot(x, w, activation="silu").sum())(x))
        text = f.lower(array(rng, M, K), w).as_text()
        by_transpose = re.findall(r"form = dense<\[[\d, ]*, 1\]>", text)  # its last number
        assert len(by_transpose) == 1 and f"{K}x{N}xf32" not in text


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", FORMATS)
def test_tangents(form, activation, rng):
    """In x, bias and residual together, at the sums that the product has."""
    w, act = weight(rng, form), ACTIVATIONS[activation]
    x, bias, residual = array(rng, M, K), array(rng, N), array(rng, M, N)
    y = jq.dot(x, w, bias=bias, residual=residual)

    def f(x, bias, residual):
        return jq.dot(x, w, bias=bias, residual=residual, activation=activation)

    primals = x, bias, residual
    tangents = array(rng, M, K), array(rng, N), array(rng, M, N)
    out, tangent = jax.jvp(f, primals, tangents)
    np.testing.assert_allclose(out, f(*primals), rtol=5e-6)
    _, want = jax.jvp(act, (y,), (tangents[0] @ w.dequantize() + tangents[1] + tangents[2],))
    close(tangent, want)
    ct = array(rng, M, N)
    _, pullback = jax.vjp(f, *primals)
    (before,) = jax.vjp(act, y)[1](ct)
    for got, want in zip(
        jax.jit(pullback)(ct), (before @ w.dequantize().T, before.sum(0), before), strict=True
    ):
        close(got, want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_operand_alone(activation, rng):
    w, act = weight(rng, "int8"), ACTIVATIONS[activation]
    x, bias, residual = array(rng, M, K), array(rng, N), array(rng, M, N, dtype=jnp.bfloat16)
    ct, y = array(rng, M, N), jq.dot(x, w, bias=bias, residual=residual)
    more = {"activation": activation}
    (before,) = jax.vjp(act, y)[1](ct)

    def of_bias(b):
        return jq.dot(x, w, bias=b, residual=residual, **more)

    def of_residual(r):
        return jq.dot(x, w, bias=bias, residual=r, **more)

    close(jax.vjp(of_bias, bias)[1](ct)[0], before.sum(0))
    close(jax.vjp(of_residual, residual)[1](ct)[0], before, 1e-2)
    close(jax.jvp(of_bias, (bias,), (bias,))[1], jax.jvp(act, (y,), (jnp.tile(bias, (M, 1)),))[1])
    _, (term,) = jet.jet(of_bias, (bias,), ([bias],))
    close(term, jax.jvp(act, (y,), (jnp.tile(bias, (M, 1)),))[1], 1e-5)


def test_relu_at_zero(rng):
    w = weight(rng, "fp16")
    x = jnp.zeros((M, K))
    assert not jax.grad(lambda b: jq.dot(x, w, bias=b, activation="relu").sum())(jnp.zeros(N)).any()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", None])
@pytest.mark.parametrize("form", SMOOTH)
def test_check_grads(form, activation, rng):
    w = weight(rng, form)

    def f(x, bias, residual):
        y = jq.dot(x, w, bias=bias, residual=residual, activation=activation)
        return jnp.tanh(y)

    arguments = array(rng, 2, K), array(rng, N), array(rng, 2, N)
    check_grads(f, arguments, order=2, modes=("fwd", "rev"), atol=2e-2, rtol=2e-2, eps=1e-2)


@pytest.mark.parametrize("form", SMOOTH)
def test_higher_orders(form, rng):
    """hessian, jvp of vjp, and Taylor series, of two layers and of the same in float32."""
    one, two = weight(rng, form, (3, 33)), weight(rng, form, (33, 1))
    bias = array(rng, 33)
    real = one.dequantize(), two.dequantize()

    def net(x):
        return jq.dot(jq.dot(x, one, bias=bias, activation="gelu"), two)[..., 0]

    def plain(x):
        return (ACTIVATIONS["gelu"](x @ real[0] + bias) @ real[1])[..., 0]

    x, v = array(rng, 3), array(rng, 3)
    close(jax.hessian(net)(x), jax.hessian(plain)(x), 1e-5)
    close(jax.jit(jax.hessian(net))(x), jax.hessian(plain)(x), 1e-5)
    close(jax.jacrev(jax.jacrev(net))(x), jax.hessian(plain)(x), 1e-5)
    got = jax.jvp(jax.grad(net), (x,), (v,))[1]
    close(got, jax.jvp(jax.grad(plain), (x,), (v,))[1], 1e-5)
    close(
        jax.grad(lambda x: jax.jvp(net, (x,), (v,))[1])(x),
        jax.grad(lambda x: jax.jvp(plain, (x,), (v,))[1])(x),
        1e-5,
    )
    third = jax.jacfwd(jax.hessian(net))(x)
    close(third, jax.jacfwd(jax.hessian(plain))(x), 2e-5)
    batch = array(rng, 5, 3)
    close(jax.vmap(jax.hessian(net))(batch), jax.vmap(jax.hessian(plain))(batch), 1e-5)
    zeros = [v, jnp.zeros(3), jnp.zeros(3)]
    y, series = jet.jet(net, (x,), (zeros,))
    want_y, want = jet.jet(plain, (x,), (zeros,))
    close(y, want_y, 1e-5)
    for got, term in zip(series, want, strict=True):
        close(got, term, 1e-4)


@pytest.mark.parametrize("form", FORMATS)
def test_stacks(form, rng):
    """Weights in a stack, of x of its own or shared, and vmap of the gradient."""
    w = weight(rng, form, (3, K, N))
    real, bias = w.dequantize(), array(rng, 3, N)
    ct = array(rng, 3, M, N)
    for x in (array(rng, M, K), array(rng, 3, M, K)):
        _, pullback = jax.vjp(lambda x, b: jq.dot(x, w, bias=b), x, bias)
        back, back_bias = pullback(ct)
        want = jnp.einsum("bmn,bkn->bmk", ct, real)
        close(back, want if x.ndim == 3 else want.sum(0))
        close(back_bias, ct.sum(1))
    one = array(rng, M, K)
    mapped = jax.vmap(lambda w, ct: jax.vjp(lambda x: jq.dot(x, w), one)[1](ct)[0])(w, ct)
    close(mapped, jnp.einsum("bmn,bkn->bmk", ct, real))
    cts = array(rng, 4, M, N)
    first = jax.tree.map(lambda leaf: leaf[0], w)
    many = jax.vmap(jax.vjp(lambda x: jq.dot(x, first), one)[1])(cts)[0]
    close(many, cts @ real[0].T)


@pytest.mark.parametrize("form", ["int8", "int8:32", "fp16", "int4"])
@pytest.mark.parametrize("axes", [("b",), ("b", "x"), ("x", "b"), ("b", "w"), ("w", "b")])
def test_batches_of_bias_alone(axes, form, rng):
    """A vmap that maps nothing else, among others, leaves a product without that dimension."""
    of = {"x": (array(rng, M, K), array(rng, 3, M, K)), "b": (array(rng, N), array(rng, 4, N))}
    of["w"] = weight(rng, form), weight(rng, form, (2, K, N))
    x, w, bias = (of[name][name in axes] for name in "xwb")

    def mapped(f):
        for name in reversed(axes):
            f = jax.vmap(f, [0 if name == own else None for own in "xwb"])
        return f

    f = mapped(lambda x, w, b: jq.dot(x, w, bias=b, activation="silu"))
    real = w.dequantize()
    plain = mapped(lambda x, w, b: jax.nn.silu(x @ w + b))
    y, pullback = jax.vjp(lambda x, b: f(x, w, b), x, bias)
    want, back = jax.vjp(lambda x, b: plain(x, real, b), x, bias)
    tolerance = 1e-5 if form in SMOOTH else 0.03
    assert y.shape == want.shape
    ct = array(rng, *y.shape)
    for got, expected in zip(pullback(ct), back(ct), strict=True):
        close(got, expected, tolerance)
    tangent = jax.jvp(lambda x: f(x, w, bias), (x,), (x,))[1]
    expected = jax.jvp(lambda x: plain(x, real, bias), (x,), (x,))[1]
    close(tangent, expected, tolerance)
    through = jax.vmap(jax.linearize(lambda x: f(x, w, bias), x)[1])(jnp.stack([x, x]))
    close(through, jnp.stack([tangent, tangent]), 1e-5)


@pytest.mark.parametrize("form", FORMATS)
def test_ragged(form, rng):
    w, real = weight(rng, form, (3, K, N)), None
    real = w.dequantize()
    sizes = jnp.asarray([4, 0, 7])
    x, ct = array(rng, 13, K), array(rng, 13, N)
    group = np.repeat([0, 1, 2], [4, 0, 7])
    for bias in (array(rng, N), array(rng, 3, N)):
        _, pullback = jax.vjp(lambda x, b: jq.ragged_dot(x, w, sizes, bias=b), x, bias)
        back, back_bias = pullback(ct)
        want = jnp.einsum("mn,mkn->mk", ct[:11], real[group])
        close(back, jnp.concatenate([want, jnp.zeros((2, K))]))
        of_groups = jnp.stack([ct[:11][group == g].sum(0) for g in range(3)])
        close(back_bias, of_groups.sum(0) if bias.ndim == 1 else of_groups, 1e-5)
        _, tangent = jax.jvp(lambda x, b: jq.ragged_dot(x, w, sizes, bias=b), (x, bias), (x, bias))
        want = jnp.einsum("mk,mkn->mn", x[:11], real[group])
        want = want + (bias if bias.ndim == 1 else bias[group])
        close(tangent, jnp.concatenate([want, jnp.zeros((2, N))]))


def test_scales_can_be_learned(rng):
    """Of weights per tensor or channel, and of x as it was quantized."""
    w, x = weight(rng, "int8"), array(rng, M, K)
    xq = jq.quantize(x, "int8", channelwise_axes=[0])
    values = jq.unpack(w).qvalue.astype(jnp.float32)
    ct = array(rng, M, N)

    def of_weight(scale, x):
        return jq.dot(x, dataclasses.replace(w, scale=scale))

    for rows in (x, xq):
        real = rows if rows is x else xq.dequantize()
        _, pullback = jax.vjp(lambda s, rows=rows: of_weight(s, rows), w.scale)
        close(pullback(ct)[0], (ct * (real @ values)).sum(0), 2e-2 if rows is x else 1e-5)
    _, pullback = jax.vjp(lambda s: of_weight(w.scale, dataclasses.replace(xq, scale=s)), xq.scale)
    want = (ct * (xq.qvalue.astype(jnp.float32) @ w.dequantize())).sum(1, keepdims=True)
    close(pullback(ct)[0], want, 1e-5)


@pytest.mark.parametrize("form", ["int8:weight_only", "uint8:weight_only"])
def test_scales_of_gradients(form, rng):
    """Gradients through gradients in x: of one weight, of a stack with x of its own or one for
    all, and of groups of rows."""

    def compare(w, x, dot, plain):
        unscaled = dataclasses.replace(w, scale=jnp.ones_like(w.scale))
        values = type(w).dequantize if len(w.shape) == 2 else jax.vmap(type(w).dequantize)
        q = values(unscaled)

        def penalty(product):
            of_x = jax.grad(lambda x, s: (product(x, s) ** 3).sum())
            return jax.grad(lambda s: (of_x(x, s) ** 2).sum())

        got = penalty(lambda x, s: dot(x, dataclasses.replace(w, scale=s)))(w.scale)
        close(got, penalty(lambda x, s: plain(x, q * s[..., None, :]))(w.scale), 1e-5)
        mixed = jax.jacfwd(jax.grad(lambda x, s: (plain(x, q * s[..., None, :]) ** 2).sum()), 1)
        own = jax.jacfwd(
            jax.grad(lambda x, s: (dot(x, dataclasses.replace(w, scale=s)) ** 2).sum()), 1
        )
        close(own(x, w.scale), mixed(x, w.scale), 1e-5)

    compare(weight(rng, form), array(rng, M, K), jq.dot, jnp.matmul)
    stack = weight(rng, form, (3, K, N))
    compare(stack, array(rng, 3, M, K), jq.dot, jnp.matmul)
    compare(stack, array(rng, M, K), jq.dot, jnp.matmul)
    sizes, groups = jnp.array([2, 0, 3]), np.array([0, 0, 2, 2, 2])

    def by_group(x, w):
        rows = jnp.einsum("mk,mkn->mn", x[:5], w[groups])
        return jnp.concatenate([rows, jnp.zeros((M - 5, N))])

    compare(stack, array(rng, M, K), lambda x, w: jq.ragged_dot(x, w, sizes), by_group)


@pytest.mark.parametrize("form", FORMATS)
def test_packing_has_no_gradient(form, rng):
    x = array(rng, M, K)
    with pytest.raises(NotImplementedError, match="not differentiable; .* jax_qgemm.fake_quantize"):
        jax.grad(lambda kernel: jq.dot(x, jq.pack_weight(kernel, form)).sum())(array(rng, K, N))


def test_packing_blocks_has_no_gradient(rng):
    q, scale = jnp.ones((K, N), jnp.uint8), jnp.ones((2, N))
    for of in (lambda s: jq.pack_blocks(q, s), lambda s: jq.pack_blocks(q, scale, s)):
        with pytest.raises(NotImplementedError, match="pack_blocks: not differentiable"):
            jax.grad(lambda s, of=of: of(s).dequantize().sum())(scale)


def test_loops(rng):
    """scan, while_loop, cond, remat with policies, custom_vjp around."""
    w = weight(rng, "int8", (N, N))
    real, x = w.dequantize(), array(rng, M, N)

    def step(x, _):
        return jq.dot(x, w, activation="silu"), None

    def scanned(x):
        return jax.lax.scan(step, x, length=3)[0].sum()

    def unrolled(x):
        return step(step(step(x, 0)[0], 0)[0], 0)[0].sum()

    want = jax.grad(unrolled)(x)
    close(jax.grad(scanned)(x), want)
    for policy in (None, jax.checkpoint_policies.dots_saveable):
        remat = jax.checkpoint(lambda x: scanned(x), policy=policy)
        close(jax.jit(jax.grad(remat))(x), want)
    branches = jax.grad(lambda x, p: jax.lax.cond(p, scanned, lambda x: (x**2).sum(), x))
    close(jax.jit(branches)(x, True), want)
    close(jax.jit(branches)(x, False), 2 * x)
    forward = jax.jvp(
        lambda x: jax.lax.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, step(c[1], 0)[0]), (0, x)
        )[1].sum(),
        (x,),
        (x,),
    )[1]
    close(forward, (want * x).sum(), 1e-4)

    @jax.custom_vjp
    def doubled(x):
        return jq.dot(x, w)

    doubled.defvjp(lambda x: (doubled(x), None), lambda _, ct: (2 * ct @ real.T,))
    close(jax.grad(lambda x: doubled(x).sum())(x), 2 * jnp.ones((M, N)) @ real.T)


def test_linear_transpose(rng):
    w = weight(rng, "fp16")
    ct = array(rng, M, N)
    (back,) = jax.linear_transpose(lambda x: jq.dot(x, w), array(rng, M, K))(ct)
    close(back, ct @ w.dequantize().T)
    with pytest.raises(NotImplementedError, match="dot: no transpose in x: it is linear in float"):
        jax.linear_transpose(lambda x: jq.dot(x, weight(rng, "int8")), array(rng, M, K))(ct)


def test_what_is_refused(rng):
    w, x = weight(rng, "int8"), array(rng, M, K)
    grouped, blocks = weight(rng, "int8:32"), weight(rng, "int4:weight_only")
    xq = jq.quantize(x, "int8")
    ones = jnp.ones
    cases = [
        (
            r"not in w_scale .*groups",
            lambda s: jq.dot(x, dataclasses.replace(grouped, scale=s)),
            grouped.scale,
        ),
        (
            "its result is of int8; jax_qgemm.dot has floats",
            lambda b: jq.quantized_linear(xq, w, bias=b, out_scale=0.1).scale,
            ones(N),
        ),
    ]
    for message, f, argument in cases:
        with pytest.raises(NotImplementedError, match=f"not differentiable here: .*{message}"):
            jax.jvp(f, (argument,), (argument,))
    # What there is no gradient of is no float: JAX itself refuses it.
    with pytest.raises(TypeError, match="grad requires"):
        jax.grad(lambda w: jq.dot(x, w).sum())(blocks)
