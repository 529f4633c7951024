"""QuantizedArray and PackedWeight as pytrees: transformations, repr, saving, versions."""

import copy
import dataclasses
import io
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qgemm as jq


def samples():
    kernel = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    return {
        "int8": jq.quantize(kernel, "int8"),
        "uint8 rows": jq.quantize(kernel, "uint8", channelwise_axes=[0]),
        "packed int8": jq.pack_weight(kernel, "int8"),
        "packed uint8": jq.pack_weight(kernel, "uint8"),
        "packed tensor": jq.pack(jq.quantize(kernel, "int8")),
        "uint8 groups": jq.quantize(kernel, "uint8", group_size=16),
        "packed groups": jq.pack_weight(kernel, "int8:16"),
    }


@pytest.fixture(params=list(samples()))
def sample(request):
    return samples()[request.param]


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y)


def test_describes_itself_as_an_array(sample):
    assert sample.shape == (20, 30) and sample.ndim == 2 and sample.size == 600
    assert sample.dtype == np.float32 == sample.dequantize().dtype
    assert sample.dequantize().shape == sample.shape
    assert sample.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(sample))


def test_pytree_round_trips(sample):
    leaves, structure = jax.tree.flatten(sample)
    assert_equal(jax.tree.unflatten(structure, leaves), sample)
    assert_equal(jax.jit(lambda s: s)(sample), sample)
    assert_equal(jax.device_put(sample), sample)
    assert_equal(copy.deepcopy(sample), sample)
    assert_equal(jax.lax.scan(lambda carry, _: (carry, None), sample, None, length=2)[0], sample)
    donated = jax.jit(lambda s: s, donate_argnums=0)(jax.tree.map(jnp.copy, sample))
    assert_equal(donated, sample)
    assert hash(structure) == hash(jax.tree.structure(sample))


def test_anything_may_be_inside(sample):
    structure = jax.tree.structure(sample)
    for leaf in (None, object(), 0, "x"):
        held = jax.tree.unflatten(structure, [leaf] * structure.num_leaves)
        assert type(sample).__name__ in repr(held)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(sample)]
    assert ".scale" in names
    assert jax.tree.map(lambda a: a.shape, sample).scale == sample.scale.shape
    shapes = jax.eval_shape(lambda s: s, sample)
    assert shapes.shape == sample.shape and shapes.nbytes == sample.nbytes


def test_repr():
    s = samples()
    assert repr(s["int8"]) == (
        "QuantizedArray(int8[20,30], scale=float32[], zero_point=None, qtype='int8')"
    )
    assert repr(s["packed uint8"]) == (
        "PackedWeight(uint8[20,30], per channel, data=int8[640], zero_point=int32[30])"
    )
    assert "per tensor" in repr(s["packed tensor"])
    assert "per group of 16" in repr(s["packed groups"])
    assert repr(s["uint8 groups"]).endswith("qtype='uint8', group_size=16)")
    seen = []
    jax.jit(lambda q, w: seen.extend([repr(q), repr(w)]))(s["int8"], s["packed uint8"])
    assert seen == [repr(s["int8"]), repr(s["packed uint8"])]


def test_pickle(sample):
    assert_equal(pickle.loads(pickle.dumps(sample)), sample)


