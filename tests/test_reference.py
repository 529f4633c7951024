"""reference.py, the specification in plain JAX, against the NumPy oracle; its lowerings."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jax_qgemm as jq
from jax_qgemm import native, reference
from jax_qgemm.primitives import gemm, pack, quantize
from jax_qgemm.types import GemmSpec

EXACT = bool(native.targets)
SIZES = [(1, 1, 1), (5, 17, 70), (13, 130, 129), (3, 64, 64), (0, 5, 4), (2, 0, 3), (2, 3, 0)]


@pytest.mark.parametrize("m,k,n", SIZES)
def test_pack_and_unpack(m, k, n, rng):
    stored = rng.integers(-128, 128, (k, n)).astype(np.int8)
    for zero_point in (None, rng.integers(-128, 128, n).astype(np.int32)):
        want, want_sums = oracle.pack(stored, zero_point)
        data, sums = jax.jit(reference.pack)(stored, zero_point)
        assert np.array_equal(data, want) and np.array_equal(sums, want_sums)
        assert data.size == reference.packed_size(k, n)
        unpack = jax.jit(reference.unpack, static_argnums=(1, 2))
        assert np.array_equal(unpack(data, k, n), stored)


@pytest.mark.parametrize("m,k,n", SIZES)
@pytest.mark.parametrize(
    "spec",
    [
        GemmSpec(dynamic=True),
        GemmSpec(dynamic=True, w_zero_point=True, bias=True, out_dtype="bfloat16"),
        GemmSpec(dynamic=True, activation="relu", out_dtype="int8"),
        GemmSpec(dynamic=True, activation="gelu", residual=True, bias=True),
        GemmSpec(dynamic=True, activation="gelu_tanh", residual=True, out_dtype="float16"),
        GemmSpec(dynamic=True, activation="silu", out_dtype="uint8", out_scale="column"),
        GemmSpec(dynamic=False, x_scale="tensor", bias=True, activation="relu"),
        GemmSpec(dynamic=False, x_scale="row", x_zero_point="row", w_zero_point=True, bias=True),
        GemmSpec(dynamic=False, x_scale="tensor", x_zero_point="tensor", out_dtype="uint8"),
        GemmSpec(dynamic=False, x_zero_point="tensor", w_zero_point=True, out_dtype="int32"),
    ],
    ids=str,
)
def test_gemm(m, k, n, spec, rng, assert_same):
    stored = rng.integers(-128, 128, (k, n)).astype(np.int8)
    sw = rng.uniform(0.001, 0.02, n).astype(np.float32)
    zw = rng.integers(-128, 128, n).astype(np.int32) if spec.w_zero_point else None
    bias = rng.standard_normal(n).astype(np.float32) if spec.bias else None
    data, sums = oracle.pack(stored, zw)
    if spec.dynamic:
        x = rng.standard_normal((m, k)).astype(np.float32)
        qx, sx, zx = oracle.quantize(x, "uint8", (0,), symmetric=False)
    else:
        x = qx = rng.integers(0, 256, (m, k)).astype(np.uint8)
        rows = (m, 1) if spec.x_scale == "row" else ()
        sx = np.asarray(rng.uniform(0.01, 0.02, rows), np.float32)
        zx = np.asarray(rng.integers(0, 256, rows), np.int32)
    residual, out_scale = None, np.float32(0.05)
    operands = {
        "x": x,
        "data": data,
        "w_scale": sw,
        "column_sums": sums,
        "x_scale": sx.reshape(-1) if spec.x_scale == "row" else sx,
        "x_zero_point": zx.reshape(-1) if spec.x_zero_point == "row" else zx,
        "w_zero_point": zw,
        "bias": bias,
        "residual": residual,
        "out_scale": out_scale,
        "out_zero_point": np.int32(7),
    }
    if spec.residual:
        operands["residual"] = residual = rng.standard_normal((m, n)).astype(np.float32)
    if spec.out_scale == "column":
        operands["out_scale"] = out_scale = rng.uniform(0.02, 0.1, n).astype(np.float32)
    present = {name: operands[name] for name in gemm.operand_names(spec)}
    if spec.x_zero_point == "none" and not spec.dynamic:
        zx = 0
    want = oracle.linear(
        qx, sx, zx, stored, sw, zw, bias=bias, residual=residual, activation=spec.activation,
        out=spec.out_dtype, out_scale=out_scale, out_zero_point=7,
    )  # fmt: skip
    plain = np.abs(oracle.linear(qx, sx, zx, stored, sw, zw))
    got = jax.jit(lambda operands: reference.gemm(**operands, spec=spec))(present)
    assert_same(got, want, largest=plain + 4, exact=False)
    got = gemm.gemm(spec, **operands)
    exact = EXACT and spec.activation not in oracle.SMOOTH
    assert_same(got, want, largest=plain + 4, exact=exact)


def test_quantize(rng, assert_same):
    x = rng.standard_normal((9, 100)).astype(np.float32)
    x[3], x[4, 5], x[5, 0] = 0, np.nan, np.inf
    for qtype in ("int8", "uint8"):
        want_q, want_scale, want_zero = oracle.quantize(x, qtype, (0,), symmetric=qtype == "int8")
        q, scale, *zero_point = jax.jit(reference.quantize_rows, static_argnums=1)(x, qtype)
        assert_same(scale, want_scale[:, 0], exact=False)
        assert_same(q, want_q, exact=False)
        for got in zero_point:
            assert_same(got, want_zero[:, 0])
    for qtype in ("int8", "uint8"):
        got = jax.jit(reference.quantize_static, static_argnums=3)(x, 0.02, 9, qtype)
        assert_same(got, oracle.quantize_static(x, 0.02, 9, qtype), exact=False)


def test_oracle_itself():
    """Numbers worked out by hand."""
    q, scale, _ = oracle.quantize(np.array([[1.0, -2.54, 0.01]]), "int8", (0,))
    assert q.tolist() == [[50, -127, 0]] and np.isclose(scale[0, 0], 0.02)
    q, scale, zero_point = oracle.quantize(np.array([-1.0, 4.1]), "uint8", (), False)
    assert q.tolist() == [0, 255] and zero_point == 50 and np.isclose(scale, 0.02)
    a, b = np.array([[1, 2]], np.int8), np.array([[3, 5], [4, -6]], np.int8)
    y = oracle.linear(a, 0.5, 1, b, np.float32([1, 2]), np.array([0, -1]), bias=[0.25, -9])
    assert y.tolist() == [[2.25, -14.0]]  # (0·3 + 1·4)·0.5 + 0.25, (0·6 + 1·(-5))·1 - 9
    data, sums = oracle.pack(np.arange(10, dtype=np.int8).reshape(5, 2))
    assert data.shape == (16 * 8,) and sums.tolist() == [[20, 25]]
    assert data[:8].tolist() == [0, 2, 4, 6, 1, 3, 5, 7] and data[64:72].tolist() == [
        8, 0, 0, 0, 9, 0, 0, 0,
    ]  # fmt: skip
    assert oracle.wrap32(np.array([2**31, -(2**31) - 1])).tolist() == [-(2**31), 2**31 - 1]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_the_reference(platform):
    w = jq.pack_weight(np.ones((12, 9), np.float32))
    x = jnp.ones((3, 12))

    def everything(x, w):
        y = jq.dot(x, jq.pack(jq.unpack(w)))
        return jq.quantized_linear(jq.quantize(y[:, :1] + x, "uint8"), w, out_scale=1.0)

    text = jax.jit(everything).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    assert "jax_qgemm.gemm.v1" not in text and "dot_general" in text


def test_primitives_run_eagerly(rng):
    stored = rng.integers(-128, 128, (6, 5)).astype(np.int8)
    data, _ = pack.pack(jnp.asarray(stored))
    assert np.array_equal(reference.unpack(data, 6, 5), stored)
    x = jnp.asarray(rng.standard_normal((3, 6)), jnp.float32)
    q, scale = quantize.quantize_rows(x, "int8")
    assert np.allclose(q * scale[:, None], x, atol=0.02)
    q, scale, zero_point = quantize.quantize_rows(x, "uint8")
    centred = q.astype(jnp.int32) - zero_point[:, None]
    assert np.allclose(centred * scale[:, None], x, atol=0.02)
    assert quantize.quantize_static(x, jnp.float32(0.1), None, "uint8").dtype == jnp.uint8
