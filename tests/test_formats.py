"""Weights of GGUF files and of GPTQ and AWQ checkpoints: exactly their values."""

import types

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jax_qgemm as jq
from jax_qgemm.formats import gguf as formats_gguf
from jax_qgemm.formats import gptq

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
BLOCK_BYTES = {"Q4_K": 144, "Q6_K": 210}


def tensor_of(kind, data, k, n):
    """As gguf.GGUFReader has it."""
    kind = gguf.GGMLQuantizationType[kind]
    return types.SimpleNamespace(name="t", tensor_type=kind, shape=np.asarray([k, n]), data=data)


def tensor(kind, rng, k=512, n=37):
    values = rng.standard_normal((n, k)).astype(np.float32)
    if kind == "BF16":
        return tensor_of(kind, values.astype(ml_dtypes.bfloat16).view(np.uint8), k, n)
    if kind not in BLOCK_BYTES:
        return tensor_of(kind, gguf.quantize(values, gguf.GGMLQuantizationType[kind]), k, n)
    blocks = rng.integers(0, 256, (n, k // 256, BLOCK_BYTES[kind]), np.uint8)
    scales = (rng.random((n, k // 256, 2)) * 0.1).astype(np.float16).view(np.uint8)
    if kind == "Q4_K":
        blocks[..., :4] = scales
    else:
        blocks[..., 208:] = scales[..., :2]
    return tensor_of(kind, blocks.reshape(n, -1), k, n)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "Q8_0", "Q6_K", "F16", "BF16"])
def test_gguf(kind, rng):
    t = tensor(kind, rng)
    w = formats_gguf.packed_weight(t)
    values = gguf.dequantize(t.data, t.tensor_type).T
    assert w.shape == (512, 37)
    assert np.array_equal(w.dequantize(), values)
    x = jnp.asarray(rng.standard_normal((3, 512)), jnp.float32)
    exact = np.asarray(x, np.float64) @ values.astype(np.float64)
    kept = formats_gguf.packed_weight(t, weight_only=True)
    assert kept.takes_floats
    size = np.abs(exact).max()
    np.testing.assert_allclose(jq.dot(x, kept), exact, atol=1e-5 * size)
    np.testing.assert_allclose(jq.dot(x, w), exact, atol=0.02 * size)


def test_gguf_side_by_side(rng):
    parts = [tensor("Q4_1", rng, n=n) for n in (37, 5, 64)]
    together = formats_gguf.packed_weight(*parts)
    each = [formats_gguf.packed_weight(t).dequantize() for t in parts]
    assert np.array_equal(together.dequantize(), np.concatenate(each, axis=1))
    for wrong in (tensor("Q4_0", rng), tensor("Q4_1", rng, k=256)):
        with pytest.raises(ValueError, match="must be of one type and K, got 't': Q4_1 of K=512, "):
            formats_gguf.packed_weight(parts[0], wrong)
    with pytest.raises(ValueError, match="of one type and K, got none"):
        formats_gguf.packed_weight()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "Q8_0", "Q6_K", "F16", "BF16"])
def test_gguf_of_no_columns_and_in_the_other_order(kind, rng):
    t = tensor(kind, rng)
    want = formats_gguf.packed_weight(t).dequantize()
    t.data = np.asfortranarray(t.data)
    assert np.array_equal(formats_gguf.packed_weight(t).dequantize(), want)
    t.data, t.shape = t.data[:0], np.asarray([512, 0])
    assert formats_gguf.packed_weight(t).dequantize().shape == (512, 0)
    for wrong in ("no", np.asarray([True])):
        with pytest.raises(TypeError, match="packed_weight: weight_only must be True or False"):
            formats_gguf.packed_weight(t, weight_only=wrong)


def test_gguf_errors(rng):
    t = tensor("Q8_0", rng)
    with pytest.raises(TypeError, match="tensor 't' is of type Q5_0, known: BF16, F16, Q4_0, Q4"):
        formats_gguf.packed_weight(tensor_of("Q5_0", t.data, 512, 37))
    with pytest.raises(TypeError, match="is of type ndarray, known"):
        formats_gguf.packed_weight(np.ones((4, 4)))
    for kind in ("Q8_0", "Q4_K", "F16"):
        for shape in ([544, 37], [1024, 37], [512, 36]):
            wrong = tensor(kind, rng)
            wrong.shape = np.asarray(shape)
            message = f"'t' of {kind} has {wrong.data.nbytes} bytes, expected {shape[1]} rows of K="
            with pytest.raises(ValueError, match=message):
                formats_gguf.packed_weight(wrong)
    t.shape = np.asarray([512])
    with pytest.raises(ValueError, match="'t' must be a matrix, got 1 dim"):
        formats_gguf.packed_weight(t)


def words(values, bits):
    """int32 [..., n * bits / 32] of values [..., n]."""
    per_word = 32 // bits
    parts = values.astype(np.uint32).reshape(*values.shape[:-1], -1, per_word)
    shifts = np.arange(per_word, dtype=np.uint32) * bits
    return np.bitwise_or.reduce(parts << shifts, axis=-1).view(np.int32)


@pytest.mark.parametrize("less_one", [True, False])
@pytest.mark.parametrize("bits,group", [(4, 32), (4, 128), (8, 16), (8, 128)])
def test_gptq(bits, group, less_one, rng):
    k, n = 256, 64
    q = rng.integers(0, 2**bits, (k, n))
    zeros = rng.integers(0, 2**bits, (k // group, n))
    scales = (rng.random((k // group, n)) * 0.1).astype(np.float16)
    stored = words(zeros, bits).view(np.uint32)
    if less_one:
        stored = stored - np.uint32({4: 0x11111111, 8: 0x01010101}[bits])
    parts = words(q.T, bits).T.copy(), stored.view(np.int32), scales
    w = gptq.packed_weight(*parts, np.arange(k) // group, bits=bits, zeros_less_one=less_one)
    want = np.repeat(scales.astype(np.float64), group, 0) * (q - np.repeat(zeros, group, 0))
    assert w.minimum and w.group_size == group
    np.testing.assert_allclose(w.dequantize(), want, rtol=2e-7, atol=1e-7)
    symmetric = gptq.packed_weight(
        parts[0], words(np.full_like(zeros, 2 ** (bits - 1) - 1), bits), scales, bits=bits
    )
    assert not symmetric.minimum and symmetric.scale_dtype == "float16"
    want = np.repeat(scales.astype(np.float32), group, 0) * (q - 2 ** (bits - 1))
    assert np.array_equal(symmetric.dequantize(), want)


def test_awq(rng):
    k, n, group = 256, 64, 128
    q, zeros = rng.integers(0, 16, (k, n)), rng.integers(0, 16, (k // group, n))
    scales = (rng.random((k // group, n)) * 0.1).astype(np.float16)

    def interleaved(values):
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return words(values.reshape(len(values), -1, 8)[..., order].reshape(values.shape), 4)

    w = gptq.awq_packed_weight(interleaved(q), interleaved(zeros), scales, weight_only=True)
    want = np.repeat(scales.astype(np.float64), group, 0) * (q - np.repeat(zeros, group, 0))
    np.testing.assert_allclose(w.dequantize(), want, rtol=2e-7, atol=1e-7)
    assert w.weight_only


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_of_no_columns(bits):
    q, zeros = np.zeros((128 * bits // 32, 0), np.int32), np.zeros((2, 0), np.int32)
    w = gptq.packed_weight(q, zeros, np.ones((2, 0), np.float16), bits=bits)
    assert w.dequantize().shape == (128, 0)
    if bits == 4:
        none = np.zeros((128, 0), np.int32), zeros, np.ones((2, 0), np.float16)
        assert gptq.awq_packed_weight(*none).dequantize().shape == (128, 0)


def test_gptq_errors(rng):
    k, n = 64, 32
    q, zeros = np.zeros((k // 8, n), np.int32), np.zeros((2, n // 8), np.int32)
    scales = np.ones((2, n), np.float16)
    for args, more, error, message in (
        ((q.astype(np.int64), zeros, scales), {}, TypeError, "qweight must be int32 of 2 dim"),
        ((q, zeros[0], scales), {}, TypeError, "qzeros must be int32 of 2 dimensions"),
        ((q, zeros, scales.astype(np.int8)), {}, TypeError, "scales must be float32"),
        (([[1], [2, 3]], zeros, scales), {}, TypeError, "qweight must be an array, got list"),
        ((q, [[1], [2, 3]], scales), {}, TypeError, "qzeros must be an array, got list"),
        ((q, zeros, [[1.0], [2.0, 3.0]]), {}, TypeError, "scales must be an array, got list"),
        ((q, zeros, scales, [[1], [2, 3]]), {}, TypeError, "g_idx must be an array, got list"),
        ((q, zeros, scales[:, :8]), {}, ValueError, r"expected \(groups, 32\) with a number of"),
        ((q, zeros, scales, np.arange(k) % 2), {}, ValueError, "act-order"),
        ((q, zeros, scales), {"bits": 3}, ValueError, "bits must be 4 or 8, got 3"),
        ((q, zeros, scales), {"bits": 4.0}, ValueError, "bits must be 4 or 8, got 4.0"),
        ((q, zeros, scales), {"bits": np.float32(4)}, ValueError, "bits must be 4 or 8, got"),
        ((q, zeros, scales), {"bits": zeros}, ValueError, "bits must be 4 or 8, got"),
        ((q, zeros, scales), {"zeros_less_one": "no"}, TypeError, "zeros_less_one must be True or"),
        ((q, zeros, scales), {"zeros_less_one": zeros}, TypeError, "zeros_less_one must be True"),
        ((q, zeros, scales), {"weight_only": 1}, TypeError, "packed_weight: weight_only must be"),
        ((q, zeros, scales[0, 0]), {}, ValueError, r"scales have shape \(\) and zero points"),
        ((q, zeros[:0], scales[:0]), {}, ValueError, "expected .* a number of groups"),
    ):
        with pytest.raises(error, match=message):
            gptq.packed_weight(*args, **more)


def test_pack_blocks(rng):
    q = rng.integers(0, 16, (70, 5)).astype(np.uint8)
    scale = rng.standard_normal((3, 5)).astype(np.float32)
    minimum = rng.standard_normal((3, 5)).astype(np.float32)
    w = jq.pack_blocks(q, scale, minimum)
    want = q * np.repeat(scale, 32, 0)[:70].astype(np.float64) + np.repeat(minimum, 32, 0)[:70]
    np.testing.assert_allclose(w.dequantize(), want, rtol=1e-6, atol=1e-6)
    for args, more, error, message in (
        ((q.astype(int), scale), {}, TypeError, "q must be uint8, got int"),
        ((q[0], scale), {}, ValueError, "q must have 2 dimensions"),
        ((q + 1, scale), {}, ValueError, "q must be at most 15 for int4, got 16"),
        ((q, scale[:2]), {}, ValueError, r"scale has shape \(2, 5\), expected \(3, 5\)"),
        ((q, scale, minimum[:2]), {}, ValueError, r"minimum has shape \(2, 5\), expected"),
        ((q, scale, minimum.astype(np.float16)), {}, TypeError, "minimum must be of the dtype of"),
        ((q, scale.astype(int)), {}, TypeError, "scale must be float32, bfloat16 or float16"),
        ((q, scale), {"group_size": 48}, ValueError, "must be None or a multiple of 32"),
        ((q, scale), {"group_size": None}, ValueError, "group_size must be an integer, got None"),
        ((q, scale), {"qtype": "int8"}, ValueError, "qtype must be 'int4' or 'int8_blocks'"),
    ):
        with pytest.raises(error, match=message):
            jq.pack_blocks(*args, **more)
