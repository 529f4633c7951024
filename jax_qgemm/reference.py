"""The meaning of every primitive in plain JAX: fallback lowering, test oracle and specification.

Quantization is affine, `real = scale * (q - zero_point)`, rounds to nearest even and saturates.
On the CPU these functions give the same bits as the native kernels wherever scales and their
reciprocals are normal numbers: `rounded`, and divisors that are no compile-time constants, keep
XLA from replacing two roundings by one; but it flushes subnormals, which the kernels keep.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_qgemm import blocks as _blocks

if TYPE_CHECKING:
    from jax_qgemm.blocks import Blocks
    from jax_qgemm.types import GemmSpec

QRANGE = {"int8": (-128, 127), "uint8": (0, 255)}
FLOAT_WEIGHTS = {"float16": np.dtype(jnp.float16), "bfloat16": np.dtype(jnp.bfloat16)}
FORMAT_VERSION = 1  # of the packed layout
PANEL = 64  # columns in a panel of the packed layout
FLT_MAX = np.finfo(np.float32).max
FLT_MIN = np.finfo(np.float32).tiny


def rounded(y):
    """y, kept from XLA's rewriting: a·b + c as one operation, a / (b / c) as a·c / b."""
    return jnp.where(jnp.isnan(y), np.nan, y)


# Parameters of the quantization


def all_finite(x, axes):
    """Whether all values are, over `axes` (kept as 1). Their extremes do not tell: XLA's maximum
    over an axis may lose a NaN on CPUs."""
    return jnp.all(jnp.isfinite(x), axis=axes, keepdims=True)


def symmetric_params(x, axes, qmax: int):
    """Scale and its inverse from max|x| over `axes` (kept as 1): `amax / qmax`, `qmax / amax`.

    Values so small that the scale would be subnormal (CPUs flush those to zero) count as zeros:
    scale 1. NaN or Inf anywhere makes scale and inverse NaN.
    """
    amax = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
    amax = jnp.where(amax < qmax * FLT_MIN, np.float32(qmax), amax)
    steps = jnp.where(all_finite(x, axes), np.float32(qmax), np.nan)
    return amax / steps, steps / amax


def asymmetric_params(x, axes, qtype: str):
    """Scale, inverse and int32 zero point from min(x, 0) and max(x, 0) over `axes` (kept as 1).

    0.0 is represented exactly. Tiny and non-finite ranges as in `symmetric_params`.
    """
    qmin, qmax = QRANGE[qtype]
    low = jnp.min(x, axis=axes, keepdims=True, initial=0)
    high = jnp.max(x, axis=axes, keepdims=True, initial=0)
    steps = jnp.where(all_finite(x, axes), np.float32(qmax - qmin), np.nan)
    width = high - low
    tiny = width < (qmax - qmin) * FLT_MIN
    low = jnp.where(tiny, 0, low)
    # The range of finite values may be beyond float32.
    scale = jnp.where(width < np.inf, width / steps, rounded(high / steps) - low / steps)
    scale = rounded(jnp.where(tiny, 1, scale))
    zero_point = quantize_affine(-low / scale, qmin, qtype).astype(jnp.int32)
    return scale, reciprocal(scale), zero_point


def reciprocal(scale):
    """1 / scale, finite for every positive scale."""
    return jnp.minimum(1 / rounded(scale), FLT_MAX)


# Elementwise maps


def quantize_affine(t, zero_point, qtype: str):
    """`clamp(rne(t) + zero_point)` for t = x / scale; NaN gives zero_point (None: 0)."""
    zero_point = 0 if zero_point is None else jnp.asarray(zero_point).astype(jnp.float32)
    qmin, qmax = QRANGE[qtype]
    t = jnp.clip(jnp.where(jnp.isnan(t), 0, t), qmin - zero_point, qmax - zero_point)
    return (jnp.round(t) + zero_point).astype(qtype)


def quantize_static(x, scale, zero_point, qtype: str):
    """q of x by given parameters; x is widened to float32."""
    return quantize_affine(x.astype(jnp.float32) * reciprocal(scale), zero_point, qtype)


def dequantize(qvalue, scale, zero_point):
    """`scale * (q - zero_point)`, float32."""
    q = qvalue.astype(jnp.int32)
    return (q if zero_point is None else q - zero_point).astype(jnp.float32) * scale


def expand(parameters, k: int, group: int | None):
    """Scales or zero points [groups,N] as [K,N]; without groups as they are."""
    return parameters if group is None else jnp.repeat(parameters, group, axis=0)[:k]


