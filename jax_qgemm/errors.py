"""Helpers for error messages and for the checks that several functions share.

Each check takes the public function's name first, so that a message reads
`function: argument must be …, got …`.
"""

import contextlib
import dataclasses
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_qgemm import blocks, compat
from jax_qgemm.reference import FLOAT_WEIGHTS, FORMAT_VERSION, QRANGE

SCALE_RANGE = (2.0**-126, 2.0**126)
"""Scales between these are normal numbers, and so are their reciprocals: XLA and some CPUs take
subnormal numbers for zero, others do not."""


FLOATS = ("float32", "bfloat16", "float16")
"""The dtypes of activations, weights, biases, residuals and float results."""


def choices(names) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def describe(x) -> str:
    """`float32[8,768]`, `PackedWeight int8[1024,4096]`, or the type's name for what is no array."""
    if x is None:
        return "None"
    shape = getattr(x, "shape", None)
    if not isinstance(shape, tuple) or not (hasattr(x, "qtype") or hasattr(x, "dtype")):
        return type(x).__name__
    dims = ",".join(map(str, shape))
    if hasattr(x, "qtype"):
        return f"{type(x).__name__} {x.qtype}[{dims}]"
    return f"{x.dtype}[{dims}]"


def as_array(function: str, name: str, x) -> jax.Array:
    """`jnp.asarray` with a message that names the argument; NumPy's other byte order is read."""
    if isinstance(x, jax.Array):
        return x
    try:
        if x is None or isinstance(x, str | bytes) or hasattr(x, "qtype"):
            raise TypeError
        if isinstance(x, np.ndarray) and not x.dtype.isnative:
            x = x.astype(x.dtype.newbyteorder("="))
        return jnp.asarray(x)
    except OverflowError as e:
        raise ValueError(f"{function}: {name} is too large a number, got {x}") from e
    except (TypeError, ValueError) as e:
        raise TypeError(f"{function}: {name} must be an array, got {describe(x)}") from e


def float_array(function: str, name: str, x):
    """`x` as an array of one of FLOATS; float64 of NumPy becomes float32, if it lies within."""
    if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            beyond = x[np.isfinite(x) & ~np.isfinite(x.astype(np.float32))]
        if beyond.size:
            raise ValueError(
                f"{function}: {beyond.size} of {x.size} values of {name} are beyond the range of "
                f"float32, the largest {np.abs(beyond).max():g}"
            )
    x = as_array(function, name, x)
    if x.dtype.name not in FLOATS:
        castable = jnp.issubdtype(x.dtype, np.number) or x.dtype == bool
        hint = f"; use {name}.astype(jax.numpy.float32)" if castable else ""
        raise TypeError(f"{function}: {name} must be {choices(FLOATS)}, got {describe(x)}{hint}")
    return x


def saturated_int32(array):
    """Integers, of JAX or NumPy, as int32: those beyond it become its ends, where a cast would let
    them wrap."""
    if array.dtype != np.int32 and array.dtype.itemsize >= 4:
        most = np.iinfo(np.int32).max
        low = -most if jnp.issubdtype(array.dtype, jnp.signedinteger) else 0
        array = array.clip(low, most)
    return array.astype(np.int32)


def flag(function: str, name: str, value, optional: bool = False):
    """True or False, or, where it is optional, None."""
    if optional and value is None:
        return None
    if not isinstance(value, bool | np.bool_):
        expected = f"True or False{' or None' if optional else ''}, known at trace time"
        raise TypeError(f"{function}: {name} must be {expected}, got {_shown(value)}")
    return bool(value)


def _shown(value) -> str:
    """A value of a wrong type: what it is, of arrays their shapes."""
    return repr(value) if isinstance(value, str | int | float) else describe(value)


def size(function: str, name: str, value, least: int = 0) -> int:
    """An integer, at least so large."""
    try:
        found = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = least - 1
    if found < least:
        raise ValueError(
            f"{function}: {name} must be an integer, {least} or more, got {_shown(value)}"
        )
    return found


def qtype_name(function: str, name: str, qtype, known=tuple(QRANGE)) -> str:
    """One of `known` from a name or a dtype."""
    found = qtype
    if qtype is not None:  # NumPy reads None as float64
        with contextlib.suppress(TypeError, ValueError):
            found = np.dtype(qtype).name
    if not isinstance(found, str) or found not in known:
        shown = repr(found) if isinstance(found, str) else describe(found)
        raise ValueError(f"{function}: {name} must be {choices(map(repr, known))}, got {shown}")
    return found


