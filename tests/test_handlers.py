"""Custom calls written by hand: what does not fit is refused with the reason, never read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_qgemm import native

pytestmark = pytest.mark.skipif(not native.targets, reason="the native extension is not built")

M, K, N = 3, 8, 16
F32, F16, S8, U8, S32 = jnp.float32, jnp.float16, jnp.int8, jnp.uint8, jnp.int32


def zeros(shape, dtype):
    return jnp.zeros(shape, dtype)


OPERANDS = {
    "x": zeros((M, K), F32),
    "data": zeros((N * K,), S8),
    "w_scale": zeros((N,), F32),
    "column_sums": zeros((1, N), S32),
}
NONE, TENSOR, ROW = range(3)
INT8, FLOAT16, _, INT4 = range(4)
OF_FLOAT32, _, OF_FLOAT16 = range(1, 4)  # scales of blocks
FORM = {  # in the order of the numbers
    "weights": INT8,
    "block_scale": NONE,
    "block_minimum": False,
    "group": 0,
    "dynamic": True,
    "x_scale": NONE,
    "x_zero_point": NONE,
    "has_w_zero_point": False,
    "has_bias": False,
    "has_residual": False,
    "activation": NONE,
    "out_scale_per_column": False,
    "batched": False,
    "ragged": False,
    "transposed": False,
}


def form(*changes):
    numbers = FORM
    for change in changes:
        numbers = numbers | dict(change or {})
    return np.array(list(numbers.values()), np.int32)


BITS = zeros((N * K,), jnp.uint16)
BATCHED = {"attributes": {"batched": True}, "out": ((2, M, N), F32)}


def gemm(*more, out=((M, N), F32), attributes=None, **operands):
    result = jax.ShapeDtypeStruct(*out)
    call = jax.ffi.ffi_call("jax_qgemm.gemm.v1", result)
    arrays = [*(OPERANDS | operands).values(), *more]
    return jax.block_until_ready(call(*arrays, form=form(attributes)))


def test_programs_that_fit():
    assert np.array_equal(gemm(), np.zeros((M, N)))
    assert np.array_equal(gemm(**BATCHED), np.zeros((2, M, N)))
    assert np.array_equal(gemm(x=zeros((2, M, K), F32), **BATCHED), np.zeros((2, M, N)))


@pytest.mark.parametrize(
    "reason,arguments",
    [
        ("data has shape", {"data": zeros((N * K - 1,), S8)}),
        ("data has shape", {"x": zeros((M, K + 4), F32)}),
        ("column_sums has shape", {"column_sums": zeros((2, N), S32)}),
        ("column_sums has shape", {"column_sums": zeros((1, N + 1), S32)}),
        ("out has shape", {"out": ((M + 1, N), F32)}),
        ("x has rank", {"x": zeros((M, K, 1), F32)}),
        ("unsupported dtype", {"x": zeros((M, K), jnp.int16)}),
        ("unsupported dtype", {"out": ((M, N), jnp.int16)}),
        ("unsupported activation in form: 5", {"attributes": {"activation": 5}}),
        ("unsupported has_bias in form: 2", {"attributes": {"has_bias": 2}}),
        ("unsupported batched in form: -1", {"attributes": {"batched": -1}}),
        ("form has 16 numbers, expected 15", {"attributes": {"more": 0}}),
        ("dynamic quantization", {"x": zeros((M, K), U8)}),
        ("unsupported x_scale", {"attributes": {"x_scale": 3}}),
        ("x_scale goes with integer x", {"attributes": {"x_scale": ROW}}),
        ("unsupported group", {"attributes": {"group": 8}}),
        ("unsupported group in form: -16", {"attributes": {"group": -16}}),
        ("w_scale has shape", {"attributes": {"group": 16}}),
        ("w_scale has shape", {"w_scale": zeros((), F32)}),
        ("w_scale is missing or of another", {"w_scale": zeros((N,), S32)}),
        ("unsupported weights", {"attributes": {"weights": 5}}),
        ("data is of another dtype", {"attributes": {"weights": FLOAT16}}),
        ("data is of another dtype", {"data": zeros((N * K,), U8)}),
        ("out has rank", {"attributes": {"batched": True}}),
        ("out has rank", {"out": ((2, M, N), F32)}),
        ("x has shape", {"x": zeros((3, M, K), F32), **BATCHED}),
        ("data has shape", {"data": zeros((1, N * K), S8), **BATCHED}),
        ("bias is missing", {"attributes": {"has_bias": True}}),
        ("residual is missing", {"attributes": {"has_residual": True}}),
        ("w_zero_point is missing", {"attributes": {"has_w_zero_point": True}}),
        ("out_scale is missing", {"out": ((M, N), U8)}),
        ("int32 result", {"out": ((M, N), S32)}),
        ("chooses the zero point", {"attributes": {"x_zero_point": ROW}}),
    ],
)
def test_gemm_refuses(reason, arguments):
    with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
        gemm(**arguments)


@pytest.mark.parametrize(
    "reason,more,flags",
    [
        ("bias has shape", [zeros((N + 1,), F32)], {"has_bias": True}),
        ("bias is missing or of another dtype", [zeros((N,), S32)], {"has_bias": True}),
        ("residual has shape", [zeros((M, N + 1), F32)], {"has_residual": True}),
        ("unsupported dtype of residual", [zeros((M, N), S32)], {"has_residual": True}),
        ("optional operands", [zeros((N,), F32)], {}),
    ],
)
def test_gemm_refuses_optional_operands(reason, more, flags):
    with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
        gemm(*more, attributes=flags)


@pytest.mark.parametrize(
    "reason,arguments",
    [
        ("data has shape", {"data": zeros((N * K + 1,), jnp.uint16)}),
        ("data is of another dtype", {"data": zeros((N * K,), F16)}),
        ("float weights take a float x", {"x": zeros((M, K), U8)}),
        ("no zero point and no int32 result", {"out": ((M, N), S32)}),
        ("float weights take a float x", {"attributes": {"has_w_zero_point": True}}),
        ("float weights take a float x", {"attributes": {"group": 16}}),
        ("dynamic quantization goes with", {"attributes": {"dynamic": True}}),
        ("x_scale goes with integer x", {"attributes": {"x_scale": TENSOR}}),
        ("a float x has no zero point", {"attributes": {"x_zero_point": ROW}}),
        ("bias is missing", {"attributes": {"has_bias": True}}),
        ("optional operands, used 0", {"more": [zeros((N,), F32)]}),
    ],
)
def test_gemm_of_float_weights_refuses(reason, arguments):
    def call(x=OPERANDS["x"], data=BITS, out=((M, N), F32), attributes=(), more=()):
        floats = {"weights": FLOAT16, "dynamic": False}
        call = jax.ffi.ffi_call("jax_qgemm.gemm.v1", jax.ShapeDtypeStruct(*out))
        return jax.block_until_ready(call(x, data, *more, form=form(floats, attributes)))

    assert np.array_equal(call(), np.zeros((M, N)))
    with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
        call(**arguments)


BLOCK_K, BLOCK_BYTES = 32, N * (2 + 16)  # a group of 4 bits, with scales of float16


@pytest.mark.parametrize(
    "reason,arguments",
    [
        ("data has shape", {"data": zeros((BLOCK_BYTES - 1,), U8)}),
        ("data is of another dtype", {"data": zeros((BLOCK_BYTES,), S8)}),
        ("data has shape", {"attributes": {"block_minimum": True}}),
        ("data has shape", {"attributes": {"block_scale": OF_FLOAT32}}),
        ("unsupported block_scale", {"attributes": {"block_scale": 4}}),
        ("block_scale and block_minimum go with", {"attributes": {"block_scale": NONE}}),
        ("take a float x, groups of whole steps", {"attributes": {"group": 16}}),
        ("take a float x, groups of whole steps", {"attributes": {"group": 0}}),
        ("unsupported group", {"attributes": {"group": -32}}),
        ("take a float x, groups of whole steps", {"x": zeros((M, BLOCK_K), U8)}),
        ("groups of whole steps and no zero", {"attributes": {"has_w_zero_point": True}}),
        ("int32 result", {"out": ((M, N), S32)}),
        ("unsupported weights", {"attributes": {"weights": -1}}),
        ("optional operands, used 0", {"more": [zeros((N,), F32)]}),
    ],
)
def test_gemm_of_blocks_refuses(reason, arguments):
    def call(x=None, data=None, out=((M, N), F32), attributes=(), more=()):
        x = zeros((M, BLOCK_K), F32) if x is None else x
        data = zeros((BLOCK_BYTES,), U8) if data is None else data
        blocks = {"weights": INT4, "group": 32, "block_scale": OF_FLOAT16}
        call = jax.ffi.ffi_call("jax_qgemm.gemm.v1", jax.ShapeDtypeStruct(*out))
        return jax.block_until_ready(call(x, data, *more, form=form(blocks, attributes)))

    assert np.array_equal(call(), np.zeros((M, N)))
    with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
        call(**arguments)


def test_blocks_need_their_weights():
    with pytest.raises(jax.errors.JaxRuntimeError, match="block_scale and block_minimum go with"):
        gemm(attributes={"block_minimum": True})


B, T, G, H, D, LENGTH = 2, 3, 2, 4, 16, 64
CACHE = {
    "key": zeros((B, G, LENGTH * D), S8),
    "key_scale": zeros((B, G, LENGTH), F32),
    "value": zeros((B, G, LENGTH * D), S8),
    "value_scale": zeros((B, G, LENGTH), F32),
}
QUERY = {"query": zeros((B, T, H, D), F32)} | CACHE | {"position": zeros((), S32)}


@pytest.mark.parametrize(
    "reason,arguments",
    [
        ("must be float32, bfloat16 or float16", {"query": zeros((B, T, H, D), S32)}),
        ("query has rank 3", {"query": zeros((B, T, H), F32)}),
        ("no cache of 2 heads and 64 positions for 3 heads", {"query": zeros((B, T, 3, D), F32)}),
        ("no cache of 2 heads and 64 pos.* of 8", {"query": zeros((B, T, H, 8), F32)}),
        ("no cache of 2 heads and 63", {"key_scale": zeros((B, G, 63), F32)}),
        ("key has shape", {"key": zeros((B, G, LENGTH * D - 1), S8)}),
        ("key has shape", {"key": zeros((B + 1, G, LENGTH * D), S8)}),
        ("value has shape", {"value": zeros((B, G, 1), S8)}),
        ("value_scale has shape", {"value_scale": zeros((B, G, 1), F32)}),
        ("position has shape", {"position": zeros((B + 1,), S32)}),
        ("optional operands, used 0", {"mask": zeros((B, LENGTH), bool)}),
        ("mask is missing", {"has_mask": True}),
        ("mask has shape", {"has_mask": True, "mask": zeros((B, LENGTH + 1), bool)}),
        ("mask is missing or of another", {"has_mask": True, "mask": zeros((B, LENGTH), U8)}),
    ],
)
def test_attention_refuses(reason, arguments):
    def call(has_mask=False, **operands):
        operands = QUERY | operands
        result = jax.ShapeDtypeStruct(operands["query"].shape, operands["query"].dtype)
        call = jax.ffi.ffi_call("jax_qgemm.attention.v1", result)
        attributes = {"scale": np.float32(1), "causal": True, "has_mask": has_mask}
        return jax.block_until_ready(call(*operands.values(), **attributes))

    assert np.array_equal(call(), np.zeros((B, T, H, D)))
    with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
        call(**arguments)


@pytest.mark.parametrize("position", [-(2**31), -2, 62, 2**31 - 1])
def test_positions_outside_the_cache_are_left_out(position):
    new = jnp.ones((B, T, G, D), F32)
    results = [jax.ShapeDtypeStruct(part.shape, part.dtype) for part in CACHE.values()]
    call = jax.ffi.ffi_call("jax_qgemm.update_kv_cache.v1", results)
    updated = call(new, new, jnp.int32(position), *CACHE.values())
    count = sum(0 <= position + t < LENGTH for t in range(T))
    assert [int((part != 0).sum()) for part in updated] == [
        B * G * D * count, B * G * count, B * G * D * count, B * G * count
    ]  # fmt: skip
    call = jax.ffi.ffi_call("jax_qgemm.attention.v1", jax.ShapeDtypeStruct((B, T, H, D), F32))
    attributes = {"scale": np.float32(1), "causal": True, "has_mask": False}
    assert np.isfinite(
        call(*(QUERY | {"position": jnp.int32(position)}).values(), **attributes)
    ).all()


@pytest.mark.parametrize(
    "reason,arguments",
    [
        ("key and value must be float32", {"new_key": zeros((B, T, G, D), S32)}),
        ("key and value must be", {"new_key": zeros((B, T, G, D), F16)}),
        ("key has rank 3", {"new_key": zeros((B, T, G), F32)}),
        ("value has shape", {"new_value": zeros((B, T + 1, G, D), F32)}),
        ("no cache of 63", {"key_scale": zeros((B, G, 63), F32)}),
        ("key_data or value_data has shape", {"value": zeros((B, G, 1), S8)}),
        ("key_scale or value_scale has shape", {"value_scale": zeros((B, G, 1), F32)}),
        ("position has shape", {"position": zeros((B + 1,), S32)}),
    ],
)
def test_update_kv_cache_refuses(reason, arguments):
    def call(**operands):
        new = zeros((B, T, G, D), F32)
        operands = {"new_key": new, "new_value": new, "position": jnp.int32(0)} | CACHE | operands
        results = [jax.ShapeDtypeStruct(part.shape, part.dtype) for part in CACHE.values()]
        call = jax.ffi.ffi_call("jax_qgemm.update_kv_cache.v1", results)
        return jax.block_until_ready(call(*operands.values()))

    assert len(call()) == 4
    with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
        call(**arguments)


def test_gemm_refuses_a_scale_of_another_length():
    x, flags = zeros((M, K), U8), {"dynamic": False, "x_scale": ROW}
    assert gemm(zeros((M,), F32), x=x, attributes=flags).shape == (M, N)
    for shape in [(M + 1,), (1, M), ()]:
        with pytest.raises(jax.errors.JaxRuntimeError, match="x_scale has shape"):
            gemm(zeros(shape, F32), x=x, attributes=flags)


def test_gemm_refuses_an_out_scale_of_another_length():
    x, out = zeros((M, K), U8), ((M, N), U8)
    flags = {"dynamic": False, "x_scale": TENSOR, "out_scale_per_column": True}
    one, zero = jnp.float32(1), jnp.int32(0)
    assert gemm(one, jnp.ones(N), zero, x=x, attributes=flags, out=out).shape == (M, N)
    with pytest.raises(jax.errors.JaxRuntimeError, match="out_scale has shape"):
        gemm(one, jnp.ones(M), zero, x=x, attributes=flags, out=out)


def test_pack_refuses():
    def pack(data, sums, *zero_point, flag=False):
        results = [jax.ShapeDtypeStruct(data, S8), jax.ShapeDtypeStruct(sums, S32)]
        call = jax.ffi.ffi_call("jax_qgemm.pack.v1", results)
        return jax.block_until_ready(
            call(zeros((K, N), S8), *zero_point, has_zero_point=flag, group=np.int64(0))
        )

    pack((N * K,), (1, N))
    for reason, arguments in [
        ("data has shape", [(N * K + 4,), (1, N)]),
        ("column_sums has shape", [(N * K,), (2, N)]),
        ("optional operands", [(N * K,), (1, N), zeros((N,), S32)]),
    ]:
        with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
            pack(*arguments)
    with pytest.raises(jax.errors.JaxRuntimeError, match="zero_point has shape"):
        pack((N * K,), (1, N), zeros((N + 1,), S32), flag=True)


def test_pack_float_refuses():
    def pack(shape, weights):
        call = jax.ffi.ffi_call("jax_qgemm.pack_float.v1", jax.ShapeDtypeStruct(shape, jnp.uint16))
        return jax.block_until_ready(call(zeros((K, N), jnp.uint16), weights=weights))

    pack((N * K,), "bfloat16")
    for reason, arguments in [
        ("data has shape", [(N * K + 2,), "float16"]),
        ("unsupported weights 'int8'", [(N * K,), "int8"]),
        ("unsupported weights 'f16'", [(N * K,), "f16"]),
    ]:
        with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
            pack(*arguments)


def test_quantize_refuses():
    def quantize(mode, results, *operands):
        outs = [jax.ShapeDtypeStruct(*r) for r in results]
        call = jax.ffi.ffi_call("jax_qgemm.quantize.v1", outs)
        return jax.block_until_ready(call(*operands, mode=mode))

    x, one, zero = zeros((M, K), F32), jnp.ones(()), zeros((), S32)
    quantize("static", [((M, K), U8)], x, one, zero)
    for reason, arguments in [
        ("unknown mode", ["per_galaxy", [((M, K), S8)], x]),
        ("wrong dtype", ["per_row_symmetric", [((M, K), U8), ((M,), F32)], x]),
        ("scale has shape", ["per_row_symmetric", [((M, K), S8), ((K,), F32)], x]),
        ("results", ["per_row_symmetric", [((M, K), S8)], x]),
        ("zero_point must be", ["per_row_asymmetric", [((M, K), U8), *2 * [((M,), F32)]], x]),
        ("q has shape", ["static", [((K, M), U8)], x, one, zero]),
        ("zero_point is missing", ["static", [((M, K), U8)], x, one]),
        ("x must be", ["static", [((M, K), U8)], zeros((M, K), S32), one, zero]),
    ]:
        with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
            quantize(*arguments)
