"""jit, vmap in all its forms, scan and friends: the same bits as one call at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qgemm as jq
from jax_qgemm.primitives.gemm import gemm
from jax_qgemm.types import GemmSpec

K, N = 37, 21


@pytest.fixture
def w(rng):
    return jq.pack_weight(rng.standard_normal((K, N)).astype(np.float32), "uint8")


@pytest.fixture
def weights(rng):
    """Three weights as one stacked pytree."""
    kernels = rng.standard_normal((3, K, N)).astype(np.float32)
    return stack([jq.pack_weight(kernel, "uint8") for kernel in kernels])


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def pick(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def floats(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def equal(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.shape == y.shape and np.array_equal(x, y) for x, y in leaves)


def primitives(function, *args):
    """Names of all primitives in the jaxpr, those of nested jaxprs included."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from walk(inner)

    return list(walk(jax.make_jaxpr(function)(*args).jaxpr))


def dynamic(x, w):
    return jq.dot(x, w, activation="relu")


def static(x, w):
    q = jq.quantize(x, "uint8", scale=0.03, zero_point=120)
    return jq.quantized_linear(q, w, out_scale=0.2, out_zero_point=128).dequantize()


def by_row(x, w):
    return jq.dot(jq.quantize(x, "int8", channelwise_axes=range(x.ndim - 1)), w)


def by_tensor(x, w):
    return jq.dot(jq.quantize(x, "uint8"), w)


ALL = pytest.mark.parametrize("f", [dynamic, static, by_row, by_tensor])
ROWWISE = pytest.mark.parametrize("f", [dynamic, static, by_row])


@ALL
def test_jit_equals_eager(f, rng, w):
    x = floats(rng, 6, K)
    assert equal(jax.jit(f)(x, w), f(x, w))
    with jax.disable_jit():
        assert equal(f(x, w), jax.jit(f)(x, w))


@ALL
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_vmap_x(f, axis, rng, w):
    x = floats(rng, 4, 6, K)
    want = jnp.stack([f(row, w) for row in x])
    moved = jnp.moveaxis(x, 0, axis)
    assert equal(jax.vmap(f, in_axes=(axis, None))(moved, w), want)
    out = jax.jit(jax.vmap(f, in_axes=(axis, None), out_axes=1))(moved, w)
    assert equal(out, jnp.moveaxis(want, 0, 1))


@ROWWISE
def test_vmap_x_is_one_product(f, rng, w):
    """Folded into M: one gemm, no loop."""
    x = floats(rng, 4, 6, 5, K)
    names = primitives(jax.vmap(jax.vmap(f, (0, None)), (0, None)), x, w)
    assert names.count("jax_qgemm_gemm") == 1 and "scan" not in names and "while" not in names


@ALL
def test_vmap_vmap(f, rng, w):
    x = floats(rng, 2, 3, 4, K)
    want = jnp.stack([jnp.stack([f(x[i, j], w) for j in range(3)]) for i in range(2)])
    nested = jax.vmap(jax.vmap(f, in_axes=(0, None)), in_axes=(0, None))
    assert equal(nested(x, w), want)
    crossed = jax.vmap(jax.vmap(f, in_axes=(1, None)), in_axes=(0, None))
    assert equal(crossed(jnp.moveaxis(x, 1, 2), w), want)


@ALL
def test_vmap_single_rows(f, rng, w):
    x = floats(rng, 5, K)
    assert equal(jax.vmap(f, in_axes=(0, None))(x, w), jnp.stack([f(row, w) for row in x]))


@ALL
def test_vmap_w(f, rng, weights):
    x = floats(rng, 6, K)
    want = jnp.stack([f(x, pick(weights, i)) for i in range(3)])
    assert equal(jax.vmap(f, in_axes=(None, 0))(x, weights), want)
    last = jax.tree.map(lambda a: jnp.moveaxis(a, 0, -1), weights)
    assert equal(jax.vmap(f, in_axes=(None, -1))(x, last), want)


