"""Weights in blocks of 4 and 8 bits: layout, errors of quantization, products, transformations."""

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

FORMATS = ("int4", "int4:64:float32", "int4:128:bf16", "int8_blocks:16", "int8_blocks:32:float32")
SCALES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ROWS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
ULP = 2.0**-24


def parts_of(w):
    """(q [K',N], scale, minimum [groups,N]) of a packed weight, by the formula of layout.h."""
    k, n = w.shape
    bits, group, scale_dtype, has_minimum = w.blocks
    groups, columns, dtype = -(-k // group), -(-n // 16) * 16, np.dtype(SCALES[scale_dtype])
    data, at = np.asarray(w.data), 0
    q = np.zeros((groups * group, columns), np.int32)
    scales = np.zeros((2, groups, columns), np.float32)
    for panel in range(0, columns, 64):
        width = min(64, columns - panel)
        for g in range(groups):
            for i in range(1 + has_minimum):
                raw = data[at : at + width * dtype.itemsize].view(dtype)
                scales[i, g, panel : panel + width] = raw.astype(np.float32)
                at += raw.nbytes
            elements = 32 // bits
            for step in range(g * group, (g + 1) * group, elements):
                for column in range(panel, panel + width):
                    for byte, value in enumerate(data[at : at + 4]):
                        if bits == 4:
                            q[step + byte, column] = value & 15
                            q[step + byte + 4, column] = value >> 4
                        else:
                            q[step + byte, column] = value
                    at += 4
    assert at == data.size
    minimum = scales[1] if has_minimum else -(2.0 ** (bits - 1)) * scales[0]
    return q[:, :n], scales[0, :, :n], minimum[:, :n]


def values_of(w):
    """The float64 values of a packed weight."""
    q, scale, minimum = parts_of(w)
    group = w.blocks.group
    w64 = q * np.repeat(scale, group, 0).astype(np.float64) + np.repeat(minimum, group, 0)
    return w64[: w.shape[0]]


@pytest.mark.parametrize("symmetric", [None, False])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("k,n", [(1, 1), (37, 17), (128, 64), (130, 81), (0, 3), (5, 0)])
def test_layout_and_error(k, n, form, symmetric, rng):
    kernel = (rng.standard_normal((k, n)) * 0.1).astype(np.float32)
    w = jq.pack_weight(kernel, form, symmetric=symmetric)
    bits, group, scale_dtype, has_minimum = w.blocks
    assert w.shape == (k, n) and has_minimum == (symmetric is False) and not w.is_float
    assert w.scale is w.zero_point is w.column_sums is None and w.data.dtype == np.uint8
    w64 = values_of(w)
    np.testing.assert_allclose(w.dequantize(), w64, rtol=1e-6, atol=1e-7)
    if k * n == 0:
        return
    _, scale, _ = parts_of(w)
    padded = np.pad(kernel, ((0, -k % group), (0, 0)), mode="edge").reshape(-1, group, n)
    span = padded.max(1) - padded.min(1) if has_minimum else np.abs(padded).max(1)
    steps = 2**bits - 1 if has_minimum else 2 ** (bits - 1) - (bits == 8)
    rounding = {"float32": 2**-22, "float16": 2**-10, "bfloat16": 2**-7}[scale_dtype]
    np.testing.assert_allclose(np.abs(scale), span / steps, rtol=rounding, atol=1e-7)
    # Half a step, or a whole one at the end that symmetric 4 bits do not have, and what rounding
    # the scale moves the end by.
    most = (1.0 if bits == 4 and not has_minimum else 0.5) * span / steps + 2 * rounding * np.abs(
        padded
    ).max(1)
    error = np.abs(w64 - kernel)
    assert (error <= np.repeat(most, group, 0)[:k] + 1e-6).all()
    # As those of two roundings, blocks are no better than they are: the error is of the format.
    assert error.max() > 0 or k == 1


CASES = pairwise(
    m=(0, 1, 2, 3, 4, 7, 40, 130),
    k=(1, 32, 37, 128, 1000),
    n=(1, 16, 21, 64, 200),
    x=tuple(ROWS),
    form=FORMATS,
    symmetric=(None, False),
    weight_only=(False, True),
    bias=(False, True),
    residual=(None, *ROWS),
    activation=(None, "relu", "gelu", "silu"),
    out=(None, *ROWS),
)


def quantized_rows(x64, group):
    """x as it is after symmetric quantization by groups, float64 of float32 arithmetic."""
    m, k = x64.shape
    parts = np.pad(x64.astype(np.float32), ((0, 0), (0, -k % group)))
    parts = parts.reshape(m, parts.shape[1] // group, group)
    amax = np.abs(parts).max(2, keepdims=True, initial=0)
    amax[amax == 0] = 127
    q = np.rint(parts * (np.float32(127) / amax))
    return (q * (amax / np.float32(127)).astype(np.float64)).reshape(m, parts.shape[1] * group)[
        :, :k
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dot_is_the_dequantized_product(case, rng, each_isa):
    m, k, n = case["m"], case["k"], case["n"]
    x = rng.standard_normal((m, k)).astype(ROWS[case["x"]])
    kernel = rng.standard_normal((k, n)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32) if case["bias"] else None
    residual = None
    if case["residual"]:
        residual = rng.standard_normal((m, n)).astype(ROWS[case["residual"]])
    form = case["form"] + (":weight_only" if case["weight_only"] else "")
    w = jq.pack_weight(kernel, form, symmetric=case["symmetric"])
    x64, w64 = x.astype(np.float64), values_of(w)
    if not case["weight_only"]:
        x64 = quantized_rows(x64, w.group_size)
    extra = sum(0 if part is None else part.astype(np.float64) for part in (bias, residual))
    want = x64 @ w64 + extra
    # Terms that may cancel: the minimum's stand beside those of q.
    q, scale, minimum = parts_of(w)
    size = np.abs(np.repeat(scale, w.group_size, 0)) * q + np.abs(
        np.repeat(minimum, w.group_size, 0)
    )
    terms = np.abs(x64) @ size[:k] + np.abs(extra)
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
        bound = (k + 8) * ULP * terms * 1.2 + 8 * ULP * np.abs(want) + 1e-7
        if got.dtype != np.float32:
            bound += float(jnp.finfo(got.dtype).eps) / 2 * (np.abs(want) + bound)
        error = np.asarray(got, np.float64) - np.asarray(activate(want), np.float64)
        assert (np.abs(error) <= bound).all(), isa
        if case["activation"] in (None, "relu") and isa != "xla":
            first = got if first is None else first
            assert np.array_equal(got, first), isa


@pytest.mark.parametrize("form", ["int4", "int4:32:weight_only", "int8_blocks"])
def test_a_row_is_the_same_in_any_batch(form, rng, each_isa):
    x = jnp.asarray(rng.standard_normal((150, 515)), jnp.float32)
    w = jq.pack_weight(rng.standard_normal((515, 200)).astype(np.float32), form)
    for isa in each_isa():
        if isa == "xla":
            pytest.skip("XLA's own dot makes no such promise")
        whole = jq.dot(x, w)
        for rows in (1, 2, 6, 37):
            assert np.array_equal(jq.dot(x[:rows], w), whole[:rows]), isa
        assert np.array_equal(jax.vmap(jq.dot, (0, None))(x, w), whole), isa


@pytest.mark.parametrize("symmetric", [None, False])
@pytest.mark.parametrize("form", ["int4:32:float32", "int8_blocks:32:float32"])
def test_products_of_small_integers_are_exact(form, symmetric, rng, each_isa):
    most = {"int4": 7, "int8_blocks": 127}[form.partition(":")[0]]
    kernel = rng.integers(-most, most + 1, (96, 70)).astype(np.float32)
    kernel[::32] = -8 if most == 7 else 127  # the largest of every group
    if symmetric is False:
        kernel[::32], kernel[1::32] = 0, 2 * most + 1
        kernel = np.abs(kernel)
    x = rng.integers(-127, 128, (5, 96)).astype(np.float32)
    x[:, ::32] = 127
    w = jq.pack_weight(kernel, form, symmetric=symmetric)
    assert np.array_equal(w.dequantize(), kernel)
    for isa in each_isa():
        assert np.array_equal(jq.dot(x, w), x @ kernel), isa


def test_zeros_subnormals_and_what_is_not_finite(each_isa):
    kernel = np.zeros((64, 5), np.float32)
    kernel[:32, 1] = 1e-7  # the scale is subnormal in float16
    kernel[3, 2] = np.inf
    kernel[40, 3] = np.nan
    w = jq.pack_weight(kernel, "int4")
    back = np.asarray(w.dequantize())
    assert np.isnan(back[:32, 2]).all() and np.isnan(back[32:, 3]).all()
    assert np.array_equal(back[32:, 2], np.zeros(32)) and not back[:, [0, 4]].any()
    x = np.ones((4, 64), np.float32)
    x[1, 0], x[2, 63], x[3] = np.nan, -np.inf, 0
    for isa in each_isa():
        got = np.asarray(jq.dot(x, w))
        assert np.isnan(got[:, 2:4]).all() and np.isnan(got[1:3]).all(), isa
        assert not got[[0, 3]][:, [0, 4]].any(), isa
        np.testing.assert_allclose(got[0, 1], back[:, 1].sum(), rtol=1e-5)


@pytest.mark.parametrize("form", ["int4", "int8_blocks"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_too_small_for_their_dtype(form, symmetric, rng):
    """All of them: one group of small values beside others is as exact as these are."""
    kernel = rng.standard_normal((64, 16)).astype(np.float32) * np.float32(1e-7)
    with pytest.raises(ValueError, match=f'scales beyond float16; .* "{form}:32:float32"'):
        jq.pack_weight(kernel, form, symmetric=symmetric)
    back = jq.pack_weight(kernel, f"{form}:32:float32", symmetric=symmetric).dequantize()
    assert np.abs(back - kernel).max() < 0.2 * np.abs(kernel).max()
    kernel[32:] = 1
    jq.pack_weight(kernel, form, symmetric=symmetric)


@pytest.mark.parametrize("form", ["int4:32:bf16", "int8_blocks:16:weight_only"])
def test_under_transformations(form, rng, each_isa):
    kernels = jnp.asarray(rng.standard_normal((3, 37, 21)), jnp.float32)
    pack = jax.jit(lambda kernel: jq.pack_weight(kernel, form))
    stack = jax.vmap(pack)(kernels)
    one = [pack(kernel) for kernel in kernels]
    x = jnp.asarray(rng.standard_normal((3, 5, 37)), jnp.float32)
    for isa in each_isa():
        want = jnp.stack([jq.dot(a, w) for a, w in zip(x, one, strict=True)])
        close = np.testing.assert_allclose if isa == "xla" else np.testing.assert_array_equal
        more = {"rtol": 1e-4, "atol": 1e-4} if isa == "xla" else {}
        assert np.array_equal(stack.dequantize()[1], one[1].dequantize())
        close(jq.dot(x, stack), want, **more)
        close(jax.vmap(jq.dot)(x, stack), want, **more)
        _, scanned = jax.lax.scan(lambda c, xw: (c, jq.dot(*xw)), 0, (x, stack))
        close(scanned, want, **more)
        got = jq.ragged_dot(x.reshape(15, 37), stack, jnp.asarray([5, 5, 4]))
        close(got[:14], want.reshape(15, 21)[:14], **more)
        assert not got[14:].any(), isa
    assert jax.eval_shape(jq.dot, x, stack).shape == (3, 5, 21)


@pytest.mark.parametrize("form", ["int4:64:bf16", "int8_blocks:16:weight_only"])
def test_saving(form, tmp_path, rng):
    kernel = rng.standard_normal((37, 21)).astype(np.float32)
    w = jq.pack_weight(kernel, form, symmetric=False)
    np.savez(tmp_path / "w.npz", **w.to_arrays())
    back = jq.PackedWeight.from_arrays(np.load(tmp_path / "w.npz"))
    assert jax.tree.structure(back) == jax.tree.structure(w)
    assert np.array_equal(back.data, w.data) and repr(back) == repr(w)
    arrays = w.to_arrays()

    def altered(at, value):
        metadata = arrays["metadata"].copy()
        metadata[at] = value
        return arrays | {"metadata": metadata}

    for bad, message in (
        (arrays | {"data": arrays["data"].view(np.int8)}, "data must be uint8, got int8"),
        (arrays | {"data": np.zeros(5, np.uint8)}, "data has 5 elements, expected"),
        (altered(5, 24), "group_size must be None or a multiple of"),
        (altered(5, 0), "group_size is None, which int"),
        (altered(7, 0), "scale_dtype must be float32 or bfloat16 or float16 of int"),
        (altered(7, 9), "metadata has scales of unknown dtype 9"),
        (altered(8, 0), "elements, expected"),
    ):
        with pytest.raises(ValueError, match=message):
            jq.PackedWeight.from_arrays(bad)


def test_errors(rng):
    w = jq.pack_weight(np.ones((32, 3), np.float32), "int4")
    q = jq.quantize(jnp.ones((4, 32)), "uint8")
    with pytest.raises(TypeError, match="dot: x must be float32.* for a weight of int4, got"):
        jq.dot(q, w)
    with pytest.raises(TypeError, match="quantized_linear: w must be of int8 or uint8"):
        jq.quantized_linear(q, w, out_scale=1.0)
    with pytest.raises(
        TypeError, match="unpack: w must be of int8 or uint8, got int4; use w.dequant"
    ):
        jq.unpack(w)
    with pytest.raises(TypeError, match="outlier_density: w must be of int8 or uint8"):
        jq.outlier_density(w)
    with pytest.raises(ValueError, match="dot: w has K=32 but x has 7"):
        jq.dot(jnp.ones((4, 7)), w)
    for text, message in (
        ("int4:48", "must be None or a multiple of 32"),
        ("int8_blocks:8", "must be None or a multiple of 16"),
        ("int4:0", "must be None or a multiple of 32"),
        ("int4:32:float64", "scales must be 'float32', 'float16' or 'bfloat16', got 'float64'"),
        ("int4:32:fp16:more", "after the group may come the dtype of scales and weight_only"),
        ("int4:weight_only:32", "scales must be"),
        ("int5", "must be 'int8', 'uint8', 'float16', 'bfloat16', 'int4' or 'int8_blocks', got"),
    ):
        with pytest.raises(ValueError, match=message):
            jq.pack_weight(jnp.ones((64, 3)), text)
    with pytest.raises(ValueError, match="clamp is for fp16 and bf16"):
        jq.pack_weight(jnp.ones((64, 3)), "int4", clamp=True)
    with pytest.raises(ValueError, match=r"from 0 to 1e\+06, need scales beyond float16; choose"):
        jq.pack_weight(jnp.full((64, 3), 1e6).at[0].set(0), "int4")
    for value in (1e-9, -1e-9):  # of which minima remain, or nothing
        with pytest.raises(ValueError, match=r"1e-09.*, need scales beyond float16; choose"):
            jq.pack_weight(jnp.full((64, 3), value), "int4", symmetric=False)
    assert np.array_equal(jq.pack_weight(jnp.full((64, 3), 1e6), "int4:32:bf16").shape, (64, 3))


def test_formats_by_name():
    for text, name in (
        ("int4", "int4:32:float16"),
        ("int4:64", "int4:64:float16"),
        ("int4:bf16", "int4:32:bfloat16"),
        ("int4:weight_only", "int4:32:float16:weight_only"),
        ("int8_blocks:16:fp32:weight_only", "int8_blocks:16:float32:weight_only"),
    ):
        model = nnx.Sequential(nnx.Linear(64, 21, rngs=nnx.Rngs(0)))
        assert f"quantized to {name};" in str(quantize_(model, text))


@pytest.mark.parametrize("form", ["int4", "int4:64:bf16:weight_only", "int8_blocks"])
def test_layers(form, rng):
    linear = nnx.Linear(64, 21, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.standard_normal((5, 64)), jnp.float32)
    layer = QLinear.from_linear(linear, form)
    exact = jnp.dot(x, layer.weight.dequantize(), precision="highest")
    np.testing.assert_allclose(layer(x), exact, atol=1e-5 if "only" in form else 0.05)
    graph, state = nnx.split(layer)
    assert np.array_equal(nnx.merge(graph, state)(x), layer(x))
    model = nnx.Sequential(linear, nnx.relu)
    quantize_(model, form)
    assert np.array_equal(model(x), nnx.relu(layer(x)))
    copy = QLinear.from_weight(layer.weight, dtype=jnp.float32)
    assert copy.bias is None and np.array_equal(copy(x), jq.dot(x, layer.weight))
    residual = jnp.asarray(rng.standard_normal((5, 21)), jnp.float32)
    want = jq.dot(x, layer.weight, residual=residual, activation="relu")
    assert np.array_equal(copy(x, residual=residual, activation="relu"), want)
    with pytest.raises(ValueError, match="dot: residual has shape"):
        copy(x, residual=residual[:2])
    with pytest.raises(TypeError, match="from_weight: weight must be a PackedWeight, got float32"):
        QLinear.from_weight(x)
    params, _ = quantize_params(nn.Dense(21).init(jax.random.key(0), x), qtype=form)
    got = QDense(21, qtype=form).apply(params, x)
    empty = jax.tree.map(jnp.zeros_like, params)
    back = serialization.from_bytes(empty, serialization.to_bytes(params))
    assert np.array_equal(QDense(21).apply(back, x), got)
