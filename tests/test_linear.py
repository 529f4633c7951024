"""dot and quantized_linear against the NumPy oracle, at sizes around every tile edge.

Operands are made by the oracle, so that each case compiles one function, run on each instruction
set in turn.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import K, M, N, pairwise

import jax_qgemm as jq
from jax_qgemm import native
from jax_qgemm.primitives.gemm import gemm
from jax_qgemm.types import GemmSpec

EXACT = bool(native.targets)  # else XLA's lowering is tested, within 2 ulp
X = ("f32", "bf16", "f16", "s8 tensor", "s8 tensor zero", "u8 tensor", "s8 row", "u8 row")
X_FLOAT = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
W = ("s8 column", "s8 tensor", "s8 zero", "u8 column", "s8 group", "u8 group")
OUT = ("float32", "bfloat16", "float16", "int8", "uint8", "int32")


def make_weight(rng, k, n, form):
    """(PackedWeight, stored s8 values, scales, zero points or None). Groups: of 16, 32 or 64."""
    stored = rng.integers(-128, 128, (k, n)).astype(np.int8)
    group = int(rng.choice([16, 32, 64])) if "group" in form else None
    columns = (max(1, -(-k // group)), n) if group else (n,)
    has_zero = form in ("s8 zero", "u8 column", "u8 group")
    zero_point = rng.integers(-128, 128, columns).astype(np.int32) if has_zero else None
    scale = rng.uniform(0.001, 0.02, columns).astype(np.float32)
    if form == "s8 tensor":
        scale[:] = 0.0073
    data, sums = oracle.pack(stored, zero_point, group)
    parts = jax.tree.map(jnp.asarray, (data, scale, zero_point, sums))
    qtype = "uint8" if form[:2] == "u8" else "int8"
    w = jq.PackedWeight(*parts, (k, n), qtype, form != "s8 tensor", group_size=group)
    return w, stored, scale, zero_point


def make_x(rng, m, k, form):
    """(x as the user passes it, its 8-bit values, scale, zero point)."""
    if form in X_FLOAT:
        x = jnp.asarray(rng.standard_normal((m, k)), X_FLOAT[form])
        return x, *oracle.quantize(x, "uint8", (0,), symmetric=False)
    qtype = {"s8": "int8", "u8": "uint8"}[form[:2]]
    low, high = oracle.RANGE[qtype]
    q = rng.integers(low, high + 1, (m, k)).astype(qtype)
    shape = (m, 1) if "row" in form else ()
    scale = np.asarray(rng.uniform(0.005, 0.05, shape), np.float32)
    if form in ("s8 tensor", "s8 row"):
        return jq.QuantizedArray(*map(jnp.asarray, (q, scale)), None, qtype), q, scale, 0
    zero_point = np.asarray(rng.integers(low, high + 1, shape), np.int32)
    return jq.QuantizedArray(*map(jnp.asarray, (q, scale, zero_point)), qtype), q, scale, zero_point


def raw(x, w):
    """The int32 sums, which only the primitive offers."""
    row = x.scale.ndim > 0
    zero_point = x.zero_point
    spec = GemmSpec(
        dynamic=False,
        x_zero_point="none" if zero_point is None else "row" if row else "tensor",
        w_zero_point=w.zero_point is not None,
        out_dtype="int32",
    )
    zero_point = zero_point.reshape(-1) if row and zero_point is not None else zero_point
    return gemm(
        spec,
        x=x.qvalue,
        data=w.data,
        w_scale=w.scale,
        column_sums=w.column_sums,
        x_zero_point=zero_point,
        w_zero_point=w.zero_point,
    )


def check(
    rng, each_isa, assert_same,
    *, m, n, k, x, w, out, bias, activation, residual=None, per_column=False,
):  # fmt: skip
    """One combination on every instruction set. Float x has no int32 or 8-bit output: f32.

    A smooth activation is within 2 ulp of the exact one, and has the same bits everywhere.
    """
    if x in X_FLOAT and out not in oracle.FLOATS:
        out = "float32"
    if out == "int32":
        bias = residual = activation = None
    xs, qx, sx, zx = make_x(rng, m, k, x)
    ws, stored, sw, zw = make_weight(rng, k, n, w)
    b = jnp.asarray(rng.standard_normal(n) * np.sqrt(k), bias) if bias else None
    r = jnp.asarray(rng.standard_normal((m, n)) * 3, residual) if residual else None
    if ws.group_size and out == "int32":
        out = "float32"  # sums of groups have no common scale
    plain = oracle.linear(qx, sx, zx, stored, sw, zw, group=ws.group_size)
    spread = max(float(np.std(plain)) if plain.size else 0.0, 1e-3)
    out_scale, out_zero = np.float32(spread / 40), 3 if out == "int8" else 130
    if per_column:
        out_scale = out_scale * rng.uniform(0.5, 2, n).astype(np.float32)
    want = oracle.linear(
        qx, sx, zx, stored, sw, zw, bias=b, residual=r, group=ws.group_size,
        activation=activation, out=out, out_scale=out_scale, out_zero_point=out_zero,
    )  # fmt: skip

    @jax.jit
    def run(x, w, b, r, out_scale, out_zero):
        if out == "int32":
            return raw(x, w)
        if out in ("int8", "uint8"):
            y = jq.quantized_linear(
                x, w, bias=b, residual=r, activation=activation,
                out_scale=out_scale, out_zero_point=out_zero, out_qtype=out,
            )  # fmt: skip
            return y.qvalue
        return jq.dot(x, w, bias=b, residual=r, activation=activation, preferred_element_type=out)

    largest = sum(np.abs(np.asarray(t, np.float32)) for t in (plain, b, r) if t is not None)
    exact = EXACT and activation not in oracle.SMOOTH
    results = []
    for isa in each_isa():
        got = run(xs, ws, b, r, out_scale, jnp.int32(out_zero))
        assert_same(got, want, isa, None if EXACT else largest, exact=exact)
        results.append(np.asarray(got))
        np.testing.assert_array_equal(results[0], results[-1], isa)


@pytest.mark.parametrize("case", pairwise(m=M, n=N, x=X[:5]), ids=str)
def test_m_and_n_around_tile_edges(case, rng, each_isa, assert_same):
    k = K[(case["m"] * 5 + case["n"]) % len(K)]
    settings = {"w": "s8 column", "out": "float32", "bias": None, "activation": None}
    check(rng, each_isa, assert_same, **case, **settings, k=k)


@pytest.mark.parametrize("case", pairwise(k=K, x=X, w=W, n=(5, 64, 100), m=(2, 7)), ids=str)
def test_k_around_quads_with_every_operand(case, rng, each_isa, assert_same):
    settings = {"out": "float32", "bias": None, "activation": None}
    check(rng, each_isa, assert_same, **case, **settings)


@pytest.mark.parametrize(
    "case",
    pairwise(
        x=X,
        w=W,
        out=OUT,
        bias=(None, "float32", "bfloat16"),
        activation=(None, "relu"),
        m=(1, 6, 13),
        n=(3, 16, 65, 129),
        k=(4, 33, 128),
    ),
    ids=str,
)
def test_every_epilogue(case, rng, each_isa, assert_same):
    check(rng, each_isa, assert_same, **case)


@pytest.mark.parametrize(
    "case",
    pairwise(
        x=("f32", "f16", "u8 tensor", "s8 row"),
        w=("u8 column", "s8 group"),
        out=OUT[:-1],
        bias=(None, "float16"),
        residual=(None, "float32", "bfloat16", "float16"),
        activation=(None, "relu", "gelu", "gelu_tanh", "silu"),
        per_column=(False, True),
        m=(1, 6, 13),
        n=(3, 16, 65, 129),
        k=(4, 33, 128),
    ),
    ids=str,
)
def test_the_whole_output_pipeline(case, rng, each_isa, assert_same):
    check(rng, each_isa, assert_same, **case)


@pytest.mark.parametrize("group", [16, 32, 64, 128])
@pytest.mark.parametrize("qtype", ["int8", "uint8"])
@pytest.mark.parametrize("k", [1, 16, 33, 130, 300])
def test_groups(k, qtype, group, rng, each_isa, assert_same):
    """From float weights with rows of different magnitude: better than a scale per column."""
    n, m = 70, 5
    kernel = rng.standard_normal((k, n)).astype(np.float32)
    kernel *= np.exp(np.arange(k)[:, None] / max(k, 10) * 4).astype(np.float32)
    w = jq.pack_weight(kernel, f"{qtype}:{group}")
    assert w.group_size == group and w.scale.shape == (-(-k // group), n)
    q, sw, zw = oracle.quantize_groups(kernel, qtype, group, symmetric=qtype == "int8")
    shift = 0 if qtype == "int8" else 128
    stored, zw = (q.astype(int) - shift).astype(np.int8), zw - shift if shift else None
    x = rng.standard_normal((m, k)).astype(np.float32)
    qx, sx, zx = oracle.quantize(x, "uint8", (0,), symmetric=False)
    want = oracle.linear(qx, sx, zx, stored, sw, zw, group=group)
    for isa in each_isa():
        assert_same(jq.dot(x, w), want, isa, np.abs(want) + np.abs(kernel).sum(0))
    if k > 2 * group:
        coarse = jq.pack_weight(kernel, qtype)
        errors = [np.abs(f.dequantize() - kernel).mean() for f in (w, coarse)]
        assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("out", oracle.FLOATS)
@pytest.mark.parametrize("activation", oracle.SMOOTH)
def test_activations_at_every_magnitude(activation, out, rng, each_isa, assert_same):
    """The residual alone is what reaches the activation: signs and exponents all."""
    bits = np.arange(2**16, dtype=np.uint32) << 16 | rng.integers(2**16, size=2**16, dtype="uint32")
    y = bits.view(np.float32).reshape(-1, 256)
    y[np.isnan(y)] = np.nan  # quiet
    w, *_ = make_weight(rng, 8, 256, "s8 column")
    want = oracle.each(oracle.SMOOTH[activation], y)
    with np.errstate(over="ignore"):
        want = want.astype(np.float32).astype(oracle.FLOATS[out])
    # XLA flushes subnormals, 2**-126 and below, and rounds the argument.
    largest = None if EXACT else np.maximum(np.abs(np.nan_to_num(y, posinf=0, neginf=0)), 2**-103)
    for isa in each_isa():
        got = jq.dot(
            jnp.zeros((256, 8)), w, residual=y, activation=activation, preferred_element_type=out
        )
        assert_same(np.asarray(got) + 0, want + 0, isa, largest, exact=False)


@pytest.mark.parametrize("m,n,k", [(131, 300, 257), (40, 1000, 800), (300, 70, 1000)])
@pytest.mark.parametrize("x,out", [("f32", "float32"), ("u8 tensor", "uint8"), ("s8 row", "int8")])
def test_several_blocks(m, n, k, x, out, rng, each_isa, assert_same):
    settings = {"w": "u8 column", "bias": "float32", "activation": "relu"}
    check(rng, each_isa, assert_same, m=m, n=n, k=k, x=x, out=out, **settings)


@pytest.mark.parametrize("m,n,k", [(0, 5, 7), (3, 0, 7), (3, 5, 0), (40, 300, 0), (0, 0, 0)])
@pytest.mark.parametrize("x", ["f32", "u8 tensor", "u8 row"])
@pytest.mark.parametrize("out", ["float32", "uint8", "int32"])
def test_zero_sizes(m, n, k, x, out, rng, each_isa, assert_same):
    settings = {"w": "u8 column", "bias": "float32", "activation": None}
    check(rng, each_isa, assert_same, m=m, n=n, k=k, x=x, out=out, **settings)


@pytest.mark.parametrize("k", [32769, 65536, 66312, 140001])
@pytest.mark.parametrize("x,w", [("u8 row", "u8 column"), ("u8 tensor", "s8 column")])
@pytest.mark.parametrize("out", ["float32", "int32"])
def test_long_k(k, x, w, out, rng, each_isa, assert_same):
    settings = {"bias": None, "activation": None}
    check(rng, each_isa, assert_same, m=2, n=5, k=k, x=x, w=w, out=out, **settings)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 64, 1000, 65536, 65793, 131073])
@pytest.mark.parametrize(
    "qtype,value,zero_point", [("uint8", 255, 0), ("uint8", 0, 255), ("int8", -128, 127)]
)
@pytest.mark.parametrize("weight,w_zero", [(-128, None), (127, None), (-128, 127)])
def test_no_saturation_on_the_way(
    k, qtype, value, zero_point, weight, w_zero, each_isa, assert_same
):
    """All products at the end of their range: vpmaddubsw pairs or int32 sums would overflow."""
    m, n = 2, 3
    q, stored = np.full((m, k), value, qtype), np.full((k, n), weight, np.int8)
    zw = None if w_zero is None else np.full(n, w_zero, np.int32)
    data, sums = oracle.pack(stored, zw)
    one = np.float32(1)
    w = jq.PackedWeight(data, np.ones(n, np.float32), zw, sums, (k, n), "int8", True)
    x = jq.QuantizedArray(q, one, np.int32(zero_point), qtype)
    w, x = jax.tree.map(jnp.asarray, (w, x))
    want = oracle.linear(q, one, zero_point, stored, one, zw)
    for isa in each_isa():
        assert_same(jq.dot(x, w), want, isa, np.abs(want))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_special_rows(dtype, rng, each_isa, assert_same):
    """Zero rows give the bias; NaN and Inf rows give NaN, and no other row is touched."""
    x = rng.standard_normal((8, 50)).astype(np.float32)
    x[1], x[2, 49], x[3, 0], x[4, 7] = 0, np.nan, np.inf, -np.inf
    x[5] = 1.3e-36
    x = jnp.asarray(x, dtype)
    w, stored, sw, zw = make_weight(rng, 50, 20, "u8 column")
    bias = rng.standard_normal(20).astype(np.float32)
    want = oracle.dot(x, stored, sw, zw, bias=bias, activation="relu", out=dtype)
    assert np.isnan(want[2:5].astype(np.float32)).all()
    assert not np.isnan(np.delete(want, [2, 3, 4], 0).astype(np.float32)).any()
    for isa in each_isa():
        got = jq.dot(x, w, bias=bias, activation="relu")
        assert_same(got, want, isa, 10)


def test_leading_dimensions_are_free(rng):
    w, *_ = make_weight(rng, 12, 9, "u8 column")
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 12)), jnp.float32)
    flat = jq.dot(x.reshape(24, 12), w)
    assert np.array_equal(jq.dot(x, w), flat.reshape(2, 3, 4, 9))
    assert np.array_equal(jq.dot(x[0, 0, 0], w), flat[0])
    assert jq.dot(x[:, :0], w).shape == (2, 0, 4, 9)
    for axes in ((), (0, 1, 2)):
        q = jq.quantize(x, "uint8", channelwise_axes=axes)
        by_rows = jq.quantize(x.reshape(24, 12), "uint8", channelwise_axes=[0] if axes else [])
        assert np.array_equal(jq.dot(q, w), jq.dot(by_rows, w).reshape(2, 3, 4, 9))
        out = jq.quantized_linear(q, w, out_scale=0.1)
        assert out.shape == (2, 3, 4, 9) and out.scale.shape == ()
    vector = jq.quantize(x[0, 0, 0], "int8")
    assert jq.quantized_linear(vector, w, out_scale=0.1).shape == (9,)


def test_result_types(rng):
    w = jq.pack_weight(rng.standard_normal((12, 9)).astype(np.float32))
    x = jnp.asarray(rng.standard_normal((3, 12)), jnp.float32)
    assert jq.dot(x, w).dtype == jnp.float32
    assert jq.dot(x.astype(jnp.bfloat16), w).dtype == jnp.bfloat16
    assert jq.dot(x.astype(jnp.bfloat16), w, preferred_element_type=jnp.float32).dtype == "float32"
    q = jq.quantize(x, "uint8")
    assert jq.dot(q, w).dtype == jnp.float32
    assert jq.dot(q, w, preferred_element_type="bfloat16").dtype == jnp.bfloat16
    same = jq.quantized_linear(q, w, out_scale=0.1, out_zero_point=7)
    assert same.qtype == "uint8" and same.zero_point == 7 and same.scale == np.float32(0.1)
    other = jq.quantized_linear(q, w, out_scale=0.1, out_qtype=jnp.int8)
    assert other.qtype == "int8" and other.zero_point is None


def test_traced_zero_points_of_the_result_are_clamped(rng, each_isa):
    w, *_ = make_weight(rng, 12, 9, "u8 column")
    x = jq.quantize(rng.standard_normal((3, 12)), "uint8")

    @jax.jit
    def run(zero_point):
        return jq.quantized_linear(x, w, out_scale=0.1, out_zero_point=zero_point)

    for isa in each_isa():
        for given, used in ((-50, 0), (300, 255), (7, 7)):
            got = run(given)
            want = jq.quantized_linear(x, w, out_scale=0.1, out_zero_point=used)
            assert got.zero_point == used and np.array_equal(got.qvalue, want.qvalue), isa


def test_a_row_has_the_same_bits_alone_and_in_a_batch(rng, each_isa):
    w, *_ = make_weight(rng, 300, 70, "u8 column")
    x = jnp.asarray(rng.standard_normal((33, 300)), jnp.float32)
    for isa in each_isa():
        batch = np.asarray(jq.dot(x, w))
        for row in (0, 5, 32):
            assert np.array_equal(jq.dot(x[row], w), batch[row]), isa


def test_accuracy_against_float(rng):
    """The answer is a good one: 8-bit noise, about 1 % of the output's spread."""
    x = rng.standard_normal((64, 512)).astype(np.float32)
    kernel = rng.standard_normal((512, 256)).astype(np.float32)
    exact = x @ kernel
    for qtype in ("int8", "uint8"):
        error = np.asarray(jq.dot(x, jq.pack_weight(kernel, qtype))) - exact
        assert np.std(error) < 0.012 * np.std(exact)
    xq = jq.quantize(x, "uint8")
    out = jq.quantized_linear(xq, jq.pack_weight(kernel), out_scale=0.8, out_zero_point=128)
    assert np.std(out.dequantize() - exact) < 0.03 * np.std(exact)
