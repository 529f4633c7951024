"""Choosing scales and zero points; quantize and dequantize."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from jax_qgemm import errors, reference
from jax_qgemm.errors import describe
from jax_qgemm.explicit import whole
from jax_qgemm.primitives import quantize as primitive
from jax_qgemm.primitives.undifferentiated import undifferentiated
from jax_qgemm.types import PackedWeight, QuantizedArray


def quantize(
    x,
    qtype,
    *,
    channelwise_axes=(),
    group_size=None,
    scale=None,
    zero_point=None,
    symmetric=None,
) -> QuantizedArray:
    """Quantize float values to 8 bits: q = clamp(round_to_nearest_even(x / scale) + zero_point).

    Without `scale` the parameters come from x: symmetric `scale = max|x| / 127`, asymmetric
    `scale = (max - min) / 255` over a range that includes 0. Zeros alone get scale 1; where NaN
    or Inf is among the values the scale is NaN. With `scale` (static quantization) ±Inf saturates
    and NaN becomes the zero point.

    Args:
      x: float32, bfloat16 or float16, any shape.
      qtype: "int8" or "uint8", or the dtype.
      channelwise_axes: axes along which every index has a scale of its own; () is per tensor.
        For a (K, N) weight [1], for activations all axes but the last.
      group_size: for a weight (K, N), in place of channelwise_axes: a scale for every so many rows
        of each column, a multiple of 16 (32, 64 and 128 are usual; the last group may be shorter).
      scale: float32 of shape (), or of x's rank with 1 on the axes that share a scale.
      zero_point: integer, of shape () or the shape of `scale`; only together with `scale`.
        A traced one outside the range of qtype is clamped.
      symmetric: True fixes the zero point at the middle (0 for int8, 128 for uint8). Default:
        True for int8, False for uint8.

    Returns:
      QuantizedArray; per-tensor scale of shape (), else of x's rank, (⌈K / group_size⌉, N) of
      groups. zero_point is None where it is 0 for int8.

    Raises:
      TypeError: x is of another dtype, axes or zero_point are no integers.
      ValueError: unknown qtype, axes outside x, a group_size that kernels do not take, or with
        other parameters, or for x of other than 2 dimensions, scale or zero_point of a wrong
        shape, or with values outside their range (checked where they are known at trace time):
        2**-126 to 2**126 for scale.
      NotImplementedError: differentiated, in any form.
    """
    x = errors.float_array("quantize", "x", x)
    qtype = errors.qtype_name("quantize", "qtype", qtype)
    axes = _canonical_axes(channelwise_axes, x)
    group_size = errors.group_size("quantize", "group_size", group_size)
    symmetric = errors.flag("quantize", "symmetric", symmetric, optional=True)
    if group_size is not None:
        if axes or scale is not None or zero_point is not None:
            raise ValueError(
                "quantize: group_size chooses a scale per group and column; leave out "
                "channelwise_axes, scale and zero_point"
            )
        if x.ndim != 2:
            raise ValueError(f"quantize: group_size takes x of 2 dimensions, got {describe(x)}")
        symmetric = qtype == "int8" if symmetric is None else symmetric
        parts = _quantize_groups(whole(x, [0]), qtype=qtype, group=group_size, symmetric=symmetric)
        return QuantizedArray(*parts, qtype, group_size)
    if scale is not None:
        return _quantize_static(x, qtype, axes, scale, zero_point, symmetric)
    if zero_point is not None:
        raise ValueError("quantize: zero_point needs scale; pass both or neither")
    if symmetric is None:
        symmetric = qtype == "int8"
    rows = x.ndim > 0 and axes == tuple(range(x.ndim - 1))
    if rows and symmetric == (qtype == "int8"):
        return QuantizedArray(*_quantize_rows(x, qtype=qtype), qtype)

    shared = tuple(a for a in range(x.ndim) if a not in axes)
    return QuantizedArray(
        *_choose_and_quantize(x, qtype=qtype, shared=shared, symmetric=symmetric), qtype
    )


def dequantize(q: QuantizedArray | PackedWeight) -> jax.Array:
    """The real values, scale * (q - zero_point), as float32 of the same shape.

    Raises:
      TypeError: q is neither a QuantizedArray nor a PackedWeight, or holds arrays of other dtypes
        than it should.
      ValueError: the scale does not fit, or the packed format is of a newer release.
    """
    if not isinstance(q, QuantizedArray | PackedWeight):
        raise TypeError(f"dequantize: q must be QuantizedArray or PackedWeight, got {describe(q)}")
    return q.dequantize()


@functools.partial(jax.jit, static_argnames="qtype", inline=True)
def _quantize_rows(x, *, qtype):
    q, *parameters = primitive.quantize_rows(x, qtype)
    scale, zero_point = [*(p[..., None] if p.ndim else p for p in parameters), None][:2]
    return q, scale, zero_point


@functools.partial(jax.jit, static_argnames=("qtype", "shared", "symmetric"), inline=True)
def _choose_and_quantize(x, *, qtype, shared, symmetric):
    (x,) = undifferentiated("quantize", x.astype(jnp.float32))
    if symmetric:
        scale, inverse = reference.symmetric_params(x, shared, 127)
        zero_point = None if qtype == "int8" else jnp.full_like(scale, 128, jnp.int32)
    else:
        scale, inverse, zero_point = reference.asymmetric_params(x, shared, qtype)
    q = reference.quantize_affine(x * inverse, zero_point, qtype)
    if len(shared) == x.ndim:
        scale = scale.reshape(())
        zero_point = None if zero_point is None else zero_point.reshape(())
    return q, scale, zero_point


@functools.partial(jax.jit, static_argnames=("qtype", "group", "symmetric"), inline=True)
def _quantize_groups(x, *, qtype, group, symmetric):
    (x,) = undifferentiated("quantize", x)
    return reference.quantize_groups(x, qtype, group, symmetric)


@functools.partial(jax.jit, static_argnames="qtype", inline=True)
def _quantize_given(x, scale, zero_point, *, qtype):
    if scale.ndim:
        x, scale = undifferentiated("quantize", x, scale)
        return reference.quantize_static(x, scale, zero_point, qtype)
    return primitive.quantize_static(x, scale, zero_point, qtype)


def _quantize_static(x, qtype, axes, scale, zero_point, symmetric) -> QuantizedArray:
    scale = errors.scale_array("quantize", "scale", scale)
    full = tuple(x.shape[a] if a in axes else 1 for a in range(x.ndim))
    if axes:
        if scale.shape != full:
            raise ValueError(
                f"quantize: scale has shape {scale.shape}, expected {full} for channelwise_axes="
                f"{list(axes)} (x: {describe(x)})"
            )
    elif not errors.fits(scale.shape, x.shape):
        raise ValueError(
            f"quantize: scale has shape {scale.shape}, expected () or {x.ndim} dimensions of 1 or "
            f"x's size (x: {describe(x)})"
        )
    if zero_point is not None and symmetric:
        raise ValueError("quantize: symmetric=True fixes the zero point; leave out zero_point")
    if zero_point is None and qtype == "uint8":
        zero_point = 128 if symmetric else 0
    if zero_point is not None:
        zero_point = zero_point_or_none("quantize", "zero_point", zero_point, qtype)
    if zero_point is not None:
        if zero_point.shape not in ((), scale.shape):
            raise ValueError(
                f"quantize: zero_point has shape {zero_point.shape}, expected () or the shape of "
                f"scale, {scale.shape}"
            )
        zero_point = jnp.broadcast_to(zero_point, scale.shape)
    q = _quantize_given(x, scale, zero_point, qtype=qtype)
    return QuantizedArray(q, scale, zero_point, qtype)


def zero_point_or_none(function: str, name: str, zero_point, qtype: str):
    """Checked int32 zero_point; None for a literal 0 for int8."""
    if qtype == "int8" and type(zero_point) is int and zero_point == 0:
        return None
    return errors.zero_point_array(function, name, zero_point, qtype)


def _canonical_axes(axes, x) -> tuple[int, ...]:
    try:
        given = (axes,) if isinstance(axes, int | np.integer) else tuple(axes)
        if any(isinstance(a, bool | np.bool_) for a in given):
            raise TypeError
        given = tuple(operator.index(a) for a in given)
    except TypeError as e:
        raise TypeError(
            f"quantize: channelwise_axes must be an axis or several, integers, got {axes!r}"
        ) from e
    if any(not -x.ndim <= a < x.ndim for a in given) or len({a % x.ndim for a in given}) < len(
        given
    ):
        raise ValueError(
            f"quantize: channelwise_axes must be distinct axes of x ({describe(x)}), "
            f"got {list(given)}"
        )
    return tuple(sorted(a % x.ndim for a in given))
