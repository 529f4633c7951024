"""README.md's table: each operation under each transformation, against the references.

Devices have a process of their own: `operation_by_*` of sharding_checks.py. What a cell says in
more detail (any order, one call for all, no communication) has tests of its own, by subject."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.experimental import jet
from operations import KERNELS, NAMES, operations, values

import jax_qgemm as jq

EVERY = pytest.mark.parametrize("name", NAMES)
DIFFERENTIABLE = ("dot", "ragged_dot")


def test_the_table_has_these_operations_and_transformations():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    section = text.split("## Under JAX's transformations")[1].split("\n- ")[0]
    rows = [line.split("|")[1:-1] for line in section.strip().splitlines()]
    header, _, *body = [[re.findall(r"`([^`]+)`", cell) for cell in row] for row in rows]
    named = [name for cell in header[1:] for name in cell]
    assert named == [*NAMES, "KVCache.update"]
    transformations = [name for row in body for name in row[0]]
    assert transformations == [
        *("jvp", "grad", "vjp", "jax.experimental.jet", "vmap"),
        *("scan", "while_loop", "cond", "checkpoint"),
        *("shard_map", "jit", "jax.export"),
    ]


@EVERY
def test_alone(name):
    operation = operations()[name]
    for i in range(2):
        operation.check(operation.f(*operation.arguments(i)), i)
        operation.check(jax.jit(operation.f)(*operation.arguments(i)), i)


def of_x(name):
    """(operation as a function of float x, x) of the first set."""
    operation = operations()[name]
    x, *rest = operation.arguments(0)

    def f(x):
        return jax.tree.leaves(operation.f(x, *rest))[-1]

    return f, x


def real(name):
    """The float32 product, linear in x, whose derivatives the operation has."""
    kernels = [q * scale for q, scale in values()]
    if name == "dot":
        return lambda x: x @ kernels[0]
    sizes = operations()[name].arguments(0)[1]
    return lambda x: lax.ragged_dot(x, jnp.stack(kernels), sizes)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives(name):
    (f, x), linear = of_x(name), real(name)
    v = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    close = {"rtol": 1e-4, "atol": 1e-4}
    tangent = linear(v)
    np.testing.assert_allclose(jax.jvp(f, (x,), (v,))[1], tangent, **close)
    ct = jnp.sin(jnp.arange(tangent.size, dtype=jnp.float32)).reshape(tangent.shape)
    want = jax.vjp(linear, x)[1](ct)[0]
    np.testing.assert_allclose(jax.vjp(f, x)[1](ct)[0], want, **close)
    np.testing.assert_allclose(jax.grad(lambda x: (f(x) * ct).sum())(x), want, **close)
    # Second order: of half the squares it is that of the linear product.
    second = jax.jvp(jax.grad(lambda x: (f(x) ** 2).sum() / 2), (x,), (v,))[1]
    np.testing.assert_allclose(second, jax.vjp(linear, x)[1](tangent)[0], rtol=1e-3, atol=1e-3)
    _, (first, rest) = jet.jet(f, (x,), ((v, jnp.zeros_like(v)),))
    np.testing.assert_allclose(first, tangent, **close)
    np.testing.assert_allclose(rest, jnp.zeros_like(tangent), **close)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DIFFERENTIABLE])
def test_derivatives_are_refused(name):
    f, x = of_x(name)

    def loss(x):
        return f(x).astype(jnp.float32).sum()

    for transformed in (
        lambda: jax.jvp(loss, (x,), (x,)),
        lambda: jax.vjp(loss, x),
        lambda: jax.grad(loss)(x),
        lambda: jet.jet(loss, (x,), ((x, x),)),
    ):
        with pytest.raises(NotImplementedError, match=r"jax_qgemm\.\w+: .*(differentiable|jet)"):
            transformed()


def test_jet_is_refused_where_it_would_miss_a_custom_derivative():
    x, parts = jnp.ones((4, 64)), jq.pack_row_parallel(KERNELS[0], "int8", parts=2)
    for f in (
        lambda x: jq.fake_quantize(x, "int8"),
        lambda x: jq.fake_quantize(x, "int8", scale=0.1),
        lambda x: jq.dot(x, parts),
        lambda x: jq.quantize(x, "int8").scale,
    ):
        with pytest.raises(NotImplementedError, match="jax.experimental.jet has no rule"):
            jet.jet(f, (x,), ((x,),))


@EVERY
def test_vmap(name):
    operation = operations()[name]
    f = jax.vmap(lambda *own: operation.f(*own, *operation.shared))
    operation.check_sets(f(*operation.own))
    operation.check_sets(jax.jit(f)(*operation.own))


@pytest.mark.parametrize("name", ["dot", "quantized_linear"])
def test_vmap_over_weights(name):
    operation = operations()[name]
    own, stack = operation.arguments(0)[:-1], jax.vmap(jq.pack_weight)(KERNELS)
    got = jax.vmap(lambda w: operation.f(*own, w))(stack)
    operation.check(got[0], 0)
    for i in range(3):
        w = jax.tree.map(lambda leaf, i=i: leaf[i], stack)
        np.testing.assert_array_equal(got[i], operation.f(*own, w))


@EVERY
def test_control_flow(name):
    operation = operations()[name]

    def f(own):
        return operation.f(*own, *operation.shared)

    @jax.jit
    def scanned(own):
        return lax.scan(lambda _, own: (None, f(own)), None, own)[1]

    operation.check_sets(scanned(operation.own))
    first = operation.arguments(0)[: len(operation.own)]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(f, first))

    @jax.jit
    def loop(own):
        return lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, f(own)), (0, zeros))[1]

    @jax.jit
    def branch(taken, own):
        return lax.cond(taken, f, lambda own: zeros, own)

    operation.check(loop(first), 0)
    operation.check(branch(True, first), 0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(branch(False, first)))
    operation.check(jax.checkpoint(f)(first), 0)
    operation.check(jax.jit(jax.checkpoint(f))(first), 0)


@EVERY
def test_checkpoint_is_differentiated_as_the_operation_is(name):
    f, x = of_x(name)

    def loss(x):
        return f(x).astype(jnp.float32).sum()

    if name in DIFFERENTIABLE:
        want = jax.grad(loss)(x)
        np.testing.assert_array_equal(jax.grad(jax.checkpoint(loss))(x), want)
    else:
        with pytest.raises(NotImplementedError):
            jax.grad(jax.checkpoint(loss))(x)


def exported(f, *arguments, **more):
    program = export.export(jax.jit(f), disabled_checks=jq.export_checks(), **more)(*arguments)
    return export.deserialize(program.serialize())


@EVERY
def test_export(name):
    operation = operations()[name]
    arguments = operation.arguments(0)
    operation.check(exported(operation.f, *arguments).call(*arguments), 0)
    for_all = exported(operation.f, *arguments, platforms=("cpu", "cuda", "tpu"))
    operation.check(for_all.call(*arguments), 0)


@EVERY
def test_export_with_a_symbolic_batch(name):
    """Of any number of sets, mapped; and of the operation's own leading axis."""
    operation = operations()[name]
    (b,) = export.symbolic_shape("b")

    def mapped(own):
        return jax.vmap(lambda *own: operation.f(*own, *operation.shared))(*own)

    def symbolic(leaf):
        return jax.ShapeDtypeStruct((b, *leaf.shape[1:]), leaf.dtype)

    if name != "ragged_dot":  # under vmap one by one, for which the number has to be known
        program = exported(mapped, jax.tree.map(symbolic, operation.own))
        operation.check_sets(program.call(operation.own))
    x, *rest = operation.arguments(0)
    if name == "attention":  # its batch is that of all its arguments
        rest = jax.tree.map(symbolic, rest)
    program = exported(operation.f, symbolic(x), *rest)
    operation.check(program.call(*operation.arguments(0)), 0)