@ALL
def test_vmap_x_and_w(f, rng, weights):
    x = floats(rng, 3, 6, K)
    want = jnp.stack([f(x[i], pick(weights, i)) for i in range(3)])
    assert equal(jax.vmap(f)(x, weights), want)
    every = jax.vmap(jax.vmap(f, in_axes=(None, 0)), in_axes=(0, None))(x, weights)
    assert every.shape == (3, 3, 6, N)
    assert all(equal(every[i, i], want[i]) for i in range(3))


@ALL
def test_vmap_w_is_one_call(f, rng, weights):
    x = floats(rng, 3, 6, K)
    for names in (
        primitives(jax.vmap(f), x, weights),
        primitives(jax.vmap(f, (None, 0)), x[0], weights),
        primitives(jax.vmap(jax.vmap(f, (None, 0)), (0, None)), x, weights),
    ):
        assert names.count("jax_qgemm_gemm") == 1 and "scan" not in names


# What a vmap maps of x, w, bias, residual: axes as in `in_axes`, the outer one second.
@pytest.mark.parametrize(
    "inner,outer",
    [
        ((0, 0, None, None), (0, None, None, None)),
        ((None, 0, None, None), (0, None, None, 0)),
        ((None, 0, 0, None), (None, 0, None, None)),
        ((0, None, None, 0), (None, 0, None, None)),
        ((None, None, 0, None), (0, None, None, None)),
        ((None, None, None, 0), (None, 0, 0, None)),
        ((1, 0, 0, 1), (0, 0, 0, 0)),
        ((0, 0, 0, 0), (None, None, None, 0)),
        ((None, 0, None, None), (None, None, 0, None)),
        ((0, None, None, None), (0, None, None, None)),
    ],
)
def test_vmap_of_vmap(inner, outer, rng):
    sizes, m = (2, 3), 4

    def operand(i, shape):
        """With an axis for each vmap that maps it, and what the call (a, b) gets of it."""
        lead = [s for s, axes in zip(sizes, (outer, inner), strict=True) if axes[i] is not None]
        values = rng.standard_normal((*lead, *shape)).astype(np.float32)
        mapped = [axes[i] is not None for axes in (outer, inner)]

        def one(a, b):
            return values[tuple(np.compress(mapped, (a, b)))]

        at = len(lead) - 1
        moved = np.moveaxis(values, at, at + inner[i]) if inner[i] else values
        return jnp.asarray(moved), one

    x, one_x = operand(0, (m, K))
    kernel, one_kernel = operand(1, (K, N))
    bias, one_bias = operand(2, (N,))
    residual, one_residual = operand(3, (m, N))
    pack = jq.pack_weight
    for _ in range(kernel.ndim - 2):
        pack = jax.vmap(pack)

    def f(x, w, bias, residual):
        return jq.dot(x, w, bias=bias, residual=residual, activation="silu")

    got = jax.jit(jax.vmap(jax.vmap(f, inner), outer))(x, pack(kernel), bias, residual)
    assert got.shape == (*sizes, m, N)
    for a in range(sizes[0]):
        for b in range(sizes[1]):
            w = jq.pack_weight(one_kernel(a, b))
            assert equal(got[a, b], f(one_x(a, b), w, one_bias(a, b), one_residual(a, b)))