GROUP_UNIT, MAX_GROUP = 16, 32768


def group_size(function: str, name: str, value, unit: int = GROUP_UNIT) -> int | None:
    """A size of groups that kernels take; None stays None."""
    if value is None:
        return None
    try:
        size = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        size = -1
    if not (0 < size <= MAX_GROUP and size % unit == 0):
        raise ValueError(
            f"{function}: {name} must be None or a multiple of {unit} up to {MAX_GROUP} "
            f"(32, 64, 128, …), got {value!r}"
        )
    return size


class WeightFormat(NamedTuple):
    """What `pack_weight` makes: "int8", "int8:128" with groups of 128 along K, "float16",
    "int8:weight_only" or "int8:128:weight_only"; of blocks also the dtype of scales, as in
    "int4:32:bfloat16"."""

    qtype: str
    group: int | None = None
    weight_only: bool = False
    scale_dtype: str | None = None

    def __str__(self) -> str:
        weight_only = "weight_only" if self.weight_only else None
        parts = (self.qtype, self.group, self.scale_dtype, weight_only)
        return ":".join(str(part) for part in parts if part is not None)


_SHORT = {
    "fp16": "float16",
    "f16": "float16",  # NumPy's has 16 bytes
    "bf16": "bfloat16",
    "fp32": "float32",
    "f32": "float32",
}
_BLOCK_GROUP, _BLOCK_SCALES = 32, "float16"  # unless the format says


def weight_format(function: str, name: str, text) -> WeightFormat:
    """The format that a text, or a dtype, means."""
    first, *more = text.split(":") if isinstance(text, str) else (text,)
    if isinstance(first, str):
        first = _SHORT.get(first, first)
    qtype = qtype_name(function, name, first, (*QRANGE, *FLOAT_WEIGHTS, *blocks.BITS))
    in_blocks = qtype in blocks.BITS
    if qtype in FLOAT_WEIGHTS and more:
        raise ValueError(
            f"{function}: {name}: {qtype} has no groups and its activations are float anyway, got "
            f"{text!r}"
        )
    group = scale_dtype = None
    weight_only = more[-1:] == ["weight_only"]
    rest = more[: len(more) - weight_only]
    if (rest and rest[0].isdecimal()) or (rest and not in_blocks):
        unit = blocks.group_unit(qtype) if in_blocks else GROUP_UNIT
        value = int(rest[0]) if rest[0].isdecimal() and len(rest[0]) < 10 else rest[0]
        group = group_size(function, f"{name}'s group", value, unit)
        rest = rest[1:]
    if rest and in_blocks:
        scale_dtype = qtype_name(
            function, f"{name}'s scales", _SHORT.get(rest[0], rest[0]), tuple(blocks.SCALE_DTYPES)
        )
        rest = rest[1:]
    if rest:
        what = "the dtype of scales and weight_only" if in_blocks else "weight_only"
        raise ValueError(f"{function}: {name}: after the group may come {what}, got {text!r}")
    if in_blocks:
        group, scale_dtype = group or _BLOCK_GROUP, scale_dtype or _BLOCK_SCALES
    return WeightFormat(qtype, group, weight_only, scale_dtype)


def scale_array(function: str, name: str, scale):
    """`scale` as float32; where its values are known they must lie in SCALE_RANGE."""
    if isinstance(scale, int) and not isinstance(scale, bool):
        scale = float(scale) if abs(scale) < 2**200 else np.inf  # JAX takes no long integers
    with np.errstate(over="ignore"):  # a float64 beyond float32 is inf, refused below
        array = as_array(function, name, scale)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{function}: {name} must be float32, got {describe(array)}")
    values = compat.concrete(scale)
    if values is not None:
        with np.errstate(over="ignore", under="ignore"):
            values = values.astype(np.float32)
        bad = values[~((values >= SCALE_RANGE[0]) & (values <= SCALE_RANGE[1]))]
        if bad.size:
            raise ValueError(
                f"{function}: {name} must be finite and > 0, from 2**-126 to 2**126 (1.18e-38 to "
                f"8.5e+37), got {bad.flat[0]}"
            )
    return array.astype(jnp.float32)


