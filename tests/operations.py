"""The operations of README.md's table, each with eight sets of arguments and its reference."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import oracle

import jax_qgemm as jq

SETS, M, K, N = 8, 6, 64, 128
RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Operation:
    """`f(*own, *shared)`; the arrays of `own` have a set of arguments for each leading index.

    `reference` takes the own ones as NumPy arrays and returns a list of them; results of float sums
    differ by `tolerance`.
    """

    f: Callable
    own: tuple
    shared: tuple
    reference: Callable
    tolerance: float = 0

    def arguments(self, i):
        return (*jax.tree.map(lambda leaf: leaf[i], self.own), *self.shared)

    def expected(self, i):
        own = jax.tree.map(lambda leaf: np.asarray(leaf[i]), self.own)
        return [np.asarray(a) for a in self.reference(*own)]

    def check(self, got, i):
        got, want = jax.tree.leaves(got), self.expected(i)
        assert [g.shape for g in got] == [w.shape for w in want]
        for g, w in zip(got, want, strict=True):
            if self.tolerance:
                np.testing.assert_allclose(g, w, rtol=self.tolerance, atol=self.tolerance)
            else:
                np.testing.assert_array_equal(g, w)

    def check_sets(self, got):
        for i in range(SETS):
            self.check(jax.tree.map(lambda leaf, i=i: leaf[i], got), i)


KERNELS = floats(3, K, N)
STATIC = dict(scale=0.03, zero_point=120)
OUT = dict(out_scale=0.2, out_zero_point=128)


@functools.cache
def values():
    """What the packed weights hold: (int8 (K, N), scale [N]) of each."""
    unpacked = [jq.unpack(jq.pack_weight(kernel)) for kernel in KERNELS]
    return [(np.asarray(q.qvalue), np.asarray(q.scale).reshape(-1)) for q in unpacked]


def _dot(x, bias, which=0):
    return [oracle.dot(x, *values()[which], bias=bias)]


def _ragged_dot(x, sizes):
    ends = np.cumsum(sizes)
    groups = enumerate(zip(ends - sizes, ends, strict=True))
    parts = [_dot(x[start:end], None, g)[0] for g, (start, end) in groups]
    return [np.concatenate([*parts, np.zeros((len(x) - ends[-1], N), np.float32)])]


def _quantized_linear(x):
    q = oracle.quantize_static(x, STATIC["scale"], STATIC["zero_point"], "uint8")
    parameters = np.float32(STATIC["scale"]), STATIC["zero_point"]
    return [oracle.linear(q, *parameters, *values()[0], out="uint8", **OUT)]


def quantized_linear(x, w):
    q = jq.quantize(x, "uint8", **STATIC)
    return jq.quantized_linear(q, w, **OUT).qvalue


def quantize(x):
    q = jq.quantize(x, "int8", channelwise_axes=[0])
    return q.qvalue, q.scale


def attention(query, keys, values, cache):
    """A prompt: its keys and values into a cache, and what its queries see of it."""
    return jq.attention(query, cache.update(keys, values, 0), 0)


def _attention(query, keys, values, _):
    def rounded(x):
        q, scale, _ = oracle.quantize(x, "int8", (0, 1, 2))
        return q.astype(np.float64) * scale

    shared = query.shape[2] // keys.shape[2]
    keys, values = (np.repeat(rounded(a), shared, axis=2) for a in (keys, values))
    scores = np.einsum("bthd,blhd->bhtl", query.astype(np.float64), keys) / query.shape[-1] ** 0.5
    scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return [np.einsum("bhtl,blhd->bthd", weights / weights.sum(-1, keepdims=True), values)]


NAMES = "dot", "ragged_dot", "quantized_linear", "quantize", "attention"


@functools.cache
def operations() -> dict[str, Operation]:
    """By name; with packed weights, so not made at import, when devices can still be chosen."""
    weight, weights = jq.pack_weight(KERNELS[0]), jax.vmap(jq.pack_weight)(KERNELS)
    caches = jax.tree.map(lambda leaf: jnp.stack([leaf] * SETS), jq.KVCache.zeros(1, 64, 2, 16))
    x = jnp.asarray(floats(SETS, M, K))
    sizes = jnp.asarray(RNG.integers(0, 3, (SETS, 3)), jnp.int32)
    heads = [jnp.asarray(floats(SETS, 1, 5, count, 16)) for count in (4, 2, 2)]
    return {
        "dot": Operation(
            lambda x, bias, w: jq.dot(x, w, bias=bias),
            (x, jnp.asarray(floats(SETS, N))),
            (weight,),
            _dot,
        ),
        "ragged_dot": Operation(
            lambda x, sizes, w: jq.ragged_dot(x, w, sizes), (x, sizes), (weights,), _ragged_dot
        ),
        "quantized_linear": Operation(quantized_linear, (x,), (weight,), _quantized_linear),
        "quantize": Operation(quantize, (x,), (), lambda x: oracle.quantize(x, "int8", (0,))[:2]),
        "attention": Operation(attention, (*heads, caches), (), _attention, tolerance=1e-5),
    }
