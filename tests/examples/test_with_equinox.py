"""The recipe for Equinox: the same products as `dot` by hand, under Equinox's transformations."""

import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

eqx = pytest.importorskip("equinox", reason="the recipe needs equinox")

import with_equinox as recipe

import jax_qgemm as jq

KEYS = jax.random.split(jax.random.key(0), 3)


def by_hand(linear, x, qtype="int8"):
    return jq.dot(x, jq.pack_weight(linear.weight.T, qtype), bias=linear.bias)


@pytest.mark.parametrize("qtype", ["int8", "fp16", "int4:32"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_layers_are_products_of_dot(qtype, use_bias):
    model = eqx.nn.MLP(64, 10, 96, 2, use_bias=use_bias, use_final_bias=use_bias, key=KEYS[0])
    x = jax.random.normal(KEYS[1], (7, 64))
    first, second, last = model.layers
    expected = jax.nn.relu(by_hand(first, x, qtype))
    expected = by_hand(last, jax.nn.relu(by_hand(second, expected, qtype)), qtype)
    np.testing.assert_array_equal(recipe.apply(recipe.quantize(model, qtype), x), expected)
    assert isinstance(model.layers[0], eqx.nn.Linear)  # as it was


def test_a_batch_is_one_product():
    model = recipe.quantize(eqx.nn.Linear(64, 10, key=KEYS[0]))
    text = str(jax.make_jaxpr(jax.vmap(model))(jnp.ones((5, 64))))
    assert len(re.findall(r":f32\[5,10\] = jax_qgemm_gemm\[", text)) == 1, text


def test_attention_and_scalars():
    mha = eqx.nn.MultiheadAttention(4, 64, key=KEYS[0])
    x = jax.random.normal(KEYS[1], (9, 64))
    exact, y = mha(x, x, x), recipe.quantize(mha)(x, x, x)
    assert jnp.linalg.norm(y - exact) < 0.03 * jnp.linalg.norm(exact)
    for sizes in (("scalar", 8), (8, "scalar")):
        linear = eqx.nn.Linear(*sizes, key=KEYS[2])
        x = jnp.float32(0.5) if sizes[0] == "scalar" else jnp.linspace(-1, 1, 8)
        y = recipe.quantize(linear)(x)
        assert y.shape == linear(x).shape
        np.testing.assert_allclose(y, linear(x), atol=0.05)


def test_stacked_layers_are_scanned():
    layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(64, 64, key=key))(
        jax.random.split(KEYS[0], 3)
    )
    quantized = recipe.quantize(layers)
    x = jax.random.normal(KEYS[1], (64,))
    y, _ = jax.lax.scan(lambda x, layer: (layer(x), None), x, quantized)
    for i in range(3):
        x = by_hand(jax.tree.map(lambda leaf, i=i: leaf[i], layers), x)
    np.testing.assert_array_equal(y, x)


def test_gradients_and_files():
    model = recipe.quantize(eqx.nn.MLP(64, 3, 96, 1, key=KEYS[0]))
    x = jax.random.normal(KEYS[1], (7, 64))
    gradients = eqx.filter_grad(lambda model: recipe.apply(model, x).sum())(model)
    np.testing.assert_allclose(gradients.layers[1].bias, np.full(3, 7.0))
    assert np.abs(gradients.layers[0].bias).max() > 0

    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, model)
    file.seek(0)
    other = recipe.quantize(eqx.nn.MLP(64, 3, 96, 1, key=KEYS[2]))
    loaded = eqx.tree_deserialise_leaves(file, other)
    np.testing.assert_array_equal(recipe.apply(loaded, x), recipe.apply(model, x))
