"""KVCache and attention: quantization, masks, shared heads, transformations, errors."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from cases import pairwise

import jax_qgemm as jq

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def quantized(x):
    """x after symmetric quantization of its last axis, float64."""
    x = np.asarray(x, np.float32)
    amax = np.abs(x).max(-1, keepdims=True)
    amax[amax == 0] = 127
    q = np.rint(x * (np.float32(127) / amax))
    return q * (amax / np.float32(127)).astype(np.float64)


def expected(query, keys, values, seen, scale, mask):
    """float64 [B,T,H,D] of keys and values [B,L,G,D]; seen [B,T]: how many positions."""
    query = np.asarray(query, np.float64)
    shared = query.shape[2] // keys.shape[2]
    keys, values = (np.repeat(a, shared, axis=2) for a in (keys, values))
    scores = np.einsum("bthd,blhd->bhtl", query, keys) * scale
    visible = np.arange(keys.shape[1]) < seen[:, :, None]
    if mask is not None:
        visible &= mask[:, None, : keys.shape[1]]
    scores = np.where(visible[:, None], scores, -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = np.nan_to_num(weights / weights.sum(-1, keepdims=True))
    return np.einsum("bhtl,blhd->bthd", weights, values)


CASES = pairwise(
    batch=(1, 2),
    heads=((1, 1), (3, 9), (2, 2), (1, 5)),
    head_dim=(16, 64, 80, 128),
    before=(0, 1, 63, 150),
    tokens=(1, 2, 7, 65),
    dtype=tuple(DTYPES),
    causal=(True, False),
    mask=(False, True),
    scale=(None, 0.3),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case, rng, each_isa):
    batch, dim, before, tokens = (case[n] for n in ("batch", "head_dim", "before", "tokens"))
    (groups, heads), dtype = case["heads"], DTYPES[case["dtype"]]
    length = before + tokens

    def draw(heads, length):
        return rng.standard_normal((batch, length, heads, dim)).astype(dtype)

    keys, values, query = draw(groups, length), draw(groups, length), draw(heads, tokens)
    mask = rng.random((batch, length)) > 0.3 if case["mask"] else None
    scale = dim**-0.5 if case["scale"] is None else case["scale"]
    seen = before + (np.arange(1, tokens + 1) if case["causal"] else np.full(tokens, tokens))
    seen = np.broadcast_to(seen, (batch, tokens))
    want = expected(query, quantized(keys), quantized(values), seen, scale, mask)
    eps = float(jnp.finfo(dtype).eps)
    first = None
    for isa in each_isa():
        cache = jq.KVCache.zeros(batch, length, groups, dim)
        assert cache.length == -(-length // 64) * 64 and cache.head_dim == dim
        cache = cache.update(keys[:, :before], values[:, :before], 0)
        cache = cache.update(keys[:, before:], values[:, before:], before)
        got = jq.attention(
            jnp.asarray(query), cache, before, scale=case["scale"], causal=case["causal"], mask=mask
        )
        assert got.dtype == dtype and got.shape == query.shape
        np.testing.assert_allclose(
            np.asarray(got, np.float64), want, atol=3e-6 + eps * np.abs(want).max(), err_msg=isa
        )
        first = got if first is None else first
        assert isa == "xla" or np.array_equal(got, first), isa


def test_a_query_is_the_same_in_any_batch(rng, each_isa):
    keys, values = (jnp.asarray(rng.standard_normal((3, 90, 2, 64)), jnp.float32) for _ in "kv")
    query = jnp.asarray(rng.standard_normal((3, 90, 6, 64)), jnp.float32)
    for isa in each_isa():
        if isa == "xla":
            pytest.skip("XLA's own products make no such promise")
        cache = jq.KVCache.zeros(3, 128, 2, 64).update(keys, values, 0)
        whole = jq.attention(query, cache, 0)
        for t in (0, 1, 50, 89):
            assert np.array_equal(jq.attention(query[:, t : t + 1], cache, t)[:, 0], whole[:, t])
        one = jax.tree.map(lambda part: part[1:2], cache)
        assert np.array_equal(jq.attention(query[1:2], one, 0), whole[1:2]), isa


def test_positions_of_each_sequence(rng):
    keys, values = (jnp.asarray(rng.standard_normal((2, 70, 2, 32)), jnp.float32) for _ in "kv")
    new = jnp.asarray(rng.standard_normal((2, 1, 2, 32)), jnp.float32)
    query = jnp.asarray(rng.standard_normal((2, 1, 4, 32)), jnp.float32)
    cache = jq.KVCache.zeros(2, 100, 2, 32).update(keys, values, 0)
    positions = jnp.asarray([5, 70])
    together = jq.attention(query, cache.update(new, new, positions), positions)
    for b in range(2):
        one = jax.tree.map(lambda part, b=b: part[b : b + 1], cache)
        one = one.update(new[b : b + 1], new[b : b + 1], positions[b])
        got = jq.attention(query[b : b + 1], one, int(positions[b]))
        assert np.array_equal(together[b : b + 1], got)


def test_zeros_large_values_and_what_is_not_finite(rng):
    query = jnp.ones((1, 1, 1, 16))
    cache = jq.KVCache.zeros(1, 64, 1, 16)
    nothing = jq.attention(query, cache, 0, mask=jnp.zeros((1, 5), bool))
    assert not nothing.any()  # the mask leaves out five, the query sees one
    keys = jnp.zeros((1, 3, 1, 16)).at[0, 1].set(1e4).at[0, 2].set(-1e4)
    values = jnp.asarray(rng.standard_normal((1, 3, 1, 16)), jnp.float32)
    full = cache.update(keys, values, 0)
    out = jq.attention(query, full, 2)
    np.testing.assert_allclose(out[0, 0, 0], quantized(values[0, 1, 0]), rtol=1e-6)
    bad = cache.update(keys, values.at[0, 1, 0, 3].set(jnp.nan), 0)
    assert np.isnan(jq.attention(query, bad, 2)).all()
    # What comes later, or is left out, is not looked at.
    assert np.isfinite(jq.attention(query, bad, 0)).all()
    assert np.isfinite(jq.attention(query, bad, 2, mask=jnp.asarray([[True, False, True]]))).all()
    assert np.isnan(jq.attention(query * jnp.inf, full, 2)).all()


def test_decoding_in_a_loop(rng):
    """A prompt, then steps in a scan: as all at once; under jit, vmap and with donation."""
    keys, values = (jnp.asarray(rng.standard_normal((2, 20, 2, 32)), jnp.float32) for _ in "kv")
    query = jnp.asarray(rng.standard_normal((2, 20, 4, 32)), jnp.float32)

    def at_once(query, keys, values):
        cache = jq.KVCache.zeros(2, 64, 2, 32).update(keys, values, 0)
        return jq.attention(query, cache, 0)

    def by_steps(query, keys, values):
        cache = jq.KVCache.zeros(2, 64, 2, 32).update(keys[:, :7], values[:, :7], 0)
        prompt = jq.attention(query[:, :7], cache, 0)

        def step(carry, qkv):
            cache, position = carry
            q, k, v = (part[:, None] for part in qkv)
            cache = cache.update(k, v, position)
            return (cache, position + 1), jq.attention(q, cache, position)[:, 0]

        rest = [jnp.moveaxis(part[:, 7:], 1, 0) for part in (query, keys, values)]
        _, steps = jax.lax.scan(step, (cache, 7), rest)
        return jnp.concatenate([prompt, jnp.moveaxis(steps, 0, 1)], axis=1)

    whole = at_once(query, keys, values)
    np.testing.assert_allclose(jax.jit(by_steps)(query, keys, values), whole, atol=1e-6)
    stacked = [jnp.stack([part, part[::-1]]) for part in (query, keys, values)]
    mapped = jax.jit(jax.vmap(by_steps))(*stacked)
    np.testing.assert_allclose(mapped, jnp.stack([whole, whole[::-1]]), atol=1e-6)
    shared = jax.vmap(at_once, (0, None, None))(stacked[0], keys, values)
    np.testing.assert_allclose(shared[0], whole, atol=1e-6)


def test_vmap_over_positions_and_masks(rng):
    keys, values = (jnp.asarray(rng.standard_normal((2, 9, 1, 16)), jnp.float32) for _ in "kv")
    query = jnp.asarray(rng.standard_normal((2, 1, 3, 16)), jnp.float32)
    cache = jq.KVCache.zeros(2, 9, 1, 16).update(keys, values, 0)
    positions = jnp.asarray([0, 4, 8])
    got = jax.vmap(lambda p: jq.attention(query, cache, p))(positions)
    for i, p in enumerate(positions):
        np.testing.assert_allclose(got[i], jq.attention(query, cache, int(p)), atol=1e-6)
    each = jax.vmap(lambda p: jq.attention(query, cache, p))(jnp.asarray([[0, 1], [5, 8]]))
    np.testing.assert_allclose(each[1], jq.attention(query, cache, jnp.asarray([5, 8])), atol=1e-6)
    masks = jnp.asarray(rng.random((3, 2, 9)) > 0.5)
    got = jax.vmap(lambda mask: jq.attention(query, cache, 8, mask=mask))(masks)
    for i in range(3):
        np.testing.assert_allclose(got[i], jq.attention(query, cache, 8, mask=masks[i]), atol=1e-6)
    updated = jax.vmap(lambda p: cache.update(keys[:, :1], values[:, :1], p))(positions)
    for i, p in enumerate(positions):
        one = cache.update(keys[:, :1], values[:, :1], int(p))
        assert all(
            map(np.array_equal, jax.tree.leaves(one), [a[i] for a in jax.tree.leaves(updated)])
        )


def test_vmap_of_nothing():
    caches = jax.vmap(lambda i: jq.KVCache.zeros(2, 64, 2, 16))(jnp.arange(3))
    run = jax.vmap(lambda q, c: jq.attention(q, c, 0))
    assert run(jnp.zeros((3, 2, 0, 4, 16)), caches).shape == (3, 2, 0, 4, 16)
    none = jax.tree.map(lambda part: part[:0], caches)
    assert run(jnp.zeros((0, 2, 1, 4, 16)), none).shape == (0, 2, 1, 4, 16)
    new = jnp.zeros((0, 2, 1, 2, 16))
    updated = jax.vmap(lambda c, k: c.update(k, k, 0))(none, new)
    assert list(map(jnp.shape, jax.tree.leaves(updated))) == list(
        map(jnp.shape, jax.tree.leaves(none))
    )


def test_positions_that_are_traced_and_outside():
    """Also beyond int32: left out."""
    cache, new = jq.KVCache.zeros(1, 64, 1, 16), jnp.ones((1, 2, 1, 16))
    update = jax.jit(lambda position: cache.update(new, new, position).key_scale)
    positions = [np.int32(-5), np.int32(64), np.uint32(2**32 - 1)]
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        positions += [np.int64(2**32), np.int64(-(2**32))]
        assert not any(update(position).any() for position in positions)
        assert update(np.int64(63))[0, 0].tolist() == [0] * 63 + [np.float32(1 / 127)]


def test_updates_are_in_place_where_donated():
    cache = jax.block_until_ready(jq.KVCache.zeros(1, 64, 1, 16))
    update = jax.jit(lambda cache, x: cache.update(x, x, 3), donate_argnums=0)
    before = cache.key.unsafe_buffer_pointer()
    updated = update(cache, jnp.ones((1, 1, 1, 16)))
    assert updated.key.unsafe_buffer_pointer() == before
    kept = jq.KVCache.zeros(1, 64, 1, 16)
    kept.update(jnp.ones((1, 1, 1, 16)), jnp.ones((1, 1, 1, 16)), 3)
    assert not kept.key.any()


def test_errors():
    cache = jq.KVCache.zeros(2, 64, 2, 16)
    new, query = jnp.ones((2, 1, 2, 16)), jnp.ones((2, 1, 4, 16))
    assert repr(cache).startswith("KVCache(int8[2,2,1024], float32[2,2,64]")
    assert cache.nbytes == 2 * 2 * 2 * 64 * (16 + 4)
    for sizes, message in (
        ((1, 64, 1, 24), "head_dim must be a multiple of 16, got 24"),
        ((1, 64, 1, 0), "head_dim must be a multiple of 16, got 0"),
        ((-1, 64, 1, 16), "batch must be an integer, 0 or more, got -1"),
        ((1, 1.5, 1, 16), "length must be an integer, 1 or more, got 1.5"),
        ((1, 0, 1, 16), "length must be an integer, 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            jq.KVCache.zeros(*sizes)
    for args, error, message in (
        ((new.astype(int), new, 0), TypeError, "key must be float32"),
        ((new[0], new, 0), ValueError, r"key is float32\[1,2,16\], expected shape \(2, T, 2, 16"),
        ((new, new[:, :, :1], 0), ValueError, r"value is float32\[2,1,1,16\], expected shape"),
        ((new, new.astype(jnp.bfloat16), 0), TypeError, "value must be float32, as key is"),
        ((jnp.zeros((2, 65, 2, 16)), new, 0), ValueError, "key has 65 positions, the cache 64"),
        ((new, new, 64), ValueError, r"position must be in \[0, 63\] .* got 64"),
        ((new, new, -1), ValueError, r"position must be in \[0, 63\] .* got -1"),
        ((new, new, 0.0), TypeError, "position must be an integer"),
        ((new, new, jnp.zeros(3, int)), ValueError, r"position is int32\[3\], expected shape \(\)"),
    ):
        with pytest.raises(error, match=message):
            cache.update(*args)
    for args, more, error, message in (
        ((query, new, 0), {}, TypeError, "cache must be a KVCache, got float32"),
        ((query.astype(int), cache, 0), {}, TypeError, "query must be float32"),
        ((query[:1], cache, 0), {}, ValueError, r"query is .* expected shape \(2, T, H, 16\)"),
        ((query[:, :, :3], cache, 0), {}, ValueError, "query has 3 heads, expected a multiple of"),
        ((query, cache, 64), {}, ValueError, r"position must be in \[0, 63\]"),
        ((jnp.zeros((2, 65, 4, 16)), cache, 0), {}, ValueError, "query has 65 positions, the cac"),
        ((query, cache, 0), {"scale": "0.5"}, TypeError, "scale must be a number"),
        ((query, cache, 0), {"scale": np.nan}, ValueError, "scale must be finite"),
        ((query, cache, 0), {"scale": 10**400}, ValueError, "scale must be finite"),
        ((query, cache, 0), {"causal": "no"}, TypeError, "causal must be True or False, known"),
        ((query, cache, 0), {"causal": np.ones(2)}, TypeError, r"causal .* got float64\[2\]"),
        ((query, cache, 0), {"mask": jnp.ones((2, 64))}, TypeError, "mask must be bool, got"),
        ((query, cache, 0), {"mask": jnp.ones((2, 65), bool)}, ValueError, r"mask is bool\[2,65\]"),
        ((query, cache, 0), {"mask": jnp.ones(64, bool)}, ValueError, r"mask is bool\[64\], exp"),
    ):
        with pytest.raises(error, match=message):
            jq.attention(*args, **more)
    broken = jq.KVCache(cache.key, cache.key_scale, cache.value[:, :1], cache.value_scale)
    with pytest.raises(ValueError, match=r"cache.value is int8\[2,1,1024\], expected int8"):
        jq.attention(query, broken, 0)
    for key in (None, "x", 3, np.int8(3)):
        odd = jq.KVCache(key, cache.key_scale, cache.value, cache.value_scale)
        with pytest.raises(ValueError, match=r"expected float32 \[B, G, L\] beside a key, "):
            jq.attention(query, odd, 0)
    with pytest.raises(ValueError, match=r"cache.key_scale is float32\[2,64\], expected float32"):
        jq.attention(query[0], jax.tree.map(lambda part: part[0], cache), 0)
    with pytest.raises(NotImplementedError, match="attention: not differentiable"):
        jax.grad(lambda q: jq.attention(q, cache, 0).sum())(query)
    with pytest.raises(NotImplementedError, match="KVCache.update: not differentiable"):
        jax.grad(lambda k: cache.update(k, new, 0).key_scale.sum())(new)
