"""Flax layers with sharding metadata on virtual devices: `python layer_sharding_checks.py DEVICES`,
see sharding_checks.py. Run by test_sharded_layers.py."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, serialization
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sharding_checks import array, collectives, main, mesh_of, put, same

import jax_qgemm as jq
from jax_qgemm.flax.linen import QDense, quantize_params
from jax_qgemm.flax.nnx import QLinear, quantize_

FORMATS = ["int8", "int8:32", "fp16", "int4:32"]
M, K, N = 16, 256, 1024
KERNEL_INIT, BIAS_INIT = nnx.initializers.lecun_normal(), nnx.initializers.normal()


def linear(k, n, rows, columns, seed=0, cls=nnx.Linear, **more):
    """A layer whose kernel has this metadata, and its bias that of the columns."""
    metadata = more.pop("metadata", {})
    kernel_init = nnx.with_partitioning(KERNEL_INIT, (rows, columns), **metadata)
    bias_init = nnx.with_partitioning(BIAS_INIT, (columns,), **metadata)
    inits = dict(kernel_init=kernel_init, bias_init=bias_init)
    return cls(k, n, **inits, rngs=nnx.Rngs(seed), **more)


def plain(layer, form="int8"):
    """(weight, bias) of the layer that is not split."""
    kernel, bias = (jnp.asarray(np.asarray(part[...])) for part in (layer.kernel, layer.bias))
    return jq.pack_weight(kernel, form), bias


def jitted(model):
    graph, state = nnx.split(model)
    return (lambda state, x: nnx.merge(graph, state)(x)), state


def columns_stay_where_they_are(form):
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        layer = linear(K, N, None, "model")
        quantized = QLinear.from_linear(layer, form)
        created = linear(K, N, None, "model", cls=QLinear, qtype=form)
    for q in (quantized, created):
        assert q.data[...].sharding.spec == P("model"), q.data[...].sharding
        if q.column_sums is not None:
            assert q.column_sums[...].sharding.spec == P(None, "model")
    x = array(0, M, K)
    weight, bias = plain(layer, form)
    want = jq.dot(x, weight, bias=bias)
    for q in (quantized, created):
        f, state = jitted(q)
        sharded = put(x, mesh, "data")
        assert not collectives(f, state, sharded)
        out = jax.jit(f)(state, sharded)
        assert out.sharding.is_equivalent_to(NamedSharding(mesh, P("data", "model")), 2)
        same(out, want)


def rows_are_summed(form, kind=AxisType.Auto):
    """Columns, then rows (Megatron): activations stay where they are, one sum at the end."""
    mesh = mesh_of(kind)

    class Block(nnx.Module):
        def __init__(self):
            self.up = linear(K, N, None, "model")
            self.down = linear(N, K, "model", None, seed=1)

        def __call__(self, x):
            return self.down(self.up(x, activation="gelu"))

    with jax.set_mesh(mesh):
        block = Block()
        layers = block.up, block.down
        report = quantize_(block, form)
    assert not any(layer.skipped for layer in report.layers)
    assert block.down.data[...].sharding.spec == P("model", None)
    assert isinstance(block.down.weight, jq.RowParallelWeight)
    assert block.down.weight.shape == (N, K)
    x = array(0, M, K)
    f, state = jitted(block)
    sharded = put(x, mesh, "data")
    with jax.set_mesh(mesh):
        assert collectives(f, state, sharded) == {"all-reduce"}
        out = jax.jit(f)(state, sharded)
    (up, up_bias), (down, down_bias) = (plain(layer, form) for layer in layers)
    want = jq.dot(jq.dot(x, up, bias=up_bias, activation="gelu"), down, bias=down_bias)
    same(out, want, 0 if form == "int8" else 1e-5)


def rows_are_summed_by_explicit_types(form):
    rows_are_summed(form, AxisType.Explicit)


def rows_and_columns():
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        layer = linear(K, N, "data", "model")
        quantized = QLinear.from_linear(layer)
    assert quantized.data[...].sharding.spec == P("data", "model") or mesh.shape["data"] == 1
    x = array(0, M, K)
    weight, bias = plain(layer)
    f, state = jitted(quantized)
    same(jax.jit(f)(state, x), jq.dot(x, weight, bias=bias))


def logical_names():
    mesh = mesh_of()
    rules = (("mlp", "model"), ("embed", None))
    with jax.set_mesh(mesh):
        layer = linear(K, N, "embed", "mlp", metadata={"sharding_rules": rules})
        quantized = QLinear.from_linear(layer)
    assert quantized.data[...].sharding.spec == P("model")
    specs = nnx.get_partition_spec(nnx.state(quantized))
    spec = jax.tree.leaves(specs["column_sums"], is_leaf=lambda node: isinstance(node, P))[0]
    assert spec == P(None, "model"), spec


def named_shardings():
    """Metadata that brings its mesh."""
    mesh = mesh_of()
    for spec, expected in ((P(None, "model"), P("model")), (P("model"), P("model", None))):
        names = NamedSharding(mesh, spec)
        kernel_init = nnx.with_partitioning(KERNEL_INIT, names)
        layer = nnx.Linear(K, N, kernel_init=kernel_init, rngs=nnx.Rngs(0))
        quantized = QLinear.from_linear(layer)
        assert quantized.data[...].sharding == NamedSharding(mesh, expected)
        weight, bias = plain(layer)
        f, state = jitted(quantized)
        same(jax.jit(f)(state, array(0, M, K)), jq.dot(array(0, M, K), weight, bias=bias))


def what_cannot_be_split_is_whole():
    """Columns that are not whole panels, groups that parts of K would cut."""
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        for k, n, rows, columns, form in (
            (K, 96, None, "model", "int8"),
            (96, N, "model", None, "int8:64"),
        ):
            layer = linear(k, n, rows, columns)
            quantized = QLinear.from_linear(layer, form)
            assert quantized.data[...].sharding.is_fully_replicated
            f, state = jitted(quantized)
            x = array(0, M, k)
            weight, bias = plain(layer, form)
            same(jax.jit(f)(state, x), jq.dot(x, weight, bias=bias))


def state_is_put_by_its_specs():
    """Quantized where there is no mesh, split afterwards."""
    layer = linear(K, N, "data", "model", metadata={"eager_sharding": False})
    quantized = QLinear.from_linear(layer)
    assert quantized.row_parts == 1
    mesh = mesh_of()
    f, state = jitted(quantized)
    state = jax.device_put(state, nnx.get_named_sharding(state, mesh))
    x = put(array(0, M, K), mesh, "data")
    assert not collectives(f, state, x)
    weight, bias = plain(layer)
    same(jax.jit(f)(state, x), jq.dot(array(0, M, K), weight, bias=bias))


def explicit_types():
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        layer = linear(K, N, "data", "model")
        quantized = QLinear.from_linear(layer)
        f, state = jitted(quantized)
        out = jax.jit(f)(state, put(array(0, M, K), mesh, "data"))
        assert jax.typeof(out).sharding.spec == P("data", "model")
    weight, bias = plain(layer)
    same(out, jq.dot(array(0, M, K), weight, bias=bias))


def linen_metadata(form):
    mesh = mesh_of()
    inits = dict(
        kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model")),
        bias_init=nn.with_partitioning(nn.initializers.normal(), ("model",)),
    )
    x = array(0, M, K)
    variables = nn.Dense(N, **inits).init(jax.random.key(0), x)
    quantized, _ = quantize_params(variables, qtype=form)
    layer = QDense(N, qtype=form, **inits)
    created = layer.init(jax.random.key(0), x)
    assert jax.tree.structure(created) == jax.tree.structure(quantized)
    loaded = serialization.from_bytes(created, serialization.to_bytes(quantized))
    want = layer.apply(nn.meta.unbox(quantized), x)
    specs = nn.get_partition_spec(quantized)
    assert specs["params"]["kernel"].data == P("model")
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    for boxed in (quantized, created, loaded):
        same(layer.apply(boxed, x), want)
        put_ = jax.device_put(nn.meta.unbox(boxed), shardings)
        assert not collectives(layer.apply, put_, put(x, mesh, "data"))
        same(jax.jit(layer.apply)(put_, put(x, mesh, "data")), want)


CHECKS = {
    f"{check.__name__}-{form}": functools.partial(check, form)
    for check in (
        columns_stay_where_they_are,
        rows_are_summed,
        rows_are_summed_by_explicit_types,
        linen_metadata,
    )
    for form in FORMATS
} | {
    check.__name__: check
    for check in (
        rows_and_columns,
        logical_names,
        named_shardings,
        what_cannot_be_split_is_whole,
        state_is_put_by_its_specs,
        explicit_types,
    )
}

if __name__ == "__main__":
    main(CHECKS)
