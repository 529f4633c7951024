"""Float sums: weights of float16, bfloat16 and, weight only, int8; determinism, errors, layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from cases import pairwise
from flax import nnx, serialization

import jax_qgemm as jq
from jax_qgemm.flax.linen import QDense, quantize_params
from jax_qgemm.flax.nnx import QLinear, quantize_

DTYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
ROWS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
ULP = 2.0**-24
# Where products of x and weights of one type go by pairs, in an order of their own.
FEATURES = jq.cpu_info()["features"]
PAIRED = {
    ("bf16", "avx512_vnni"): "avx512_bf16" in FEATURES,
    ("bf16", "amx_int8"): "amx_bf16" in FEATURES,
    ("fp16", "amx_int8"): "amx_fp16" in FEATURES,
}


def values(rng, shape, form):
    return rng.standard_normal(shape).astype(np.float32).astype(DTYPES[form])


def packed_offset(k, n, rows, columns, form):
    """Where element (k, n) lies, by the formula of layout.h."""
    padded_k, padded_n = rows + rows % 2, -(-columns // 16) * 16
    panel, column = divmod(n, 64)
    width = min(64, padded_n - 64 * panel)
    step = panel * 64 * padded_k + k // 2 * width * 2
    if form == "bf16":
        return step + column * 2 + k % 2
    return step + (column // 16 * 2 + k % 2) * 16 + column % 16


@pytest.mark.parametrize("form", DTYPES)
@pytest.mark.parametrize("k,n", [(1, 1), (2, 16), (7, 17), (8, 64), (33, 65), (5, 200), (0, 3)])
def test_layout_and_round_trip(k, n, form, rng, each_isa):
    kernel = values(rng, (k, n), form)
    expected = np.zeros((k + k % 2) * (-(-n // 16) * 16), np.uint16)
    for i in range(k):
        for j in range(n):
            expected[packed_offset(i, j, k, n, form)] = kernel[i, j].view(np.uint16)
    for isa in each_isa():
        w = jq.pack_weight(kernel, form)
        assert np.array_equal(w.data, expected), isa
        assert w.shape == (k, n) and w.qtype == DTYPES[form].name and w.is_float
        assert np.array_equal(w.dequantize(), kernel.astype(np.float32))
    assert w.scale is w.column_sums is w.zero_point is None and w.nbytes == expected.nbytes


def test_formats_by_name_and_dtype():
    for name in ("fp16", "float16", np.float16, jnp.float16):
        assert jq.pack_weight(jnp.ones((2, 2)), name).qtype == "float16"
    for name in ("bf16", "bfloat16", jnp.bfloat16):
        assert jq.pack_weight(jnp.ones((2, 2)), name).qtype == "bfloat16"


CASES = pairwise(
    m=(0, 1, 2, 5, 6, 7, 13, 40, 130),
    k=(1, 2, 37, 128, 1000),
    n=(1, 16, 21, 64, 200),
    x=tuple(ROWS),
    form=tuple(DTYPES),
    bias=(False, True),
    residual=(None, *ROWS),
    activation=(None, "relu", "gelu", "silu"),
    out=(None, *ROWS),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dot_is_within_the_bound_of_float32_sums(case, rng, each_isa):
    m, k, n = case["m"], case["k"], case["n"]
    x = rng.standard_normal((m, k)).astype(ROWS[case["x"]])
    kernel = values(rng, (k, n), case["form"])
    bias = rng.standard_normal(n).astype(np.float32) if case["bias"] else None
    residual = None
    if case["residual"]:
        residual = rng.standard_normal((m, n)).astype(ROWS[case["residual"]])
    w = jq.pack_weight(kernel, case["form"])
    x64, w64 = x.astype(np.float64), kernel.astype(np.float64)
    extra = sum(0 if part is None else part.astype(np.float64) for part in (bias, residual))
    want = x64 @ w64 + extra
    terms = np.abs(x64) @ np.abs(w64) + np.abs(extra)
    activations = {None: lambda y: y, "relu": lambda y: np.maximum(y, 0)}
    smooth = {"gelu": lambda y: jax.nn.gelu(y, approximate=False), "silu": jax.nn.silu}
    activate = (activations | smooth)[case["activation"]]
    first = None
    for isa in each_isa():
        got = jq.dot(
            jnp.asarray(x),
            w,
            bias=bias,
            residual=residual,
            activation=case["activation"],
            preferred_element_type=case["out"],
        )
        assert got.dtype == ROWS[case["out"] or case["x"]] and got.shape == (m, n)
        # gamma of K products and two sums; activations have slopes below 1.2 and errors of 2 ulp.
        bound = (k + 4) * ULP * terms * 1.2 + 8 * ULP * np.abs(want) + 1e-7
        if got.dtype != np.float32:
            bound += float(jnp.finfo(got.dtype).eps) / 2 * (np.abs(want) + bound)
        error = np.asarray(got, np.float64) - np.asarray(activate(want), np.float64)
        assert (np.abs(error) <= bound).all(), isa
        both = DTYPES[case["form"]] == ROWS[case["x"]]
        paired = both and PAIRED.get((case["form"], isa))
        if case["activation"] in (None, "relu") and isa != "xla" and not paired:
            first = got if first is None else first
            assert np.array_equal(got, first), isa


@pytest.mark.parametrize("form", DTYPES)
@pytest.mark.parametrize("m,k,n", [(1, 5000, 70), (7, 301, 130), (64, 320, 800)])
def test_sums_that_fit_float32_are_exact(m, k, n, form, rng, each_isa):
    x = rng.integers(-30, 30, (m, k)).astype(np.float32)
    kernel = rng.integers(-30, 30, (k, n)).astype(np.float32)
    w = jq.pack_weight(kernel, form)
    for isa in each_isa():
        assert np.array_equal(jax.jit(jq.dot)(x, w), x @ kernel), isa


@pytest.mark.parametrize("form", DTYPES)
def test_a_row_is_the_same_in_any_batch(form, rng, each_isa):
    x = jnp.asarray(rng.standard_normal((150, 515)), jnp.float32)
    w = jq.pack_weight(values(rng, (515, 200), form), form)
    for isa in each_isa():
        if isa == "xla":
            pytest.skip("XLA's own dot makes no such promise")
        whole = jq.dot(x, w)
        for rows in (1, 2, 6, 37):
            assert np.array_equal(jq.dot(x[:rows], w), whole[:rows]), isa
        assert np.array_equal(jax.vmap(jq.dot, (0, None))(x, w), whole), isa


@pytest.mark.parametrize("form", DTYPES)
def test_one_type_on_both_sides(form, rng, each_isa):
    x = jnp.asarray(rng.standard_normal((150, 515)), DTYPES[form])
    kernel = values(rng, (515, 200), form)
    w = jq.pack_weight(kernel, form)
    x64, w64 = np.asarray(x, np.float64), kernel.astype(np.float64)
    for isa in each_isa():
        whole = np.asarray(jq.dot(x, w, preferred_element_type=jnp.float32))
        error = np.abs(whole - x64 @ w64)
        assert (error <= 520 * ULP * (np.abs(x64) @ np.abs(w64))).all(), isa
        for rows in (1, 2, 3, 6, 37) if isa != "xla" else ():
            part = jq.dot(x[:rows], w, preferred_element_type=jnp.float32)
            assert np.array_equal(part, whole[:rows]), isa
        # Small integers: every sum is exact.
        ints = jnp.asarray(rng.integers(-9, 9, (7, 515)), DTYPES[form])
        weight = rng.integers(-9, 9, (515, 70)).astype(np.float32)
        got = jq.dot(ints, jq.pack_weight(weight, form), preferred_element_type=jnp.float32)
        assert np.array_equal(got, np.asarray(ints, np.float32) @ weight), isa


def test_subnormal_and_infinite_weights(each_isa):
    tiny = np.asarray([[6e-8, 1e-5, 65504, np.inf, np.nan]], np.float16)
    w = jq.pack_weight(tiny, "fp16")
    for isa in each_isa():
        got = np.asarray(jq.dot(jnp.asarray([[2.0**20], [0.0]]), w))
        assert np.array_equal(got[0, :4], tiny[0, :4].astype(np.float32) * 2**20), isa
        assert np.isnan(got[0, 4]) and np.array_equal(got[1, :3], [0, 0, 0]), isa
        assert np.isnan(got[1, 3:]).all(), isa


@pytest.mark.parametrize("form", DTYPES)
def test_under_transformations(form, rng, each_isa):
    kernels = jnp.asarray(values(rng, (3, 37, 21), form))
    pack = jax.jit(lambda kernel: jq.pack_weight(kernel, form))
    stack = jax.vmap(pack)(kernels)
    one = [pack(kernel) for kernel in kernels]
    x = jnp.asarray(rng.standard_normal((3, 5, 37)), jnp.float32)
    for isa in each_isa():
        want = jnp.stack([jq.dot(a, w) for a, w in zip(x, one, strict=True)])
        assert np.array_equal(stack.dequantize()[1], one[1].dequantize())
        assert np.array_equal(jq.dot(x, stack), want), isa
        assert np.array_equal(jax.vmap(jq.dot)(x, stack), want), isa
        _, scanned = jax.lax.scan(lambda c, xw: (c, jq.dot(*xw)), 0, (x, stack))
        assert np.array_equal(scanned, want), isa
        got = jq.ragged_dot(x.reshape(15, 37), stack, jnp.asarray([5, 5, 4]))
        assert np.array_equal(got[:14], want.reshape(15, 21)[:14]) and not got[14:].any(), isa
    assert jax.eval_shape(jq.dot, x, stack).shape == (3, 5, 21)


def test_saving(tmp_path, rng):
    w = jq.pack_weight(values(rng, (37, 21), "bf16"), "bf16")
    np.savez(tmp_path / "w.npz", **w.to_arrays())
    back = jq.PackedWeight.from_arrays(np.load(tmp_path / "w.npz"))
    assert jax.tree.structure(back) == jax.tree.structure(w)
    assert np.array_equal(back.data, w.data)
    with pytest.raises(ValueError, match=r"data must be uint16, got int16\[1216\]"):
        jq.PackedWeight.from_arrays(w.to_arrays() | {"data": np.asarray(w.data).view(np.int16)})
    with pytest.raises(ValueError, match="data has 5 elements, expected 1216 for a packed 37×21"):
        jq.PackedWeight.from_arrays(w.to_arrays() | {"data": np.zeros(5, np.uint16)})
    with pytest.raises(ValueError, match="unknown qtype 2 in metadata"):
        arrays = jq.quantize(jnp.ones((2, 2)), "int8").to_arrays()
        jq.QuantizedArray.from_arrays(arrays | {"metadata": np.asarray([1, 2, 0])})


def test_values_out_of_range():
    kernel = jnp.asarray([[1e5, 2.0], [-3e6, np.inf]])
    with pytest.raises(ValueError, match=r"2 of 4 values of kernel are beyond ±65504.*3e\+06"):
        jq.pack_weight(kernel, "fp16")
    clamped = jq.pack_weight(kernel, "fp16", clamp=True)
    assert np.array_equal(clamped.dequantize(), [[65504, 2], [-65504, 65504]])
    traced = jax.jit(lambda kernel: jq.pack_weight(kernel, "fp16"))(kernel)
    assert np.array_equal(traced.dequantize(), [[np.inf, 2], [-np.inf, np.inf]])
    assert np.isfinite(jq.pack_weight(kernel.at[1, 1].set(0), "bf16").dequantize()).all()


@pytest.mark.parametrize("qtype", ["fp16", "bf16", "int8", "int4:32:f32"])
def test_kernels_beyond_float32(qtype):
    kernel = np.array([[1e39, 1.0], [-2e39, np.inf]])
    want = (
        r"pack_weight: 2 of 4 values of kernel are beyond the range of float32, the largest 2e\+39"
    )
    with pytest.raises(ValueError, match=want):
        jq.pack_weight(kernel, qtype)
    with pytest.raises(ValueError, match="dot: 1 of 1 values of x are beyond"):
        jq.dot(np.array([[1e39]]), jq.pack_weight(np.ones((1, 1), np.float32), qtype))
    clamped = jq.pack_weight(kernel, "fp16", clamp=True)
    assert np.array_equal(clamped.dequantize(), [[65504, 1], [-65504, 65504]])


def test_errors(rng):
    w = jq.pack_weight(values(rng, (8, 3), "fp16"), "fp16")
    q = jq.quantize(jnp.ones((4, 8)), "uint8")
    with pytest.raises(TypeError, match="dot: x must be float32.* for a weight of float16, got"):
        jq.dot(q, w)
    with pytest.raises(
        TypeError, match="quantized_linear: w must be of int8 or uint8, and not for weigh"
    ):
        jq.quantized_linear(q, w, out_scale=1.0)
    with pytest.raises(
        TypeError, match="unpack: w must be of int8 or uint8, got float16; use w.dequant"
    ):
        jq.unpack(w)
    with pytest.raises(TypeError, match="outlier_density: w must be of int8 or uint8"):
        jq.outlier_density(w)
    with pytest.raises(ValueError, match="dot: w has K=8 but x has 7"):
        jq.dot(jnp.ones((4, 7)), w)
    for qtype, more, message in (
        ("fp16:32", {}, "float16 has no groups"),
        ("fp8", {}, "must be 'int8', .*'int8_blocks', got 'fp8'"),
        ("fp16", {"symmetric": True}, "symmetric must be None for float16, got True"),
        ("int8", {"clamp": True}, "clamp is for fp16 and bf16, got qtype 'int8'"),
    ):
        with pytest.raises(ValueError, match=message):
            jq.pack_weight(jnp.ones((8, 3)), qtype, **more)


@pytest.mark.parametrize("form", DTYPES)
def test_layers(form, rng):
    linear = nnx.Linear(37, 21, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.standard_normal((5, 37)), jnp.float32)
    rounded = linear.kernel[...].astype(DTYPES[form]).astype(jnp.float32)
    layer = QLinear.from_linear(linear, form)
    np.testing.assert_allclose(layer(x), x @ rounded, rtol=1e-5, atol=1e-5)
    graph, state = nnx.split(layer)
    assert np.array_equal(nnx.merge(graph, state)(x), layer(x))
    model = nnx.Sequential(linear, nnx.relu)
    assert DTYPES[form].name in str(quantize_(model, form))
    assert np.array_equal(model(x), nnx.relu(layer(x)))
    dense = nn.Dense(21)
    params, _ = quantize_params(dense.init(jax.random.key(0), x), qtype=form)
    got = QDense(21, qtype=form).apply(params, x)
    empty = jax.tree.map(jnp.zeros_like, params)
    back = serialization.from_bytes(empty, serialization.to_bytes(params))
    assert np.array_equal(QDense(21).apply(back, x), got)


WEIGHT_ONLY = ("int8", "uint8", "int8:16", "int8:64", "uint8:32")


@pytest.mark.parametrize(
    "m,k,n", [(1, 37, 21), (7, 1000, 70), (40, 129, 200), (0, 5, 3), (2, 0, 3)]
)
@pytest.mark.parametrize("form", WEIGHT_ONLY)
def test_int8_weights_with_float_activations(m, k, n, form, rng, each_isa):
    x = jnp.asarray(rng.standard_normal((m, k)), jnp.float32)
    kernel, bias = rng.standard_normal((k, n)).astype(np.float32), rng.standard_normal(n)
    w = jq.pack_weight(kernel, f"{form}:weight_only")
    assert w.weight_only and w.takes_floats and not w.is_float and "weight only" in repr(w)
    assert np.array_equal(w.dequantize(), jq.pack_weight(kernel, form).dequantize())
    w64 = np.asarray(w.dequantize(), np.float64)
    want = np.asarray(x, np.float64) @ w64 + bias
    terms = np.abs(np.asarray(x, np.float64)) @ np.abs(w64) + np.abs(bias)
    first = None
    for isa in each_isa():
        got = jax.jit(jq.dot)(x, w, bias=jnp.asarray(bias, jnp.float32))
        assert (np.abs(got - want) <= (k + 8) * ULP * terms).all(), isa
        first = got if first is None else first
        assert isa == "xla" or np.array_equal(got, first), isa
        if m and isa != "xla":
            assert np.array_equal(jq.dot(x[:1], w, bias=bias.astype(np.float32)), got[:1]), isa


def test_weight_only_beside_quantized_activations(rng):
    kernels = jnp.asarray(rng.standard_normal((3, 64, 21)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((3, 5, 64)), jnp.float32)
    stack = jax.vmap(lambda kernel: jq.pack_weight(kernel, "int8:32:weight_only"))(kernels)
    exact = jnp.einsum("bmk,bkn->bmn", x, stack.dequantize(), precision="highest")
    got = jax.jit(jq.dot)(x, stack)
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)
    assert np.array_equal(jax.vmap(jq.dot)(x, stack), got)
    back = jq.PackedWeight.from_arrays(stack.to_arrays())
    assert jax.tree.structure(back) == jax.tree.structure(stack)
    q = jq.quantize(x[0], "uint8")
    one = jq.pack_weight(kernels[0], "int8:weight_only")
    with pytest.raises(TypeError, match=r"for a weight of int8 \(weight only\), got"):
        jq.dot(q, one)
    with pytest.raises(
        TypeError, match="quantized_linear: w must be of int8 or uint8, and not for weigh"
    ):
        jq.quantized_linear(q, one, out_scale=1.0)
    for text, message in (
        ("int8:weights_only", "must be None or a multiple of 16"),
        ("int8:32:weights", "after the group may come weight_only"),
        ("fp16:weight_only", "its activations are float anyway"),
    ):
        with pytest.raises(ValueError, match=message):
            jq.pack_weight(kernels[0], text)


def test_weight_only_layers(rng):
    linear = nnx.Linear(64, 21, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.standard_normal((5, 64)), jnp.float32)
    layer = QLinear.from_linear(linear, "int8:32:weight_only")
    exact = jnp.dot(x, layer.weight.dequantize(), precision="highest")
    np.testing.assert_allclose(layer(x), exact, rtol=1e-5, atol=1e-5)
    model = nnx.Sequential(linear)
    assert "int8:32:weight_only" in str(quantize_(model, "int8:32:weight_only"))
    assert np.array_equal(model(x), layer(x))
    params, _ = quantize_params(nn.Dense(21).init(jax.random.key(0), x), qtype="int8:weight_only")
    got = QDense(21).apply(params, x)
    empty = jax.tree.map(jnp.zeros_like, params)
    back = serialization.from_bytes(empty, serialization.to_bytes(params))
    assert np.array_equal(QDense(21).apply(back, x), got)
