"""What the parts of a PackedWeight have to be, of its fields and of its arrays."""

import numpy as np

from jax_qgemm import blocks, errors, reference

WEIGHTS = (*reference.QRANGE, *reference.FLOAT_WEIGHTS, *blocks.BITS)
SCALE_DTYPES = (None, "float32", "bfloat16", "float16")


def fields(qtype: str) -> dict[str, str]:
    """The arrays that a weight of `qtype` has, and their dtypes; it may lack a zero_point."""
    if qtype in reference.FLOAT_WEIGHTS:
        return {"data": "uint16"}
    if qtype in blocks.BITS:
        return {"data": "uint8"}
    ints = {"zero_point": "int32", "column_sums": "int32"}
    return {"data": "int8", "scale": "float32", **ints}


def check(where: str, w, prefix: str = "") -> None:
    """TypeError or ValueError unless this release reads the format and all parts fit each other;
    `prefix` is that of their names."""
    errors.check_format_version(where, w.format_version)
    if not isinstance(w.qtype, str) or w.qtype not in WEIGHTS:
        known = errors.choices(map(repr, WEIGHTS))
        raise ValueError(f"{where}: {prefix}qtype must be {known}, got {w.qtype!r}")
    sizes = w.matrix_shape if isinstance(w.matrix_shape, tuple) else ()
    if len(sizes) != 2 or any(not isinstance(n, int | np.integer) or n < 0 for n in sizes):
        raise ValueError(
            f"{where}: {prefix}matrix_shape must be sizes (K, N) >= 0, got {w.matrix_shape}"
        )
    for name in ("channelwise", "weight_only", "minimum"):
        errors.flag(where, f"{prefix}{name}", getattr(w, name))
    in_blocks = w.qtype in blocks.BITS
    unit = blocks.group_unit(w.qtype) if in_blocks else errors.GROUP_UNIT
    group = errors.group_size(where, f"{prefix}group_size", w.group_size, unit)
    if in_blocks and not group:
        raise ValueError(f"{where}: {prefix}group_size is None, which {w.qtype} needs")
    if group and w.qtype in reference.FLOAT_WEIGHTS:
        raise ValueError(f"{where}: {prefix}group_size must be None of {w.qtype}, got {group}")
    scales = SCALE_DTYPES[1:] if in_blocks else SCALE_DTYPES[:1]
    if not isinstance(w.scale_dtype, str | None) or w.scale_dtype not in scales:
        raise ValueError(
            f"{where}: {prefix}scale_dtype must be {' or '.join(map(str, scales))} of {w.qtype}, "
            f"got {w.scale_dtype!r}"
        )
    _check_arrays(where, w, prefix, group)


def _check_arrays(where: str, w, prefix: str, group: int | None) -> None:
    altered = "; was the packed weight altered?" if prefix else ""
    k, n = w.matrix_shape
    parts_of_k = len(reference.blocks(k, w.zero_point is not None, group))
    columns = (parts_of_k, n) if group else (n,)
    size = reference.packed_size(k, n, w.qtype, w.blocks)
    shapes = {"data": (size,), "column_sums": (parts_of_k, n)}
    dtypes = fields(w.qtype)
    lead = tuple(getattr(w.data, "shape", ())[:-1])
    for name in ("data", "scale", "zero_point", "column_sums"):
        part, what = getattr(w, name), f"{where}: {prefix}{name}"
        if part is None:
            if name in dtypes and (name != "zero_point" or w.qtype == "uint8"):
                raise TypeError(f"{what} is None{altered or f', which {w.qtype} needs'}")
            continue
        if name not in dtypes:
            raise TypeError(f"{what} must be None of {w.qtype}, got {errors.describe(part)}")
        if not isinstance(getattr(part, "shape", None), tuple) or part.dtype != dtypes[name]:
            raise TypeError(f"{what} must be {dtypes[name]}, got {errors.describe(part)}{altered}")
        shape = (*lead, *shapes.get(name, columns))
        if name == "data" and part.shape != shape:
            found = part.shape[-1] if part.shape else "no"
            raise ValueError(
                f"{what} has {found} elements, expected {size} for a packed {k}×{n} weight{altered}"
            )
        if part.shape != shape:
            raise ValueError(f"{what} has shape {part.shape}, expected {shape}{altered}")
