"""attention and update_kv_cache over a quantized cache. FFI targets jax_qgemm.attention.v1 and
jax_qgemm.update_kv_cache.v1."""

import jax.numpy as jnp
import numpy as np

from jax_qgemm import reference
from jax_qgemm.compat import ShapedArray
from jax_qgemm.primitives import common
from jax_qgemm.primitives.partitioning import Split

_PARTS = 4  # of a cache: key, key_scale, value, value_scale


def attention(query, cache, position, mask, *, scale: float, causal: bool):
    """query [B,T,H,D], four arrays of a cache, position s32 [] or [B], mask bool [B,L] or None →
    [B,T,H,D] of query's dtype."""
    masks = () if mask is None else (mask,)
    operands = common.alike([query, *cache, position, *masks])
    return attention_p.bind(*operands, scale=scale, causal=causal, has_mask=bool(masks))[0]


def update_kv_cache(key, value, position, cache):
    """key and value [B,T,G,D], position s32 [] or [B] → the four arrays with them quantized in."""
    return update_kv_cache_p.bind(*common.alike([key, value, position, *cache]))


def _attention_reference(query, *operands, scale: float, causal: bool, has_mask: bool):
    cache, (position, *mask) = operands[:_PARTS], operands[_PARTS:]
    return [reference.attention(query, cache, position, *mask, scale=scale, causal=causal)]


def _folded(operands, dims, ranks):
    """Operands whose new dimension, in front, is a part of the batch, and the sizes of both; a
    position of rank 0 that all share stays one."""
    size = common.batch_size(operands, dims)
    batch = next(
        o.shape[0 if d is None else int(d == 0)]
        for o, d, rank in zip(operands, dims, ranks, strict=True)
        if rank > 0
    )
    folded = []
    for operand, dim, rank in zip(operands, dims, ranks, strict=True):
        if rank == 0 and dim is None and operand.ndim == 0:
            folded.append(operand)
            continue
        if rank == 0 and operand.ndim == (dim is not None):  # one for a batch
            alone = jnp.broadcast_to(operand, (size,))
            folded.append(jnp.repeat(alone, batch))
            continue
        folded.append(common.to_rows(operand, dim, size))
    return folded, (size, batch)


def _batch_attention(operands, dims, **params):
    ranks = (4, 3, 3, 3, 3, 0, 2)[: len(operands)]
    folded, sizes = _folded(operands, dims, ranks)
    return _unfolded(attention_p.bind(*folded, **params), sizes)


def _batch_update(operands, dims):
    folded, sizes = _folded(operands, dims, (4, 4, 0, 3, 3, 3, 3))
    return _unfolded(update_kv_cache_p.bind(*folded), sizes)


def _unfolded(results, sizes: tuple[int, int]):
    """The batch in two dimensions again."""
    return [r.reshape(*sizes, *r.shape[1:]) for r in results], [0] * len(results)


# By the batch and the heads of the cache, each with its group of queries.
_TOKENS = ("b", None, "g", None)
_CACHE = (("b", "g", None),) * _PARTS


def _split_attention(avals, results, **params):
    cache, position, *mask = avals[1], avals[1 + _PARTS], *avals[2 + _PARTS :]
    masks = (("b", None),) * len(mask)
    operands = (_TOKENS, *_CACHE, ("b",)[: position.ndim], *masks)
    sizes = {"b": cache.shape[0], "g": cache.shape[1]}
    return Split(operands, (_TOKENS,), sizes), lambda parts: params


def _split_update(avals, results):
    position, cache = avals[2], avals[3]
    operands = (_TOKENS, _TOKENS, ("b",)[: position.ndim], *_CACHE)
    return Split(operands, _CACHE, {"b": cache.shape[0], "g": cache.shape[1]}), lambda parts: {}


attention_p = common.define(
    "jax_qgemm.attention.v1",
    abstract_eval=lambda query, *_, **params: [ShapedArray(query.shape, query.dtype)],
    reference=_attention_reference,
    attributes=lambda scale, causal, has_mask: {
        "scale": np.float32(scale),
        "causal": causal,
        "has_mask": has_mask,
    },
    batch=_batch_attention,
    operation=lambda **_: "attention",
    split=_split_attention,
)

update_kv_cache_p = common.define(
    "jax_qgemm.update_kv_cache.v1",
    abstract_eval=lambda key, value, position, *cache: [
        ShapedArray(part.shape, part.dtype) for part in cache
    ],
    reference=lambda key, value, position, *cache: reference.update_kv_cache(
        key, value, position, cache
    ),
    attributes=dict,
    batch=_batch_update,
    operation=lambda: "KVCache.update",
    split=_split_update,
    aliases={3 + part: part for part in range(_PARTS)},
)
