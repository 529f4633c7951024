"""A BERT sentence encoder in Flax nnx: token ids in, one unit-length vector per sentence out.

Plain Flax: nothing here knows about quantization. `jax_qgemm.flax.nnx.quantize_` finds the four
`nnx.Linear` of each block and swaps them.

Post-norm encoder of Devlin et al., BERT (arXiv:1810.04805), section 3; mean pooling of
Reimers and Gurevych, Sentence-BERT (arXiv:1908.10084), section 3.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of the encoder; the defaults are those of all-MiniLM-L6-v2."""

    vocab_size: int = 30522
    hidden: int = 384
    layers: int = 6
    heads: int = 12
    intermediate: int = 1536
    positions: int = 512
    token_types: int = 2
    norm_eps: float = 1e-12


class Embeddings(nnx.Module):
    """Word + position + token-type embeddings, normalised."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.word = nnx.Embed(config.vocab_size, config.hidden, rngs=rngs)
        self.position = nnx.Embed(config.positions, config.hidden, rngs=rngs)
        self.token_type = nnx.Embed(config.token_types, config.hidden, rngs=rngs)
        self.norm = nnx.LayerNorm(config.hidden, epsilon=config.norm_eps, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        position = jnp.arange(ids.shape[-1])
        token_type = jnp.zeros((), ids.dtype)  # sentences are encoded one by one: all type 0
        return self.norm(self.word(ids) + self.position(position) + self.token_type(token_type))


class SelfAttention(nnx.Module):
    """Multi-head self-attention; queries, keys and values come from one product."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.heads = config.heads
        self.qkv = nnx.Linear(config.hidden, 3 * config.hidden, rngs=rngs)
        self.out = nnx.Linear(config.hidden, config.hidden, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        batch, length, hidden = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, hidden // self.heads)
        query, key, value = qkv.transpose(2, 0, 3, 1, 4)  # each (batch, heads, length, head)
        mixed = attend(query, key, value, mask[:, None, None, :])
        return self.out(mixed.swapaxes(1, 2).reshape(batch, length, hidden))


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax(query · keyᵀ / √head) · value of each head, over the keys where `mask` is True.

    The softmax divides last: rows of `head` numbers, not of `length`. That and a mask that is
    added, not selected, make XLA's CPU code about 2.5 times as fast as
    `jax.nn.dot_product_attention` at 32×128 tokens.
    """
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores += jnp.where(mask, 0.0, -1e30)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)
    return mixed / weights.sum(-1, keepdims=True).astype(value.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """x · Φ(x), exact; by erf, where `jax.nn.gelu` takes erfc, at twice the time on a CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


class Block(nnx.Module):
    """Attention and feed-forward, each added to its input and then normalised (post-norm)."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.attention = SelfAttention(config, rngs)
        self.attention_norm = nnx.LayerNorm(config.hidden, epsilon=config.norm_eps, rngs=rngs)
        self.up = nnx.Linear(config.hidden, config.intermediate, rngs=rngs)
        self.down = nnx.Linear(config.intermediate, config.hidden, rngs=rngs)
        self.norm = nnx.LayerNorm(config.hidden, epsilon=config.norm_eps, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.attention_norm(x + self.attention(x, mask))
        return self.norm(x + self.down(gelu(self.up(x))))


class SentenceEncoder(nnx.Module):
    """BERT with mean pooling over the real tokens and L2 normalisation."""

    def __init__(self, config: BertConfig = BertConfig(), *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.layers)])

    def tokens(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """One vector per token: (batch, length) ids int32, mask bool → (batch, length, hidden)."""
        x = self.embeddings(ids)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """One unit vector per sentence, f32: (batch, length) as above → (batch, hidden)."""
        x = self.tokens(ids, mask).astype(jnp.float32)
        weight = mask[..., None].astype(jnp.float32)
        mean = jnp.sum(x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)
        norm = jnp.linalg.norm(mean, axis=-1, keepdims=True)
        return mean / jnp.maximum(norm, 1e-12)
