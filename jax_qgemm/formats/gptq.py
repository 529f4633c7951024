"""Weights of checkpoints in the layouts of GPTQ (AutoGPTQ, GPTQModel) and of AWQ (AutoAWQ).

Both hold 4 or 8 bits in int32 words, `scales` [groups, N] and zero points of as many bits: a weight
is `scale * (q - zero_point)`. They differ in which axis the words run along, and in their order.
"""

import operator

import numpy as np

from jax_qgemm import blocks, compat, errors
from jax_qgemm.packing import pack_blocks
from jax_qgemm.types import PackedWeight

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word is of column _AWQ_ORDER[i]


def packed_weight(
    qweight, qzeros, scales, g_idx=None, *, bits=4, zeros_less_one=True, weight_only=False
) -> PackedWeight:
    """The (K, N) weight of a layer of a GPTQ checkpoint, with its values: exactly those where
    scales are of 16 bits, within a rounding where they are float32.

    Args:
      qweight: int32 (K * bits / 32, N), words along K, the lowest bits first.
      qzeros: int32 (groups, N * bits / 32), words along N.
      scales: float16, bfloat16 or float32 (groups, N).
      g_idx: None, or int32 (K,), the group of each row: groups of consecutive rows.
      bits: 4 or 8.
      zeros_less_one: zero points are stored less one, as checkpoints of "checkpoint_format": "gptq"
        have them, by subtraction from whole words as GPTQModel does it (a zero point of 0 borrows
        from its neighbour's); False for "gptq_v2".
      weight_only: activations stay floats.

    Raises:
      TypeError: arrays of other dtypes.
      ValueError: shapes that do not fit, or a g_idx of other groups ("act-order").
    """
    bits = _bits(bits)
    less_one = errors.flag("packed_weight", "zeros_less_one", zeros_less_one)
    words, zeros = _words("qweight", qweight, bits), _words("qzeros", qzeros, bits, less_one)
    rows, n, of_one = words.shape
    q = np.moveaxis(words, -1, 1).reshape(rows * of_one, n)
    return _packed(q, _by_columns(zeros), scales, g_idx, bits, weight_only)


def awq_packed_weight(qweight, qzeros, scales, *, weight_only=False) -> PackedWeight:
    """The (K, N) weight of a layer of an AWQ checkpoint of 4 bits, with exactly its values.

    Args:
      qweight: int32 (K, N / 8); qzeros: int32 (groups, N / 8), words along N in AWQ's order.
      scales: float16, bfloat16 or float32 (groups, N).
      weight_only: activations stay floats.

    Raises:
      TypeError: arrays of other dtypes.
      ValueError: shapes that do not fit.
    """
    back = np.argsort(_AWQ_ORDER)
    q, zeros = (
        _by_columns(_words(name, part, 4)[..., back])
        for name, part in (("qweight", qweight), ("qzeros", qzeros))
    )
    return _packed(q, zeros, scales, None, 4, weight_only)


def _bits(bits) -> int:
    try:
        known = operator.index(bits)
    except TypeError:
        known = None
    if known not in (4, 8):
        raise ValueError(f"packed_weight: bits must be 4 or 8, got {bits!r}")
    return known


def _words(name: str, array, bits: int, less_one: bool = False) -> np.ndarray:
    """uint8 [..., 32 / bits] of int32 words, the lowest bits first, each plus 1 if `less_one`."""
    array = _known(name, array)
    if array.dtype != np.int32 or array.ndim != 2:
        raise TypeError(
            f"packed_weight: {name} must be int32 of 2 dimensions, got {errors.describe(array)}"
        )
    values = np.ascontiguousarray(array).view(np.uint32)
    if less_one:
        values = values + np.uint32(0xFFFFFFFF // (2**bits - 1))
    bytes_ = values.view(np.uint8).reshape(*array.shape, 4)
    if bits == 8:
        return bytes_
    return np.stack([bytes_ & 15, bytes_ >> 4], axis=-1).reshape(*array.shape, 8)


def _by_columns(words: np.ndarray) -> np.ndarray:
    """Words along N: [rows, words, of one] → [rows, N]; rows may be none."""
    rows, count, of_one = words.shape
    return words.reshape(rows, count * of_one)


def _known(name: str, array) -> np.ndarray:
    try:
        values = compat.concrete(array)
    except (TypeError, ValueError) as e:
        shown = errors.describe(array)
        raise TypeError(f"packed_weight: {name} must be an array, got {shown}") from e
    if values is None:
        raise TypeError(f"packed_weight: {name} must be known, got a tracer: call it outside jit")
    return values


def _packed(q, zeros, scales, g_idx, bits: int, weight_only) -> PackedWeight:
    weight_only = errors.flag("packed_weight", "weight_only", weight_only)
    scales = _known("scales", errors.float_array("packed_weight", "scales", scales))
    (k, n), groups = q.shape, scales.shape[0] if scales.ndim else 0
    if zeros.shape != (groups, n) or scales.shape != (groups, n) or not groups or k % groups:
        raise ValueError(
            f"packed_weight: scales have shape {scales.shape} and zero points {zeros.shape}, "
            f"expected (groups, {n}) with a number of groups that divides K, {k}"
        )
    qtype = "int4" if bits == 4 else "int8_blocks"
    group = k // groups
    if not 0 < group <= errors.MAX_GROUP or group % blocks.group_unit(qtype):
        unit = blocks.group_unit(qtype)
        raise ValueError(
            f"packed_weight: {groups} groups of K={k} have {group} rows, expected a multiple of "
            f"{unit} up to {errors.MAX_GROUP}"
        )
    if g_idx is not None and not np.array_equal(_known("g_idx", g_idx), np.arange(k) // group):
        raise ValueError(
            "packed_weight: g_idx is not of groups of consecutive rows: act-order (desc_act) is "
            "not supported"
        )
    middle = 1 << (bits - 1)
    minimum = None
    if (zeros != middle).any():
        scales = scales.astype(np.float32)
        minimum = -(scales * zeros.astype(np.float32))  # exact
    return pack_blocks(q, scales, minimum, qtype=qtype, group_size=group, weight_only=weight_only)
