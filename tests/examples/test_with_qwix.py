"""The recipe for qwix: the values of qwix's own products, and our kernels in their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

qwix = pytest.importorskip("qwix", reason="the recipe needs qwix")

import flax.linen as nn
import with_qwix as recipe
from flax import nnx

import jax_qgemm as jq

# Of qwix itself, which uses names that flax has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'VariableState' was removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The 'm.iter_modules:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'.value' access is now:DeprecationWarning"),
]

KEY, X_KEY = jax.random.split(jax.random.key(0))
INT8 = dict(weight_qtype="int8", act_qtype="int8")
RULES = {
    "w8a8": INT8,
    "w8a8 asymmetric": INT8 | dict(act_calibration_method="minmax"),
    "w8": dict(weight_qtype="int8"),
    "w8 in tiles": dict(weight_qtype="int8", tile_size=32),
    "w8a8 in tiles": INT8 | dict(tile_size=32),
    "w4": dict(weight_qtype="int4"),
    "w4 in tiles": dict(weight_qtype="int4", tile_size=32),
    "w4a8": dict(weight_qtype="int4", act_qtype="int8"),
    "w4a4": dict(weight_qtype="int4", act_qtype="int4"),
}


# One layer at a time: behind one, a difference in a last bit can become a step of quantization.
LAYERS = {
    "matrix": (nn.Dense(96), (3, 5, 64)),
    "several columns": (nn.DenseGeneral((4, 24)), (3, 5, 64)),
    "several contracted": (nn.DenseGeneral(24, axis=(-2, -1)), (3, 4, 64)),
    "first contracted": (nn.DenseGeneral(24, axis=-2), (3, 64, 5)),
}


def quantized(model, x, rule, provider=recipe.provider):
    """(apply, params) of a linen model under this rule."""
    params = model.init(KEY, x)["params"]
    rules = [qwix.QuantizationRule(module_path=".*", **rule)]
    quantized = qwix.quantize_model(model, provider(rules))
    shapes = jax.eval_shape(quantized.init, KEY, x)["params"]
    params = qwix.quantize_params(params, shapes)
    return jax.jit(lambda params, x: quantized.apply({"params": params}, x)), params


def products(f, *args):
    """How many of our products, and how many of XLA's, f consists of."""
    text = jax.jit(f).lower(*args).as_text()
    return text.count("custom_call @jax_qgemm"), text.count("stablehlo.dot_general")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rule", RULES)
def test_values_are_those_of_qwix(rule, layer):
    model, shape = LAYERS[layer]
    x = jax.random.normal(X_KEY, shape)
    theirs, params = quantized(model, x, RULES[rule], qwix.PtqProvider)
    ours, _ = quantized(model, x, RULES[rule])
    expected = theirs(params, x)
    atol = 1e-5 * float(jnp.abs(expected).max())
    packed = recipe.pack_params(params)
    for weights in (params, packed):
        y = ours(weights, x)
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=atol)
    # Groups in the last of several contracted axes have no format: qwix multiplies.
    theirs = "tiles" in rule and layer == "several contracted"
    assert products(ours, packed, x)[1] == int(theirs)


def test_packed_matrices_are_not_packed_again():
    x = jax.random.normal(X_KEY, (3, 64))
    ours, params = quantized(nn.Dense(32), x, INT8)
    packed = recipe.pack_params(params)
    assert isinstance(packed["kernel"].array, jq.PackedWeight)
    assert products(ours, packed, x)[0] < products(ours, params, x)[0]
    np.testing.assert_array_equal(ours(packed, x), ours(params, x))


def test_bfloat16():
    x = jax.random.normal(X_KEY, (3, 64), jnp.bfloat16)
    model = nn.Dense(32, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    for rule in (INT8, dict(weight_qtype="int8"), dict(weight_qtype="int4", tile_size=32)):
        theirs, params = quantized(model, x, rule, qwix.PtqProvider)
        ours, _ = quantized(model, x, rule)
        y, expected = ours(recipe.pack_params(params), x), theirs(params, x)
        assert y.dtype == expected.dtype == jnp.bfloat16
        # qwix rounds at each step to the dtype, we once.
        assert np.linalg.norm(y - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("qtype", ["int8", "float8_e4m3fn"])
def test_what_no_kernel_has_runs_as_in_qwix(qtype):
    """Scores of attention, with batches on both sides; weights of 8-bit floats."""
    x = jax.random.normal(X_KEY, (3, 5, 64))
    rule = dict(weight_qtype=qtype, act_qtype=qtype)
    model = nn.MultiHeadDotProductAttention(4, qkv_features=64)
    theirs, params = quantized(model, x, rule, qwix.PtqProvider)
    ours, _ = quantized(model, x, rule)
    y, expected = ours(params, x), theirs(params, x)
    assert np.linalg.norm(y - expected) < 0.01 * np.linalg.norm(expected)


def test_einsum():
    x = jax.random.normal(X_KEY, (3, 5, 64))
    model = nn.Einsum((64, 24), "...k,kn->...n")
    theirs, params = quantized(model, x, INT8, qwix.PtqProvider)
    ours, _ = quantized(model, x, INT8)
    np.testing.assert_allclose(ours(params, x), theirs(params, x), rtol=1e-5, atol=1e-5)
    assert products(ours, params, x)[1] == 0


def test_nnx():
    x = jax.random.normal(X_KEY, (3, 64))
    model = nnx.Sequential(
        nnx.Linear(64, 96, rngs=nnx.Rngs(0)), nnx.Linear(96, 8, rngs=nnx.Rngs(1))
    )
    rules = [qwix.QuantizationRule(module_path=".*", **INT8)]
    expected = nnx.jit(qwix.quantize_model(model, qwix.PtqProvider(rules), x))(x)
    ours = qwix.quantize_model(model, recipe.provider(rules), x)
    graph, state = nnx.split(ours)
    f = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    np.testing.assert_allclose(f(state, x), expected, rtol=1e-5, atol=1e-5)
    assert products(f, state, x)[1] == 0


def test_gradients_of_activations():
    x = jax.random.normal(X_KEY, (3, 64))
    ours, params = quantized(nn.Dense(32), x, dict(weight_qtype="int8"))
    kernel = qwix.dequantize(params["kernel"].array)
    gradient = jax.grad(lambda x: ours(recipe.pack_params(params), x).sum())(x)
    np.testing.assert_allclose(gradient, jnp.ones((3, 32)) @ kernel.T, rtol=1e-4, atol=1e-5)
