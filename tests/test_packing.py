"""pack, unpack and pack_weight: the layout's formula, column sums, exact round trips."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import K, N, pairwise

import jax_qgemm as jq

FORMS = ("int8 tensor", "int8 column", "uint8 tensor", "uint8 column", "int8 zero", "uint8 middle")


def quantized(rng, k, n, form):
    kernel = rng.standard_normal((k, n)).astype(np.float32)
    qtype, granularity = form.split()
    axes = [] if granularity == "tensor" else [1]
    symmetric = {"zero": False, "middle": True}.get(granularity)
    return jq.quantize(kernel, qtype, channelwise_axes=axes, symmetric=symmetric)


@pytest.mark.parametrize("case", pairwise(n=N, form=FORMS, k=K[::3]), ids=str)
def test_layout_and_round_trip(case, rng, each_isa):
    q = quantized(rng, **case)
    k, n = q.shape
    stored, zero_point = np.asarray(q.qvalue), q.zero_point
    if q.qtype == "uint8":
        stored, zero_point = (stored.astype(int) - 128).astype(np.int8), zero_point - 128
    if zero_point is not None:
        zero_point = np.broadcast_to(zero_point, (1, n))[0]
    data, sums = oracle.pack(stored, zero_point)
    for isa in each_isa():
        w = jq.pack(q)
        assert np.array_equal(w.data, data), isa
        assert np.array_equal(w.column_sums, sums), isa
        assert (w.shape, w.qtype, w.channelwise) == ((k, n), q.qtype, q.scale.ndim == 2)
        assert (w.zero_point is None) == (zero_point is None)
    back = jq.unpack(w)
    assert jax.tree.structure(back) == jax.tree.structure(q)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(q), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize("k,n", [(0, 5), (5, 0), (0, 0)])
def test_zero_sizes(k, n, rng, each_isa):
    for isa in each_isa():
        for form in FORMS:
            q = quantized(rng, k, n, form)
            w = jq.pack(q)
            assert w.shape == (k, n) and w.column_sums.shape == (1, n), isa
            assert jq.unpack(w).qvalue.shape == (k, n) and w.dequantize().shape == (k, n)


@pytest.mark.parametrize("k", [32768, 32769, 65536, 65537, 140000])
@pytest.mark.parametrize("form", ["int8 column", "uint8 column"])
def test_column_sums_by_blocks_of_long_k(k, form, rng, each_isa):
    q = quantized(rng, k, 3, form)
    shift, zero_point = (128, np.asarray(q.zero_point - 128)) if form[0] == "u" else (0, None)
    stored = (np.asarray(q.qvalue).astype(int) - shift).astype(np.int8)
    data, sums = oracle.pack(stored, None if zero_point is None else zero_point[0])
    for isa in each_isa():
        w = jq.pack(q)
        assert np.array_equal(w.column_sums, sums) and np.array_equal(w.data, data), isa


def test_pack_weight_is_quantize_then_pack(rng):
    kernel = rng.standard_normal((20, 30)).astype(np.float32)
    for qtype, symmetric in (("int8", None), ("uint8", None), ("int8", False)):
        one = jq.pack_weight(kernel, qtype, symmetric=symmetric)
        two = jq.pack(jq.quantize(kernel, qtype, channelwise_axes=[1], symmetric=symmetric))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            assert np.array_equal(a, b)
    assert jq.pack_weight(jnp.asarray(kernel, jnp.bfloat16)).qtype == "int8"


def test_pack_and_unpack_under_jit_and_vmap(rng):
    kernels = jnp.asarray(rng.standard_normal((3, 20, 30)), jnp.float32)
    for qtype in ("int8", "uint8"):

        def pack(kernel, qtype=qtype):
            return jq.pack_weight(kernel, qtype)

        stack = jax.jit(jax.vmap(pack))(kernels)
        assert stack.shape == (3, 20, 30)
        singles = [pack(kernel) for kernel in kernels]
        for a, b in zip(
            jax.tree.leaves(stack),
            jax.tree.leaves(jax.tree.map(lambda *w: jnp.stack(w), *singles)),
            strict=True,
        ):
            assert np.array_equal(a, b)
        assert np.array_equal(stack.dequantize()[1], singles[1].dequantize())
        back = jax.jit(jq.unpack)(singles[0])
        assert np.array_equal(
            back.qvalue, jq.quantize(kernels[0], qtype, channelwise_axes=[1]).qvalue
        )


@pytest.mark.parametrize("form", ["int8", "uint8", "int8:32", "fp16", "int4", "int8_blocks:32"])
def test_strict_promotion(form, rng):
    w = jq.pack_weight(rng.standard_normal((64, 48)).astype(np.float32), form)
    values = w.dequantize()
    density = jq.outlier_density(w) if w.qtype in ("int8", "uint8") else None
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        assert np.array_equal(w.dequantize(), values)
        if density is not None:
            assert jq.outlier_density(w) == density
            assert np.array_equal(jq.unpack(w).dequantize(), values)
