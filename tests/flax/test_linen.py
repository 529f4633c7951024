"""QDense and quantize_params: agreement with dot, float checkpoints, serialization."""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax", reason="the layers need flax")
import flax.linen as nn
from cases import SAME_ARRAYS
from flax import core, serialization

import jax_qgemm
from jax_qgemm.flax import linen
from jax_qgemm.flax.linen import QDense, quantize_params

KEY = jax.random.key(0)


def normal(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), shape, dtype)


def relative_error(got, expected):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


class Mlp(nn.Module):
    dense: type = nn.Dense

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(self.dense(24, name="up")(x))
        return x + self.dense(16, use_bias=False, name="down")(nn.relu(y))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("use_bias", [True, False])
def test_call_is_dot(dtype, use_bias):
    x = normal(2, 3, 40, dtype=dtype)
    init = nn.initializers.normal()
    layer = QDense(24, use_bias=use_bias, bias_init=init, param_dtype=dtype)
    variables = layer.init(KEY, x)
    assert set(variables["params"]) == ({"kernel", "bias"} if use_bias else {"kernel"})
    y = jax.jit(lambda v, x: layer.apply(v, x, activation="relu"))(variables, x)
    params = variables["params"]
    expected = jax.jit(lambda x, w, b: jax_qgemm.dot(x, w, bias=b, activation="relu"))(
        x, params["kernel"], params.get("bias")
    )
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected)


def test_init_is_the_quantized_dense_of_the_same_key():
    x = normal(3, 40)
    dense = nn.Dense(24).init(KEY, x)["params"]["kernel"]
    packed = QDense(24).init(KEY, x)["params"]["kernel"]
    assert isinstance(packed, jax_qgemm.PackedWeight) and packed.shape == (40, 24)
    np.testing.assert_allclose(packed.dequantize(), dense, atol=0.01)


@pytest.mark.parametrize(
    "x_dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.int8, jnp.bool_]
)
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("use_bias", [True, False])
def test_result_has_the_dtype_of_dense(x_dtype, param_dtype, dtype, use_bias):
    options = dict(features=24, use_bias=use_bias, dtype=dtype, param_dtype=param_dtype)
    x = (2 * normal(3, 40)).astype(x_dtype)
    variables = nn.Dense(**options).init(KEY, x)
    expected = nn.Dense(**options).apply(variables, x)
    y = QDense(**options).apply(quantize_params(variables)[0], x)
    assert y.dtype == expected.dtype
    assert relative_error(y, expected) < 0.03


def test_parameters_that_were_cast_after_creation():
    x = normal(3, 16, dtype=jnp.bfloat16)
    variables = nn.Dense(8).init(KEY, x)
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    expected = nn.Dense(8).apply(variables, x).dtype
    assert QDense(8).apply(quantize_params(variables)[0], x).dtype == expected == jnp.bfloat16


def test_dtype_casts_the_input():
    layer, x = QDense(8, dtype=jnp.bfloat16), normal(2, 16)
    assert layer.apply(layer.init(KEY, x), x).dtype == jnp.bfloat16


@pytest.mark.parametrize("freeze", [core.unfreeze, core.freeze])
def test_quantize_params_of_a_float_checkpoint(freeze):
    x = normal(4, 16)
    variables = freeze(Mlp().init(KEY, x))
    new, report = quantize_params(variables)
    assert type(new) is type(variables)
    assert isinstance(new["params"]["up"]["kernel"], jax_qgemm.PackedWeight)
    assert relative_error(Mlp(QDense).apply(new, x), Mlp().apply(variables, x)) < 0.05
    assert {layer.path for layer in report.quantized} == {"params/down", "params/up"}
    assert not report.skipped
    assert report.bytes_before == sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    assert "2 layers quantized to int8" in str(report)
    # The tree has the structure that a fresh model of QDense has, so it can be restored into one.
    fresh = jax.eval_shape(lambda: freeze(Mlp(QDense).init(KEY, x)))
    assert jax.tree.structure(new) == jax.tree.structure(fresh)


def test_quantize_params_says_what_it_skips():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)},
        "bytes": {"kernel": jnp.ones((4, 8), jnp.int8)},
        "odd": {"kernel": jnp.ones((4, 8)), "recurrent": jnp.ones((8, 8))},
        "head": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)},
        "body": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)},
        "none": {"kernel": None},
        "number": {"kernel": 3},
        "norm": {"scale": jnp.ones(8)},
    }
    new, report = quantize_params(params, lambda path, kernel: path != ("head",))
    assert {layer.path: layer.skipped for layer in report.layers} == {
        "conv": "its kernel has 4 axes, not 2",
        "bytes": "its kernel is int8, not float32, bfloat16 or float16",
        "odd": "not a Dense layer: it also has recurrent",
        "none": "its kernel is None, not an array",
        "number": "its kernel is int, not an array",
        "head": "filter_fn",
        "body": "",
    }
    assert new["head"]["kernel"] is params["head"]["kernel"]
    assert isinstance(params["body"]["kernel"], jax.Array)
    with pytest.raises(TypeError, match="expected nested dicts, lists or tuples, got int"):
        quantize_params(1)
    with pytest.raises(ValueError, match="quantize_params: qtype must be .* got 'int2'"):
        quantize_params({}, qtype="int2")
    again, report = quantize_params(new, lambda path, kernel: path != ("head",))
    assert not report.quantized
    assert again["body"]["kernel"] is new["body"]["kernel"]