def quantize_groups(x, qtype: str, group: int, symmetric: bool):
    """x [K,N] → parameters chosen for each group of rows and column: q [K,N], scale f32 and zero
    point s32 or None [groups,N]."""
    k, n = x.shape
    groups = len(blocks(k, False, group))
    x = x.astype(jnp.float32)
    parts = jnp.pad(x, ((0, groups * group - k), (0, 0))).reshape(groups, group, n)
    if symmetric:
        scale, inverse = symmetric_params(parts, (1,), 127)
        zero_point = None if qtype == "int8" else jnp.full_like(scale, 128, jnp.int32)
    else:
        scale, inverse, zero_point = asymmetric_params(parts, (1,), qtype)
    q = quantize_affine(parts * inverse, zero_point, qtype).reshape(groups * group, n)[:k]
    return q, scale[:, 0], None if zero_point is None else zero_point[:, 0]


def quantize_rows(x, qtype: str):
    """x [*rows,K] → parameters chosen for each row: [q int8, scale f32[*rows]], symmetric, or
    [q uint8, scale f32[*rows], zero_point s32[*rows]], asymmetric."""
    x = x.astype(jnp.float32)
    if qtype == "int8":
        scale, inverse = symmetric_params(x, (x.ndim - 1,), 127)
        return [quantize_affine(x * inverse, None, "int8"), scale[..., 0]]
    scale, inverse, zero_point = asymmetric_params(x, (x.ndim - 1,), "uint8")
    return [quantize_affine(x * inverse, zero_point, "uint8"), scale[..., 0], zero_point[..., 0]]


# The packed layout: packed[panel][k // s][column][k % s], panels of 64 columns; steps of s = 4
# elements of int8, 2 of bfloat16; of float16 [panel][k // 2][column // 16][k % 2][column % 16]


def k_block(has_zero_point: bool, group: int | None = None) -> int:
    """Longest part of K whose int32 sum cannot overflow."""
    return group or (32768 if has_zero_point else 65536)


def blocks(k: int, has_zero_point: bool, group: int | None = None) -> list[slice]:
    """K in consecutive blocks, at least one: the groups, where a weight has such."""
    step = k_block(has_zero_point, group)
    return [slice(start, min(start + step, k)) for start in range(0, max(k, 1), step)]


def packed_size(k: int, n: int, weights: str = "int8", form: Blocks | None = None) -> int:
    """Elements of a packed K×N matrix: N up to a multiple of 16, K of the elements of a step."""
    if form is not None:
        return form.size(k, n)
    step = _step(weights)
    return (n + 15) // 16 * 16 * (-(-k // step) * step)


def _step(weights: str) -> int:
    return 2 if weights in FLOAT_WEIGHTS else 4


