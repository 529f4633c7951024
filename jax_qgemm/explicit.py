"""Arrays whose types say how they are split over a mesh (explicit sharding)."""

import functools

import jax
import jax.numpy as jnp

from jax_qgemm.compat import ShapedArray


def whole(operand, axes=None):
    """The array with these axes, or all, unsplit: for what types cannot express of parts."""
    sharding = jax.typeof(operand).sharding
    kept = tuple(None if axes is None or i in axes else s for i, s in enumerate(sharding.spec))
    if sharding.mesh.empty or kept == tuple(sharding.spec):
        return operand
    return jax.sharding.reshard(operand, sharding.update(spec=kept))


def without_mesh(function):
    """The function, of parts that a device has: what is left of explicit types then, XLA for CPUs
    does not take."""

    @functools.wraps(function)
    def run(*operands):
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            return function(*operands)

    return run


def typed(value, like):
    """The array split as the type of `like`, an array or aval, says."""
    sharding = like.sharding if isinstance(like, ShapedArray) else jax.typeof(like).sharding
    if sharding.mesh.empty or jax.typeof(value).sharding == sharding:
        return value
    return jax.sharding.reshard(value, sharding)


def repeated(value, like):
    """The array broadcast to the shape of `like`, where it is repeated split as that is: a sum over
    what is repeated, its transpose, is one of parts."""
    sharding = jax.typeof(like).sharding
    if sharding.mesh.empty or value.shape == like.shape:
        return jnp.broadcast_to(value, like.shape)
    behind = like.ndim - value.ndim
    own = tuple(
        split if size == like.shape[behind + i] else None
        for i, (size, split) in enumerate(zip(value.shape, sharding.spec[behind:], strict=True))
    )
    own_sharding = sharding.update(spec=own)
    if jax.typeof(value).sharding != own_sharding:
        value = jax.sharding.reshard(value, own_sharding)
    dims = tuple(range(behind, like.ndim))
    return jax.lax.broadcast_in_dim(value, like.shape, dims, out_sharding=sharding)


def stacked(value, like, axis: int):
    """The array repeated along a new first dimension, as long and split as `axis` of `like`."""
    of_like, own = jax.typeof(like).sharding, jax.typeof(value).sharding
    shape = (like.shape[axis], *value.shape)
    if of_like.mesh.empty:
        return jnp.broadcast_to(value, shape)
    split = of_like.spec[axis]
    taken = {name for entry in own.spec for name in axes_of(entry)}
    spec = (None if taken.intersection(axes_of(split)) else split, *own.spec)
    dims = tuple(range(1, len(shape)))
    return jax.lax.broadcast_in_dim(value, shape, dims, out_sharding=of_like.update(spec=spec))


def axes_of(entry) -> tuple[str, ...]:
    """The mesh axes that an entry of a PartitionSpec names."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)
