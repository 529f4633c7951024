"""pack_float: a float16 or bfloat16 weight into panels. FFI target jax_qgemm.pack_float.v1."""

import functools

import numpy as np

from jax_qgemm import reference
from jax_qgemm.compat import ShapedArray
from jax_qgemm.primitives import common


def pack_float(bits, weights: str):
    """bits u16[K,N] of "float16" or "bfloat16" values → data u16, packed."""
    return pack_float_p.bind(bits, weights=weights)[0]


def _abstract_eval(bits, *, weights: str):
    return [ShapedArray((reference.packed_size(*bits.shape, weights),), np.dtype(np.uint16))]


def _batch(operands, dims, **params):
    return common.map_batch(functools.partial(pack_float_p.bind, **params), operands, dims)


pack_float_p = common.define(
    "jax_qgemm.pack_float.v1",
    abstract_eval=_abstract_eval,
    reference=lambda bits, *, weights: [reference.pack_float(bits, weights)],
    attributes=lambda weights: {"weights": weights},
    batch=_batch,
    operation=lambda **_: "pack_weight",
)
