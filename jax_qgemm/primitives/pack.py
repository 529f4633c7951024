"""pack: a weight s8[K,N] into panels, with its column sums. FFI target jax_qgemm.pack.v1."""

import functools

import numpy as np

from jax_qgemm import reference
from jax_qgemm.compat import ShapedArray
from jax_qgemm.primitives import common
from jax_qgemm.primitives.partitioning import Split


def pack(qvalue, zero_point=None, group=None):
    """qvalue s8[K,N], zero_point s32[N], or [groups,N] with groups, or None → data s8[N16*K4],
    column_sums s32[blocks,N]."""
    has_zero_point = zero_point is not None
    operands = (qvalue, zero_point) if has_zero_point else (qvalue,)
    return pack_p.bind(*common.alike(operands), has_zero_point=has_zero_point, group=group)


def _abstract_eval(qvalue, *zero_point, has_zero_point: bool, group: int | None):
    k, n = qvalue.shape
    blocks = len(reference.blocks(k, has_zero_point, group))
    return [
        ShapedArray((reference.packed_size(k, n),), np.dtype(np.int8)),
        ShapedArray((blocks, n), np.dtype(np.int32)),
    ]


def _reference(qvalue, *zero_point, has_zero_point: bool, group: int | None):
    return reference.pack(qvalue, *(zero_point or (None,)), group)


def _attributes(has_zero_point: bool, group: int | None):
    return {"has_zero_point": has_zero_point, "group": np.int64(group or 0)}


def _batch(operands, dims, **params):
    return common.map_batch(functools.partial(pack_p.bind, **params), operands, dims)


def _split(avals, results, **params):
    n = avals[0].shape[1]
    columns = None if n == 0 or n % reference.PANEL else "n"
    zero_point = [(None, columns)[-a.ndim :] for a in avals[1:]]
    sizes = {"n": n // reference.PANEL}
    split = Split(((None, columns), *zero_point), ((columns,), (None, columns)), sizes)
    return split, lambda parts: params


pack_p = common.define(
    "jax_qgemm.pack.v1",
    abstract_eval=_abstract_eval,
    reference=_reference,
    attributes=_attributes,
    batch=_batch,
    operation=lambda **_: "pack",
    split=_split,
)
