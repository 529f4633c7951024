"""quantize: float rows [M,K] → 8-bit values. FFI target jax_qgemm.quantize.v1."""

import functools

import jax.numpy as jnp
import numpy as np

from jax_qgemm import reference
from jax_qgemm.compat import ShapedArray
from jax_qgemm.primitives import common
from jax_qgemm.primitives.partitioning import Split


def quantize_rows(x, qtype: str):
    """x f32|bf16 [M,K] → parameters chosen for each row: [q s8[M,K], scale f32[M]], symmetric, or
    [q u8[M,K], scale f32[M], zero_point s32[M]], asymmetric."""
    mode = "per_row_symmetric" if qtype == "int8" else "per_row_asymmetric"
    return quantize_p.bind(x, mode=mode, qtype=qtype)


def quantize_static(x, scale, zero_point, qtype: str):
    """x f32|bf16 [M,K], scale f32[], zero_point s32[] or None → q [M,K] of qtype."""
    zero_point = jnp.int32(0) if zero_point is None else zero_point
    return quantize_p.bind(*common.alike([x, scale, zero_point]), mode="static", qtype=qtype)[0]


def _abstract_eval(x, *parameters, mode: str, qtype: str):
    q = ShapedArray(x.shape, np.dtype(qtype))
    scale = ShapedArray(x.shape[:1], np.dtype(np.float32))
    zero_point = ShapedArray(x.shape[:1], np.dtype(np.int32))
    return {
        "static": [q],
        "per_row_symmetric": [q, scale],
        "per_row_asymmetric": [q, scale, zero_point],
    }[mode]


def _reference(x, *parameters, mode: str, qtype: str):
    if mode == "static":
        return [reference.quantize_static(x, *parameters, qtype)]
    return reference.quantize_rows(x, qtype)


def _batch(operands, dims, **params):
    """Rows are independent: a batch of x is a longer M. A batch of parameters goes one by one."""
    if any(d is not None for d in dims[1:]):
        return common.map_batch(functools.partial(quantize_p.bind, **params), operands, dims)
    (x, *parameters), dim, size = operands, dims[0], common.batch_size(operands, dims)
    results = quantize_p.bind(common.to_rows(x, dim, size), *parameters, **params)
    return [common.from_rows(r, size, x, dim) for r in results], [0] * len(results)


def _split(avals, results, *, mode: str, qtype: str):
    rows = ("m", None)
    operands = (rows, *((),) * (len(avals) - 1))
    split = Split(operands, (rows, *(("m",),) * (len(results) - 1)), {"m": avals[0].shape[0]})
    return split, lambda parts: {"mode": mode, "qtype": qtype}


quantize_p = common.define(
    "jax_qgemm.quantize.v1",
    abstract_eval=_abstract_eval,
    reference=_reference,
    attributes=lambda mode, qtype: {"mode": mode},
    batch=_batch,
    operation=lambda mode, qtype: "quantize",
    split=_split,
)
