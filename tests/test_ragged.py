"""ragged_dot: each group of rows by a weight of its own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import pairwise

import jax_qgemm as jq

SIZES = [
    (4, 3, 2),
    (0, 9, 0),
    (1, 1, 1),
    (9, 0, 0),
    (0, 0, 0),
    (2, 0, 3),
    (40, 13, 77),
    (6, 300, 5),
]


def make(rng, groups, k, n, qtype="int8"):
    kernels = rng.standard_normal((groups, k, n)).astype(np.float32)
    return jax.vmap(lambda kernel: jq.pack_weight(kernel, qtype))(kernels)


def pick(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def expected(x, w, sizes, bias, activation):
    """One `dot` for each group."""
    parts, row = [], 0
    for g, size in enumerate(sizes):
        rows = jax.tree.map(lambda a, r=row, s=size: a[r : r + s] if a.ndim else a, x)
        b = None if bias is None else bias[g] if bias.ndim == 2 else bias
        parts.append(jq.dot(rows, pick(w, g), bias=b, activation=activation))
        row += size
    parts.append(jnp.zeros((x.shape[0] - row, w.shape[-1]), parts[0].dtype))
    return np.concatenate(parts)


@pytest.mark.parametrize(
    "case",
    pairwise(
        sizes=SIZES,
        kn=((37, 21), (64, 200), (300, 64), (16, 1)),
        rest=(0, 1, 8),
        x=("float32", "bfloat16", "row", "tensor"),
        qtype=("int8", "uint8", "int8:16"),
        bias=(None, "shared", "own"),
        activation=(None, "gelu"),
    ),
    ids=str,
)
def test_equals_one_dot_for_each_group(case, rng, each_isa, assert_same):
    sizes, (k, n) = case["sizes"], case["kn"]
    m = sum(sizes) + case["rest"]
    w = make(rng, len(sizes), k, n, case["qtype"])
    x = jnp.asarray(rng.standard_normal((m, k)), jnp.float32)
    if case["x"] in ("row", "tensor"):
        x = jq.quantize(x, "uint8", channelwise_axes=[0] if case["x"] == "row" else [])
    else:
        x = x.astype(case["x"])
    bias = None
    if case["bias"]:
        bias = jnp.asarray(rng.standard_normal((len(sizes), n)[case["bias"] == "shared" :]))
    f = jax.jit(lambda *args: jq.ragged_dot(*args, bias=bias, activation=case["activation"]))
    for isa in each_isa():
        want = expected(x, w, sizes, bias, case["activation"])
        got = f(x, w, jnp.asarray(sizes))
        assert_same(got, want, isa, 10 + np.sqrt(k) * 10)


def test_sizes_are_never_trusted(rng, each_isa):
    w, x = make(rng, 3, 20, 30), jnp.asarray(rng.standard_normal((10, 20)), jnp.float32)
    run = jax.jit(jq.ragged_dot)
    for isa in each_isa():
        for given, used in [
            ((-5, 4, 2), (0, 4, 2)),
            ((4, 100, 3), (4, 6, 0)),
            ((2**31 - 1, 2**31 - 1, 2**31 - 1), (10, 0, 0)),
            ((-(2**31), 3, 3), (0, 3, 3)),
        ]:
            got, want = run(x, w, jnp.asarray(given)), run(x, w, jnp.asarray(used))
            assert np.array_equal(got, want), (isa, given)
            assert np.array_equal(want, expected(x, w, used, None, None)), (isa, used)


def test_reference_and_lax(rng):
    """Off the CPU: the same in plain JAX; and near lax.ragged_dot on floats."""
    kernels = rng.standard_normal((3, 64, 30)).astype(np.float32)
    w = jax.vmap(jq.pack_weight)(kernels)
    x, sizes = jnp.asarray(rng.standard_normal((12, 64)), jnp.float32), jnp.asarray([5, 0, 4])
    exact = jax.lax.ragged_dot(x, jnp.asarray(kernels), sizes)
    got = jq.ragged_dot(x, w, sizes)
    assert np.std(got - exact) < 0.012 * np.std(exact)
    text = jax.jit(jq.ragged_dot).trace(x, w, sizes).lower(lowering_platforms=("cuda",)).as_text()
    assert "jax_qgemm.gemm.v1" not in text and "dot_general" in text


def test_reference(rng, assert_same):
    from jax_qgemm.primitives import gemm

    w, x = make(rng, 3, 20, 30), jnp.asarray(rng.standard_normal((10, 20)), jnp.float32)
    spec = gemm.GemmSpec(dynamic=True, ragged=True)
    for sizes in [(4, 3, 2), (0, 10, 0), (0, 0, 0), (9, 9, 9)]:
        operands = (x, w.data, w.scale, w.column_sums, jnp.asarray(sizes))
        (got,) = jax.jit(lambda *o: gemm._reference(*o, spec=spec))(*operands)
        assert_same(got, np.asarray(jq.ragged_dot(x, w, sizes)), sizes, 100, exact=False)


def test_vmap_and_no_groups(rng):
    w, x = make(rng, 2, 20, 30), jnp.asarray(rng.standard_normal((3, 10, 20)), jnp.float32)
    sizes = jnp.asarray([[3, 4], [10, 0], [0, 2]])
    got = jax.vmap(jq.ragged_dot, (0, None, 0))(x, w, sizes)
    assert all(np.array_equal(got[i], jq.ragged_dot(x[i], w, sizes[i])) for i in range(3))
    none = jax.tree.map(lambda a: a[:0], w)
    assert np.array_equal(jq.ragged_dot(x[0], none, jnp.zeros(0, int)), np.zeros((10, 30)))
    assert jq.ragged_dot(x[0, :0], w, sizes[0]).shape == (0, 30)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_sizes_of_any_integers(dtype, rng):
    """Also of such that do not hold M."""
    w, x = make(rng, 3, 20, 30), jnp.asarray(rng.standard_normal((300, 20)), jnp.float32)
    sizes = np.array([100, 90, 110])
    assert np.array_equal(jq.ragged_dot(x, w, sizes.astype(dtype)), jq.ragged_dot(x, w, sizes))


@pytest.mark.parametrize(
    "sizes", [[2**32, 1, 1], [-(2**40), 300, 1], np.array([2**63, 1, 1], "u8")]
)
def test_sizes_beyond_int32(sizes, rng):
    w, x = make(rng, 3, 20, 30), jnp.asarray(rng.standard_normal((300, 20)), jnp.float32)
    sizes = np.asarray(sizes)
    same = [300, 0, 0] if sizes[0] > 0 else [0, 300, 0]
    assert np.array_equal(jq.ragged_dot(x, w, sizes), jq.ragged_dot(x, w, np.array(same)))


def test_errors(rng):
    w, x = make(rng, 2, 20, 30), jnp.ones((10, 20))
    sizes = jnp.asarray([3, 4])
    for error, message, arguments in [
        (ValueError, "w must be a stack of weights (G, K, N)", (x, pick(w, 0), sizes)),
        (ValueError, "x must have 2 dimensions (M, K), got float32[1,10,20]", (x[None], w, sizes)),
        (ValueError, "w has K=20 but x has 10", (x.T, w, sizes)),
        (TypeError, "group_sizes must be integers, got float32[2]", (x, w, jnp.ones(2))),
        (ValueError, "group_sizes has shape (3,), expected (2,)", (x, w, jnp.ones(3, int))),
        (TypeError, "w must be a PackedWeight, got float32[2,20,30]", (x, w.dequantize(), sizes)),
        (TypeError, "x must be float32, bfloat16 or float16, got int32", (x.astype(int), w, sizes)),
    ]:
        with pytest.raises(error, match=re.escape(f"ragged_dot: {message}")):
            jq.ragged_dot(*arguments)
    with pytest.raises(ValueError, match=re.escape("bias has shape (3,), expected (30,) or (2, 3")):
        jq.ragged_dot(x, w, sizes, bias=jnp.ones(3))
    with pytest.raises(ValueError, match="ragged_dot: activation must be one of"):
        none = jax.tree.map(lambda a: a[:0], w)
        jq.ragged_dot(x, none, jnp.zeros(0, int), activation="nope")
