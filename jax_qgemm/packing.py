"""Weights into the layout of the kernels, and back. Packing is done once, outside hot loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_qgemm import blocks, compat, errors, packed_parts, reference
from jax_qgemm.errors import describe
from jax_qgemm.explicit import whole
from jax_qgemm.primitives import pack as primitive
from jax_qgemm.primitives.pack_float import pack_float
from jax_qgemm.primitives.undifferentiated import undifferentiated
from jax_qgemm.quantization import quantize
from jax_qgemm.types import PackedWeight, QuantizedArray


def pack(q: QuantizedArray) -> PackedWeight:
    """Pack a quantized (K, N) weight; `unpack(pack(q))` equals q.

    Args:
      q: 2-D QuantizedArray, int8 or uint8; scale and zero_point per tensor, shape (), per column,
        shape (1, N), or with a group_size.

    Raises:
      TypeError: q is no QuantizedArray, or holds arrays of other dtypes than it should.
      ValueError: q is not 2-D, or its scales are not per tensor or per column.
    """
    if not isinstance(q, QuantizedArray):
        raise TypeError(
            f"pack: q must be a QuantizedArray, got {describe(q)}; quantize it first, or use "
            "jax_qgemm.pack_weight for a float array"
        )
    q = errors.check_quantized("pack", "q", q)
    if q.ndim != 2:
        raise ValueError(
            f"pack: q must have 2 dimensions (K, N), got {describe(q)}; use jax.vmap for a stack"
        )
    n = q.shape[1]
    for name, part in (("scale", q.scale), ("zero_point", q.zero_point)):
        if q.group_size is None and part is not None and part.shape not in ((), (1, n)):
            raise ValueError(
                f"pack: q.{name} has shape {part.shape}, expected () or (1, {n}): one per tensor "
                "or per column, quantize(kernel, qtype, channelwise_axes=[1])"
            )
    return _pack(q)


def unpack(w: PackedWeight) -> QuantizedArray:
    """The QuantizedArray that was packed.

    Raises:
      TypeError: w is no PackedWeight, or one of floats or blocks: see `w.dequantize()`.
      ValueError: w is a stack of weights, or of a newer format version.
    """
    check_packed("unpack", "w", w)
    if w.qtype not in reference.QRANGE:
        raise TypeError(f"unpack: w must be of int8 or uint8, got {w.qtype}; use w.dequantize()")
    return _unpack(jax.tree.map(whole, w))


def pack_weight(kernel, qtype="int8", *, symmetric=None, clamp=False) -> PackedWeight:
    """Quantize a float (K, N) weight with one scale per column, or per group, and pack it.

    Args:
      kernel: float32, bfloat16 or float16 (K, N).
      qtype: "int8" or "uint8"; with a size of groups along K as in "int8:64", a scale for each
        group and column; with ":weight_only" activations stay floats. "fp16" or "bf16" round to
        floats of 16 bits, with which activations stay floats, too. "int4" or "int8_blocks" make
        blocks, as GGUF's, of 32 elements of a column that share a scale: "int4:128:bf16" has 128
        and scales of bfloat16, in place of float16. With them activations are quantized
        symmetrically, each row with a scale per group, or stay floats with ":weight_only".
      symmetric: as in `quantize`; of floats None. Blocks have a minimum where it is False.
      clamp: of "fp16" and "bf16": values beyond the largest one become that. Where it is False
        they are refused, or infinite if the kernel is traced, as everything is inside jit.

    Raises:
      TypeError: kernel is of another dtype.
      ValueError: kernel is not 2-D, unknown qtype or size of groups, or values out of range.
    """
    qtype, group, weight_only, scales = errors.weight_format("pack_weight", "qtype", qtype)
    symmetric, clamp = check_options("pack_weight", qtype, symmetric, clamp)
    if clamp and isinstance(kernel, np.ndarray) and kernel.dtype == np.float64:
        kernel = kernel.clip(-reference.FLT_MAX, reference.FLT_MAX)
    kernel = errors.float_array("pack_weight", "kernel", kernel)
    if kernel.ndim != 2:
        raise ValueError(
            f"pack_weight: kernel must have 2 dimensions (K, N), got {describe(kernel)}; use "
            "jax.vmap for a stack"
        )
    if qtype in reference.FLOAT_WEIGHTS:
        return _pack_float(kernel, qtype, clamp)
    if scales is not None:
        minimum = symmetric is not None and not symmetric
        form = blocks.Blocks(blocks.BITS[qtype], group, scales, minimum)
        return _pack_blocks(kernel, qtype, form, weight_only)
    form = {"channelwise_axes": [1]} if group is None else {"group_size": group}
    w = pack(quantize(kernel, qtype, symmetric=symmetric, **form))
    return dataclasses.replace(w, weight_only=weight_only)


def check_options(function: str, qtype: str, symmetric, clamp) -> tuple[bool | None, bool]:
    """Both as flags, refused where weights of `qtype` have no use for them."""
    clamp = errors.flag(function, "clamp", clamp)
    symmetric = errors.flag(function, "symmetric", symmetric, optional=True)
    if qtype not in reference.FLOAT_WEIGHTS and clamp:
        raise ValueError(f"{function}: clamp is for fp16 and bf16, got qtype {qtype!r}")
    if qtype in reference.FLOAT_WEIGHTS and symmetric is not None:
        raise ValueError(f"{function}: symmetric must be None for {qtype}, got {symmetric!r}")
    return symmetric, clamp


def pack_blocks(
    q, scale, minimum=None, *, qtype="int4", group_size=32, weight_only=False
) -> PackedWeight:
    """Pack a (K, N) weight that is in blocks already, `scale[k // group_size] * q + minimum[...]`,
    as it is: what `jax_qgemm.formats` reads other libraries' files with.

    Args:
      q: uint8 (K, N), below 16 for "int4".
      scale: float32, bfloat16 or float16 (⌈K / group_size⌉, N); it is stored in that dtype.
      minimum: of the same dtype and shape; None: `-offset * scale`, offset 8 for "int4" and 128
        for "int8_blocks".
      qtype: "int4" or "int8_blocks".
      group_size: a multiple of 32 for "int4", of 16 for "int8_blocks".
      weight_only: activations stay floats.

    Raises:
      TypeError: arrays of other dtypes.
      ValueError: shapes that do not fit, values of q that do not (checked where they are known at
        trace time), unknown qtype or group_size.
    """
    name = "pack_blocks"
    qtype = errors.qtype_name(name, "qtype", qtype, tuple(blocks.BITS))
    group = errors.group_size(name, "group_size", group_size, blocks.group_unit(qtype))
    if group is None:
        raise ValueError(f"{name}: group_size must be an integer, got None")
    weight_only = errors.flag(name, "weight_only", weight_only)
    q = errors.as_array(name, "q", q)
    values = compat.concrete(q)
    if q.dtype != jnp.uint8:
        raise TypeError(f"{name}: q must be uint8, got {describe(q)}")
    if q.ndim != 2:
        raise ValueError(f"{name}: q must have 2 dimensions (K, N), got {describe(q)}")
    scale = errors.float_array(name, "scale", scale)
    form = blocks.Blocks(blocks.BITS[qtype], group, scale.dtype.name, minimum is not None)
    if minimum is not None:
        minimum = errors.float_array(name, "minimum", minimum)
        if minimum.dtype != scale.dtype:
            raise TypeError(
                f"{name}: minimum must be of the dtype of scale, {scale.dtype}, got "
                f"{describe(minimum)}"
            )
    expected = form.groups(q.shape[0]), q.shape[1]
    for part_name, part in (("scale", scale), ("minimum", minimum)):
        if part is not None and part.shape != expected:
            raise ValueError(
                f"{name}: {part_name} has shape {part.shape}, expected {expected}: one for each "
                f"group of {group} rows and column of q, {describe(q)}"
            )
    if values is not None and values.size and values.max() > form.most:
        raise ValueError(f"{name}: q must be at most {form.most} for {qtype}, got {values.max()}")
    scale, *rest = undifferentiated("pack_blocks", scale, *([] if minimum is None else [minimum]))
    return _packed_blocks(q, scale, *(rest or [None]), qtype, form, weight_only)


def _pack_float(kernel, qtype: str, clamp: bool) -> PackedWeight:
    values = compat.concrete(kernel)
    most = float(jnp.finfo(reference.FLOAT_WEIGHTS[qtype]).max)
    if values is not None and not clamp:
        with np.errstate(over="ignore", invalid="ignore"):  # of signalling NaN, the latter
            rounded = values.astype(reference.FLOAT_WEIGHTS[qtype])
        beyond = values[np.isfinite(values) & ~np.isfinite(rounded)]
        if beyond.size:
            largest = np.abs(beyond.astype(np.float32)).max()
            raise ValueError(
                f"pack_weight: {beyond.size} of {values.size} values of kernel are beyond "
                f"±{most:g}, the range of {qtype}, the largest {largest:g}; scale them, or pass "
                "clamp=True"
            )
    return _round_and_pack(kernel, qtype, most if clamp else None)


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _round_and_pack(kernel, qtype: str, most: float | None) -> PackedWeight:
    (kernel,) = undifferentiated("pack_weight", kernel)
    if most is not None:
        kernel = jnp.clip(kernel, -most, most)
    values = kernel.astype(reference.FLOAT_WEIGHTS[qtype])
    data = pack_float(lax.bitcast_convert_type(values, jnp.uint16), qtype)
    return PackedWeight(data, None, None, None, kernel.shape, qtype, False)


def _are_coarse(parts, kernel, amax: float, form: blocks.Blocks) -> bool:
    """Whether the largest scale, or minimum, of all is a few steps of its dtype, or none, and
    matters."""
    least = 16 * float(jnp.finfo(form.scale_dtype).smallest_subnormal)  # 3 % of error
    few = [np.abs(part).max(initial=0) < least for part in parts]
    if not any(few):
        return False
    _, *exact = _quantize_blocks(kernel, form._replace(scale_dtype="float32"))
    return any(
        of_few and np.abs(part).max(initial=0) * most > amax / 64
        for of_few, part, most in zip(few, exact, (form.most, 1), strict=False)
    )


def _pack_blocks(kernel, qtype: str, form: blocks.Blocks, weight_only: bool) -> PackedWeight:
    (kernel,) = undifferentiated("pack_weight", whole(kernel))
    parts = _quantize_blocks(kernel, form)
    if compat.concrete(kernel) is not None:
        low, high = (
            np.asarray(f(kernel.astype(jnp.float32), initial=0)) for f in (jnp.min, jnp.max)
        )
        scales = [np.asarray(p, np.float32) for p in parts[1:] if p is not None]
        beyond = any(np.isinf(s).any() for s in scales)
        coarse = _are_coarse(scales, kernel, max(-low, high), form)
        if np.isfinite([low, high]).all() and (beyond or coarse):
            raise ValueError(
                f"pack_weight: values of kernel, from {low:g} to {high:g}, need scales beyond "
                f'{form.scale_dtype}; choose others, as in "{qtype}:{form.group}:float32"'
            )
    return _packed_blocks(*parts, qtype, form, weight_only)


def _packed_blocks(q, scale, minimum, qtype: str, form: blocks.Blocks, weight_only: bool):
    return PackedWeight(
        _pack_parts(q, scale, minimum, form),
        scale=None,
        zero_point=None,
        column_sums=None,
        matrix_shape=q.shape,
        qtype=qtype,
        channelwise=True,
        group_size=form.group,
        weight_only=weight_only,
        scale_dtype=form.scale_dtype,
        minimum=form.minimum,
    )


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _quantize_blocks(kernel, form: blocks.Blocks):
    return blocks.quantize(kernel.astype(jnp.float32), form)


_pack_parts = jax.jit(blocks.pack, static_argnums=3, inline=True)


def check_packed(function: str, name: str, w, stacks: bool = False) -> None:
    """Refuse what is no PackedWeight, single unless `stacks`, of a format this release reads, and
    one whose parts do not fit each other."""
    if not isinstance(w, PackedWeight):
        if isinstance(w, QuantizedArray):
            hint = "; pack it once with jax_qgemm.pack"
        elif hasattr(w, "dtype"):
            hint = "; pack it once with jax_qgemm.pack_weight"
        else:
            hint = ""
        raise TypeError(f"{function}: {name} must be a PackedWeight, got {describe(w)}{hint}")
    packed_parts.check(function, w, f"{name}.")
    if len(w.shape) != 2 and not stacks:
        raise ValueError(
            f"{function}: {name} is a stack of weights, {describe(w)}; use jax.vmap or "
            "jax.lax.scan over its leading dimensions"
        )


@jax.jit
def _pack(q: QuantizedArray) -> PackedWeight:
    group, columns = q.group_size, q.scale.shape if q.group_size else (q.shape[1],)
    channelwise = q.scale.ndim > 0 or (q.zero_point is not None and q.zero_point.ndim > 0)
    qvalue, zero_point = q.qvalue, q.zero_point
    if q.qtype == "uint8":
        qvalue = (qvalue.astype(jnp.int16) - 128).astype(jnp.int8)
        zero_point = (jnp.int32(0) if zero_point is None else zero_point) - 128

    def parameters(part):
        return part if group else jnp.broadcast_to(part.reshape(-1), columns)

    scale = parameters(q.scale)
    if zero_point is not None:
        zero_point = jnp.broadcast_to(parameters(zero_point), columns)
    data, column_sums = primitive.pack(qvalue, zero_point, group)
    return PackedWeight(
        data, scale, zero_point, column_sums, q.shape, q.qtype, channelwise, group_size=group
    )


@jax.jit
def _unpack(w: PackedWeight) -> QuantizedArray:
    q = reference.unpack(w.data, *w.matrix_shape)
    zero_point = w.zero_point
    if w.qtype == "uint8":
        q = (q.astype(jnp.int16) + 128).astype(jnp.uint8)
        zero_point = zero_point + 128

    def parameters(columns, empty):
        if w.group_size:
            return columns
        if w.channelwise:
            return columns[None]
        return columns[0] if w.matrix_shape[1] else empty

    scale = parameters(w.scale, jnp.float32(1))
    zero_point = None if zero_point is None else parameters(zero_point, jnp.int32(0))
    return QuantizedArray(q, scale, zero_point, w.qtype, w.group_size)
