"""attention and update_kv_cache over a quantized cache. FFI targets jax_qgemm.attention.v1 and
jax_qgemm.update_kv_cache.v1."""

import numpy as np

from jax_qgemm import reference
from jax_qgemm.compat import ShapedArray
from jax_qgemm.primitives import batches, common
from jax_qgemm.primitives.partitioning import Split

_PARTS = 4  # of a cache: key, key_scale, value, value_scale
# Dimensions of the operands behind those of the batch, whose number is the parameter `batch`.
_OF_CACHE = (2,) * _PARTS
_OF_ATTENTION = (3, *_OF_CACHE, 0, 1)
_OF_UPDATE = (3, 3, 0, *_OF_CACHE)


def attention(query, cache, position, mask, *, scale: float, causal: bool):
    """query [B,T,H,D], four arrays of a cache, position s32 [] or [B], mask bool [B,L] or None →
    [B,T,H,D] of query's dtype."""
    masks = () if mask is None else (mask,)
    operands = common.alike([query, *cache, position, *masks])
    how = dict(scale=scale, causal=causal, has_mask=bool(masks))
    return attention_p.bind(*operands, batch=1, **how)[0]


def update_kv_cache(key, value, position, cache):
    """key and value [B,T,G,D], position s32 [] or [B] → the four arrays with them quantized in."""
    return update_kv_cache_p.bind(*common.alike([key, value, position, *cache]), batch=1)


def _ranks(operands, ranks):
    return ranks[: len(operands)]  # there may be no mask


def _abstract_attention(*operands, batch: int, **params):
    query = operands[0]
    lead = batches.sizes(operands, _ranks(operands, _OF_ATTENTION), batch)
    return [ShapedArray((*lead, *query.shape[batch:]), query.dtype)]


def _abstract_update(*operands, batch: int):
    lead = batches.sizes(operands, _OF_UPDATE, batch)
    return [ShapedArray((*lead, *o.shape[batch:]), o.dtype) for o in operands[3:]]


def _folds(ranks_of_all):
    """How a call whose operands have these ranks is made with a batch of one dimension."""

    def fold(call, avals, *, batch: int, **params):
        if batch == 1:
            return None
        ranks = _ranks(avals, ranks_of_all)
        lead = batches.sizes(avals, ranks, batch)

        def run(*operands):
            folded = [
                batches.fold(operand, rank, lead, may_share=rank == 0)  # a position
                for operand, rank in zip(operands, ranks, strict=True)
            ]
            return [r.reshape(*lead, *r.shape[1:]) for r in call(*folded, batch=1, **params)]

        return run

    return fold


def _batch(primitive, ranks, operands, axes, *, batch: int, **params):
    inserted = batches.insert(operands, axes, _ranks(operands, ranks), batch)
    results = primitive.bind(*inserted, batch=batch + 1, **params)
    return results, [0] * len(results)


def _attention_reference(query, *operands, scale: float, causal: bool, has_mask: bool, batch: int):
    cache, (position, *mask) = operands[:_PARTS], operands[_PARTS:]
    return [reference.attention(query, cache, position, *mask, scale=scale, causal=causal)]


def _update_reference(key, value, position, *cache, batch: int):
    return reference.update_kv_cache(key, value, position, cache)


# By the batch and the heads of the cache, each with its group of queries.
_TOKENS = (None, "g", None)
_CACHE = (("g", None),) * _PARTS


def _split(operands, ranks, own, results, own_results, batch: int):
    """`own`: what the dimensions behind the batch are split by, for each operand and result."""
    lead = batches.named(results[0], batch)
    of_operands = tuple(
        batches.factors(operand, rank, lead) + dims
        for operand, rank, dims in zip(operands, ranks, own, strict=True)
    )
    of_results = tuple((*lead, *dims) for dims in own_results)
    heads = operands[ranks.index(2)].shape[-2]
    return Split(of_operands, of_results, lead | {"g": heads})


def _split_attention(avals, results, **params):
    own = _ranks(avals, (_TOKENS, *_CACHE, (), (None,)))
    ranks = _ranks(avals, _OF_ATTENTION)
    return _split(avals, ranks, own, results, [_TOKENS], params["batch"]), lambda parts: params


def _split_update(avals, results, **params):
    own = (_TOKENS, _TOKENS, (), *_CACHE)
    return _split(avals, _OF_UPDATE, own, results, _CACHE, params["batch"]), lambda parts: params


_fold_attention, _fold_update = _folds(_OF_ATTENTION), _folds(_OF_UPDATE)

attention_p = common.define(
    "jax_qgemm.attention.v1",
    abstract_eval=_abstract_attention,
    reference=common.folding(_attention_reference, _fold_attention),
    attributes=lambda scale, causal, has_mask, batch: {
        "scale": np.float32(scale),
        "causal": causal,
        "has_mask": has_mask,
    },
    batch=lambda *args, **params: _batch(attention_p, _OF_ATTENTION, *args, **params),
    operation=lambda **_: "attention",
    split=_split_attention,
    fold=_fold_attention,
)

update_kv_cache_p = common.define(
    "jax_qgemm.update_kv_cache.v1",
    abstract_eval=_abstract_update,
    reference=common.folding(_update_reference, _fold_update),
    attributes=lambda batch: {},
    batch=lambda *args, **params: _batch(update_kv_cache_p, _OF_UPDATE, *args, **params),
    operation=lambda **_: "KVCache.update",
    split=_split_update,
    fold=_fold_update,
    aliases={3 + part: part for part in range(_PARTS)},
)
