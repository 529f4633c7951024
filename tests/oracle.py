"""The numerics of jax_qgemm in NumPy: float32 operations one by one, integer sums exact.

This is the bitwise definition that the native kernels must meet on every instruction set. It is
written from the definition and shares no code with the package.
"""

import math

import ml_dtypes
import numpy as np

F32 = np.float32
BF16 = ml_dtypes.bfloat16
FLOATS = {"float32": F32, "bfloat16": BF16, "float16": np.float16}
RANGE = {"int8": (-128, 127), "uint8": (0, 255)}
FLT_MAX, FLT_MIN = np.finfo(F32).max, np.finfo(F32).tiny


def to_int(t, zero_point, qtype):
    """clamp(rne(t) + zero_point), NaN to zero_point."""
    qmin, qmax = RANGE[qtype]
    t = np.where(np.isnan(t), F32(0), t)
    return (np.rint(np.clip(t, qmin - zero_point, qmax - zero_point)) + zero_point).astype(qtype)


def quantize_static(x, scale, zero_point, qtype):
    with np.errstate(over="ignore"):
        inverse = np.minimum(F32(1) / np.asarray(scale, F32), FLT_MAX)
        t = np.asarray(x).astype(F32) * inverse
    return to_int(t, np.asarray(zero_point, F32), qtype)


def quantize(x, qtype, axes=(), symmetric=True):
    """(q, scale, zero_point), the parameters chosen from x; axes: those with their own scale."""
    x = np.asarray(x).astype(F32)
    shared = tuple(a for a in range(x.ndim) if a not in axes)
    keep = {"axis": shared, "keepdims": True, "initial": 0}
    qmin = RANGE[qtype][0]
    with np.errstate(all="ignore"):
        if symmetric:
            amax = np.max(np.abs(x), **keep).astype(F32)
            amax = np.where(amax < 127 * FLT_MIN, F32(127), amax)
            steps = np.where(np.isfinite(amax), F32(127), F32(np.nan))
            scale, inverse = amax / steps, steps / amax
            zero_point = np.full(scale.shape, 0 if qtype == "int8" else 128, np.int32)
        else:
            low, high = np.min(x, **keep), np.max(x, **keep)
            width, steps = high - low, F32(255)
            tiny = width < steps * FLT_MIN
            scale = np.where(np.isfinite(width), width / steps, high / steps - low / steps)
            scale = np.where(tiny, F32(1), np.where(np.isfinite(scale), scale, F32(np.nan)))
            low = np.where(tiny, F32(0), low)
            inverse = np.minimum(F32(1) / scale, FLT_MAX)
            zero_point = to_int(-low / scale, F32(qmin), qtype).astype(np.int32)
        q = to_int(x * inverse, zero_point.astype(F32), qtype)
    if not axes:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return q, scale, zero_point


def wrap32(a):
    """int64 values modulo 2³², as int32."""
    return a.astype(np.int64).astype(np.uint64).astype(np.uint32).view(np.int32)


def accumulate(qx, zx, qw, zw):
    """Σ_k (qx - zx)(qw - zw) as int64: float64 products of such integers are exact below 2⁵³."""
    a = qx.astype(np.float64) - np.asarray(zx, np.float64)
    b = qw.astype(np.float64) - np.asarray(zw, np.float64)
    return (a @ b).astype(np.int64)


def each(function, y):
    """A function of a float on an array, in float64; NaN stays NaN."""
    values = [v if math.isnan(v) else function(v) for v in np.asarray(y, np.float64).flat]
    return np.reshape(values, y.shape)


def _logistic(v):
    return 1 / (1 + math.exp(-v)) if v > -700 else 0.0


def _times(y, tail):
    """y · tail(y); 0 where the tail is, also at -inf."""
    return tail(y) and y * tail(y)


def _tanh_argument(y):
    return 2 * math.sqrt(2 / math.pi) * (y + 0.044715 * y**3) if y > -1e3 else y


