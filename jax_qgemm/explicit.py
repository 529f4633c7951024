"""Arrays whose types say how they are split over a mesh (explicit sharding)."""

import jax

from jax_qgemm.compat import ShapedArray


def whole(operand, axes=None):
    """The array with these axes, or all, unsplit: for what types cannot express of parts."""
    sharding = jax.typeof(operand).sharding
    kept = tuple(None if axes is None or i in axes else s for i, s in enumerate(sharding.spec))
    if sharding.mesh.empty or kept == tuple(sharding.spec):
        return operand
    return jax.sharding.reshard(operand, sharding.update(spec=kept))


def typed(value, like):
    """The array split as the type of `like`, an array or aval, says."""
    sharding = like.sharding if isinstance(like, ShapedArray) else jax.typeof(like).sharding
    if sharding.mesh.empty or jax.typeof(value).sharding == sharding:
        return value
    return jax.sharding.reshard(value, sharding)