@pytest.mark.parametrize("batch", [(3,), (2, 3), (1,), (0,)])
@pytest.mark.parametrize("form", ["float", "tensor", "row"])
def test_stacks_of_weights(batch, form, rng):
    kernels = floats(rng, *batch, K, N)
    pack = jq.pack_weight
    for _ in batch:
        pack = jax.vmap(pack)
    w, bias = pack(kernels), floats(rng, *batch, N)
    x, residual = floats(rng, *batch, 5, K), floats(rng, *batch, 5, N)
    axes = {"tensor": (), "row": range(x.ndim - 1)}
    q = x if form == "float" else jq.quantize(x, "uint8", channelwise_axes=axes[form])

    def f(x, w, bias, residual):
        return jq.dot(x, w, bias=bias, residual=residual, activation="gelu")

    got = jax.jit(f)(q, w, bias, residual)
    assert got.shape == (*batch, 5, N)
    shared = f(floats(rng, 5, K), w, bias[(0,) * len(batch)] if 0 not in batch else None, None)
    assert shared.shape == got.shape
    assert primitives(f, q, w, bias, residual).count("jax_qgemm_gemm") == 1
    for i in np.ndindex(*batch):
        one = jax.tree.map(lambda a, i=i: a[i] if a.ndim else a, q)
        assert equal(got[i], f(one, pick(w, i), bias[i], residual[i]))
    if form != "float":
        out = jq.quantized_linear(q, w, out_scale=np.full(N, 0.1), out_zero_point=3)
        assert out.shape == got.shape and out.scale.shape == (*(1,) * len(batch), 1, N)


@pytest.mark.parametrize(
    "x_batch, w_batch",
    [((3,), (1,)), ((1,), (3,)), ((3, 1), (1, 2)), ((3, 2), (3, 1)), ((2, 3), ())],
)
def test_dimensions_of_one_are_repeated(x_batch, w_batch, rng):
    """The primitive's own batches, whichever jax.vmap makes."""
    batch = np.broadcast_shapes(x_batch, w_batch)
    pack = jq.pack_weight
    for _ in w_batch:
        pack = jax.vmap(pack)
    x, w = floats(rng, *x_batch, 5, K), pack(floats(rng, *w_batch, K, N))
    spec = GemmSpec(dynamic=True, x_scale="none", batched=len(batch))
    parts = dict(data=w.data, w_scale=w.scale, column_sums=w.column_sums)
    for product in (gemm, jax.jit(gemm, static_argnums=0)):
        got = product(spec, x=x, **parts)
        assert got.shape == (*batch, 5, N)
        for i in np.ndindex(*batch):
            own = tuple(min(a, b - 1) for a, b in zip(i, x_batch, strict=True))
            of_w = tuple(min(a, b - 1) for a, b in zip(i, w_batch, strict=False))
            assert equal(got[i], jq.dot(x[own], pick(w, of_w)))


@pytest.mark.parametrize("m, k, n", [(0, 16, 5), (3, 0, 5), (3, 16, 0), (0, 0, 0)])
@pytest.mark.parametrize("axes", [(), (0, 1)])
def test_stacks_of_empty_products(m, k, n, axes):
    w = jax.vmap(jq.pack_weight)(jnp.ones((2, k, n)))
    x, bias, residual = jnp.ones((2, m, k)), jnp.ones((2, n)), jnp.ones((2, m, n))
    q = jq.quantize(x, "int8", channelwise_axes=axes)
    for operand in (x, q):
        got = jq.dot(operand, w, bias=bias, residual=residual)
        assert equal(got, jnp.full((2, m, n), 2.0))
    assert jq.quantized_linear(q, w, out_scale=1.0).shape == (2, m, n)


def test_vmap_parameters(rng, w):
    x = floats(rng, 6, K)
    bias, scales = floats(rng, 3, N), jnp.asarray([0.1, 0.2, 0.5])
    got = jax.vmap(lambda b: jq.dot(x, w, bias=b))(bias)
    assert equal(got, jnp.stack([jq.dot(x, w, bias=b) for b in bias]))
    zero_points = jnp.asarray([0, 100, 255])

    def requantized(scale, zero_point):
        q = jq.quantize(x, "uint8", scale=scale, zero_point=zero_point)
        return jq.quantized_linear(q, w, out_scale=scale * 3, out_zero_point=zero_point)

    got = jax.vmap(requantized)(scales, zero_points)
    singles = [requantized(s, z) for s, z in zip(scales, zero_points, strict=True)]
    assert equal(got, stack(singles))


