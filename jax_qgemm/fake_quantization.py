"""fake_quantize: what quantization makes of float values, with gradients for training."""

import jax
import jax.numpy as jnp

from jax_qgemm import errors, reference
from jax_qgemm.errors import describe
from jax_qgemm.explicit import typed
from jax_qgemm.packing import pack_weight
from jax_qgemm.primitives.undifferentiated import undifferentiated
from jax_qgemm.quantization import quantize


def fake_quantize(
    x,
    qtype,
    *,
    channelwise_axes=(),
    group_size=None,
    scale=None,
    zero_point=None,
    symmetric=None,
) -> jax.Array:
    """`dequantize(quantize(x, …))` in x's dtype, for quantization-aware training.

    The values are those that inference will have: a model trained with
    `fake_quantize(kernel, "int8", channelwise_axes=[1])` and
    `fake_quantize(x, "uint8", channelwise_axes=range(x.ndim - 1))` in front of its products is
    served by `dot(x, pack_weight(kernel, "int8"))`.

    Where quantize chooses the parameters, the gradient is a straight-through estimator: that of
    the identity (Bengio et al., arXiv 1308.3432). With `scale` it is that of the identity within
    the range of qtype and 0 beyond, and scale has one, too, so that it can be learned (LSQ, Esser
    et al., arXiv 1902.08153, equation 3): `q - zero_point - x / scale` within the range and
    `q - zero_point` beyond, summed over what shares a scale. A learned scale has to stay positive.

    Args:
      x: float32, bfloat16 or float16, any shape.
      qtype, channelwise_axes, group_size, scale, zero_point, symmetric: as of `quantize`. Or, for a
        kernel (K, N), qtype alone (and symmetric) as of `pack_weight`: "int4:32", "fp16", ….

    Returns:
      Of x's shape and dtype.

    Raises:
      TypeError, ValueError: as `quantize` and `pack_weight` do.
    """
    name = "fake_quantize"
    x = errors.float_array(name, "x", x)
    symmetric = errors.flag(name, "symmetric", symmetric, optional=True)
    form = errors.weight_format(name, "qtype", qtype)
    qtype = qtype if isinstance(qtype, str) else form.qtype  # a dtype by its name
    if scale is not None:
        scale = errors.scale_array(name, "scale", scale)
    frozen = jax.lax.stop_gradient(x)
    if qtype not in reference.QRANGE:
        given = {"group_size": group_size, "scale": scale, "zero_point": zero_point}
        extra = [key for key, value in given.items() if value is not None]
        if not isinstance(channelwise_axes, tuple) or channelwise_axes:
            extra.append("channelwise_axes")
        if extra:
            raise ValueError(
                f"{name}: {', '.join(extra)} is for qtype 'int8' and 'uint8', got {qtype!r}, which "
                "says all"
            )
        if x.ndim != 2:
            raise ValueError(f"{name}: {qtype!r} is for a kernel (K, N), got {describe(x)}")
        packed = pack_weight(frozen, qtype, symmetric=symmetric)
        return _straight_through(x, typed(packed.dequantize().astype(x.dtype), x))
    q = quantize(
        frozen,
        qtype,
        channelwise_axes=channelwise_axes,
        group_size=group_size,
        scale=None if scale is None else jax.lax.stop_gradient(scale),
        zero_point=zero_point,
        symmetric=symmetric,
    )
    y = typed(q.dequantize().astype(x.dtype), x)
    if scale is None:
        return _straight_through(x, y)
    qmin, qmax = reference.QRANGE[q.qtype]
    zero = 0 if q.zero_point is None else q.zero_point
    steps = jnp.round(x.astype(jnp.float32) * reference.reciprocal(scale))
    steps += jnp.asarray(zero, jnp.float32)
    inside = jax.lax.stop_gradient((steps >= qmin) & (steps <= qmax))
    return _within_range(x, scale, y, typed(q.qvalue, x).astype(jnp.int32) - zero, inside)


@jax.custom_jvp
def _straight_through(x, y):
    """y, as if it were x."""
    return undifferentiated("fake_quantize", x, y)[1]


@_straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    x, y = primals
    return _straight_through(x, y), tangents[0]


@jax.custom_jvp
def _within_range(x, scale, y, steps, inside):
    """y = scale * steps, as if it were x where it is `inside`."""
    return undifferentiated("fake_quantize", x, scale, y)[2]


@_within_range.defjvp
def _within_range_jvp(primals, tangents):
    x, scale, _, steps, inside = primals
    of_scale = steps.astype(jnp.float32) - jnp.where(inside, x.astype(jnp.float32) / scale, 0)
    tangent = jnp.where(inside, tangents[0].astype(jnp.float32), 0) + of_scale * tangents[1]
    return _within_range(*primals), tangent.astype(x.dtype)
