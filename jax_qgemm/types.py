"""The pytrees that users hold, QuantizedArray and PackedWeight, and the static GemmSpec.

Both are plain dataclasses: constructing one checks nothing, since JAX rebuilds them with
tracers, shapes or placeholders inside. The functions that use them check.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import numpy as np

from jax_qgemm import errors, reference

_QTYPES = tuple(reference.QRANGE)


class _Quantized:
    """What both pytrees have in common: the shape of an array, and saving to plain arrays."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the real values, that of `dequantize()`: float32."""
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all parts take in memory."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """A flat dict of NumPy arrays for np.savez or safetensors; `from_arrays` reads it back.

        np.savez("w.npz", **w.to_arrays()); w = type(w).from_arrays(np.load("w.npz"))
        """
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kept = {k: np.asarray(v) for k, v in arrays.items() if hasattr(v, "dtype")}
        return kept | {"metadata": np.asarray(self._metadata(), np.int64)}

    def _metadata(self) -> list[int]:
        """The static fields as integers, the format version first."""
        raise NotImplementedError

    @classmethod
    def _read(cls, arrays: Mapping[str, np.ndarray], dtypes, length: int):
        """(metadata, qtype, arrays by field name) of data that this release can read.

        `dtypes`: what each field must have, "qtype" for that of the metadata; `length`: of the
        metadata.
        """
        where = f"{cls.__name__}.from_arrays"
        missing = [n for n in (*dtypes, "metadata") if n not in arrays and n != "zero_point"]
        if missing:
            raise ValueError(f"{where}: no {', '.join(missing)} in the data")
        found = np.asarray(arrays["metadata"])
        if found.dtype.kind in "iu" and found.size:
            errors.check_format_version(where, int(found.flat[0]))
        if found.dtype.kind not in "iu" or found.shape != (length,):
            raise ValueError(
                f"{where}: metadata must be {length} integers, got {errors.describe(found)}"
            )
        metadata = found.tolist()
        if not 0 <= metadata[1] < len(_QTYPES):
            known = ", ".join(f"{i} ({name})" for i, name in enumerate(_QTYPES))
            raise ValueError(f"{where}: unknown qtype {metadata[1]} in metadata, known: {known}")
        qtype, parts = _QTYPES[metadata[1]], {"zero_point": None}
        for name, dtype in dtypes.items():
            if name in arrays:
                dtype = qtype if dtype == "qtype" else dtype
                part = np.asarray(arrays[name])
                if part.dtype.name != dtype:
                    raise ValueError(
                        f"{where}: {name} must be {dtype}, got {errors.describe(part)}"
                    )
                parts[name] = errors.as_array(where, name, part)
        return metadata, qtype, parts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class QuantizedArray(_Quantized):
    """Affine quantized values: real = scale * (qvalue - zero_point).

    Attributes:
      qvalue: int8 or uint8 array of any shape.
      scale: float32, shape () or qvalue's rank with 1 on the axes that share a scale.
      zero_point: int32 of the shape of `scale`; None means 0.
      qtype: "int8" or "uint8", static.
      group_size: for a matrix (K, N) with scales per group: so many rows of a column share one,
        and `scale` is of shape (⌈K / group_size⌉, N). None without groups. Static.
    """

    qvalue: jax.Array
    scale: jax.Array
    zero_point: jax.Array | None
    qtype: str = dataclasses.field(metadata={"static": True})
    group_size: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.qvalue.shape

    def dequantize(self) -> jax.Array:
        """The real values, float32. TypeError or ValueError for parts that do not fit."""
        q = errors.check_quantized("dequantize", "q", self)
        return _dequantize(q.qvalue, q.scale, q.zero_point, q.group_size)

    def _metadata(self) -> list[int]:
        return [reference.FORMAT_VERSION, _QTYPES.index(self.qtype), self.group_size or 0]

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> QuantizedArray:
        """The inverse of `to_arrays`. ValueError for data of a newer release or altered data."""
        dtypes = {"qvalue": "qtype", "scale": "float32", "zero_point": "int32"}
        (*_, group), qtype, parts = cls._read(arrays, dtypes, 3)
        return cls(**parts, qtype=qtype, group_size=group or None)

    def __repr__(self) -> str:
        return (
            f"QuantizedArray({_brief(self.qvalue)}, scale={_brief(self.scale)}, "
            f"zero_point={_brief(self.zero_point)}, qtype={self.qtype!r}"
            + (f", group_size={self.group_size})" if self.group_size else ")")
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PackedWeight(_Quantized):
    """A quantized K×N weight in the layout of the kernels, one layout for every CPU.

    Make one with `pack` or `pack_weight`; hold it, checkpoint it and pass it to jitted functions
    like any weight. `jax.tree.map(lambda *w: jnp.stack(w), *weights)` makes a stack for scan or
    vmap.

    Attributes:
      data: int8, flat: panels of 64 columns, in them quads of K, in them columns.
      scale: float32[N], one per column even where the weight has a single scale; [groups, N] of a
        weight in groups.
      zero_point: int32 of the shape of `scale`, or None; in terms of the stored int8 values.
      column_sums: int32[blocks, N], sums over blocks of K of (value - zero_point).
      matrix_shape: (K, N), static.
      qtype: "int8" or "uint8" (stored as q - 128), static.
      channelwise: whether the columns have scales of their own, static.
      format_version: of the layout, static.
      group_size: so many elements along K share a scale; None: all of them. Static.
    """

    data: jax.Array
    scale: jax.Array
    zero_point: jax.Array | None
    column_sums: jax.Array
    matrix_shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    qtype: str = dataclasses.field(metadata={"static": True})
    channelwise: bool = dataclasses.field(metadata={"static": True})
    format_version: int = dataclasses.field(
        default=reference.FORMAT_VERSION, metadata={"static": True}
    )
    group_size: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, N), after the leading dimensions of a stack."""
        return tuple(getattr(self.data, "shape", (0,))[:-1]) + self.matrix_shape

    def dequantize(self) -> jax.Array:
        """The real values, float32 of `shape`."""
        if self.data.ndim > 1:
            return jax.vmap(PackedWeight.dequantize)(self)
        errors.check_format_version("dequantize", self.format_version)
        values = reference.unpack(self.data, *self.matrix_shape)
        return _dequantize(values, self.scale, self.zero_point, self.group_size)

    def _metadata(self) -> list[int]:
        index = _QTYPES.index(self.qtype)
        group = self.group_size or 0
        return [self.format_version, index, *self.matrix_shape, int(self.channelwise), group]

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PackedWeight:
        """The inverse of `to_arrays`. ValueError for data of a newer release or altered data."""
        ints = {"zero_point": "int32", "column_sums": "int32"}
        dtypes = {"data": "int8", "scale": "float32", **ints}
        (version, _, k, n, channelwise, group), qtype, parts = cls._read(arrays, dtypes, 6)
        where = "PackedWeight.from_arrays"
        if min(k, n) < 0:
            raise ValueError(f"{where}: metadata must hold sizes K, N >= 0, got {k}, {n}")
        group = errors.group_size(where, "group_size", group or None)
        data, has_zero_point = parts["data"], parts["zero_point"] is not None
        if qtype == "uint8" and not has_zero_point:
            raise ValueError(f"{where}: no zero_point in the data, which a uint8 weight has")
        if data.shape[-1:] != (reference.packed_size(k, n),):
            raise ValueError(
                f"{where}: data has {data.shape[-1] if data.ndim else 'no'} bytes, expected "
                f"{reference.packed_size(k, n)} for a packed {k}×{n} weight"
            )
        blocks = len(reference.blocks(k, has_zero_point, group))
        columns = (blocks, n) if group else (n,)
        for name, shape in (
            ("scale", columns),
            ("zero_point", columns),
            ("column_sums", (blocks, n)),
        ):
            expected = (*data.shape[:-1], *shape)
            if parts[name] is not None and parts[name].shape != expected:
                raise ValueError(
                    f"{where}: {name} has shape {parts[name].shape}, expected {expected}"
                )
        return cls(
            **parts,
            matrix_shape=(k, n),
            qtype=qtype,
            channelwise=bool(channelwise),
            format_version=version,
            group_size=group,
        )

    def __repr__(self) -> str:
        scales = "per channel" if self.channelwise else "per tensor"
        scales = f"per group of {self.group_size}" if self.group_size else scales
        dims = ",".join(map(str, self.shape))
        zero_point = "" if self.zero_point is None else f", zero_point={_brief(self.zero_point)}"
        return f"PackedWeight({self.qtype}[{dims}], {scales}, data={_brief(self.data)}{zero_point})"


