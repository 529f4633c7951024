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

from jax_qgemm import blocks, errors, packed_parts, reference
from jax_qgemm.blocks import Blocks
from jax_qgemm.explicit import whole
from jax_qgemm.packed_parts import SCALE_DTYPES, WEIGHTS

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
    def _fields(cls, qtype: str) -> dict[str, str]:
        """The arrays that one of `qtype` has, and their dtypes; it may lack a zero_point."""
        raise NotImplementedError

    @classmethod
    def _read(cls, arrays: Mapping[str, np.ndarray], qtypes: tuple[str, ...], length: int):
        """(metadata, qtype, arrays by field name) of data that this release can read.

        `qtypes`: that it may have, by their numbers; `length`: of the metadata.
        """
        where = f"{cls.__name__}.from_arrays"

        def require(qtype, *more):
            names = (*cls._fields(qtype), *more)
            missing = [n for n in names if n not in arrays and n != "zero_point"]
            if missing:
                raise ValueError(f"{where}: no {', '.join(missing)} in the data")

        if "metadata" not in arrays:
            require(qtypes[0], "metadata")
        found = np.asarray(arrays["metadata"])
        if found.dtype.kind in "iu" and found.size:
            errors.check_format_version(where, int(found.flat[0]))
        if found.dtype.kind not in "iu" or found.shape != (length,):
            raise ValueError(
                f"{where}: metadata must be {length} integers, got {errors.describe(found)}"
            )
        metadata = found.tolist()
        if not 0 <= metadata[1] < len(qtypes):
            known = ", ".join(f"{i} ({name})" for i, name in enumerate(qtypes))
            raise ValueError(f"{where}: unknown qtype {metadata[1]} in metadata, known: {known}")
        qtype = qtypes[metadata[1]]
        require(qtype)
        parts = {}
        for name, dtype in cls._fields(qtype).items():
            if name not in arrays:
                continue
            part = np.asarray(arrays[name])
            if part.dtype.name != dtype:
                raise ValueError(f"{where}: {name} must be {dtype}, got {errors.describe(part)}")
            parts[name] = errors.as_array(where, name, part)
        return metadata, qtype, {"zero_point": None} | parts


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
        (*_, group), qtype, parts = cls._read(arrays, _QTYPES, 3)
        q = cls(**parts, qtype=qtype, group_size=group or None)
        return errors.check_quantized("QuantizedArray.from_arrays", "q", q)

    def to_arrays(self) -> dict[str, np.ndarray]:
        # Also of parts that are plain numbers.
        return _Quantized.to_arrays(errors.check_quantized("to_arrays", "q", self))

    @classmethod
    def _fields(cls, qtype: str) -> dict[str, str]:
        return {"qvalue": qtype, "scale": "float32", "zero_point": "int32"}

    def __repr__(self) -> str:
        return (
            f"QuantizedArray({_brief(self.qvalue)}, scale={_brief(self.scale)}, "
            f"zero_point={_brief(self.zero_point)}, qtype={self.qtype!r}"
            + (f", group_size={self.group_size})" if self.group_size else ")")
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PackedWeight(_Quantized):
    """A K×N weight in the kernels' layout, the same for every CPU: of 8-bit integers, 16-bit floats
    or, in groups that bring their scales with them, blocks of 4 or 8 bits.

    Make one with `pack` or `pack_weight`; hold it, checkpoint it and pass it to jitted functions
    like any weight. `jax.tree.map(lambda *w: jnp.stack(w), *weights)` makes a stack for scan or
    vmap.

    Attributes:
      data: int8; uint16, the bits of float16 and bfloat16, which no cast of floats in a tree of
        parameters changes; uint8 of blocks, scales included. Flat: panels of 64 columns, in them
        steps of K, in them columns.
      scale: float32[N], one per column even where the weight has a single scale; [groups, N] of
        int8 in groups; None of floats and blocks, and so are the next two.
      zero_point: int32 of the shape of `scale`, or None; in terms of the stored int8 values.
      column_sums: int32[blocks, N], sums over blocks of K of (value - zero_point).
      matrix_shape: (K, N), static.
      qtype: "int8", "uint8" (stored as q - 128), "float16", "bfloat16", "int4" or "int8_blocks",
        static.
      channelwise: whether the columns have scales of their own, static.
      format_version: of the layout, static.
      group_size: so many elements along K share a scale; None: all of them. Static.
      weight_only: whether activations stay float, as they do with floats anyway. Static.
      scale_dtype: of blocks: "float32", "bfloat16" or "float16". Static.
      minimum: of blocks: whether groups have one; else their values are symmetric. Static.
    """

    data: jax.Array
    scale: jax.Array | None
    zero_point: jax.Array | None
    column_sums: jax.Array | None
    matrix_shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    qtype: str = dataclasses.field(metadata={"static": True})
    channelwise: bool = dataclasses.field(metadata={"static": True})
    format_version: int = dataclasses.field(
        default=reference.FORMAT_VERSION, metadata={"static": True}
    )
    group_size: int | None = dataclasses.field(default=None, metadata={"static": True})
    weight_only: bool = dataclasses.field(default=False, metadata={"static": True})
    scale_dtype: str | None = dataclasses.field(default=None, metadata={"static": True})
    minimum: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, N), after the leading dimensions of a stack."""
        return tuple(getattr(self.data, "shape", (0,))[:-1]) + self.matrix_shape

    @property
    def is_float(self) -> bool:
        """Whether it holds floats."""
        return self.qtype in reference.FLOAT_WEIGHTS

    @property
    def blocks(self) -> Blocks | None:
        """The form of its blocks, where it is in such."""
        if self.qtype not in blocks.BITS:
            return None
        return Blocks(blocks.BITS[self.qtype], self.group_size, self.scale_dtype, self.minimum)

    @property
    def takes_floats(self) -> bool:
        """Whether activations stay float."""
        return self.is_float or self.weight_only

    def dequantize(self) -> jax.Array:
        """The real values, float32 of `shape`. TypeError, ValueError for parts that do not fit."""
        packed_parts.check("dequantize", self, "w.")
        if self.data.ndim > 1:
            return jax.vmap(PackedWeight.dequantize)(jax.tree.map(whole, self))
        data, scale, zero_point = jax.tree.map(whole, (self.data, self.scale, self.zero_point))
        if self.is_float:
            return _unpack_float(data, *self.matrix_shape, self.qtype)
        if self.blocks is not None:
            return _dequantize_blocks(data, *self.matrix_shape, self.blocks)
        values = reference.unpack(data, *self.matrix_shape)
        return _dequantize(values, scale, zero_point, self.group_size)

    def _metadata(self) -> list[int]:
        index = WEIGHTS.index(self.qtype)
        group = self.group_size or 0
        scales = SCALE_DTYPES.index(self.scale_dtype), int(self.minimum)
        flags = int(self.channelwise), group, int(self.weight_only), *scales
        return [self.format_version, index, *self.matrix_shape, *flags]

    @property
    def _format(self) -> tuple[int, int, int]:
        """Numbers, 1 and more, of what the arrays' shapes and dtypes do not tell: the version, how
        elements and what their groups share are stored, the size of groups in units."""
        _, index, *_, scales, minimum = self._metadata()
        stored = (index * len(SCALE_DTYPES) + scales) * 2 + minimum
        return self.format_version, 1 + stored, 1 + (self.group_size or 0) // errors.GROUP_UNIT

    def _check_format(self, where: str, found: tuple[int, ...]) -> None:
        """ValueError unless `found` is the format of data that may take the place of this one's."""
        version, stored, units = found
        errors.check_format_version(where, version)
        if (stored, units) == self._format[1:]:
            return
        stored, minimum = divmod(stored - 1, 2)
        index, scales = divmod(stored, len(SCALE_DTYPES))
        parts = [WEIGHTS[index] if index < len(WEIGHTS) else f"qtype {index}"]
        parts += [f"groups of {(units - 1) * errors.GROUP_UNIT}"] if units > 1 else []
        parts += [f"scales of {SCALE_DTYPES[scales]}"] if scales else []
        parts += ["minima"] if minimum else []
        raise ValueError(f"{where}: the data is {', '.join(parts)}, expected that of {self!r}")

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PackedWeight:
        """The inverse of `to_arrays`. ValueError for data of a newer release or altered data."""
        metadata, qtype, parts = cls._read(arrays, WEIGHTS, 9)
        version, _, k, n, channelwise, group, weight_only, scales, minimum = metadata
        where = "PackedWeight.from_arrays"
        if qtype == "uint8" and parts["zero_point"] is None:
            raise ValueError(f"{where}: no zero_point in the data, which a uint8 weight has")
        if not 0 <= scales < len(SCALE_DTYPES):
            raise ValueError(f"{where}: metadata has scales of unknown dtype {scales}")
        w = cls(
            **({"scale": None, "column_sums": None} | parts),
            matrix_shape=(k, n),
            qtype=qtype,
            channelwise=bool(channelwise),
            format_version=version,
            group_size=group or None,
            weight_only=bool(weight_only),
            scale_dtype=SCALE_DTYPES[scales],
            minimum=bool(minimum),
        )
        packed_parts.check(where, w)
        return w

    @classmethod
    def _fields(cls, qtype: str) -> dict[str, str]:
        return packed_parts.fields(qtype)

    def __repr__(self) -> str:
        if self.is_float:
            dims = ",".join(map(str, self.shape))
            return f"PackedWeight({self.qtype}[{dims}], data={_brief(self.data)})"
        scales = "per channel" if self.channelwise else "per tensor"
        scales = f"per group of {self.group_size}" if self.group_size else scales
        if self.blocks is not None:
            scales += f" in {self.scale_dtype}{' with a minimum' if self.minimum else ''}"
        scales += ", weight only" if self.weight_only else ""
        dims = ",".join(map(str, self.shape))
        zero_point = "" if self.zero_point is None else f", zero_point={_brief(self.zero_point)}"
        return f"PackedWeight({self.qtype}[{dims}], {scales}, data={_brief(self.data)}{zero_point})"


