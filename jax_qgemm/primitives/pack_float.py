"""pack_float: a float16 or bfloat16 weight into panels. FFI target jax_qgemm.pack_float.v1."""

import functools

import numpy as np

from jax_qgemm import reference
from jax_qgemm.compat import ShapedArray
from jax_qgemm.primitives import common
from jax_qgemm.primitives.partitioning import Split


def pack_float(bits, weights: str):
    """bits u16[K,N] of "float16" or "bfloat16" values → data u16, packed."""
    return pack_float_p.bind(bits, weights=weights)[0]


def _abstract_eval(bits, *, weights: str):
    return [ShapedArray((reference.packed_size(*bits.shape, weights),), np.dtype(np.uint16))]


def _batch(operands, dims, **params):
    return common.map_batch(functools.partial(pack_float_p.bind, **params), operands, dims)


def _split(avals, results, *, weights: str):
    n = avals[0].shape[1]
    columns = None if n == 0 or n % reference.PANEL else "n"
    split = Split(((None, columns),), ((columns,),), {"n": n // reference.PANEL})
    return split, lambda parts: {"weights": weights}


pack_float_p = common.define(
    "jax_qgemm.pack_float.v1",
    abstract_eval=_abstract_eval,
    reference=lambda bits, *, weights: [reference.pack_float(bits, weights)],
    attributes=lambda weights: {"weights": weights},
    batch=_batch,
    operation=lambda **_: "pack_weight",
    split=_split,
)