@dataclasses.dataclass(frozen=True)
class GemmSpec:
    """What one gemm does besides its shapes: the static parameter of the primitive.

    Attributes:
      dynamic: x is float, quantized per row inside; no x_scale, no x_zero_point.
      x_scale, x_zero_point: "none", "tensor" or "row".
      w_zero_point, bias, residual: whether that operand is present.
      activation: "none", or a key of `reference.ACTIVATIONS`.
      out_dtype: "float32", "bfloat16", "float16", "int8", "uint8" or "int32" (the raw sums).
      out_scale: of an 8-bit result: one per "tensor" or "column".
      batched: several products in one call: the result has a leading dimension, and so may each
        operand.
      batched: several products in one call: the result has a leading dimension for them, and so
        may each operand.
      ragged: groups of rows of x have a weight each, whose operands have a leading dimension.
      group: so many elements of K share a scale (and zero point) of w; None: all of them.
    """

    dynamic: bool
    x_scale: str = "none"
    x_zero_point: str = "none"
    w_zero_point: bool = False
    bias: bool = False
    residual: bool = False
    activation: str = "none"
    out_dtype: str = "float32"
    out_scale: str = "tensor"
    group: int | None = None
    batched: bool = False
    ragged: bool = False


@functools.partial(jax.jit, static_argnums=3, inline=True)
def _dequantize(values, scale, zero_point, group: int | None):
    if group is not None:
        k = values.shape[0]
        scale = reference.expand(scale, k, group)
        zero_point = None if zero_point is None else reference.expand(zero_point, k, group)
    return reference.dequantize(values, scale, zero_point)


def _brief(part) -> str:
    """`float32[8,1]` of an array or tracer; whatever else JAX puts into a pytree, by its repr."""
    return errors.describe(part) if hasattr(part, "dtype") else repr(part)
