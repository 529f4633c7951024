"""The recipe for AQT: its int8 weights, as they are, in our products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("aqt.jax.v2", reason="the recipe needs aqtp")

import flax.linen as nn
import with_aqt as recipe
from aqt.jax.v2.utils import QuantMode

import jax_qgemm as jq

# Of AQT itself, which asks JAX for the dtype of an array that it passes as one.
pytestmark = pytest.mark.filterwarnings("ignore:Implicit conversion of an array:DeprecationWarning")

KEY, X_KEY = jax.random.split(jax.random.key(0))
X = jax.random.normal(X_KEY, (5, 7, 64))


@pytest.fixture(scope="module")
def converted():
    """(AQT's result, its variables) of the recipe's model."""
    variables = recipe.Model(recipe.aqt_dot_general(QuantMode.TRAIN)).init(KEY, X)
    converting = recipe.Model(recipe.aqt_dot_general(QuantMode.CONVERT))
    return converting.apply(variables, X, mutable=True, rngs={"params": KEY})


def test_weights_are_those_of_aqt(converted):
    expected, variables = converted
    ours = recipe.from_aqt(variables)
    for name in ("Dense_0", "Dense_1"):
        frozen = variables["aqt"][name]["AqtDotGeneral_0"]["qrhs"]
        q = jq.unpack(ours["packed"][name]["PackedDotGeneral_0"]["kernel"])
        np.testing.assert_array_equal(q.qvalue, frozen["value"])
        np.testing.assert_array_equal(q.scale, frozen["scale"][0])
    apply = jax.jit(recipe.Model(recipe.PackedDotGeneral).apply)
    y = apply(ours, X)
    # AQT quantizes activations to 255 steps around zero, we to 256 between the ends of each row.
    assert 0 < np.linalg.norm(y - expected) < 0.03 * np.linalg.norm(expected)
    assert apply.lower(ours, X).as_text().count("stablehlo.dot_general") == 0


def test_float_kernels_take_no_memory(converted):
    ours = recipe.from_aqt(converted[1])
    for layer in ours["params"].values():
        assert set(layer["kernel"].strides) == {0}
        assert layer["bias"].dtype == jnp.float32


def test_layers_pack_their_own_kernels():
    layer = nn.Dense(24, dot_general_cls=recipe.PackedDotGeneral)
    variables = layer.init(KEY, X)
    kernel = jq.pack_weight(variables["params"]["kernel"])
    expected = jq.dot(X, kernel) + variables["params"]["bias"]
    np.testing.assert_array_equal(layer.apply(variables, X), expected)


def test_other_products_are_refused():
    layer = nn.DenseGeneral(24, axis=(-2, -1), dot_general_cls=recipe.PackedDotGeneral)
    with pytest.raises(NotImplementedError, match="a product of .* is expected, got .5, 7, 64."):
        layer.init(KEY, X)