def test_vmap_row_parameters_alone(rng, w):
    """x shared, its per-row scales mapped, and the other way round."""
    q = jq.quantize(floats(rng, 6, K), "uint8", channelwise_axes=[0])
    scales = q.scale * jnp.asarray([1.0, 2.0, 3.0])[:, None, None]

    def scaled(scale):
        return jq.dot(jq.QuantizedArray(q.qvalue, scale, q.zero_point, "uint8"), w)

    assert equal(jax.vmap(scaled)(scales), jnp.stack([scaled(s) for s in scales]))
    values = jnp.stack([q.qvalue, q.qvalue[::-1]])

    def valued(value):
        return jq.dot(jq.QuantizedArray(value, q.scale, q.zero_point, "uint8"), w)

    assert equal(jax.vmap(valued)(values), jnp.stack([valued(v) for v in values]))
    assert "scan" not in primitives(jax.vmap(scaled), scales) + primitives(jax.vmap(valued), values)


def test_vmap_residual(rng, w):
    x, residual = floats(rng, 4, K), floats(rng, 5, 4, N)

    def added(x, r):
        return jq.dot(x, w, residual=r, activation="gelu")

    want = jnp.stack([added(x, r) for r in residual])
    assert equal(jax.vmap(added, (None, 0))(x, residual), want)
    assert equal(jax.vmap(added, (None, 2))(x, jnp.moveaxis(residual, 0, 2)), want)
    assert "scan" not in primitives(jax.vmap(added, (None, 0)), x, residual)
    xs = floats(rng, 5, 4, K)
    want = jnp.stack([added(x, residual[0]) for x in xs])
    assert equal(jax.vmap(added, (0, None))(xs, residual[0]), want)


@pytest.mark.parametrize("batch,m", [(0, 3), (3, 0), (1, 1)])
def test_vmap_of_empty_and_single_batches(batch, m, rng, w, weights):
    x = floats(rng, batch, m, K)
    for f in (dynamic, static, by_tensor):
        assert jax.vmap(f, in_axes=(0, None))(x, w).shape == (batch, m, N)
    some = jax.tree.map(lambda a: a[:batch], weights)
    assert jax.vmap(dynamic)(x, some).shape == (batch, m, N)


def test_vmap_quantize(rng):
    x = floats(rng, 4, 6, K)
    for settings in (
        {"channelwise_axes": [0]},
        {},
        {"scale": 0.1, "zero_point": 3},
        {"channelwise_axes": [1], "symmetric": False},
    ):

        def quantize(x, settings=settings):
            return jq.quantize(x, "int8", **settings)

        assert equal(jax.vmap(quantize)(x), stack([quantize(one) for one in x]))
        assert equal(jax.vmap(quantize, in_axes=1)(x), stack([quantize(x[:, i]) for i in range(6)]))


def test_scan_over_layers(rng):
    """One compiled layer, its packed weights stacked: as a transformer runs its blocks."""
    kernels = rng.standard_normal((5, K, K)).astype(np.float32) / 6
    layers = {"w": stack([jq.pack_weight(k) for k in kernels]), "bias": floats(rng, 5, K)}

    def layer(x, p):
        y = x + jq.dot(x, p["w"], bias=p["bias"], activation="relu")
        return y, y.sum()

    x = floats(rng, 6, K)
    got, sums = jax.jit(lambda x, layers: jax.lax.scan(layer, x, layers))(x, layers)
    want = x
    for i in range(5):
        want, _ = jax.jit(layer)(want, pick(layers, i))
    assert np.allclose(got, want, rtol=1e-5, atol=1e-5) and sums.shape == (5,)


def test_scan_over_quantized_layers(rng):
    """QuantizedArray → QuantizedArray: the carry keeps its structure, the bits are exact."""
    layers = stack([jq.pack_weight(floats(rng, K, K) / 6) for _ in range(4)])
    for qtype, zero_point in (("uint8", 128), ("int8", 0)):

        def layer(q, w, qtype=qtype, zero_point=zero_point):
            y = jq.quantized_linear(q, w, out_scale=0.02, out_zero_point=zero_point)
            return y, None

        given = None if qtype == "int8" else zero_point
        q = jq.quantize(floats(rng, 6, K), qtype, scale=0.02, zero_point=given)
        got, _ = jax.lax.scan(layer, q, layers)
        for i in range(4):
            q, _ = layer(q, pick(layers, i))
        assert equal(got, q) and (got.zero_point is None) == (qtype == "int8")


