"""Every error message: the argument, what was expected, what came; at trace time."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qgemm as jq
from jax_qgemm.primitives.gemm import gemm
from jax_qgemm.types import GemmSpec

ONES = np.ones((8, 768), np.float32)
X = jnp.asarray(ONES)


@pytest.fixture(scope="module")
def w():
    return jq.pack_weight(np.ones((1024, 4096), np.float32))


@pytest.fixture(scope="module")
def small():
    return jq.pack_weight(np.ones((768, 3), np.float32))


@pytest.fixture(scope="module")
def xq():
    return jq.quantize(X, "uint8")


def refuses(kind, message):
    return pytest.raises(kind, match=re.escape(message))


def test_dot_k_mismatch(w, xq):
    message = (
        "dot: w has K=1024 but x has 768 in its last dimension "
        "(x: float32[8,768], w: PackedWeight int8[1024,4096])"
    )
    with refuses(ValueError, message):
        jq.dot(X, w)
    with refuses(ValueError, message):
        jax.jit(jq.dot)(X, w)
    with refuses(ValueError, "quantized_linear: w has K=1024 but x has 768"):
        jq.quantized_linear(xq, w, out_scale=1.0)
    with refuses(ValueError, "x has no dimensions in its last dimension (x: float32[]"):
        jq.dot(jnp.float32(1), w)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int32", "int8", "bool"])
def test_unsupported_float_dtypes_say_what_to_use(dtype, small):
    x = X.astype(dtype)
    for name, call in {
        "dot: x": lambda: jq.dot(x, small),
        "quantize: x": lambda: jq.quantize(x, "int8"),
        "pack_weight: kernel": lambda: jq.pack_weight(x),
    }.items():
        argument = name.split()[-1]
        message = f"{name} must be float32, bfloat16 or float16, got {dtype}[8,768]; use "
        message += f"{argument}.astype("
        with refuses(TypeError, message):
            call()


def test_float64_under_x64(small):
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        x = jnp.ones((8, 768), jnp.float64)
        with refuses(TypeError, "dot: x must be float32, bfloat16 or float16, got float64[8,768]"):
            jq.dot(x, small)
        y = jq.dot(x.astype(jnp.float32), small)
        q = jq.quantize(x.astype(jnp.float32), "uint8", channelwise_axes=[0])
        assert y.dtype == q.scale.dtype == jnp.float32 and q.zero_point.dtype == jnp.int32
        again = jq.quantized_linear(q, small, out_scale=0.5, out_zero_point=3)
        assert again.qvalue.dtype == jnp.uint8 and again.zero_point.dtype == jnp.int32


def test_weights_of_a_wrong_kind(xq):
    kernel = jnp.ones((768, 3))
    with refuses(
        TypeError,
        "dot: w must be a PackedWeight, got float32[768,3]; pack it once with "
        "jax_qgemm.pack_weight",
    ):
        jq.dot(X, kernel)
    with refuses(TypeError, "got QuantizedArray int8[768,3]; pack it once with jax_qgemm.pack"):
        jq.dot(X, jq.quantize(kernel, "int8"))
    with refuses(TypeError, "quantized_linear: w must be a PackedWeight, got None"):
        jq.quantized_linear(xq, None, out_scale=1.0)


def test_stacked_weights(small, xq):
    stack = jax.tree.map(lambda a: jnp.stack([a, a]), small)
    with refuses(
        ValueError, "unpack: w is a stack of weights, PackedWeight int8[2,768,3]; use jax"
    ):
        jq.unpack(stack)
    expected = "x must be (M, K) or (2, M, K) for a stack of weights, got "
    for shape in [(768,), (3, 8, 768), (1, 8, 768), (5, 2, 8, 768)]:
        with refuses(ValueError, f"dot: {expected}float32[{','.join(map(str, shape))}] (w: Packed"):
            jq.dot(jnp.ones(shape), stack)
    with refuses(ValueError, "dot: w has K=768 but x has 5 in its last dimension"):
        jq.dot(jnp.ones((2, 8, 5)), stack)
    for shape in [(2, 4), (4,), (1, 3)]:
        with refuses(ValueError, f"dot: bias has shape {shape}, expected (3,) or (2, 3) (x: float"):
            jq.dot(X, stack, bias=jnp.ones(shape))
    with refuses(ValueError, "dot: residual has shape (2, 7, 3), expected (8, 3) or (2, 8, 3)"):
        jq.dot(X, stack, residual=jnp.ones((2, 7, 3)))
    with refuses(ValueError, "dot: w.scale has shape (3,), expected (2, 3); was the"):
        jq.dot(X, dataclasses.replace(stack, scale=small.scale))
    rows = jnp.zeros((2, 8, 768), jnp.int8)
    with refuses(ValueError, "dot: x.scale has shape (1, 8, 1), expected (2,) for its first dim"):
        jq.dot(jq.QuantizedArray(rows, jnp.ones((1, 8, 1)), None, "int8"), stack)
    with refuses(
        ValueError, "quantized_linear: out_scale has shape (1, 3), expected (), (3,) or (1"
    ):
        jq.quantized_linear(xq, stack, out_scale=jnp.ones((1, 3)))


def test_altered_weights(small):
    for part in ("data", "scale", "column_sums"):
        with refuses(TypeError, f"dot: w.{part} is None; was the packed weight altered?"):
            jq.dot(X, dataclasses.replace(small, **{part: None}))


@pytest.mark.parametrize("value", ["no", 1, np.array([True, False])])
def test_flags(value):
    kernel, wanted = np.ones((64, 8), np.float32), "must be True or False"
    for name, call in {
        "quantize: symmetric": lambda v: jq.quantize(kernel, "int8", symmetric=v),
        "fake_quantize: symmetric": lambda v: jq.fake_quantize(kernel, "int8", symmetric=v),
        "pack_weight: symmetric": lambda v: jq.pack_weight(kernel, symmetric=v),
        "pack_weight: clamp": lambda v: jq.pack_weight(kernel, "fp16", clamp=v),
    }.items():
        with refuses(TypeError, f"{name} {wanted}"):
            call(value)
        with refuses(TypeError, f"{name} {wanted}"):
            jax.jit(call)(True)


def test_x_of_a_wrong_kind(small):
    with refuses(TypeError, "dot: x must be an array, got PackedWeight int8[768,3]"):
        jq.dot(small, small)
    with refuses(TypeError, "dot: x must be an array, got str"):
        jq.dot("x", small)
    with refuses(TypeError, "quantized_linear: x must be a QuantizedArray, got float32[8,768]"):
        jq.quantized_linear(X, small, out_scale=1.0)
    with refuses(TypeError, "dequantize: q must be QuantizedArray or PackedWeight, got float32[8"):
        jq.dequantize(X)


def test_activation(small, xq):
    for call in (
        lambda: jq.dot(X, small, activation="swish"),
        lambda: jq.quantized_linear(xq, small, activation="swish", out_scale=1.0),
    ):
        choices = "None, 'relu', 'gelu', 'gelu_tanh', 'silu'"
        with refuses(ValueError, f"activation must be one of {choices}, got 'swish'"):
            call()


@pytest.mark.parametrize("wrong", [0, 8, -16, 40, 65536, 32.0, True, "32"])
def test_group_size(wrong):
    reason = "must be None or a multiple of 16 up to 32768 (32, 64, 128, …), got "
    with refuses(ValueError, f"quantize: group_size {reason}{wrong!r}"):
        jq.quantize(X, "int8", group_size=wrong)
    with refuses(ValueError, f"pack: q.group_size {reason}{wrong!r}"):
        jq.pack(jq.QuantizedArray(jnp.ones((8, 3), jnp.int8), 1.0, None, "int8", wrong))


def test_groups(small):
    with refuses(ValueError, "quantize: group_size chooses a scale per group and column; leave ou"):
        jq.quantize(X, "int8", group_size=32, channelwise_axes=[1])
    with refuses(ValueError, "quantize: group_size takes x of 2 dimensions, got float32[2,8,768]"):
        jq.quantize(jnp.stack([X, X]), "int8", group_size=32)
    with refuses(
        ValueError, "pack_weight: qtype's group must be None or a multiple of 16 up to 32"
    ):
        jq.pack_weight(X, "int8:x")
    with refuses(
        ValueError,
        "pack_weight: qtype must be 'int8', 'uint8', 'float16', 'bfloat16', 'int4' or "
        "'int8_blocks', got 'int3'",
    ):
        jq.pack_weight(X, "int3:32")
    q = jq.quantize(X, "int8", group_size=32)
    with refuses(ValueError, "dot: x has scales per group; activations have one per tensor or per"):
        jq.dot(q, small)
    wrong = jq.QuantizedArray(q.qvalue, q.scale[:, :5], None, "int8", 32)
    with refuses(
        ValueError, "pack: q.scale has shape (1, 5), expected (1, 768): one for each grou"
    ):
        jq.pack(wrong)


def test_residual(small, xq):
    with refuses(ValueError, "dot: residual has shape (3,), expected (8, 3), the shape of the res"):
        jq.dot(X, small, residual=jnp.ones(3))
    with refuses(TypeError, "dot: residual must be float32, bfloat16 or float16, got int8[8,3]"):
        jq.dot(X, small, residual=jnp.ones((8, 3), jnp.int8))
    with refuses(ValueError, "quantized_linear: residual has shape (8, 1), expected (8, 3)"):
        jq.quantized_linear(xq, small, residual=jnp.ones((8, 1)), out_scale=1.0)


def test_bias(small):
    with refuses(ValueError, "dot: bias has shape (4,), expected (3,) (w: PackedWeight int8[768,"):
        jq.dot(X, small, bias=jnp.ones(4))
    with refuses(ValueError, "dot: bias has shape (1, 3), expected (3,)"):
        jq.dot(X, small, bias=jnp.ones((1, 3)))
    with refuses(
        TypeError, "dot: bias must be float32, bfloat16 or float16, got int32[3]; use bias.astype("
    ):
        jq.dot(X, small, bias=jnp.ones(3, jnp.int32))


@pytest.mark.parametrize("wrong", [jnp.int32, "float64", "float33", object()])
def test_preferred_element_type(wrong, small):
    with refuses(
        ValueError, "dot: preferred_element_type must be float32, bfloat16 or float16, got "
    ):
        jq.dot(X, small, preferred_element_type=wrong)


@pytest.mark.parametrize("wrong", ["int2", "int16", jnp.float32, None, 8, ["int8"]])
def test_qtype(wrong, small, xq):
    if wrong is None:
        with refuses(ValueError, "quantize: qtype must be 'int8' or 'uint8', got None"):
            jq.quantize(X, None)
    with refuses(ValueError, "quantize: qtype must be 'int8' or 'uint8', got "):
        jq.quantize(X, wrong)
    with refuses(
        ValueError,
        "pack_weight: qtype must be 'int8', 'uint8', 'float16', 'bfloat16', 'int4' or "
        "'int8_blocks', got ",
    ):
        jq.pack_weight(X, wrong)
    if wrong is not None:
        with refuses(ValueError, "quantized_linear: out_qtype must be 'int8' or 'uint8', got "):
            jq.quantized_linear(xq, small, out_scale=1.0, out_qtype=wrong)


BAD_SCALES = [0, 0.0, -1.0, np.nan, np.inf, np.float64(1e39), np.float32(0), 1e-39, 8.6e37]


@pytest.mark.parametrize("wrong", [*BAD_SCALES, 2.0**126 * (1 + 2**-23), 10**40])
def test_scale_values_where_they_are_known(wrong, small, xq):
    message = "scale must be finite and > 0, from 2**-126 to 2**126 (1.18e-38 to 8.5e+37), got "
    with refuses(ValueError, "quantize: " + message):
        jq.quantize(X, "int8", scale=wrong)
    with refuses(ValueError, "quantized_linear: out_" + message):
        jax.jit(lambda x: jq.quantized_linear(x, small, out_scale=wrong))(xq)
    traced = jax.jit(lambda x, s: jq.quantize(x, "int8", scale=s).qvalue)
    assert traced(X, np.float32(wrong if abs(wrong) < 1e38 else np.inf)).shape == X.shape


def test_scale_shapes(small, xq):
    with refuses(ValueError, "quantize: scale has shape (8,), expected () or 2 dimensions of 1 or"):
        jq.quantize(X, "int8", scale=np.ones(8))
    with refuses(
        ValueError,
        "quantize: scale has shape (1, 768), expected (8, 1) for channelwise_axes=[0] "
        "(x: float32[8,768])",
    ):
        jq.quantize(X, "int8", channelwise_axes=[0], scale=np.ones((1, 768)))
    with refuses(ValueError, "quantize: zero_point has shape (8,), expected () or the shape of"):
        jq.quantize(X, "uint8", scale=np.ones((8, 1)), zero_point=np.ones(8, int))
    with refuses(
        ValueError, "quantized_linear: out_scale has shape (4,), expected (), (3,) or (1,"
    ):
        jq.quantized_linear(xq, small, out_scale=np.ones(4))
    with refuses(ValueError, "quantized_linear: out_zero_point has shape (1,), expected ()"):
        jq.quantized_linear(xq, small, out_scale=1.0, out_zero_point=np.ones(1, int))
    columns = jq.quantize(X, "int8", channelwise_axes=[1])
    with refuses(
        ValueError,
        "dot: x.scale has shape (1, 768), expected () (per tensor) or (8, 1) (per row) "
        "(x: QuantizedArray int8[8,768])",
    ):
        jq.dot(columns, small)
    with refuses(ValueError, "dequantize: q.scale has shape (768,), expected () or 1 or the full"):
        jq.QuantizedArray(xq.qvalue, jnp.ones(768), None, "uint8").dequantize()


@pytest.mark.parametrize(
    "qtype,wrong", [("uint8", -1), ("uint8", 256), ("int8", 128), ("int8", 2**40), ("int8", 10**30)]
)
def test_zero_point_values(qtype, wrong, small, xq):
    low, high = {"uint8": (0, 255), "int8": (-128, 127)}[qtype]
    message = f"zero_point must be in [{low}, {high}], the range of {qtype}, got {wrong}"
    arrays = [np.asarray(wrong), jnp.int32(wrong)] if wrong < 1000 else []
    for given in (wrong, *arrays):
        with refuses(ValueError, message):
            jq.quantize(X, qtype, scale=1.0, zero_point=given)
    with refuses(ValueError, "out_" + message):
        jq.quantized_linear(xq, small, out_scale=1.0, out_zero_point=wrong, out_qtype=qtype)


def test_zero_point_kinds(small, xq):
    with refuses(TypeError, "quantize: zero_point must be an integer, got float32[]"):
        jq.quantize(X, "uint8", scale=1.0, zero_point=1.0)
    with refuses(TypeError, "quantized_linear: out_zero_point must be an integer, got float32[]"):
        jq.quantized_linear(xq, small, out_scale=1.0, out_zero_point=0.0)
    with refuses(ValueError, "quantize: zero_point needs scale; pass both or neither"):
        jq.quantize(X, "uint8", zero_point=1)
    with refuses(ValueError, "quantize: symmetric=True fixes the zero point"):
        jq.quantize(X, "uint8", scale=1.0, zero_point=1, symmetric=True)


@pytest.mark.parametrize("axes", [[2], [-3], [0, 0], [0, -2]])
def test_channelwise_axes(axes):
    with refuses(
        ValueError, f"channelwise_axes must be distinct axes of x (float32[8,768]), got {axes}"
    ):
        jq.quantize(X, "int8", channelwise_axes=axes)


@pytest.mark.parametrize("axes", [None, "0", True, [True], [0.5], [[0]]])
def test_channelwise_axes_are_integers(axes):
    message = "quantize: channelwise_axes must be an axis or several, integers, got "
    with refuses(TypeError, f"{message}{axes!r}"):
        jq.quantize(X, "int8", channelwise_axes=axes)


def parts_of(xq, **parts):
    """Calls of every function that takes a QuantizedArray, with some of its parts replaced."""
    w = jq.pack_weight(np.ones((768, 3), np.float32))
    q = dataclasses.replace(xq, **parts)
    return {
        "dot: x": lambda: jq.dot(q, w),
        "quantized_linear: x": lambda: jq.quantized_linear(q, w, out_scale=1.0),
        "pack: q": lambda: jq.pack(q),
        "dequantize: q": lambda: jq.dequantize(q),
    }


@pytest.mark.parametrize(
    "parts,kind,message",
    [
        ({"qvalue": X}, TypeError, "qvalue must be uint8, as {}.qtype says, got float32[8,768]"),
        ({"qvalue": X.astype(jnp.int8)}, TypeError, "qvalue must be uint8, as {}.qtype says, got"),
        ({"qvalue": [[1, 2]]}, TypeError, "qvalue must be uint8, as {}.qtype says, got int32[1,2]"),
        ({"qvalue": None}, TypeError, "qvalue must be an array, got None"),
        ({"qtype": "int8"}, TypeError, "qvalue must be int8, as {}.qtype says, got uint8[8,768]"),
        (
            {"qtype": "int4"},
            ValueError,
            "qtype must be 'int8' or 'uint8', got 'int4'",
        ),
        ({"scale": None}, TypeError, "scale must be an array, got None"),
        ({"scale": jnp.int32(1)}, TypeError, "scale must be float32, got int32[]"),
        ({"scale": jnp.bfloat16(1)}, TypeError, "scale must be float32, got bfloat16[]"),
        ({"scale": True}, TypeError, "scale must be float32, got bool[]"),
        ({"scale": jnp.ones(8)}, ValueError, "scale has shape (8,), expected () or 1 or the full"),
        ({"scale": jnp.ones((4, 1))}, ValueError, "scale has shape (4, 1), expected () or 1 or"),
        ({"zero_point": jnp.float32(3)}, TypeError, "zero_point must be int32 or None, got float"),
        ({"zero_point": 3.0}, TypeError, "zero_point must be an integer, got float32[]"),
        ({"zero_point": 300}, ValueError, "zero_point must be in [0, 255], the range of uint8"),
        ({"zero_point": jnp.zeros(8, jnp.int32)}, ValueError, "zero_point has shape (8,), exp"),
    ],
)
def test_parts_of_a_quantized_array(parts, kind, message, xq):
    for name, call in parts_of(xq, **parts).items():
        with refuses(kind, f"{name}.{message.format(name.split()[-1])}"):
            call()


def test_python_numbers_in_a_quantized_array(xq):
    """As under jit, which makes arrays of them."""
    arrays = parts_of(xq, scale=jnp.float32(0.5), zero_point=jnp.int32(3))
    for parts in ({"scale": 0.5, "zero_point": 3}, {"scale": np.float64(0.5), "zero_point": 3}):
        for name, call in parts_of(xq, **parts).items():
            got, want = jax.tree.leaves(call()), jax.tree.leaves(arrays[name]())
            assert all(map(np.array_equal, got, want)) and len(got) == len(want), name


def test_arrays_of_an_unusual_kind(small, xq):
    key = jax.random.key(0)
    with refuses(TypeError, "dot: x must be float32, bfloat16 or float16, got key<fry>[]"):
        jq.dot(key, small)
    with refuses(TypeError, "quantize: scale must be float32, got key<fry>[]"):
        jq.quantize(X, "int8", scale=key)
    other = ONES.astype(ONES.dtype.newbyteorder())
    assert np.array_equal(jq.dot(other, small), jq.dot(X, small))
    with refuses(TypeError, "quantize: x must be an array, got object[1]"):
        jq.quantize(np.array([object()]), "int8")
    with refuses(TypeError, "quantize: x must be an array, got None"):
        jq.quantize(None, "int8")
    with refuses(
        ValueError,
        "dot: activation must be one of None, 'relu', 'gelu', 'gelu_tanh', 'silu', got ar",
    ):
        jq.dot(X, small, activation=np.array("relu"))


def test_forms_of_scale_and_zero_point(small, xq):
    assert jq.quantize(X, "int8", scale=10**30).scale == np.float32(1e30)
    one = jax.jit(lambda s: jq.quantize(X[0], "int8", scale=[s]).scale)(2.0)
    assert one.shape == (1,) and one[0] == 2
    for wrong in (False, True):
        with refuses(TypeError, "quantize: zero_point must be an integer, got bool[]"):
            jq.quantize(X, "int8", scale=1.0, zero_point=wrong)
        with refuses(TypeError, "quantized_linear: out_zero_point must be an integer, got bool[]"):
            jq.quantized_linear(xq, small, out_scale=1.0, out_zero_point=wrong, out_qtype="int8")
        with refuses(TypeError, "quantized_linear: out_scale must be float32, got bool[]"):
            jq.quantized_linear(xq, small, out_scale=wrong)
    assert jq.quantized_linear(xq, small, out_scale=10**30).scale == np.float32(1e30)
    with refuses(
        ValueError, "quantized_linear: out_scale has shape (1,), expected (), (3,) or (1,"
    ):
        jax.jit(lambda s: jq.quantized_linear(xq, small, out_scale=[s]))(1.0)
    with refuses(TypeError, "quantized_linear: out_scale must be an array, got None"):
        jq.quantized_linear(xq, small, out_scale=None)
    with refuses(TypeError, "quantized_linear: out_zero_point must be an array, got None"):
        jq.quantized_linear(xq, small, out_scale=1.0, out_zero_point=None)
    with refuses(ValueError, "quantize: zero_point is too large a number, got [1099511627776]"):
        jq.quantize(X[0], "int8", scale=1.0, zero_point=[2**40])


def test_pack():
    with refuses(TypeError, "pack: q must be a QuantizedArray, got float32[8,768]; quantize it"):
        jq.pack(X)
    with refuses(ValueError, "pack: q must have 2 dimensions (K, N), got QuantizedArray int8[768]"):
        jq.pack(jq.quantize(X[0], "int8"))
    with refuses(ValueError, "pack: q must have 2 dimensions (K, N), got QuantizedArray int8[1,8,"):
        jq.pack(jq.quantize(X[None], "int8"))
    with refuses(ValueError, "pack: q.scale has shape (8, 1), expected () or (1, 768): one per"):
        jq.pack(jq.quantize(X, "int8", channelwise_axes=[0]))
    with refuses(ValueError, "pack_weight: kernel must have 2 dimensions (K, N), got float32[768]"):
        jq.pack_weight(X[0])
    with refuses(TypeError, "unpack: w must be a PackedWeight, got float32[8,768]"):
        jq.unpack(X)


def test_altered_parts():
    w = jq.pack_row_parallel(np.ones((64, 32), np.float32), "int8", parts=2)
    x = np.ones((3, 64), np.float32)
    for part, cut in (("scale", 0), ("column_sums", slice(1))):
        parts = dataclasses.replace(w.parts, **{part: getattr(w.parts, part)[cut]})
        with refuses(ValueError, f"dot: w.parts.{part} has shape"):
            jq.dot(x, dataclasses.replace(w, parts=parts))
    stack = jax.vmap(jq.pack)(
        jax.vmap(lambda k: jq.quantize(k, "uint8"))(np.ones((2, 64, 32), np.float32))
    )
    altered = dataclasses.replace(stack, zero_point=stack.zero_point[0])
    with refuses(ValueError, "ragged_dot: w.zero_point has shape (32,), expected (2, 32); was"):
        jq.ragged_dot(x, altered, jnp.asarray([1, 2]))


def test_altered_weight(small):
    altered = jax.tree.map(lambda a: a[..., :-1], small)
    with refuses(ValueError, "was the packed weight altered?"):
        jq.dot(X, altered)
    for scale in (small.scale[None], small.scale[0]):
        with refuses(ValueError, f"w.scale has shape {scale.shape}, expected (3,); was the packed"):
            jq.dot(X, dataclasses.replace(small, scale=scale))


def test_what_is_no_array(small):
    class Shaped:
        shape = (8, 768)

    with refuses(TypeError, "dot: x must be an array, got Shaped"):
        jq.dot(Shaped(), small)
    with refuses(TypeError, "pack_blocks: q must be an array, got list"):
        jq.pack_blocks([[1, 2], [3]], np.ones((1, 2), np.float32))
    with refuses(TypeError, "attention: position must be an array, got list"):
        jq.attention(jnp.ones((1, 1, 2, 16)), jq.KVCache.zeros(1, 64, 2, 16), [[1], [1, 2]])


NONSENSE = [
    ("int8", {"qtype": "int7"}, ValueError, "qtype must be 'int8', 'uint8', 'float16',"),
    ("int8", {"qtype": None}, ValueError, "qtype must be 'int8'"),
    (
        "int8",
        {"matrix_shape": (64,)},
        ValueError,
        "matrix_shape must be sizes (K, N) >= 0, got (64",
    ),
    ("int8", {"matrix_shape": [64, 32]}, ValueError, "matrix_shape must be sizes"),
    ("int8", {"matrix_shape": (64, 3.5)}, ValueError, "matrix_shape must be sizes"),
    ("int8", {"data": None}, TypeError, "data is None; was the packed weight altered?"),
    ("int8", {"data": [1, 2]}, TypeError, "data must be int8, got list"),
    ("int8", {"data": np.int8(3)}, ValueError, "data has no elements, expected 2048"),
    ("int8", {"scale": np.ones(32)}, TypeError, "scale must be float32, got float64[32]"),
    (
        "int8",
        {"scale": np.ones(31, np.float32)},
        ValueError,
        "scale has shape (31,), expected (32,)",
    ),
    ("int8", {"zero_point": np.ones(32)}, TypeError, "zero_point must be int32, got float64[32]"),
    ("int8", {"group_size": 0}, ValueError, "group_size must be None or a multiple of 16"),
    ("int8", {"group_size": 32}, ValueError, "scale has shape (32,), expected (2, 32)"),
    ("int8", {"scale_dtype": "float32"}, ValueError, "scale_dtype must be None of int8"),
    ("int8", {"weight_only": "yes"}, TypeError, "weight_only must be True or False"),
    (
        "uint8",
        {"zero_point": None},
        TypeError,
        "zero_point is None; was the packed weight altered?",
    ),
    ("fp16", {"group_size": 32}, ValueError, "group_size must be None of float16, got 32"),
    ("fp16", {"scale": np.ones(32)}, TypeError, "scale must be None of float16, got float64[32]"),
    ("int4", {"group_size": None}, ValueError, "group_size is None, which int4 needs"),
    ("int4", {"scale_dtype": "int8"}, ValueError, "scale_dtype must be float32 or bfloat16 or fl"),
    ("int4", {"minimum": True}, ValueError, "data has 1152 elements, expected 1280"),
]


@pytest.mark.parametrize("form,parts,error,message", NONSENSE)
def test_parts_of_a_packed_weight_that_do_not_fit(form, parts, error, message):
    w = dataclasses.replace(jq.pack_weight(np.ones((64, 32), np.float32), form), **parts)
    x = np.ones((2, 64), np.float32)
    for name, call in (
        ("dot", lambda: jq.dot(x, w)),
        ("dequantize", lambda: w.dequantize()),
        ("unpack", lambda: jq.unpack(w)),
        ("outlier_density", lambda: jq.outlier_density(w)),
    ):
        with refuses(error, f"{name}: w.{message}"):
            call()


def test_primitive_blames_the_weight_for_its_own_parts_alone(small):
    spec = GemmSpec(dynamic=True, bias=True)
    parts = {"x": X, "data": small.data, "w_scale": small.scale, "column_sums": small.column_sums}
    with refuses(ValueError, "gemm: bias is float32[4], expected float32[3] for x f") as caught:
        gemm(spec, **parts, bias=jnp.ones(4))
    assert "altered" not in str(caught.value)
    with refuses(ValueError, "gemm: column_sums is int32[3], expected int32[1,3] for x float32[8"):
        gemm(spec, **(parts | {"column_sums": small.column_sums[0]}), bias=jnp.ones(3))
