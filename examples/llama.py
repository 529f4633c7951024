"""A Llama decoder in Flax nnx, for generation: token ids in, logits out, a cache carried along.

Linear layers and caches are given to it, so that one model serves every format of weights:
`nnx.Linear` or `jax_qgemm.flax.nnx.QLinear`; `jax_qgemm.KVCache` or the float one here.

Touvron et al., LLaMA (arXiv:2302.13971), section 2.2; rotary embeddings of Su et al., RoFormer
(arXiv:2104.09864); grouped-query attention of Ainslie et al. (arXiv:2305.13245).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_qgemm


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the decoder; the defaults are those of SmolLM2-135M."""

    vocab_size: int = 49152
    hidden: int = 576
    layers: int = 30
    heads: int = 9
    cache_heads: int = 3
    head_dim: int = 64
    intermediate: int = 1536
    rope_base: float = 100_000.0
    norm_eps: float = 1e-5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FloatKVCache:
    """Keys and values as they are, float32 [B, L, G, D]: `jax_qgemm.KVCache` beside it is int8."""

    key: jax.Array
    value: jax.Array

    @classmethod
    def zeros(cls, batch: int, length: int, heads: int, head_dim: int) -> FloatKVCache:
        return cls(*(jnp.zeros((batch, length, heads, head_dim)) for _ in range(2)))

    @property
    def length(self) -> int:
        return self.key.shape[1]

    def update(self, key: jax.Array, value: jax.Array, position: jax.Array) -> FloatKVCache:
        parts = (self.key, key), (self.value, value)
        return FloatKVCache(
            *(jax.lax.dynamic_update_slice_in_dim(old, new, position, axis=1) for old, new in parts)
        )

    def attend(self, query: jax.Array, position: jax.Array) -> jax.Array:
        batch, tokens, _, dim = query.shape
        grouped = query.reshape(batch, tokens, self.key.shape[2], -1, dim) * dim**-0.5
        scores = jnp.einsum("btghd,blgd->bghtl", grouped, self.key)
        seen = position + jnp.arange(tokens)[:, None]
        scores += jnp.where(jnp.arange(self.key.shape[1]) <= seen, 0.0, -1e30)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        mixed = jnp.einsum("bghtl,blgd->btghd", weights, self.value)
        total = weights.sum(-1).transpose(0, 3, 1, 2)[..., None]
        return (mixed / total).reshape(query.shape)


def attend(query: jax.Array, cache, position: jax.Array) -> jax.Array:
    """Causal attention of queries that begin at `position`, over either kind of cache."""
    if isinstance(cache, FloatKVCache):
        return cache.attend(query, position)
    return jax_qgemm.attention(query, cache, position)


def turns(
    position: jax.Array, tokens: int, length: int, config: LlamaConfig
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, [tokens, 1, D/2], of position / base^(2i/D): the same for all blocks.

    From a table of all positions below `length`: XLA would compute them anew in every block.
    """
    half = config.head_dim // 2
    frequency = config.rope_base ** (-np.arange(half) / half)
    angle = np.arange(length)[:, None, None] * frequency
    tables = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return tuple(jax.lax.dynamic_slice_in_dim(table, position, tokens) for table in tables)


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding of [B, T, heads, D]: pairs (i, i + D/2) turn."""
    cos, sin = turn
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Block(nnx.Module):
    """Attention and a gated feed-forward, each on a normalised input and added to it."""

    def __init__(self, config: LlamaConfig, layers: Mapping[str, nnx.Module], rngs: nnx.Rngs):
        self.config = config
        self.attention_norm = nnx.RMSNorm(config.hidden, epsilon=config.norm_eps, rngs=rngs)
        self.qkv, self.out = layers["qkv"], layers["out"]
        self.norm = nnx.RMSNorm(config.hidden, epsilon=config.norm_eps, rngs=rngs)
        self.gate_up, self.down = layers["gate_up"], layers["down"]

    def __call__(self, x: jax.Array, cache, position: jax.Array, turn):
        c = self.config
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).reshape(batch, tokens, -1, c.head_dim)
        # Queries and keys turn together.
        turned = rotate(qkv[:, :, : c.heads + c.cache_heads], turn)
        query, key = turned[:, :, : c.heads], turned[:, :, c.heads :]
        cache = cache.update(key, qkv[:, :, c.heads + c.cache_heads :], position)
        mixed = attend(query, cache, position).reshape(batch, tokens, -1)
        x = _add(x, self.out, mixed)
        gate, up = jnp.split(self.gate_up(self.norm(x)), 2, axis=-1)
        return _add(x, self.down, gate * jax.lax.logistic(gate) * up), cache


def _add(x: jax.Array, layer: nnx.Module, y: jax.Array) -> jax.Array:
    """x + layer(y), in one operation where the layer can."""
    if isinstance(layer, nnx.Linear):
        return x + layer(y)
    return layer(y, residual=x)


class Llama(nnx.Module):
    """The decoder. `layers`: for each block its "qkv", "out", "gate_up" and "down"."""

    def __init__(
        self,
        config: LlamaConfig,
        layers: list[Mapping[str, nnx.Module]],
        head: nnx.Module,
        *,
        rngs: nnx.Rngs,
    ):
        self.embedding = nnx.Embed(config.vocab_size, config.hidden, rngs=rngs)
        self.blocks = nnx.List([Block(config, parts, rngs) for parts in layers])
        self.norm = nnx.RMSNorm(config.hidden, epsilon=config.norm_eps, rngs=rngs)
        self.head = head

    def hidden(self, ids: jax.Array, caches, position: jax.Array):
        """(batch, tokens) ids from `position` on → (batch, tokens, hidden), and the new caches."""
        x, updated = self.embedding(ids), []
        turn = turns(position, ids.shape[1], caches[0].length, self.blocks[0].config)
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block(x, cache, position, turn)
            updated.append(cache)
        return self.norm(x), tuple(updated)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """(…, hidden) → (…, vocab_size), float32."""
        return self.head(hidden)
