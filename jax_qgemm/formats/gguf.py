"""Weights of GGUF files (llama.cpp), as the `gguf` package reads them.

A tensor of such a file is [N, K], a row for each output, its K in blocks. What a block stores is
that library's, described in the comments of its `ggml-common.h`; values stay exactly as they are.
"""

import math

import jax.numpy as jnp
import numpy as np

from jax_qgemm import errors
from jax_qgemm.packing import pack_blocks, pack_weight
from jax_qgemm.types import PackedWeight


def packed_weight(*tensors, weight_only: bool = False) -> PackedWeight:
    """The (K, N) weight of a matrix, or of several side by side, with exactly its values.

        reader = gguf.GGUFReader("model.gguf")
        weights = {t.name: packed_weight(t) for t in reader.tensors if len(t.shape) == 2}

    Args:
      tensors: `gguf.ReaderTensor`s of one type, Q4_0, Q4_1, Q4_K, Q8_0, Q6_K, F16 or BF16, and of
        one K; the columns of the result are theirs, one after the other.
      weight_only: activations stay floats, as they do with F16 and BF16 anyway; else they are
        quantized by groups, as in llama.cpp.

    Raises:
      TypeError: a tensor of another type.
      ValueError: a tensor that is no matrix, or tensors that do not fit each other.
    """
    weight_only = errors.flag("packed_weight", "weight_only", weight_only)
    kinds = [_checked(tensor) for tensor in tensors]
    if len({(kind, int(t.shape[0])) for kind, t in zip(kinds, tensors, strict=True)}) != 1:
        found = ", ".join(
            f"{t.name!r}: {kind} of K={int(t.shape[0])}"
            for kind, t in zip(kinds, tensors, strict=True)
        )
        raise ValueError(f"packed_weight: tensors must be of one type and K, got {found or 'none'}")
    kind, n = kinds[0], sum(int(t.shape[1]) for t in tensors)
    data = np.concatenate([_rows(tensor, kind) for tensor in tensors])
    if kind in _FLOATS:
        short, dtype = _FLOATS[kind]
        return pack_weight(data.view(dtype).T, short)
    read, block_bytes, qtype, group = _READERS[kind]
    q, *scales = read(data.reshape(n, data.shape[1] // block_bytes, block_bytes))
    rows = [part.reshape(n, math.prod(part.shape[1:])) for part in (q, *scales)]  # n may be 0
    parts = [np.ascontiguousarray(part.T) for part in rows]
    return pack_blocks(*parts, qtype=qtype, group_size=group, weight_only=weight_only)


def _checked(tensor) -> str:
    """The name of its type."""
    name, kind = getattr(tensor, "name", "?"), getattr(tensor, "tensor_type", None)
    kind = getattr(kind, "name", type(tensor).__name__)
    if kind not in _READERS and kind not in _FLOATS:
        known = ", ".join(sorted({*_READERS, *_FLOATS}))
        raise TypeError(f"packed_weight: tensor {name!r} is of type {kind}, known: {known}")
    if len(tensor.shape) != 2:
        raise ValueError(
            f"packed_weight: tensor {name!r} must be a matrix, got {len(tensor.shape)} dimensions"
        )
    return kind


def _rows(tensor, kind: str) -> np.ndarray:
    """Its data, a row of bytes or floats for each column of the weight."""
    k, n = map(int, tensor.shape)
    if kind in _FLOATS:
        block, row_bytes = 1, 2 * k
    else:
        _, block_bytes, *_, group = _READERS[kind]
        block = _BLOCKS.get(kind, group)
        row_bytes = k // block * block_bytes
    data = np.asarray(tensor.data)
    if k % block or data.nbytes != n * row_bytes:
        raise ValueError(
            f"packed_weight: tensor {tensor.name!r} of {kind} has {data.nbytes} bytes, expected "
            f"{n} rows of K={k} in blocks of {block}"
        )
    return np.ascontiguousarray(data.reshape(n, row_bytes // data.itemsize))  # for its view


def _float16(blocks, at: int):
    """One float16 of each block, [N, blocks, 1]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)


def _halves(bytes_):
    """The low halves of all bytes, then the high ones."""
    return np.concatenate([bytes_ & 15, bytes_ >> 4], axis=-1)


# Each: uint8 [N, blocks, bytes of one] -> q, scale and, where there is one, minimum.


def _q4_0(blocks):
    return _halves(blocks[..., 2:]), _float16(blocks, 0)


def _q4_1(blocks):
    return _halves(blocks[..., 4:]), _float16(blocks, 0), _float16(blocks, 2)


def _q8_0(blocks):
    return blocks[..., 2:] ^ np.uint8(128), _float16(blocks, 0)


def _q4_k(blocks):
    """Eight groups of 32. The scale of one is 6 bits times the block's, and so is its minimum."""
    d, least = (_float16(blocks, at).astype(np.float32) for at in (0, 2))
    low, middle, high = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=-1)
    minimum = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=-1)
    q = _halves(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))
    return q, d * scale.astype(np.float32), -(least * minimum.astype(np.float32))


def _q6_k(blocks):
    """Sixteen groups of 16, whose scales are 8 bits times the block's."""
    shape = blocks.shape[:2]
    low = blocks[..., :128].reshape(*shape, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15
    high = blocks[..., 128:192].reshape(*shape, 2, 1, 32)
    high = high >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    q = low.reshape(*shape, 2, 4, 32) | high << 4
    scale = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8).astype(np.float32)
    return q + np.uint8(128 - 32), _float16(blocks, 208).astype(np.float32) * scale


_READERS = {  # function, bytes of a block, and what it becomes
    "Q4_0": (_q4_0, 18, "int4", 32),
    "Q4_1": (_q4_1, 20, "int4", 32),
    "Q4_K": (_q4_k, 144, "int4", 32),
    "Q8_0": (_q8_0, 34, "int8_blocks", 32),
    "Q6_K": (_q6_k, 210, "int8_blocks", 16),
}
_BLOCKS = {"Q4_K": 256, "Q6_K": 256}  # elements of one, where a group is less
_FLOATS = {"F16": ("fp16", np.dtype(np.float16)), "BF16": ("bf16", np.dtype(jnp.bfloat16))}
