"""Generating text with a decoder of `llama.py`: a prompt in one call, then some tokens per call."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llama import Llama

STEPS = 8  # tokens per call of the decoder: what a call costs the host is shared by so many
BUCKET = 64  # prompts are padded to a multiple of it: one compiled program each


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen: the most likely one at temperature 0; else one of the `top_k` most
    likely, of those that have the probability `top_p` together."""

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95

    def __call__(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """(batch, vocab_size) → (batch,) ids."""
        if self.temperature == 0:
            # As jnp.argmax, of which XLA's code for CPUs takes longer, by integers in the order of
            # the floats: their maximum XLA finds in vectors, on the thread that runs the rest.
            bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
            ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
            best = ordered == ordered.max(-1, keepdims=True)
            ids = jnp.arange(logits.shape[-1])
            return jnp.where(best, ids, logits.shape[-1] - 1).min(-1)
        count = min(self.top_k, logits.shape[-1])
        values, ids = jax.lax.top_k(logits, count)
        # From the best one, and of a normal number, so that none becomes infinite.
        values = (values - values[:, :1]) / max(self.temperature, 1e-30)
        probability = jax.nn.softmax(values)
        before = jnp.cumsum(probability, axis=-1) - probability
        values = jnp.where(before < self.top_p, values, -jnp.inf)
        chosen = jax.random.categorical(key, values)
        return jnp.take_along_axis(ids, chosen[:, None], axis=-1)[:, 0]


class Generator:
    """Compiled programs of one model, for one sequence at a time, and the caches they fill.

    Programs take the weights and the caches as flat lists of arrays, which cost the host half as
    much at each call as their trees, and give back the caches they get, in place.
    """

    def __init__(self, model: Llama, cache_type: type, context: int, sampling: Sampling):
        graph, state = nnx.split(model)
        config = model.blocks[0].config
        # Padding of a prompt needs room too.
        self.context = -(-context // BUCKET) * BUCKET

        def new_caches():
            sizes = 1, self.context, config.cache_heads, config.head_dim
            return tuple(cache_type.zeros(*sizes) for _ in range(config.layers))

        self._weights, of_weights = jax.tree.flatten(state)
        of_caches = jax.tree.structure(jax.eval_shape(new_caches))
        self._new_caches = lambda: jax.tree.leaves(new_caches())

        def trees(weights, caches):
            model = nnx.merge(graph, jax.tree.unflatten(of_weights, weights))
            return model, jax.tree.unflatten(of_caches, caches)

        def prefill(weights, caches, ids, count, key):
            model, caches = trees(weights, caches)
            hidden, caches = model.hidden(ids, caches, 0)
            last = jax.lax.dynamic_index_in_dim(hidden, count - 1, axis=1, keepdims=False)
            token = sampling(model.logits(last), jax.random.fold_in(key, count))
            return jax.tree.leaves(caches), token

        def decode(weights, caches, token, position, key):
            model, caches = trees(weights, caches)

            def step(carry, _):
                caches, token, position = carry
                hidden, caches = model.hidden(token[:, None], caches, position)
                position += 1
                token = sampling(model.logits(hidden[:, 0]), jax.random.fold_in(key, position))
                return (caches, token, position), token[0]

            carry, tokens = jax.lax.scan(step, (caches, token, position), length=STEPS)
            caches, token, position = carry
            return jax.tree.leaves(caches), token, position, tokens

        def logits(weights, caches, ids):
            model, caches = trees(weights, caches)
            return model.logits(model.hidden(ids, caches, 0)[0])

        self._prefill = jax.jit(prefill, donate_argnums=1)
        self._decode = jax.jit(decode, donate_argnums=1)
        self._logits = jax.jit(logits)

    @functools.cache  # noqa: B019 (a program each, as long as the generator)
    def _compiled_prefill(self, length: int):
        ids, count = jnp.zeros((1, length), jnp.int32), jnp.int32(1)
        return self._prefill.lower(
            self._weights, self._new_caches(), ids, count, jax.random.key(0)
        ).compile()

    @functools.cached_property
    def _compiled_decode(self):
        token, position = jnp.zeros(1, jnp.int32), jnp.int32(1)
        return self._decode.lower(
            self._weights, self._new_caches(), token, position, jax.random.key(0)
        ).compile()

    def compile(self, prompt_length: int) -> None:
        """What a prompt of this length needs, so that it takes no time later."""
        _ = self._compiled_decode, self._compiled_prefill(self._padded(prompt_length))

    def _padded(self, length: int) -> int:
        if not 0 < length < self.context:
            raise ValueError(f"the prompt has {length} tokens, the context {self.context}")
        return -(-length // BUCKET) * BUCKET

    def stream(self, prompt: Sequence[int], seed: int = 0) -> Iterator[list[int]]:
        """New tokens, some at a time, until the context is full: one after the prompt, then up to
        STEPS each."""
        ids = np.zeros((1, self._padded(len(prompt))), np.int32)
        ids[0, : len(prompt)] = prompt
        key, position = jax.random.key(seed), jnp.int32(len(prompt))
        caches, token = self._compiled_prefill(ids.shape[1])(
            self._weights, self._new_caches(), ids, position, key
        )
        yield [int(token[0])]
        for left in range(self.context - len(prompt), 0, -STEPS):
            caches, token, position, tokens = self._compiled_decode(
                self._weights, caches, token, position, key
            )
            yield np.asarray(tokens)[:left].tolist()

    def perplexity(self, ids: Sequence[int]) -> float:
        """exp of the mean of -log p of each token but the first of every part of `context` tokens,
        by the tokens of its part before it."""
        total, count = 0.0, 0
        for start in range(0, len(ids), self.context):
            part = np.asarray(ids[start : start + self.context], np.int32)
            if len(part) < 2:
                break
            padded = np.zeros((1, self.context), np.int32)
            padded[0, : len(part)] = part
            logits = self._logits(self._weights, self._new_caches(), padded)
            total += float(_surprise(logits[0], padded[0], len(part)))
            count += len(part) - 1
        return float(np.exp(total / count))


@jax.jit
def _surprise(logits: jax.Array, ids: jax.Array, count: jax.Array) -> jax.Array:
    """-log p of ids[1:count], summed."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), ids[1:, None], axis=-1)[:, 0]
    return -jnp.sum(jnp.where(jnp.arange(1, len(ids)) < count, log_p, 0))
