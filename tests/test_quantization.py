"""quantize and dequantize against the NumPy oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import K, M, pairwise

import jax_qgemm as jq

CHOSEN = [
    # shape, channelwise_axes, qtype, symmetric
    ((7, 33), (), "int8", None),
    ((7, 33), (0,), "int8", None),
    ((7, 33), (1,), "int8", None),
    ((7, 33), (1,), "uint8", None),
    ((7, 33), (-1,), "uint8", True),
    ((7, 33), (), "uint8", None),
    ((7, 33), (0,), "int8", False),
    ((2, 3, 5, 19), (0, 1, 2), "int8", None),
    ((2, 3, 5, 19), (3, 1), "uint8", None),
    ((40,), (), "int8", None),
    ((40,), (0,), "int8", None),
    ((40,), (), "uint8", None),
    ((), (), "int8", None),
    ((), (), "uint8", None),
    ((0, 5), (0,), "int8", None),
    ((5, 0), (0,), "int8", None),
    ((0, 5), (1,), "uint8", None),
]


def normalised(axes, ndim):
    return tuple(a % ndim for a in axes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape,axes,qtype,symmetric", CHOSEN)
def test_chosen_parameters(shape, axes, qtype, symmetric, dtype, rng, each_isa, assert_same):
    x = jnp.asarray(rng.standard_normal(shape) * 3 + 0.5, dtype)
    if symmetric is None:
        symmetric = qtype == "int8"
    want_q, want_scale, want_zero = oracle.quantize(x, qtype, normalised(axes, x.ndim), symmetric)
    for isa in each_isa():
        q = jq.quantize(x, qtype, channelwise_axes=axes, symmetric=symmetric)
        assert_same(q.scale, want_scale, isa)
        assert_same(q.qvalue, want_q, isa)
        if symmetric and qtype == "int8":
            assert q.zero_point is None
        else:
            assert_same(q.zero_point, want_zero, isa)
        assert (q.qtype, q.shape) == (qtype, shape)


@pytest.mark.parametrize("case", pairwise(k=K, dtype=("float32", "bfloat16"), m=M[::3]), ids=str)
def test_rows_around_tile_edges(case, rng, each_isa, assert_same):
    x = jnp.asarray(rng.standard_normal((case["m"], case["k"])), case["dtype"])
    want_q, want_scale, _ = oracle.quantize(x, "int8", (0,))
    for isa in each_isa():
        q = jq.quantize(x, "int8", channelwise_axes=[0])
        assert_same(q.scale, want_scale, isa)
        assert_same(q.qvalue, want_q, isa)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "qtype,zero_point", [("int8", None), ("int8", -7), ("uint8", None), ("uint8", 200)]
)
@pytest.mark.parametrize("shape", [(), (1,), (129,), (3, 65), (2, 3, 17), (0, 4), (13, 1000)])
def test_given_parameters(shape, qtype, zero_point, dtype, rng, each_isa, assert_same):
    x = jnp.asarray(rng.standard_normal(shape) * 200, dtype)
    scale = 1.37
    want = oracle.quantize_static(x, scale, zero_point or 0, qtype)
    for isa in each_isa():
        q = jq.quantize(x, qtype, scale=scale, zero_point=zero_point)
        assert_same(q.qvalue, want, isa)
        assert q.scale.shape == () and q.scale == np.float32(scale)


def test_given_channelwise_parameters(rng, assert_same):
    x = jnp.asarray(rng.standard_normal((4, 6)) * 50, jnp.float32)
    scale = rng.uniform(0.2, 2, (4, 1)).astype(np.float32)
    zero_point = rng.integers(0, 255, (4, 1))
    q = jq.quantize(x, "uint8", channelwise_axes=[0], scale=scale, zero_point=zero_point)
    assert_same(q.qvalue, oracle.quantize_static(x, scale, zero_point, "uint8"))
    assert_same(q.zero_point, zero_point.astype(np.int32))
    one = jq.quantize(x, "uint8", scale=scale, zero_point=3)  # shapes speak for themselves
    assert_same(one.zero_point, np.full((4, 1), 3, np.int32))


def test_ties_go_to_even_and_ends_saturate(each_isa, assert_same):
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 1e9, -1e9, 3e38, -3e38]], np.float32)
    x = np.concatenate([x, [[np.inf, -np.inf, np.nan, -0.0, 0, 2**31, -(2.0**31), 255, 256, 1, 9]]])
    x = x.astype(np.float32)
    for isa in each_isa():
        for qtype, zero_point in (("int8", 0), ("int8", -128), ("uint8", 0), ("uint8", 255)):
            q = jq.quantize(x, qtype, scale=1.0, zero_point=zero_point)
            want = oracle.quantize_static(x, 1.0, zero_point, qtype)
            assert_same(q.qvalue, want, (isa, qtype, zero_point), exact=True)
    assert list(jq.quantize(x[0, :5], "int8", scale=1.0).qvalue) == [0, 2, 2, 0, -2]
    assert list(jq.quantize(x[1, :3], "int8", scale=1.0, zero_point=5).qvalue) == [127, -128, 5]


@pytest.mark.parametrize("scale", [2.0**126, 8e37, 1e-30, 1e-37, 2.0**-126])
def test_extreme_scales(scale, rng, each_isa, assert_same):
    """The ends of the accepted range; beyond them scale or 1 / scale is subnormal."""
    x = np.clip(rng.standard_normal((3, 40)) * 50 * scale, -3e38, 3e38).astype(np.float32)
    x[np.abs(x) < 2.0**-126] = 0  # XLA flushes subnormal values too
    want = oracle.quantize_static(x, scale, 3, "int8")
    for isa in each_isa():
        assert_same(jq.quantize(x, "int8", scale=scale, zero_point=3).qvalue, want, isa)
        every = np.full((1, 40), scale)
        assert_same(jq.quantize(x, "int8", scale=every, zero_point=3).qvalue, want, isa)


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint8", "uint32"])
@pytest.mark.parametrize("qtype", ["int8", "uint8"])
@pytest.mark.parametrize("shape", [(), (1, 3)])
def test_traced_zero_points_are_clamped(shape, qtype, dtype, each_isa):
    """What is stored is what was used."""
    x = np.asarray([[0, 1, 10]], np.float32)
    low, high = oracle.RANGE[qtype]
    quantize = jax.jit(lambda z: jq.quantize(x, qtype, scale=np.ones(shape), zero_point=z))
    given = np.asarray([-(2**31), -300, -50, 7, 200, 300, 2**31 - 1, 2**32 - 1])
    limits = np.iinfo(dtype)
    for z in given[(given >= limits.min) & (given <= limits.max)]:
        used = np.clip(z, low, high)
        for isa in each_isa():
            q = quantize(jnp.full(shape, z, dtype))
            assert np.all(q.zero_point == used) and q.zero_point.shape == shape, (isa, z)
            want = oracle.quantize_static(x, 1.0, used, qtype)
            assert np.array_equal(q.qvalue, want), (isa, z)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero_tiny_and_non_finite_rows(dtype, rng, each_isa, assert_same):
    x = rng.standard_normal((8, 70)).astype(np.float32)
    x[1] = 0
    x[2, 69] = np.nan
    x[3, 0] = np.inf
    x[4, 33] = -np.inf
    x[5] = np.where(rng.uniform(size=70) < 0.5, 1.3e-36, -1.2e-38)  # scale would be subnormal
    # Scale just normal. Elements below 2⁻¹²⁶ may be flushed to zero, so there are none.
    x[6] = rng.choice([2e-36, -2e-36, 1.1e-36, -3e-37, 2e-38, 0], 70)
    x[7] *= 3e38 / np.abs(x[7]).max()
    x = jnp.asarray(x, dtype)
    want_q, want_scale, _ = oracle.quantize(x, "int8", (0,))
    assert list(want_scale[[1, 5], 0]) == [1, 1] and not want_q[[1, 2, 3, 4, 5]].any()
    for isa in each_isa():
        q = jq.quantize(x, "int8", channelwise_axes=[0])
        assert_same(q.scale, want_scale, isa)
        assert_same(q.qvalue, want_q, isa)


def test_zero_is_exact_and_range_is_used_when_asymmetric(rng):
    x = rng.uniform(0.5, 9, (20, 30)).astype(np.float32)
    for qtype in ("uint8", "int8"):
        q = jq.quantize(x, qtype, symmetric=False)
        low, high = oracle.RANGE[qtype]
        assert q.zero_point == low and np.max(q.qvalue) == high
        error = np.abs(q.dequantize() - x).max()
        assert error <= q.scale * 0.5001
    q = jq.quantize(np.zeros((3, 4), np.float32), "uint8", channelwise_axes=[0])
    assert np.all(q.scale == 1) and np.all(q.qvalue == 0) and np.all(q.zero_point == 0)


def test_per_row_path_equals_general_path(rng):
    """The primitive and the plain-JAX path for other granularities give the same bits."""
    x = jnp.asarray(rng.standard_normal((50, 96)), jnp.float32)
    rows = jq.quantize(x, "int8", channelwise_axes=[0])
    columns = jq.quantize(x.T, "int8", channelwise_axes=[1])
    assert np.array_equal(rows.qvalue, columns.qvalue.T)
    assert np.array_equal(rows.scale, columns.scale.T)
    static = jq.quantize(x, "uint8", scale=0.03, zero_point=100)
    general = jq.quantize(
        x, "uint8", scale=np.full((1, 96), 0.03), zero_point=np.full((1, 96), 100)
    )
    assert np.array_equal(static.qvalue, general.qvalue)


def test_accepts_dtypes_and_inputs_of_jax_functions():
    for qtype in ("int8", np.int8, jnp.int8, np.dtype("int8")):
        assert jq.quantize([1.0, 2.0], qtype).qtype == "int8"
    assert jq.quantize(np.ones((2, 3)), "int8", channelwise_axes=1).scale.shape == (1, 3)


def test_dequantize(rng, assert_same):
    x = rng.standard_normal((6, 9)).astype(np.float32)
    for q in (jq.quantize(x, "int8", channelwise_axes=[1]), jq.quantize(x, "uint8")):
        zero = 0 if q.zero_point is None else np.asarray(q.zero_point)
        want = (np.asarray(q.qvalue).astype(np.int32) - zero).astype(np.float32) * q.scale
        assert_same(jq.dequantize(q), np.asarray(want))
        assert_same(jq.dequantize(q), np.asarray(q.dequantize()))
        assert_same(jax.jit(jq.dequantize)(q), np.asarray(q.dequantize()))
    w = jq.pack_weight(x, "uint8")
    assert np.array_equal(w.dequantize(), jq.dequantize(jq.unpack(w)))


@pytest.mark.parametrize("shape", [(64, 64), (70, 50), (256, 512), (300, 1)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(shape, value):
    """In all that shares a scale with it, wherever it is, and nowhere else."""
    for row in (0, 3, shape[0] - 1):
        x = np.ones(shape, np.float32)
        x[row, 0] = value
        for qtype in ("int8", "uint8"):
            assert np.isnan(jq.quantize(x, qtype).scale)
            columns = np.isnan(jq.quantize(x, qtype, channelwise_axes=[1]).scale[0])
            assert columns[0] and not columns[1:].any()
            rows = np.isnan(jq.quantize(x, qtype, channelwise_axes=[0]).scale[:, 0])
            assert rows[row] and rows.sum() == 1
            groups = np.isnan(jq.quantize(x, qtype, group_size=32).scale)
            assert groups[row // 32, 0] and groups.sum() == 1
        for form in ("int8", "uint8", "int8:32", "int4", "int4:64:bf16", "int8_blocks"):
            values = np.asarray(jq.pack_weight(x, form).dequantize())
            assert np.isnan(values[row, 0]), form
            assert np.isfinite(values[:, 1:]).all(), form
