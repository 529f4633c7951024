"""What the primitives share: definition with eager use and lowerings, folding, mapping."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_qgemm import compat, native
from jax_qgemm.explicit import whole, without_mesh
from jax_qgemm.primitives.partitioning import partitioned, with_sharding
from jax_qgemm.primitives.undifferentiated import refuse_gradient, refuse_series


def define(
    target: str,
    *,
    abstract_eval,
    reference,
    attributes,
    batch,
    operation,
    split,
    call_attributes=None,
    fold=None,
    aliases=None,
) -> Primitive:
    """A primitive with several results, lowered to the FFI `target` where it is registered.

    Args:
      target: name of the FFI target, versioned; the primitive's name is its first part.
      abstract_eval: avals and parameters → list of result avals.
      reference: arrays and parameters → list of arrays, in plain JAX: the lowering everywhere
        else.
      attributes: parameters → attributes of the composite in exported programs, and of the custom
        call.
      batch: (operands, dims, **params) → (results, dims).
      operation: parameters → name of the public function, for messages and composites.
      split: avals, results and parameters → how it is computed in parts (`Split`), and how many
        parts of each factor → the parameters of one part.
      call_attributes: parameters → attributes of the custom call, where they are others.
      fold: function of operands and parameters, those and parameters → None, or a function of
        operands that calls it with fewer dimensions: what the custom call takes.
      aliases: operands by number → results that may share their memory.
    """
    name = target.removesuffix(".v1").replace(".", "_")
    primitive = Primitive(name)
    primitive.multiple_results = True

    def typed(*avals, **params):
        results = abstract_eval(*avals, **params)
        if all(aval.sharding.mesh.empty for aval in avals):
            return results
        return with_sharding(split(avals, results, **params)[0], avals, results)

    inner = Primitive(f"{name}_decomposition")  # of the composite in exported programs
    inner.multiple_results = True

    def composite(ctx, *operands, **params):
        function = jax.lax.composite(
            lambda *arrays, **_: tuple(inner.bind(*arrays, **params)),
            name=f"jax_qgemm.{operation(**params)}",
            version=1,
        )
        named = functools.partial(function, **attributes(**params))
        return mlir.lower_fun(named, multiple_results=True)(ctx, *operands)

    def is_named(ctx):
        return compat.exports(ctx) and compat.takes_composites(ctx)

    by_reference = mlir.lower_fun(reference, multiple_results=True)

    def lower(ctx, *operands, **params):
        how = composite if is_named(ctx) else by_reference
        return how(ctx, *operands, **params)

    primitive.def_abstract_eval(typed)
    primitive.def_impl(_eager(primitive))
    mlir.register_lowering(primitive, lower)
    inner.def_abstract_eval(typed)
    mlir.register_lowering(inner, by_reference)
    if target in native.targets:
        call = jax.ffi.ffi_lowering(target, operand_output_aliases=aliases)

        def by_call(bind, ctx, *operands, **params):
            folded = fold and fold(bind, ctx.avals_in, **params)
            if folded:
                return mlir.lower_fun(without_mesh(folded), multiple_results=True)(ctx, *operands)
            return call(ctx, *operands, **(call_attributes or attributes)(**params))

        def lower_on_cpu(ctx, *operands, **params):
            if is_named(ctx):
                return composite(ctx, *operands, **params)
            if not compat.splits_operands(ctx):
                return by_call(primitive.bind, ctx, *operands, **params)
            how, localize = split(ctx.avals_in, ctx.avals_out, **params)
            function = partitioned(primitive.bind, how, localize, ctx.avals_in, ctx.avals_out)
            return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)

        mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")
        mlir.register_lowering(inner, functools.partial(by_call, inner.bind), platform="cpu")
        compat.lower_by_devices(primitive)
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = lambda primals, tangents, **params: refuse_gradient(
        operation(**params)
    )
    jet.jet_rules[primitive] = lambda primals, series, **params: refuse_series(operation(**params))
    return primitive


def folding(reference_of_one, fold):
    """A reference of calls that `fold` does not fold, as one of all."""

    def run(*operands, **params):
        folded = fold(run, operands, **params)
        return folded(*operands) if folded else reference_of_one(*operands, **params)

    return run


def _eager(primitive: Primitive):
    """Outside jit: compile the one call, once for each shape and set of parameters."""

    @functools.cache
    def compiled(**params):
        return jax.jit(functools.partial(primitive.bind, **params))

    def run(*operands, **params):
        with jax.disable_jit(False):  # a primitive without jit would call itself for ever
            return compiled(**params)(*operands)

    return run


def alike(operands):
    """The operands, where they are None as they are; inside shard_map they all differ along the
    manual axes that one of them does."""
    axes = frozenset().union(*(compat.varying(o) for o in operands if o is not None))
    if not axes:
        return operands
    return [
        o if o is None or compat.varying(o) == axes else compat.vary(o, axes - compat.varying(o))
        for o in operands
    ]


def map_batch(bind, operands, dims):
    """One call per batch element, for batches that cannot be folded: (results, dims)."""
    moved = [
        None if d is None else whole(jnp.moveaxis(o, d, 0), [0])
        for o, d in zip(operands, dims, strict=True)
    ]

    def one(parts):
        return bind(*[o if p is None else p for o, p in zip(operands, parts, strict=True)])

    results = jax.lax.map(one, moved)
    return results, [0] * len(results)
