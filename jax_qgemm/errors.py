"""Helpers for error messages and for the checks that several functions share.

Each check takes the public function's name first, so that a message reads
`function: argument must be …, got …`.
"""

import jax.numpy as jnp
import numpy as np

from jax_qgemm import compat
from jax_qgemm.reference import FORMAT_VERSION, QRANGE


def describe(x) -> str:
    """`float32[8,768]`, `PackedWeight int8[1024,4096]`, or the type's name for what is no array."""
    if x is None:
        return "None"
    shape = getattr(x, "shape", None)
    if not isinstance(shape, tuple):
        return type(x).__name__
    dims = ",".join(map(str, shape))
    if hasattr(x, "qtype"):
        return f"{type(x).__name__} {x.qtype}[{dims}]"
    return f"{np.dtype(x.dtype).name}[{dims}]"


def as_array(function: str, name: str, x, dtype=None):
    """`jnp.asarray` with a message that names the argument."""
    if hasattr(x, "qtype"):
        raise TypeError(f"{function}: {name} must be an array, got {describe(x)}")
    try:
        return jnp.asarray(x, dtype)
    except (TypeError, ValueError) as e:
        raise TypeError(f"{function}: {name} must be an array, got {type(x).__name__}") from e


def float_array(function: str, name: str, x):
    """`x` as a float32 or bfloat16 array."""
    x = as_array(function, name, x)
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise TypeError(
            f"{function}: {name} must be float32 or bfloat16, got {describe(x)}; "
            f"use {name}.astype(jax.numpy.float32)"
        )
    return x


def qtype_name(function: str, name: str, qtype) -> str:
    """'int8' or 'uint8' from a name or a dtype."""
    try:
        found = np.dtype(qtype).name
    except TypeError:
        found = qtype
    if found not in QRANGE:
        choices = " or ".join(map(repr, QRANGE))
        shown = found if isinstance(found, str) else type(found).__name__
        raise ValueError(f"{function}: {name} must be {choices}, got {shown!r}")
    return found


def scale_array(function: str, name: str, scale):
    """`scale` as float32; where its values are known they must be finite and > 0."""
    with np.errstate(over="ignore"):  # a float64 beyond float32 is inf, refused below
        array = as_array(function, name, scale)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{function}: {name} must be float32, got {describe(array)}")
    values = compat.concrete(scale)
    if values is not None:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        bad = values[~(np.isfinite(values) & (values > 0))]
        if bad.size:
            raise ValueError(f"{function}: {name} must be finite and > 0, got {bad.flat[0]}")
    return array.astype(jnp.float32)


def zero_point_array(function: str, name: str, zero_point, qtype: str):
    """`zero_point` as int32; where its values are known they must lie in the range of qtype."""
    array = as_array(function, name, zero_point)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{function}: {name} must be an integer, got {describe(array)}")
    low, high = QRANGE[qtype]
    values = compat.concrete(zero_point)
    if values is not None and values.size and (values.min() < low or values.max() > high):
        bad = values[(values < low) | (values > high)].flat[0]
        raise ValueError(
            f"{function}: {name} must be in [{low}, {high}], the range of {qtype}, got {bad}"
        )
    return array.astype(jnp.int32)


def check_format_version(function: str, found: int) -> None:
    """Refuse data of a newer release: its layout is unknown here."""
    if found > FORMAT_VERSION:
        raise ValueError(
            f"{function}: the data has format version {found}, this release of jax_qgemm reads "
            f"up to version {FORMAT_VERSION}; upgrade jax_qgemm, or quantize and pack again"
        )
