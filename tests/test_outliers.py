"""Sums in int16: how many weights are outliers, and that results stay the same bits."""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jax_qgemm as jq

WITHOUT_VNNI = [i for i in jq.cpu_info()["isa_available"] if i in ("avx2", "avx512bw")]


def packed(values, scale=0.01):
    values = np.asarray(values, np.int8)
    scale = jnp.full((1, values.shape[1]), scale, jnp.float32)
    return jq.pack(jq.QuantizedArray(jnp.asarray(values), scale, None, "int8"))


def column(*values):
    """A column of 8 weights that are added up as four and four: 0 1 4 5 and 2 3 6 7."""
    w = np.zeros((8, 1), np.int8)
    w[[0, 1, 4, 5], 0] = values
    return w


@pytest.mark.parametrize(
    "values,outliers",
    [
        ((32, 32, 32, 32), 0),
        ((127, 1, -127, -1), 0),
        ((127, -128, 0, 0), 0),
        ((33, 32, 32, 32), 1),
        ((127, 127, 0, 0), 1),
        ((127, 60, 60, 8), 1),
        ((127, 127, 127, 0), 2),
        ((-128, -128, -128, -128), 3),
        ((127, 127, -128, -128), 2),
    ],
)
def test_density_of_four_weights(values, outliers):
    for order in itertools.permutations(values):
        density = jq.outlier_density(packed(column(*order)))
        assert density.dtype == jnp.float32 and density == outliers / 8, order


def test_weights_of_other_sums_do_not_count():
    w = np.zeros((16, 2), np.int8)
    w[[0, 2, 8, 10]] = 127  # each in a sum of its own
    assert jq.outlier_density(packed(w)) == 0


def test_density_of_stacks_of_odd_shapes_and_of_nothing(rng):
    a = packed(rng.integers(-128, 128, (37, 21)))
    b = packed(rng.integers(-20, 20, (37, 21)))
    stack = jax.tree.map(lambda *w: jnp.stack(w), a, b)
    assert jq.outlier_density(b) == 0 < jq.outlier_density(a) < 0.5
    assert jax.jit(jq.outlier_density)(stack) == jq.outlier_density(a) / 2
    for shape in ((0, 3), (3, 0), (16, 0)):
        assert jq.outlier_density(packed(np.zeros(shape))) == 0


def test_density_wants_a_packed_weight():
    with pytest.raises(TypeError, match="outlier_density: w must be a PackedWeight, got float32"):
        jq.outlier_density(jnp.zeros((3, 4)))


@pytest.fixture
def said(capfd, monkeypatch):
    """What verbose lines say about the products run since."""
    monkeypatch.setattr(jq.config, "verbose", True)
    return lambda: [line for line in capfd.readouterr().err.splitlines() if ",exec,gemm," in line]


@pytest.fixture
def threads():
    if os.cpu_count() > 16:
        pytest.skip("the products that so many threads take in int16 are large")
    return os.cpu_count()


@pytest.mark.parametrize("isa", WITHOUT_VNNI)
@pytest.mark.parametrize("deviation,int16", [(15, True), (39, True), (1000, False)])
def test_large_products_are_summed_in_int16_if_outliers_are_few(
    rng, said, threads, isa, deviation, int16
):
    m, n, k = 900 * threads, 200, 1001
    values = np.clip(np.rint(rng.normal(0, deviation, (k, n))), -128, 127).astype(np.int8)
    w = packed(values)
    x = jnp.asarray(rng.standard_normal((m, k)), jnp.float32)
    with jq.config.limit_isa(isa):
        y = jax.block_until_ready(jax.jit(jq.dot)(x, w))
    (line,) = said()
    assert ("sums:int16" in line) == int16, line
    rows = rng.choice(m, 40, replace=False)
    q, scale, zero = oracle.quantize(x[rows], "uint8", (0,), symmetric=False)
    expected = oracle.linear(q, scale, zero, values, np.full(n, 0.01, np.float32))
    assert np.array_equal(y[rows], expected)


@pytest.mark.parametrize("isa", WITHOUT_VNNI)
def test_what_would_saturate_does_not(rng, said, threads, isa):
    # Few outliers, but those as large as can be, where x is.
    m, n, k = 600 * threads, 130, 1024
    values = rng.integers(-20, 21, (k, n)).astype(np.int8)
    values[:8, 5], values[-8:, 129] = 127, -128
    q = np.full((m, k), 255, np.uint8)
    x = jq.QuantizedArray(jnp.asarray(q), jnp.float32(0.5), jnp.int32(3), "uint8")
    w, out_scale = packed(values), np.float32(9)
    with jq.config.limit_isa(isa):
        y = jax.block_until_ready(jq.quantized_linear(x, w, out_scale=out_scale)).qvalue
    (line,) = said()
    assert "sums:int16" in line, line
    weight = values, np.full(n, 0.01, np.float32)
    expected = oracle.linear(q[:1], 0.5, 3, *weight, out="uint8", out_scale=out_scale)
    assert len(np.unique(expected)) > 20
    assert np.array_equal(y, np.broadcast_to(expected, y.shape))