@dataclasses.dataclass(frozen=True)
class GemmSpec:
    """What one gemm does besides its shapes: the static parameter of the primitive.

    Attributes:
      weights: how they are stored: "int8", or "float16" or "bfloat16", which take a float x and
        have no scales, zero points or groups, or "int4" or "int8_blocks", which take a float x.
      blocks: the form of the last two.
      transposed_k: None, or, of a product by the transpose of the weight, with x [M,N] and the
        result [M,K], K. x stays float, whatever the weights, and nothing follows the product.
      columns: N of all but "int8", of which no scales tell it.
      rows: dimensions of x before K: M is their product, which is folded when the kernel is
        called, so that each may be split over devices.
      dynamic: x is float, quantized per row inside; no x_scale, no x_zero_point.
      keeps_x: x is float and stays so, for weights of either kind.
      x_scale, x_zero_point: "none", "tensor" or "row".
      w_zero_point, bias, residual: whether that operand is present.
      activation: "none", or a key of `reference.ACTIVATIONS`.
      out_dtype: "float32", "bfloat16", "float16", "int8", "uint8" or "int32" (the raw sums).
      out_scale: of an 8-bit result: one per "tensor" or "column".
      batched: dimensions of a batch of products in one call: the result has them in front, and an
        operand has all, of size 1 where products share it, or none. They are folded when the
        kernel is called, too.
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
    batched: int = 0
    ragged: bool = False
    keeps_x: bool = False
    weights: str = "int8"
    columns: int | None = None
    blocks: Blocks | None = None
    transposed_k: int | None = None
    rows: int = 1


_dequantize_blocks = jax.jit(blocks.dequantize, static_argnums=(1, 2, 3), inline=True)
_unpack_float = jax.jit(reference.unpack_float, static_argnums=(1, 2, 3), inline=True)


@functools.partial(jax.jit, static_argnums=3, inline=True)
def _dequantize(values, scale, zero_point, group: int | None):
    if group is not None:
        k = values.shape[0]
        scale = reference.expand(scale, k, group)
        zero_point = None if zero_point is None else reference.expand(zero_point, k, group)
    elif scale.ndim == 1 < values.ndim:  # of columns
        scale, zero_point = jax.tree.map(lambda part: part[None], (scale, zero_point))
    return reference.dequantize(values, scale, zero_point)


def _brief(part) -> str:
    """`float32[8,1]` of an array or tracer; whatever else JAX puts into a pytree, by its repr."""
    return errors.describe(part) if hasattr(part, "dtype") else repr(part)
