"""quantize: float rows [*rows,K] → 8-bit values. FFI target jax_qgemm.quantize.v1."""

import functools
import math

import jax.numpy as jnp
import numpy as np

from jax_qgemm import reference
from jax_qgemm.compat import ShapedArray
from jax_qgemm.primitives import common
from jax_qgemm.primitives.partitioning import Split


def quantize_rows(x, qtype: str):
    """x f32|bf16 [*rows,K] → parameters chosen for each row: [q s8[*rows,K], scale f32[*rows]],
    symmetric, or [q u8[*rows,K], scale f32[*rows], zero_point s32[*rows]], asymmetric."""
    mode = "per_row_symmetric" if qtype == "int8" else "per_row_asymmetric"
    return quantize_p.bind(x, mode=mode, qtype=qtype)


def quantize_static(x, scale, zero_point, qtype: str):
    """x f32|bf16, any shape, scale f32[], zero_point s32[] or None → q of qtype."""
    zero_point = jnp.int32(0) if zero_point is None else zero_point
    return quantize_p.bind(*common.alike([x, scale, zero_point]), mode="static", qtype=qtype)[0]


def _abstract_eval(x, *parameters, mode: str, qtype: str):
    q = ShapedArray(x.shape, np.dtype(qtype))
    scale = ShapedArray(x.shape[:-1], np.dtype(np.float32))
    zero_point = ShapedArray(x.shape[:-1], np.dtype(np.int32))
    return {
        "static": [q],
        "per_row_symmetric": [q, scale],
        "per_row_asymmetric": [q, scale, zero_point],
    }[mode]


def _reference(x, *parameters, mode: str, qtype: str):
    if mode == "static":
        return [reference.quantize_static(x, *parameters, qtype)]
    return reference.quantize_rows(x, qtype)


def _fold(call, avals, **params):
    """x in two dimensions."""
    x = avals[0]
    if x.ndim == 2:
        return None
    flat = (math.prod(x.shape[:-1]), x.shape[-1] if x.ndim else 1)

    def run(x, *parameters):
        q, *others = call(x.reshape(flat), *parameters, **params)
        return [q.reshape(x.shape), *(part.reshape(x.shape[:-1]) for part in others)]

    return run


def _batch(operands, dims, **params):
    """Rows are independent. A batch of parameters goes one by one."""
    if any(d is not None for d in dims[1:]):
        return common.map_batch(functools.partial(quantize_p.bind, **params), operands, dims)
    results = quantize_p.bind(jnp.moveaxis(operands[0], dims[0], 0), *operands[1:], **params)
    return results, [0] * len(results)


def _split(avals, results, *, mode: str, qtype: str):
    x = avals[0]
    rows = tuple(f"m{i}" for i in range(x.ndim - (mode != "static")))
    dims = rows if mode == "static" else (*rows, None)
    split = Split(
        (dims, *((),) * (len(avals) - 1)),
        (dims, *(rows,) * (len(results) - 1)),
        dict(zip(rows, x.shape, strict=False)),
    )
    return split, lambda parts: {"mode": mode, "qtype": qtype}


quantize_p = common.define(
    "jax_qgemm.quantize.v1",
    abstract_eval=_abstract_eval,
    reference=_reference,
    attributes=lambda mode, qtype: {"mode": mode},
    batch=_batch,
    operation=lambda mode, qtype: "quantize",
    split=_split,
    fold=_fold,
)