class Pair(NamedTuple):
    a: dict
    b: dict


def test_quantize_params_in_lists_and_tuples():
    def layer():
        return {"kernel": jnp.ones((4, 8))}

    params = {"blocks": [layer(), (layer(), 3)], "pair": Pair(layer(), {})}
    for tree, prefix in ((params, ""), ([params], "0/")):
        new, report = quantize_params(tree)
        paths = [entry.path for entry in report.quantized]
        assert paths == [prefix + p for p in ("blocks/0", "blocks/1/0", "pair/0")]
        new = new if tree is params else new[0]
        assert isinstance(new["blocks"][1][0]["kernel"], jax_qgemm.PackedWeight)
        assert isinstance(new["pair"], Pair) and new["blocks"][1][1] == 3
    assert isinstance(params["blocks"][0]["kernel"], jax.Array)


def test_parameters_without_values_are_refused():
    variables = jax.eval_shape(Mlp().init, KEY, normal(4, 16))
    with pytest.raises(ValueError, match="kernel of params/.* quantize after the weights are"):
        quantize_params(variables)


def test_float_kernel_works_with_one_warning():
    x = normal(4, 16)
    variables = Mlp().init(KEY, x)
    linen._warn_packed_at_every_call.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = Mlp(QDense).apply(variables, x)
    assert [str(w.message)[:26] for w in caught] == ["QDense got a float kernel "]
    assert "quantize_params" in str(caught[0].message)
    expected = Mlp(QDense).apply(quantize_params(variables)[0], x)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_kernel_of_another_shape_is_refused():
    x = normal(4, 16)
    variables = QDense(8).init(KEY, x)
    for layer, inputs in ((QDense(9), x), (QDense(8), normal(4, 18))):
        shape = inputs.shape[-1], layer.features
        with pytest.raises(
            ValueError, match=rf"int8\[16,8\].*expected shape \({shape[0]}, {shape[1]}\)"
        ):
            layer.apply(variables, inputs)


def test_partitioned_kernel():
    x = normal(4, 16)
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    variables = nn.Dense(8, kernel_init=init).init(KEY, x)
    new, _ = quantize_params(variables)
    y = QDense(8, kernel_init=init).apply(new, x)
    assert relative_error(y, nn.Dense(8).apply(nn.meta.unbox(variables), x)) < 0.03


def test_saves_and_loads_with_orbax(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="checkpoints need orbax")
    x = normal(4, 16)
    model = Mlp(QDense)
    variables = model.init(KEY, x)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "int8", variables)
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(7), x))
    with ocp.StandardCheckpointer() as checkpointer:
        loaded = checkpointer.restore(tmp_path / "int8", abstract)
    assert isinstance(loaded["params"]["up"]["kernel"], jax_qgemm.PackedWeight)
    np.testing.assert_array_equal(model.apply(loaded, x), model.apply(variables, x))


@pytest.mark.parametrize("qtype", ["int8", "uint8"])
def test_flax_serialization(qtype):
    x = normal(4, 16)
    layer = QDense(8, qtype=qtype)
    variables, other = layer.init(KEY, x), layer.init(jax.random.key(7), x)
    loaded = serialization.from_bytes(other, serialization.to_bytes(variables))
    np.testing.assert_array_equal(layer.apply(loaded, x), layer.apply(variables, x))


def test_serialized_data_of_a_newer_release_is_refused():
    variables = QDense(8).init(KEY, normal(4, 16))
    state = serialization.to_state_dict(variables)
    kernel = state["params"]["kernel"]
    assert all(hasattr(leaf, "dtype") for leaf in kernel.values())
    kernel["format"] = kernel["format"].copy()
    kernel["format"][0] = 99
    with pytest.raises(ValueError, match="format version 99"):
        serialization.from_state_dict(variables, state)
    del kernel["format"]
    with pytest.raises(ValueError, match="no format in the state"):
        serialization.from_state_dict(variables, state)


@pytest.mark.parametrize("qtypes", SAME_ARRAYS)
def test_serialized_data_of_another_format_is_refused(qtypes):
    x = normal(4, 64)
    one, other = (QDense(16, qtype=qtype).init(KEY, x) for qtype in qtypes)
    shapes, others = ([leaf.shape for leaf in jax.tree.leaves(v)] for v in (one, other))
    assert shapes == others
    with pytest.raises(ValueError, match=r"from_state_dict: the data is .*, expected that of"):
        serialization.from_bytes(other, serialization.to_bytes(one))


def test_serialized_data_of_other_sizes_is_refused():
    wide, tall = (QDense(n, qtype="fp16").init(KEY, normal(4, k)) for n, k in ((32, 16), (16, 32)))
    with pytest.raises(ValueError, match="the data is that of a 16×32 kernel, expected"):
        serialization.from_bytes(tall, serialization.to_bytes(wide))
