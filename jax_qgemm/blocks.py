"""Weights in blocks: 4 or 8 bits each, and for every group along K and column a scale, maybe a
minimum. Their layout, quantization and meaning in plain JAX.

    w[k, n] = scale[g, n] * q[k, n] + minimum[g, n]        q unsigned, g = k // group

Without a minimum it is `-offset * scale`, offset 8 or 128: the values are symmetric about 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

BITS = {"int4": 4, "int8_blocks": 8}
SCALE_DTYPES = {name: np.dtype(name) for name in ("float32", "float16")} | {
    "bfloat16": np.dtype(jnp.bfloat16)
}
PANEL, UNIT = 64, 16  # columns of a panel of the packed layout, and that its width is a multiple of
STEP = 4  # bytes of a column at a time


class Blocks(NamedTuple):
    """The static form of a weight in blocks: what its bytes mean."""

    bits: int
    group: int
    scale_dtype: str
    minimum: bool

    @property
    def offset(self) -> int:
        """Without a minimum, what stands for 0."""
        return 1 << (self.bits - 1)

    @property
    def most(self) -> int:
        return (1 << self.bits) - 1

    def groups(self, k: int) -> int:
        return -(-k // self.group)

    def size(self, k: int, n: int) -> int:
        """Bytes of a packed K×N weight."""
        scale = SCALE_DTYPES[self.scale_dtype].itemsize * (1 + self.minimum)
        return -(-n // UNIT) * UNIT * self.groups(k) * (self.group * self.bits // 8 + scale)


def group_unit(qtype: str) -> int:
    """What sizes of groups are multiples of: kernels take four steps at a time."""
    return 4 * STEP * 8 // BITS[qtype]


# The packed layout: packed[panel][group], in it the scales of all columns, their minima, then
# [step][column][byte]; a step of 4 bytes of a column has 4 elements of 8 bits, or 8 of 4, of which
# byte i has element i in its low half and i + 4 in the high one.


def _sections(columns: int) -> list[tuple[int, int, int]]:
    """(first column, panels, their width): the panels of 64 columns, then the narrower one."""
    full, rest = divmod(columns, PANEL)
    sections = [(0, full, PANEL), (full * PANEL, 1, rest)]
    return [s for s in sections if s[1] * s[2] > 0]


def pack(q, scale, minimum, form: Blocks):
    """q u8[K,N], scale and minimum (or None) [groups,N] → data u8, flat."""
    k, n = q.shape
    groups, columns = form.groups(k), -(-n // UNIT) * UNIT
    if groups * columns == 0:
        return jnp.zeros(0, jnp.uint8)
    q = jnp.pad(q, ((0, groups * form.group - k), (0, columns - n)))
    dtype = SCALE_DTYPES[form.scale_dtype]
    parts = [scale, minimum] if form.minimum else [scale]
    parts = [jnp.pad(part.astype(dtype), ((0, 0), (0, columns - n))) for part in parts]
    steps = q.reshape(groups, -1, 8 // form.bits, STEP, columns)
    data = steps[:, :, 0] if form.bits == 8 else steps[:, :, 0] | steps[:, :, 1] << 4

    def panels(first, count, width):
        def cut(part):
            part = part[..., first : first + count * width]
            return jnp.moveaxis(part.reshape(*part.shape[:-1], count, width), -2, 0)

        pieces = [lax.bitcast_convert_type(cut(part), jnp.uint8) for part in parts]
        pieces.append(jnp.swapaxes(cut(data), -1, -2))
        return jnp.concatenate([p.reshape(count, groups, -1) for p in pieces], axis=2).ravel()

    return jnp.concatenate([panels(*section) for section in _sections(columns)])


def unpack(data, k: int, n: int, form: Blocks):
    """(q u8 [groups,group,N], scale f32 [groups,N], minimum f32 [groups,N]) of packed `data`; the
    last group is filled up with zeros."""
    groups, columns = form.groups(k), -(-n // UNIT) * UNIT
    dtype = SCALE_DTYPES[form.scale_dtype]
    if groups * columns == 0:
        empty = jnp.zeros((groups, n), jnp.float32)
        return jnp.zeros((groups, form.group, n), jnp.uint8), empty, empty

    def panels(first, count, width):
        begin, end = form.size(k, first), form.size(k, first + count * width)
        parts = data[begin:end].reshape(count, groups, -1)
        split = width * dtype.itemsize

        def scales(i):
            raw = parts[..., i * split : (i + 1) * split].reshape(count, groups, width, -1)
            return jnp.moveaxis(lax.bitcast_convert_type(raw, dtype), 0, 1).reshape(groups, -1)

        steps = parts[..., (1 + form.minimum) * split :]
        steps = jnp.moveaxis(steps.reshape(count, groups, -1, width, STEP), (0, 4), (3, 2))
        return [
            *map(scales, range(1 + form.minimum)),
            steps.reshape(groups, -1, STEP, count * width),
        ]

    pieces = [panels(*section) for section in _sections(columns)]
    joined = [jnp.concatenate(parts, axis=-1)[..., :n] for parts in zip(*pieces, strict=True)]
    *scales, steps = joined
    if form.bits == 4:
        steps = jnp.stack([steps & 15, steps >> 4], axis=2)
    scale = scales[0].astype(jnp.float32)
    minimum = scales[1].astype(jnp.float32) if form.minimum else scale * -form.offset
    return steps.reshape(groups, form.group, n), scale, minimum


def dequantize(data, k: int, n: int, form: Blocks):
    """The float32 [K,N] values of packed `data`."""
    q, scale, minimum = unpack(data, k, n, form)
    if form.minimum:
        w = q.astype(jnp.float32) * scale[:, None] + minimum[:, None]
    else:
        w = (q.astype(jnp.int32) - form.offset).astype(jnp.float32) * scale[:, None]
    return w.reshape(w.shape[0] * form.group, n)[:k]


def quantize(kernel, form: Blocks):
    """f32 [K,N] → (q u8 [K,N], scale, minimum or None [groups,N] in scale_dtype).

    Symmetric 4 bits: the value of largest magnitude becomes -8, so the scale has its sign, negated;
    8 bits: ±127. With a minimum the group's range is that of q. As GGUF's Q4_0, Q8_0 and Q4_1.
    """
    k, n = kernel.shape
    groups = form.groups(k)
    dtype = SCALE_DTYPES[form.scale_dtype]
    # Filled up with copies of the last row: they leave ranges as they are.
    rows = jnp.pad(kernel, ((0, groups * form.group - k), (0, 0)), mode="edge" if k else "constant")
    parts = rows.reshape(groups, form.group, n)
    low, high = (f(parts, axis=1) for f in (jnp.min, jnp.max))
    minimum = None
    if form.minimum:
        scale, minimum = (high - low) / np.float32(form.most), low.astype(dtype)
    elif form.bits == 4:
        scale = jnp.where(-low >= high, low, high) / np.float32(-form.offset)
    else:
        scale = jnp.maximum(-low, high) / np.float32(form.offset - 1)
    scale = scale.astype(dtype)
    # By what is stored, for the smallest errors.
    step = scale.astype(jnp.float32)[:, None]
    start = np.float32(0) if minimum is None else minimum.astype(jnp.float32)[:, None]
    t = jnp.where(step == 0, 0, (parts - start) / jnp.where(step == 0, 1, step))
    q = jnp.round(t) + (0 if form.minimum else form.offset)
    q = jnp.clip(jnp.where(jnp.isnan(q), 0, q), 0, form.most).astype(jnp.uint8)
    # A group with a NaN or an Inf has NaN for all.
    finite = jnp.isfinite(parts).all(axis=1)  # XLA's extremes may lose a NaN on CPUs
    scale = jnp.where(finite, scale, jnp.asarray(np.nan, dtype))
    return q.reshape(groups * form.group, n)[:k], scale, minimum