def _to_panels(values, weights: str):
    """[K,N] → flat, in the packed layout."""
    k, n = values.shape
    step, unit = _step(weights), 16 if weights == "float16" else 1
    padded = jnp.pad(values, ((0, -k % step), (0, -n % 16)))
    rows, columns = padded.shape

    def panels(part, count, width):
        parts = part.reshape(rows // step, step, count, width // unit, unit)
        return parts.transpose(2, 0, 3, 1, 4).ravel()

    full, rest = divmod(columns, PANEL)
    whole = full * PANEL
    return jnp.concatenate(
        [panels(padded[:, :whole], full, PANEL), panels(padded[:, whole:], 1, rest)]
    )


def _from_panels(data, k: int, n: int, weights: str):
    """The inverse of `_to_panels`."""
    step, unit = _step(weights), 16 if weights == "float16" else 1
    rows, columns = -(-k // step) * step, (n + 15) // 16 * 16

    def matrix(part, count, width):
        parts = part.reshape(count, rows // step, width // unit, step, unit)
        return parts.transpose(1, 3, 0, 2, 4).reshape(rows, count * width)

    full, rest = divmod(columns, PANEL)
    end = full * PANEL * rows
    return jnp.concatenate([matrix(data[:end], full, PANEL), matrix(data[end:], 1, rest)], axis=1)[
        :k, :n
    ]


def pack(qvalue, zero_point=None, group: int | None = None):
    """qvalue s8[K,N] → data s8[N16*K4], column_sums s32[blocks,N] of (qvalue - zero_point)."""
    k = qvalue.shape[0]
    centred = qvalue.astype(jnp.int32)
    if zero_point is not None:
        centred = centred - expand(zero_point, k, group)
    sums = [
        centred[part].sum(axis=0, dtype=jnp.int32)
        for part in blocks(k, zero_point is not None, group)
    ]
    return _to_panels(qvalue, "int8"), jnp.stack(sums)


def unpack(data, k: int, n: int):
    """The s8[K,N] matrix in packed `data`."""
    return _from_panels(data, k, n, "int8")


def pack_float(bits, weights: str):
    """The bits u16[K,N] of `weights` → data u16, packed."""
    return _to_panels(bits, weights)


def unpack_float(data, k: int, n: int, weights: str):
    """The float32[K,N] values of packed `data`."""
    bits = _from_panels(data, k, n, weights)
    return lax.bitcast_convert_type(bits, FLOAT_WEIGHTS[weights]).astype(jnp.float32)


# The product


def ragged(product, operands, axes, group_sizes):
    """Rows of `product` by the operands of their group (axes 0) or of all (None); else 0."""
    ends = jnp.cumsum(jnp.maximum(group_sizes, 0))

    def of_group(parts):
        filled = [o if p is None else p for o, p in zip(operands, parts, strict=True)]
        return product(*filled)

    every = lax.map(of_group, [o if a == 0 else None for o, a in zip(operands, axes, strict=True)])
    rows = jnp.arange(every.shape[1])
    group = jnp.minimum(jnp.searchsorted(ends, rows, side="right"), len(group_sizes) - 1)
    return jnp.where((rows < ends[-1])[:, None], every[group, rows], 0)


def _silu(y):
    return y * lax.logistic(y)


@jax.custom_jvp
def _erfc(y):
    return lax.erfc(y)


@_erfc.defjvp
def _erfc_jvp(primals, tangents):
    # Spelled out: JAX's own does not work inside shard_map in jax 0.12.
    (y,), (tangent,) = primals, tangents
    return _erfc(y), np.float32(-2 / np.sqrt(np.pi)) * jnp.exp(-y * y) * tangent


def gelu(y, erfc=_erfc):
    """y times the normal distribution's integral; at -150 it has reached -0, at -Inf it would be
    -Inf times 0."""
    y = jnp.maximum(y, -150)
    return np.float32(0.5) * y * erfc(y * np.float32(-np.sqrt(0.5)))


def _gelu_tanh(y):
    """`y/2 · (1 + tanh(v))` with v = √(2/π)·(y + 0.044715 y³), as y times the logistic function of
    2v: the same, without the difference of nearly equal numbers."""
    return y * lax.logistic(np.float32(2 * np.sqrt(2 / np.pi)) * (y + 0.044715 * y * y * y))


ACTIVATIONS = {
    "relu": lambda y: jnp.where(y < 0, 0, y),
    "gelu": gelu,
    # As gelu.
    "gelu_tanh": lambda y: _gelu_tanh(jnp.maximum(y, -150)),
    "silu": lambda y: _silu(jnp.maximum(y, -150)),
}


def gemm(
    x,
    data,
    w_scale=None,
    column_sums=None,
    x_scale=None,
    x_zero_point=None,
    w_zero_point=None,
    bias=None,
    residual=None,
    out_scale=None,
    out_zero_point=None,
    *,
    spec: GemmSpec,
):
    """out[M,N] of x [M,K] and a packed weight, in the order of the output pipeline; by the
    transpose of the weight out[M,K] of x [M,N].

    `acc = Σ_k (x - x_zero_point) * (w - w_zero_point)` exactly, then scales, or of float weights
    `Σ_k x * w` in float32, or of blocks the sum over their groups; bias; residual; activation;
    output.
    The column sums are the native kernels' shortcut to the same value.
    """
    del column_sums
    if spec.transposed_k is not None:
        w = _values(data, w_scale, w_zero_point, spec)
        y = lax.dot(x.astype(jnp.float32), w.T, precision=lax.Precision.HIGHEST)
    elif spec.blocks is not None:
        y = _block_product(x.astype(jnp.float32), data, spec)
    elif spec.keeps_x:
        y = _float_product(x.astype(jnp.float32), data, w_scale, w_zero_point, spec)
    else:
        y = _quantized_product(x, data, w_scale, x_scale, x_zero_point, w_zero_point, spec)
        if spec.out_dtype == "int32":
            return y
    y = epilogue(y, bias, residual, spec.activation)
    if spec.out_dtype in QRANGE:
        return quantize_static(y, out_scale, out_zero_point, spec.out_dtype)
    return y.astype(spec.out_dtype)


def epilogue(y, bias, residual, activation: str):
    """What follows the scaled product, float32."""
    if bias is not None:
        y = rounded(y) + jnp.expand_dims(bias, tuple(range(y.ndim - 1)))
    if residual is not None:
        y = (rounded(y) if bias is None else y) + residual.astype(jnp.float32)
    return y if activation == "none" else ACTIVATIONS[activation](y)


def _values(data, w_scale, w_zero_point, spec: GemmSpec):
    """What the weight of a product by its transpose stands for, float32 [K,N]."""
    k = spec.transposed_k
    if spec.blocks is not None:
        return _blocks.dequantize(data, k, spec.columns, spec.blocks)
    if spec.weights in FLOAT_WEIGHTS:
        return unpack_float(data, k, spec.columns, spec.weights)
    values = unpack(data, k, w_scale.shape[-1])
    scale, zero_point = (
        None if part is None else expand(part, k, spec.group) for part in (w_scale, w_zero_point)
    )
    return dequantize(values, scale, zero_point)


def _float_product(x, data, w_scale, w_zero_point, spec: GemmSpec):
    """x @ w in float32, where scales come after the sums of what shares them."""
    k = x.shape[1]
    if spec.weights in FLOAT_WEIGHTS:
        w = unpack_float(data, k, spec.columns, spec.weights)
        return lax.dot(x, w, precision=lax.Precision.HIGHEST)
    w = unpack(data, k, w_scale.shape[-1]).astype(jnp.int32)
    if w_zero_point is not None:
        w = w - expand(w_zero_point, k, spec.group)
    w, y = w.astype(jnp.float32), 0
    for i, part in enumerate(blocks(k, False, spec.group or max(k, 1))):
        term = lax.dot(x[:, part], w[part], precision=lax.Precision.HIGHEST)
        y = y + rounded(term * (w_scale[i] if spec.group else w_scale))
    return y


def _block_product(x, data, spec: GemmSpec):
    """x @ w of weights in blocks, float32. Quantized by groups, xq with a scale s[m,g], it is

    Σ_g scale[g,n] · (s[m,g] · Σ_k xq·(q - offset)),  or with a minimum
    Σ_g scale[g,n] · (s[m,g] · Σ_k xq·q) + minimum[g,n] · (s[m,g] · Σ_k xq)
    """
    (m, k), n, form = x.shape, spec.columns, spec.blocks
    if spec.keeps_x:
        w = _blocks.dequantize(data, k, n, form)
        return lax.dot(x, w, precision=lax.Precision.HIGHEST)
    q, scale, minimum = _blocks.unpack(data, k, n, form)
    groups, offset = form.groups(k), 0 if form.minimum else form.offset
    parts = jnp.pad(x, ((0, 0), (0, groups * form.group - k))).reshape(m, groups, form.group)
    row_scale, inverse = symmetric_params(parts, (2,), 127)
    xq = quantize_affine(parts * inverse, None, "int8").astype(jnp.int32)

    def add_group(y, of_group):
        xq, s, q, scale, minimum = of_group
        acc = lax.dot(xq, q.astype(jnp.int32) - offset, preferred_element_type=jnp.int32)
        y = y + acc.astype(jnp.float32) * s * scale
        if form.minimum:
            y = y + minimum * (s * xq.sum(axis=1, keepdims=True).astype(jnp.float32))
        return y, None

    of_groups = jnp.moveaxis(xq, 1, 0), jnp.moveaxis(row_scale, 1, 0), q, scale, minimum
    return lax.scan(add_group, jnp.zeros((m, n), jnp.float32), of_groups)[0]


def _quantized_product(x, data, w_scale, x_scale, x_zero_point, w_zero_point, spec: GemmSpec):
    """The scaled product, float32 [M,N], or the sums themselves, int32."""
    if spec.dynamic:
        x, x_scale, x_zero_point = quantize_rows(x, "uint8")
    qx = x.astype(jnp.int32)
    if x_zero_point is not None:
        qx = qx - (x_zero_point[:, None] if x_zero_point.ndim else x_zero_point)
    qw = unpack(data, x.shape[1], w_scale.shape[-1]).astype(jnp.int32)
    if w_zero_point is not None:
        qw = qw - expand(w_zero_point, x.shape[1], spec.group)
    if spec.out_dtype == "int32":
        return lax.dot(qx, qw, preferred_element_type=jnp.int32)
    y = 0
    for i, part in enumerate(blocks(x.shape[1], w_zero_point is not None, spec.group)):
        acc = lax.dot(qx[:, part], qw[part], preferred_element_type=jnp.int32)
        term = acc.astype(jnp.float32)
        y = y + (term if spec.group is None else rounded(term * w_scale[i]))
    if spec.group is not None:
        y = rounded(y) * (x_scale[:, None] if x_scale.ndim else x_scale)
    elif spec.dynamic or spec.x_scale == "row":
        y = rounded(y * w_scale) * x_scale[:, None]
    else:
        y = y * (x_scale * w_scale)
    return y


# Attention over a quantized cache: (key, key_scale, value, value_scale), s8 [B,G,L*D] and f32
# [B,G,L]; keys are the packed matrix [D,L] of each head, values the packed matrix [L,D]


def _offsets(rows: int, row, column, columns: int):
    """Where element (row, column) of a packed s8 [rows,columns] lies: layout.h, whole steps."""
    panel = column // PANEL
    width = jnp.minimum(PANEL, columns - panel * PANEL)
    return panel * PANEL * rows + (row // 4 * width + column % PANEL) * 4 + row % 4


def update_kv_cache(key, value, position, cache):
    """The cache with key and value [B,T,G,D], quantized symmetrically, from `position` on; what
    lies outside it is left out."""
    batch, tokens, heads, dim = key.shape
    length = cache[1].shape[2]
    at = jnp.broadcast_to(position, (batch,))[:, None] + jnp.arange(tokens)
    at = jnp.where(at < 0, length, at)[..., None, None]  # out of range: dropped
    b, _, h, d = jnp.ogrid[:batch, :tokens, :heads, :dim]
    updated = []
    for x, offsets, data, scales in (
        (key, _offsets(dim, d, at, length), *cache[:2]),
        (value, _offsets(length, at, d, dim), *cache[2:]),
    ):
        x = x.astype(jnp.float32)
        scale, inverse = symmetric_params(x, (3,), 127)
        q = quantize_affine(x * inverse, None, "int8")
        offsets = jnp.where(at < length, offsets, length * dim)
        updated.append(data.at[b, h, offsets].set(q, mode="drop"))
        updated.append(scales.at[b[..., 0], h[..., 0], at[..., 0]].set(scale[..., 0], mode="drop"))
    return updated


def attention(query, cache, position, mask=None, *, scale: float, causal: bool):
    """softmax(scale · query · keyᵀ) · value of each head over the positions that a query sees:
    position + t + 1 of them, or position + T, less those where mask [B,L] is False; 0 where there
    are none. float32 [B,T,H,D] → query's dtype."""
    key, key_scale, value, value_scale = cache
    batch, tokens, heads, dim = query.shape
    groups, length = key_scale.shape[1:]
    of_heads = functools.partial(jax.vmap, in_axes=(0, None, None))
    keys = of_heads(of_heads(unpack))(key, dim, length).astype(jnp.float32)
    values = of_heads(of_heads(unpack))(value, length, dim).astype(jnp.float32)
    q = query.astype(jnp.float32).reshape(batch, tokens, groups, heads // max(groups, 1), dim)
    scores = jnp.einsum("btghd,bgdl->btghl", q * np.float32(scale), keys, precision="highest")
    scores = scores * key_scale[:, None, :, None]
    position = jnp.minimum(position, length)  # more would wrap
    seen = jnp.broadcast_to(position, (batch,))[:, None] + (
        jnp.arange(1, tokens + 1) if causal else jnp.full(tokens, tokens)
    )
    visible = jnp.arange(length) < seen[..., None]
    if mask is not None:
        visible &= mask[:, None]
    visible = visible[:, :, None, None]
    scores = jnp.where(visible, scores, -np.inf)
    most = jnp.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    weights = jnp.where(visible, jnp.exp(scores - jnp.where(most == -np.inf, 0, most)), 0)
    total = weights.sum(-1, keepdims=True)
    weights = jnp.where(visible, weights * value_scale[:, None, :, None], 0)
    mixed = jnp.einsum("btghl,bgld->btghd", weights, values, precision="highest")
    out = jnp.where(total == 0, 0, mixed / jnp.where(total == 0, 1, total))
    return out.reshape(query.shape).astype(query.dtype)