def test_npz(sample):
    file = io.BytesIO()
    np.savez(file, **sample.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        assert_equal(type(sample).from_arrays(arrays), sample)


def test_npz_of_a_stack():
    w = samples()["packed uint8"]
    stack = jax.tree.map(lambda a: jnp.stack([a, a]), w)
    assert stack.shape == (2, 20, 30) and "uint8[2,20,30]" in repr(stack)
    assert_equal(jq.PackedWeight.from_arrays(stack.to_arrays()), stack)
    assert stack.dequantize().shape == (2, 20, 30)


def test_newer_format_is_refused(sample):
    arrays = sample.to_arrays()
    arrays["metadata"] = arrays["metadata"] + np.eye(1, len(arrays["metadata"]), dtype=int)[0]
    with pytest.raises(ValueError, match=r"format version 2.* reads up to version 1"):
        type(sample).from_arrays(arrays)


def test_newer_format_is_refused_where_it_is_used():
    newer = dataclasses.replace(samples()["packed int8"], format_version=9)
    newer = pickle.loads(pickle.dumps(newer))
    x = np.ones((2, 20), np.float32)
    uses = (newer.dequantize, lambda: jq.unpack(newer), lambda: jq.dot(x, newer))
    for use in uses:
        with pytest.raises(ValueError, match=r"format version 9.* version 1"):
            use()


@pytest.mark.parametrize("version", [0, -1, None, "1", 1.0, True])
def test_format_versions_that_are_none(version):
    w = dataclasses.replace(samples()["packed int8"], format_version=version)
    for use in (w.dequantize, lambda: jq.unpack(w)):
        with pytest.raises(ValueError, match=r"format version must be an integer from 1 to 1, got"):
            use()


ALTERED = [
    # metadata or parts, the message
    ({"metadata": np.zeros(0, int)}, "metadata must be 9 integers, got int64[0]"),
    ({"metadata": np.asarray([1, 0])}, "metadata must be 9 integers, got int64[2]"),
    ({"metadata": np.asarray(1)}, "metadata must be 9 integers, got int64[]"),
    ({"metadata": np.ones(9)}, "metadata must be 9 integers, got float64[9]"),
    (
        {"metadata": np.asarray([1, 9, 20, 30, 1, 0, 0, 0, 0])},
        "unknown qtype 9 in metadata, known: 0 (int8), ",
    ),
    ({"metadata": np.asarray([1, -1, 20, 30, 1, 0, 0, 0, 0])}, "unknown qtype -1 in metadata"),
    (
        {"metadata": np.asarray([0, 0, 20, 30, 1, 0, 0, 0, 0])},
        "must be an integer from 1 to 1, got 0",
    ),
    (
        {"metadata": np.asarray([-3, 0, 20, 30, 1, 0, 0, 0, 0])},
        "must be an integer from 1 to 1, got -3",
    ),
    (
        {"metadata": np.asarray([1, 0, -20, 30, 1, 0, 0, 0, 0])},
        "matrix_shape must be sizes (K, N) >= 0, got (-20, 30)",
    ),
    ({"metadata": np.asarray([1, 1, 20, 30, 1, 0, 0, 0, 0])}, "no zero_point in the data"),
    (
        {"metadata": np.asarray([1, 0, 20, 30, 1, 7, 0, 0, 0])},
        "group_size must be None or a multiple of 16",
    ),
    (
        {"metadata": np.asarray([1, 0, 20, 30, 1, 16, 0, 0, 0])},
        "scale has shape (30,), expected (2, 30)",
    ),
    ({"data": np.int8(0)}, "data has no elements, expected 640 for a packed 20×30 weight"),
    ({"data": np.zeros(640, np.float32)}, "data must be int8, got float32[640]"),
    ({"scale": np.zeros(30)}, "scale must be float32, got float64[30]"),
    ({"scale": np.zeros(29, np.float32)}, "scale has shape (29,), expected (30,)"),
    ({"column_sums": np.zeros(30, np.int32)}, "column_sums has shape (30,), expected (1, 30)"),
]


@pytest.mark.parametrize("parts,message", ALTERED)
def test_altered_packed_arrays_are_refused(parts, message):
    arrays = samples()["packed int8"].to_arrays() | parts
    with pytest.raises(ValueError, match=re.escape("PackedWeight.from_arrays: ")) as caught:
        jq.PackedWeight.from_arrays(arrays)
    assert message in str(caught.value)


def test_altered_quantized_arrays_are_refused():
    arrays = samples()["int8"].to_arrays()
    for parts, message in (
        ({"metadata": np.asarray([1])}, "metadata must be 3 integers, got int64[1]"),
        ({"metadata": np.asarray([1, 9, 0])}, "unknown qtype 9 in metadata"),
        ({"metadata": np.asarray([1, 1, 0])}, "qvalue must be uint8, got int8[20,30]"),
        ({"qvalue": np.zeros((20, 30))}, "qvalue must be int8, got float64[20,30]"),
        ({"zero_point": np.float32(1)}, "zero_point must be int32, got float32[]"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"QuantizedArray.from_arrays: {message}")):
            jq.QuantizedArray.from_arrays(arrays | parts)


def test_incomplete_arrays_are_refused():
    arrays = samples()["packed int8"].to_arrays()
    with pytest.raises(ValueError, match=r"PackedWeight.from_arrays: no column_sums in the data"):
        jq.PackedWeight.from_arrays({k: v for k, v in arrays.items() if k != "column_sums"})
    with pytest.raises(ValueError, match="data has 639 elements, expected 640"):
        jq.PackedWeight.from_arrays(arrays | {"data": arrays["data"][1:]})


def test_saved_parts_may_be_numbers():
    q = jq.QuantizedArray(jnp.full((4, 8), 10, jnp.uint8), 0.5, 3, "uint8")
    loaded = jq.QuantizedArray.from_arrays(q.to_arrays())
    assert np.array_equal(loaded.dequantize(), q.dequantize())
    assert np.array_equal(loaded.dequantize(), np.full((4, 8), 3.5))


@pytest.mark.parametrize(
    "altered",
    [{"scale": np.ones(7, np.float32)}, {"zero_point": np.ones(7, np.int32)}]
    + [{"metadata": np.array([1, 1, group])} for group in (7, -5)],
)
def test_altered_parts_of_quantized_arrays_are_refused(altered):
    q = jq.quantize(np.ones((64, 48), np.float32), "uint8", channelwise_axes=[1])
    with pytest.raises(ValueError, match="QuantizedArray.from_arrays: q"):
        jq.QuantizedArray.from_arrays(q.to_arrays() | altered)