def zero_point_array(function: str, name: str, zero_point, qtype: str):
    """`zero_point` as int32 in the range of qtype: refused where its values are known, clamped
    where they are not."""
    low, high = QRANGE[qtype]
    outside = f"{function}: {name} must be in [{low}, {high}], the range of {qtype}, got "
    if isinstance(zero_point, int) and not low <= zero_point <= high:  # JAX takes no long integers
        raise ValueError(f"{outside}{zero_point}")
    array = as_array(function, name, zero_point)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{function}: {name} must be an integer, got {describe(array)}")
    values = compat.concrete(zero_point)
    if values is None:
        return jnp.clip(saturated_int32(array), low, high)
    if (bad := values[(values < low) | (values > high)]).size:
        raise ValueError(f"{outside}{bad.flat[0]}")
    return array.astype(jnp.int32)


def check_quantized(function: str, name: str, q):
    """The QuantizedArray `q`, its parts made arrays of the documented dtypes and shapes.

    Numbers and NumPy arrays are converted; arrays of JAX must have the dtype already. Values of
    the scale are not looked at: NaN is the scale of what holds NaN.
    """
    qtype = qtype_name(function, f"{name}.qtype", q.qtype)
    qvalue = as_array(function, f"{name}.qvalue", q.qvalue)
    if qvalue.dtype != qtype:
        raise TypeError(
            f"{function}: {name}.qvalue must be {qtype}, as {name}.qtype says, got "
            f"{describe(qvalue)}"
        )
    scale = as_array(function, f"{name}.scale", q.scale)
    if not isinstance(q.scale, jax.Array) and jnp.issubdtype(scale.dtype, np.number):
        scale = scale.astype(jnp.float32)
    if scale.dtype != jnp.float32:
        raise TypeError(f"{function}: {name}.scale must be float32, got {describe(scale)}")
    zero_point = q.zero_point
    if isinstance(zero_point, jax.Array):
        if zero_point.dtype != jnp.int32:
            raise TypeError(
                f"{function}: {name}.zero_point must be int32 or None, got {describe(zero_point)}"
            )
    elif zero_point is not None:
        zero_point = zero_point_array(function, f"{name}.zero_point", zero_point, qtype)
    group = group_size(function, f"{name}.group_size", q.group_size)
    q = dataclasses.replace(
        q, qvalue=qvalue, scale=scale, zero_point=zero_point, qtype=qtype, group_size=group
    )
    if group is not None:
        return _check_groups(function, name, q)
    for part, value in (("scale", scale), ("zero_point", zero_point)):
        if value is not None and not fits(value.shape, qvalue.shape):
            raise ValueError(
                f"{function}: {name}.{part} has shape {value.shape}, expected () or 1 or the full "
                f"size on each axis of {describe(q)}; arrays made under vmap are used under vmap"
            )
    return q


def _check_groups(function: str, name: str, q):
    if q.ndim != 2:
        raise ValueError(
            f"{function}: {name} has group_size {q.group_size}, which takes 2 dimensions (K, N), "
            f"got {describe(q)}"
        )
    expected = (max(1, -(-q.shape[0] // q.group_size)), q.shape[1])
    for part, value in (("scale", q.scale), ("zero_point", q.zero_point)):
        if value is not None and value.shape != expected:
            raise ValueError(
                f"{function}: {name}.{part} has shape {value.shape}, expected {expected}: one for "
                f"each group of {q.group_size} rows and column of {describe(q)}"
            )
    return q


def fits(shape, x_shape) -> bool:
    """Whether a scale of `shape` belongs to x: () or x's rank, each dimension 1 or x's."""
    return shape == () or (
        len(shape) == len(x_shape) and all(a in (1, b) for a, b in zip(shape, x_shape, strict=True))
    )


def check_format_version(function: str, found) -> None:
    """Refuse what is no version, and data of a newer release: its layout is unknown here."""
    try:
        valid = operator.index(found) >= 1 and not isinstance(found, bool)
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(
            f"{function}: the format version must be an integer from 1 to {FORMAT_VERSION}, got "
            f"{found!r}"
        )
    if found > FORMAT_VERSION:
        raise ValueError(
            f"{function}: the data has format version {found}, this release of jax_qgemm reads "
            f"up to version {FORMAT_VERSION}; upgrade jax_qgemm, or quantize and pack again"
        )