def test_control_flow_remat_and_donation(rng, w):
    x = floats(rng, 6, K)
    want = dynamic(x, w)
    assert equal(jax.lax.cond(True, dynamic, static, x, w), want)
    assert equal(jax.checkpoint(dynamic)(x, w), want)
    looped = jax.lax.fori_loop(0, 3, lambda _, y: dynamic(x, w) + 0 * y, jnp.zeros((6, N)))
    assert equal(looped, want)
    copy = jax.tree.map(jnp.copy, w)
    y, _ = jax.jit(lambda x, w: (dynamic(x, w), w), donate_argnums=1)(x, copy)
    assert equal(y, want)


def test_weights_closed_over_and_passed(rng, w):
    x = floats(rng, 6, K)
    assert equal(jax.jit(lambda x: dynamic(x, w))(x), jax.jit(dynamic)(x, w))


def test_ahead_of_time_compilation(rng, w):
    x = floats(rng, 6, K)
    compiled = jax.jit(dynamic).lower(x, jax.eval_shape(lambda w: w, w)).compile()
    assert equal(compiled(x, w), dynamic(x, w))
    assert jax.eval_shape(dynamic, x, w).shape == (6, N)


def test_one_compilation_for_weights_of_one_shape(rng):
    traces = []

    @jax.jit
    def f(x, w):
        traces.append(1)
        return jq.dot(x, w)

    x = floats(rng, 6, K)
    for _ in range(3):
        f(x, jq.pack_weight(floats(rng, K, N)))
    assert len(traces) == 1


def gradients(w):
    """Operation and function of a float x, for each path through the library."""

    def quantized(settings):
        return lambda x: jq.quantize(x, **settings).scale.sum()

    def static(scale, x):
        q = jq.quantize(x, "int8", scale=scale)
        return q.scale.sum() + q.dequantize().sum()

    forms = [
        {"qtype": "int8", "channelwise_axes": [0]},  # the primitive
        {"qtype": "uint8", "channelwise_axes": [0]},
        {"qtype": "int8"},  # plain JAX
        {"qtype": "uint8", "channelwise_axes": [1]},
        {"qtype": "int8", "scale": 0.1},
        {"qtype": "int8", "scale": np.full((6, 1), 0.1)},
    ]
    return [
        *[("quantize", quantized(form)) for form in forms],
        ("quantize", lambda x: static(x[0, 0], jnp.ones((6, K)))),
        ("quantize", lambda x: static(x[:, :1], jnp.ones((6, K)))),
    ]


@pytest.mark.parametrize("case", range(8))
def test_gradients_are_refused_unless_stopped(case, w):
    operation, f = gradients(w)[case]
    x = jnp.full((6, K), 0.5)
    message = f"jax_qgemm.{operation}: not differentiable; use jax.lax.stop_gradient"
    for g in (f, jax.jit(f), jax.checkpoint(f), lambda x: jax.vmap(f)(x[None])[0]):
        for transformed in (jax.grad(g), lambda x, g=g: jax.jvp(g, (x,), (x,))):
            with pytest.raises(NotImplementedError, match=message):
                transformed(x)

        def stopped(x, g=g):
            return g(jax.lax.stop_gradient(x)) + (x**2).sum()

        assert equal(jax.grad(stopped)(x), 2 * x)
        assert equal(jax.jit(jax.grad(stopped))(x), 2 * x)
        assert equal(jax.jvp(stopped, (x,), (x,))[0], stopped(x))


def test_gradients_beside_a_product(w):
    """Differentiated in what does not pass through it."""
    x = jnp.full((6, K), 0.5)
    y = jq.dot(x, w)
    assert equal(jax.grad(lambda s: (s * jq.dot(x, w)).sum())(2.0), y.sum())
