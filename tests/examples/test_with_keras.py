"""The recipe for Keras: the same products as `dot` by hand, in Keras' own programs and files."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="the recipe needs keras")
if keras.backend.backend() != "jax":
    pytest.skip("the recipe needs keras' JAX backend", allow_module_level=True)

import with_keras as recipe

import jax_qgemm as jq

X = np.random.default_rng(0).normal(size=(7, 64)).astype(np.float32)


def model(**options):
    layers = [keras.layers.Dense(96, activation="gelu", **options)]
    layers += [keras.layers.LayerNormalization(), keras.layers.Dense(10, use_bias=False, **options)]
    return keras.Sequential([keras.layers.Input((64,)), *layers])


@pytest.mark.parametrize("qtype", ["int8", "uint8", "fp16", "int4:32"])
def test_layers_are_products_of_dot(qtype):
    original = model(bias_initializer="random_normal")
    first, norm, last = original.layers
    y = jq.dot(
        X, jq.pack_weight(first.kernel.value, qtype), bias=first.bias.value, activation="gelu"
    )
    y = jq.dot(norm(y), jq.pack_weight(last.kernel.value, qtype))
    quantized = recipe.quantize(original, qtype)
    np.testing.assert_allclose(quantized(X), y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(quantized.predict(X, verbose=0), y, rtol=1e-2, atol=1e-2)
    assert original.layers == [first, norm, last] and quantized.layers[1] is norm


def test_predict_has_no_other_products():
    quantized = recipe.quantize(model())
    state = [v.value for v in quantized.trainable_variables]
    rest = [v.value for v in quantized.non_trainable_variables]
    text = jax.jit(quantized.stateless_call).lower(state, rest, X).as_text()
    assert text.count("custom_call @jax_qgemm") == 2 and "stablehlo.dot_general" not in text


def test_functional_and_nested_models():
    inputs = keras.layers.Input((9, 64))
    inner = keras.Sequential([keras.layers.Input((9, 64)), keras.layers.Dense(64, "relu")])
    original = keras.Model(inputs, keras.layers.Dense(8, "softmax")(inputs + inner(inputs)))
    quantized = recipe.quantize(original)
    kinds = [type(layer) for layer in quantized._flatten_layers(include_self=False)]
    assert kinds.count(recipe.QDense) == 2 and keras.layers.Dense not in kinds
    x = np.random.default_rng(1).normal(size=(3, 9, 64)).astype(np.float32)
    np.testing.assert_allclose(quantized(x), original(x), atol=0.02)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras itself
def test_files(tmp_path):
    quantized = recipe.quantize(model(bias_initializer="random_normal"))
    quantized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(X), quantized(X))
    assert loaded.layers[0].parts[0].dtype == "int8"


def test_bfloat16():
    quantized = recipe.quantize(model(dtype="mixed_bfloat16"))
    y = quantized(X)
    assert y.dtype == jnp.bfloat16
    assert quantized.layers[0].parts[0].dtype == "int8"


def test_training_leaves_kernels_alone():
    quantized = recipe.quantize(model())
    quantized.compile("sgd", "mse")
    trained = quantized.layers[0].bias, quantized.layers[1].gamma
    before = [np.array(variable.value) for variable in trained]
    packed = np.array(quantized.layers[0].parts[0].value)
    quantized.fit(X, np.ones((7, 10), np.float32), epochs=1, verbose=0)
    for variable, old in zip(trained, before, strict=True):
        assert np.abs(np.array(variable.value) - old).max() > 0
    np.testing.assert_array_equal(quantized.layers[0].parts[0].value, packed)