SMOOTH = {
    "gelu": lambda y: _times(y, lambda v: math.erfc(-v / math.sqrt(2)) / 2),
    "gelu_tanh": lambda y: _times(y, lambda v: _logistic(_tanh_argument(min(v, 1e3)))),
    "silu": lambda y: _times(y, _logistic),
}
"""Activations that kernels approximate, here in float64."""


def quantize_groups(x, qtype, group, symmetric):
    """(q, scale, zero_point) of a matrix with parameters for each group of rows and column."""
    parts = [quantize(part, qtype, (1,), symmetric) for part in _groups(x, group)]
    return [np.concatenate(p) for p in zip(*parts, strict=True)]


def _groups(matrix, group):
    return [matrix[start : start + group] for start in range(0, max(len(matrix), 1), group)]


def linear(
    qx,
    sx,
    zx,
    qw,
    sw,
    zw=None,
    *,
    bias=None,
    residual=None,
    activation=None,
    out="float32",
    out_scale=None,
    out_zero_point=0,
    group=None,
):
    """The product [M,N]. sx is () or [M,1], zx like it; sw, zw and out_scale broadcast over columns
    [N], with a group sw and zw are [groups,N]; the residual is [M,N]. Smooth activations are exact
    here, which kernels need not be."""
    k, n = qw.shape
    sx = np.asarray(sx, F32)
    block = group or (65536 if zw is None else 32768)
    if group is None:
        sw = np.broadcast_to(np.asarray(sw, F32).reshape(-1), (n,))
        zw = 0 if zw is None else np.broadcast_to(np.asarray(zw).reshape(-1), (n,))
    if out == "int32":
        return wrap32(accumulate(qx, zx, qw, zw))
    y = np.zeros((qx.shape[0], n), F32)
    for start in range(0, k, block):
        part = slice(start, start + block)
        zero = 0 if zw is None else zw[start // block] if group else zw
        acc = accumulate(qx[:, part], zx, qw[part], zero)
        assert not acc.size or np.abs(acc).max() < 2**31
        term = acc.astype(np.int32).astype(F32)
        y = y + (term * sw[start // block] if group else term)
    with np.errstate(all="ignore"):
        if group:
            y = y * sx
        elif sx.ndim == 0:
            y = y * (sx * sw)
        else:
            y = (y * sw) * sx
        if bias is not None:
            y = y + np.asarray(bias).astype(F32)
        if residual is not None:
            y = y + np.asarray(residual).astype(F32)
        if activation == "relu":
            y = np.where(y < 0, F32(0), y)
        elif activation in SMOOTH:
            y = each(SMOOTH[activation], y).astype(F32)
        if out in RANGE:
            return quantize_static(y, out_scale, out_zero_point, out)
        return y.astype(FLOATS[out])


def dot(x, qw, sw, zw=None, **epilogue):
    """Dynamic quantization of float x per row, then `linear`."""
    q, scale, zero_point = quantize(x, "uint8", axes=(0,), symmetric=False)
    return linear(q, scale, zero_point, qw, sw, zw, **epilogue)


def pack(qvalue, zero_point=None, group=None):
    """Packed bytes and column sums of s8[K,N], element by element from the layout's formula."""
    k, n = qvalue.shape
    k4, n16 = -(-k // 4) * 4, -(-n // 16) * 16
    data = np.zeros(n16 * k4, np.int8)
    rows, columns = np.arange(k)[:, None], np.arange(n)[None, :]
    panel = columns // 64
    width = np.minimum(64, n16 - panel * 64)
    data[panel * 64 * k4 + (rows // 4 * width + columns % 64) * 4 + rows % 4] = qvalue
    block = group or (65536 if zero_point is None else 32768)
    zero_point = 0 if zero_point is None else zero_point
    if group and np.ndim(zero_point):
        zero_point = np.repeat(zero_point, group, axis=0)[:k]
    centred = qvalue.astype(np.int64) - zero_point
    starts = range(0, max(k, 1), block)
    return data, np.stack([wrap32(centred[s : s + block].sum(axis=0)) for s in starts])
