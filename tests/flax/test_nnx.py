"""QLinear and quantize_: agreement with dot, replacement across models, state and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax", reason="the layers need flax")
from cases import SAME_ARRAYS
from flax import nnx, struct

import jax_qgemm
from jax_qgemm.flax.nnx import QLinear, QuantizedParam, quantize_


def rngs():
    return nnx.Rngs(0)


def normal(*shape, dtype=jnp.float32, seed=1):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def relative_error(got, expected):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


class Mlp(nnx.Module):
    def __init__(self, rngs, features=24):
        self.up = nnx.Linear(16, features, rngs=rngs)
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.down = nnx.Linear(features, 16, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.norm(self.up(x))))


class Zoo(nnx.Module):
    """Linear layers in every kind of container that nnx allows."""

    def __init__(self, rngs):
        self.blocks = nnx.List([Mlp(rngs), Mlp(rngs)])
        self.sequence = nnx.Sequential(nnx.Linear(16, 16, rngs=rngs), nnx.relu, Mlp(rngs))
        self.named = nnx.Dict(a=nnx.Linear(16, 16, rngs=rngs))
        self.plain_list = nnx.data([nnx.Linear(16, 16, rngs=rngs)])
        self.plain_dict = nnx.data({"a": {"b": nnx.Linear(16, 16, rngs=rngs)}})
        self.plain_tuple = nnx.data((nnx.Linear(16, 16, rngs=rngs), 3))
        self.tied = self.named.a

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        x = self.tied(self.named.a(self.sequence(x)))
        return self.plain_tuple[0](self.plain_dict["a"]["b"](self.plain_list[0](x)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_call_is_dot(dtype, use_bias, leading):
    options = dict(use_bias=use_bias, bias_init=nnx.initializers.normal(), param_dtype=dtype)
    linear = nnx.Linear(40, 24, **options, rngs=rngs())
    layer = QLinear.from_linear(linear)
    x = normal(*leading, 40, dtype=dtype)
    bias = linear.bias[...] if use_bias else None
    w = jax_qgemm.pack_weight(linear.kernel[...], "int8")
    y = layer(x, activation="relu")
    assert y.dtype == dtype and y.shape == (*leading, 24)
    np.testing.assert_array_equal(y, jax_qgemm.dot(x, w, bias=bias, activation="relu"))
    assert relative_error(layer(x), linear(x)) < 0.03


@pytest.mark.parametrize("qtype", ["int8", "uint8"])
def test_created_layer_is_the_quantized_linear_of_the_same_seed(qtype):
    layer, linear = QLinear(40, 24, qtype=qtype, rngs=rngs()), nnx.Linear(40, 24, rngs=rngs())
    np.testing.assert_allclose(layer.weight.dequantize(), linear.kernel[...], atol=0.01)
    assert layer.weight.qtype == qtype
    assert relative_error(layer(normal(3, 40)), linear(normal(3, 40))) < 0.03


INPUTS = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.int8, jnp.bool_]


@pytest.mark.parametrize("x_dtype", INPUTS)
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
def test_result_has_the_dtype_of_linear(x_dtype, param_dtype, dtype):
    linear = nnx.Linear(40, 24, dtype=dtype, param_dtype=param_dtype, rngs=rngs())
    layer = QLinear.from_linear(linear)
    x = (2 * normal(3, 40)).astype(x_dtype)
    expected, y = linear(x), layer(x)
    assert y.dtype == expected.dtype == jax.jit(layer)(x).dtype
    assert layer.param_dtype == param_dtype
    assert relative_error(y, expected) < 0.03
    again = nnx.merge(*nnx.split(layer))
    np.testing.assert_array_equal(again(x), y)


def test_parameters_that_were_cast_after_creation():
    linear = nnx.Linear(16, 8, use_bias=False, rngs=rngs())
    linear.kernel = nnx.Param(linear.kernel[...].astype(jnp.bfloat16))
    x = normal(2, 16, dtype=jnp.bfloat16)
    assert QLinear.from_linear(linear)(x).dtype == linear(x).dtype == jnp.bfloat16


def test_float16_layers():
    linear = nnx.Linear(16, 8, dtype=jnp.float16, rngs=rngs())
    x = normal(2, 16)
    y = QLinear.from_linear(linear)(x)
    assert y.dtype == linear(x).dtype == jnp.float16
    assert np.allclose(y, linear(x), atol=0.1)


def test_float64_results_are_computed_in_float32():
    layer, x = QLinear(16, 8, rngs=rngs()), normal(2, 16)
    with jax.enable_x64(True):
        y = layer(np.asarray(x, np.float64))
        assert y.dtype == jnp.float64
    np.testing.assert_array_equal(np.asarray(y, np.float32), layer(x))


def test_inputs_and_dtypes_that_are_refused():
    layer = QLinear(16, 8, rngs=rngs())
    with pytest.raises(TypeError, match=r"QLinear: .* got complex64 \(x: complex64\[2,16\]"):
        layer(jnp.ones((2, 16), jnp.complex64))
    with pytest.raises(TypeError, match="QLinear: the result .* got int32"):
        QLinear(16, 8, dtype=jnp.int32, rngs=rngs())(jnp.ones((2, 16)))
    with pytest.raises(NotImplementedError, match="QLinear: out_sharding must be None, got x"):
        layer(jnp.ones((2, 16)), out_sharding="x")
    assert layer(jnp.ones((2, 16)), None).shape == (2, 8)


def test_data_of_a_newer_release_is_refused():
    layer, x = QLinear(16, 8, rngs=rngs()), normal(2, 16)
    graph, state = nnx.split(layer)
    state["format"] = state["format"].replace(jnp.zeros((99, 1, 1), jnp.uint8))
    with pytest.raises(ValueError, match="format version 99"):
        nnx.merge(graph, state)(x)
    with pytest.raises(ValueError, match="format version 99"):  # values are not known here
        jax.jit(lambda state: nnx.merge(graph, state)(x))(state)
    assert layer.weight.format_version == jax_qgemm.pack_weight(normal(4, 4)).format_version


@pytest.mark.parametrize("qtypes", SAME_ARRAYS)
def test_data_of_another_format_is_refused(qtypes):
    one, other = (QLinear(64, 16, qtype=qtype, use_bias=False, rngs=rngs()) for qtype in qtypes)
    assert one.data.shape == other.data.shape
    nnx.update(other, nnx.state(one))
    for call in (other, nnx.jit(lambda x: other(x))):
        with pytest.raises(ValueError, match=r"QLinear: the data is .*, expected that of"):
            call(normal(2, 64))


def test_the_format_is_in_a_checkpoint(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="checkpoints need orbax")
    newer, layer = QLinear(16, 8, rngs=rngs()), QLinear(16, 8, rngs=rngs())
    newer.format = QuantizedParam(jnp.zeros((99, 1, 1), jnp.uint8))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "newer", nnx.state(newer))
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(layer, checkpointer.restore(tmp_path / "newer", nnx.state(newer)))
    with pytest.raises(ValueError, match="format version 99"):
        layer(normal(2, 16))


def stacked(make):
    """Three layers, as nnx.vmap makes them."""
    return nnx.split_rngs(splits=3)(nnx.vmap(make))(nnx.Rngs(0))


def test_layers_made_under_vmap():
    stack = stacked(lambda rngs: QLinear(16, 8, rngs=rngs))
    assert stack.weight.shape == (3, 16, 8) and stack.weight.format_version == 1
    y = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(stack, normal(2, 16))
    assert y.shape == (3, 2, 8)


def test_biases_and_what_is_not_quantized_can_be_trained():
    model, x = nnx.Sequential(*(nnx.Linear(8, 8, rngs=rngs()) for _ in range(2))), normal(2, 8)
    quantize_(model, filter_fn=lambda path, layer: path[-1] == 0)

    def loss(model):
        return jnp.sum(model(x))

    grads = nnx.to_flat_state(nnx.grad(loss)(model))
    assert [path[-1] for path in grads.paths] == ["bias", "bias", "kernel"]
    before = jnp.ones((2, 8)) @ model.layers[1].kernel[...].T  # of the sum, behind the first layer
    np.testing.assert_allclose(grads.leaves[0][...], before.sum(0), rtol=1e-5)


def test_dtype_casts_the_input():
    layer = QLinear(8, 4, dtype=jnp.bfloat16, rngs=rngs())
    assert layer(normal(2, 8)).dtype == jnp.bfloat16


def test_from_linear_shares_the_bias_and_keeps_the_layer():
    linear = nnx.Linear(8, 4, rngs=rngs())
    layer = QLinear.from_linear(linear)
    assert layer.bias is linear.bias
    assert linear.kernel.shape == (8, 4)


def test_only_the_bias_is_trainable():
    layer = QLinear(8, 4, rngs=rngs())
    assert set(nnx.state(layer, nnx.Param)) == {"bias"}
    assert set(nnx.state(layer, QuantizedParam)) == {
        "data",
        "scale",
        "column_sums",
        "format",
    }


def test_split_merge_under_jit():
    layer = QLinear(40, 24, rngs=rngs())
    graph, state = nnx.split(layer)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    x = normal(3, 40)
    y = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)
    np.testing.assert_allclose(y, layer(x), rtol=1e-6)
    np.testing.assert_allclose(nnx.jit(lambda layer, x: layer(x))(layer, x), y, rtol=1e-6)


def test_quantize_replaces_every_container():
    model = Zoo(rngs())
    x = normal(4, 16)
    expected = model(x)
    report = quantize_(model)
    assert not any(isinstance(node, nnx.Linear) for _, node in nnx.iter_graph(model))
    assert relative_error(model(x), expected) < 0.05
    assert not report.skipped
    assert {layer.path for layer in report.quantized} == {
        "blocks/0/up",
        "blocks/0/down",
        "blocks/1/up",
        "blocks/1/down",
        "sequence/layers/0",
        "sequence/layers/2/up",
        "sequence/layers/2/down",
        "named/a",
        "plain_list/0",
        "plain_dict/a/b",
        "plain_tuple/0",
    }
    graph, state = nnx.split(model)
    y = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)
    np.testing.assert_allclose(y, model(x), rtol=1e-4, atol=1e-5)


def test_shared_layer_stays_shared():
    model = Zoo(rngs())
    quantize_(model)
    assert isinstance(model.tied, QLinear)
    assert model.tied is model.named.a


def test_a_cycle_of_modules_ends():
    model = Mlp(rngs())
    model.itself = model
    assert len(quantize_(model).quantized) == 2


def test_filter_fn_sees_path_and_layer():
    model = Zoo(rngs())
    report = quantize_(
        model, filter_fn=lambda path, layer: path[0] == "blocks" and layer.out_features == 24
    )
    assert [layer.path for layer in report.quantized] == ["blocks/0/up", "blocks/1/up"]
    assert {layer.skipped for layer in report.skipped} == {"filter_fn"}
    assert isinstance(model.blocks[0].down, nnx.Linear)


class Skipped(nnx.Module):
    def __init__(self, rngs):
        self.general = nnx.LinearGeneral(8, (2, 4), rngs=rngs)
        self.einsum = nnx.Einsum("ab,bc->ac", (8, 8), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.conv = nnx.Conv(4, 8, (3, 3), rngs=rngs)
        self.embed = nnx.Embed(10, 8, rngs=rngs)
        self.lora = nnx.LoRALinear(8, 8, lora_rank=2, rngs=rngs)
        self.double = nnx.Linear(8, 8, dtype=jnp.float64, rngs=rngs)
        self.bytes = nnx.Linear(8, 8, dtype=jnp.float32, rngs=rngs)
        self.bytes.kernel = nnx.Param(jnp.ones((8, 8), jnp.int8))
        self.hooked = nnx.Linear(8, 8, dot_general=lambda *a, **k: None, rngs=rngs)
        self.wide = nnx.Linear(8, 8, preferred_element_type=jnp.float32, rngs=rngs)
        self.normed = nnx.WeightNorm(nnx.Linear(8, 8, rngs=rngs), rngs=rngs)
        self.stacked = stacked(lambda rngs: nnx.Linear(8, 8, rngs=rngs))


def test_report_says_why_layers_are_skipped():
    model = Skipped(rngs())
    before = jax.tree.map(jnp.copy, nnx.state(model))
    report = quantize_(model)
    assert not report.quantized
    reasons = {layer.path: layer.skipped for layer in report.skipped}
    assert reasons == {
        "general": "there is no quantized LinearGeneral yet",
        "einsum": "there is no quantized Einsum yet",
        "attention/query": "there is no quantized LinearGeneral yet",
        "attention/key": "there is no quantized LinearGeneral yet",
        "attention/value": "there is no quantized LinearGeneral yet",
        "attention/out": "there is no quantized LinearGeneral yet",
        "conv": "there is no quantized Conv yet",
        "embed": "there is no quantized Embed yet",
        "lora": "LoRALinear is a subclass of nnx.Linear, with a meaning of its own",
        "double": "it computes in float64, not float32, bfloat16 or float16",
        "bytes": "it is stored in int8, not float32, bfloat16 or float16",
        "hooked": "it has its own dot_general",
        "wide": "it has its own preferred_element_type",
        "normed/layer_instance": "WeightNorm rewrites its kernel at every call",
        "stacked": "its kernel has 3 axes, not 2 (stacked layers?)",
    }
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


def test_report_is_a_table_with_sizes():
    model = Mlp(rngs(), features=64)
    report = quantize_(model, filter_fn=lambda path, layer: path != ("down",))
    lines = str(report).splitlines()
    assert lines[0].split() == ["path", "layer", "before", "after"]
    assert "up" in str(report) and "Linear 16×64" in str(report) and "4.4 KB" in str(report)
    assert "skipped: filter_fn" in str(report)
    assert lines[-1] == (
        f"1 layer quantized to int8, 1 left as they were; model 9.0 KB → {after(model)}"
    )
    assert report.bytes_after == sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))


def after(model):
    return f"{sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model))) / 1000:.1f} KB"


def test_a_second_call_finds_nothing_to_do():
    model = Zoo(rngs())
    quantize_(model)
    assert not quantize_(model).layers


def test_base_of_an_adapter():
    base = nnx.Linear(8, 12, rngs=rngs())
    model = nnx.LoRA(8, 2, 12, base_module=base, rngs=rngs())
    expected = model(normal(2, 8))
    assert [layer.path for layer in quantize_(model).quantized] == ["base_module"]
    assert relative_error(model(normal(2, 8)), expected) < 0.03


def test_layer_in_an_unknown_container_is_reported():
    model = nnx.Module()
    model.held = nnx.data(Frozen(nnx.Linear(4, 4, rngs=rngs())))
    (layer,) = quantize_(model).skipped
    assert layer.path == "held/layer"
    assert layer.skipped == "held by a container that cannot be changed in place"


@struct.dataclass
class Frozen:
    layer: nnx.Linear


def test_an_exception_leaves_the_model_as_it_was():
    model = Zoo(rngs())
    before = [id(node) for _, node in nnx.iter_graph(model)]

    def fails(path, layer):
        if path[0] == "tied":
            return True
        if path[0] == "sequence":
            raise RuntimeError("no")
        return True

    with pytest.raises(RuntimeError, match="no"):
        quantize_(model, filter_fn=fails)
    assert [id(node) for _, node in nnx.iter_graph(model)] == before


def test_a_model_without_values_is_refused():
    model = nnx.eval_shape(lambda: Mlp(rngs()))
    message = "down has only shapes, .*quantize after the weights are loaded"
    with pytest.raises(ValueError, match=message):
        quantize_(model, filter_fn=lambda path, layer: path == ("down",))
    assert isinstance(model.down, nnx.Linear)
    with pytest.raises(ValueError, match="from_linear: linear has only shapes"):
        QLinear.from_linear(model.up)
    assert not quantize_(model, filter_fn=lambda path, layer: False).quantized


def test_a_bad_config_is_refused_even_with_nothing_to_do():
    with pytest.raises(
        ValueError,
        match="quantize_: config must be 'int8', .* 'int4' or 'int8_blocks', got 'int2'",
    ):
        quantize_(nnx.LayerNorm(4, rngs=rngs()), "int2")


def test_recurrent_cell():
    cell = nnx.GRUCell(8, 12, rngs=rngs())
    carry, x = jnp.zeros((2, 12)), normal(2, 8)
    expected, _ = cell(carry, x)
    assert len(quantize_(cell).quantized) == 2
    assert relative_error(cell(carry, x)[0], expected) < 0.05


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nnx.Linear(4, 4, rngs=nnx.Rngs(0)), TypeError, "use QLinear.from_linear"),
        ({"a": 1}, TypeError, "expected an nnx.Module, got dict"),
    ],
)
def test_quantize_errors(model, error, message):
    with pytest.raises(error, match=message):
        quantize_(model)


def test_from_linear_errors():
    with pytest.raises(TypeError, match="expected an nnx.Linear, got Conv"):
        QLinear.from_linear(nnx.Conv(4, 4, (3, 3), rngs=rngs()))
    with pytest.raises(ValueError, match="computes in float64"):
        QLinear.from_linear(nnx.Linear(4, 4, dtype=jnp.float64, rngs=rngs()))
    with pytest.raises(ValueError, match="qtype"):
        QLinear.from_linear(nnx.Linear(4, 4, rngs=rngs()), "int7")


def test_float_checkpoint_then_quantize(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="checkpoints need orbax")
    trained = Mlp(rngs())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "float", nnx.state(trained))
    abstract = nnx.eval_shape(lambda: Mlp(rngs()))
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(abstract, checkpointer.restore(tmp_path / "float", nnx.state(abstract)))
    quantize_(abstract)
    assert relative_error(abstract(normal(4, 16)), trained(normal(4, 16))) < 0.05


def test_quantized_state_saves_and_loads_with_orbax(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="checkpoints need orbax")

    def quantized(seed):
        model = Mlp(nnx.Rngs(seed))
        quantize_(model)
        return model

    model = quantized(0)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "int8", nnx.state(model))
    # The model to load into: shapes alone, nothing is computed.
    loaded = nnx.eval_shape(lambda: quantized(1))
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(loaded, checkpointer.restore(tmp_path / "int8", nnx.state(loaded)))
    np.testing.assert_array_equal(loaded(normal(4, 16)), model(normal(4, 16)))
