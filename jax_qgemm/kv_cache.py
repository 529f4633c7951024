"""Attention for decoding, over a cache of int8 keys and values."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jax_qgemm import compat, errors, reference
from jax_qgemm.errors import describe
from jax_qgemm.primitives import attention as primitive

_UNIT = 16  # sizes of heads are multiples of it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class KVCache:
    """Keys and values of one layer: int8, symmetric, with a scale per head and position.

    Made by `KVCache.zeros`, filled by `update`, read by `attention`; a pytree, for the carry of
    `jax.lax.scan` and `while_loop`. B is the batch, G the heads of keys and values, L positions, D
    the size of a head.

    Attributes:
      key: int8 [B, G, L * D], each head in the kernels' layout.
      key_scale: float32 [B, G, L].
      value, value_scale: of the same shapes.
    """

    key: jax.Array
    key_scale: jax.Array
    value: jax.Array
    value_scale: jax.Array

    @classmethod
    def zeros(cls, batch: int, length: int, heads: int, head_dim: int) -> KVCache:
        """An empty cache of at least `length` positions: a multiple of 64.

        ValueError for sizes that are negative, no length, or a head_dim that is no multiple of 16.
        """
        sizes = {"batch": batch, "length": length, "heads": heads, "head_dim": head_dim}
        for name, size in sizes.items():
            errors.size("KVCache.zeros", name, size, least=int(name == "length"))
        if head_dim % _UNIT or head_dim == 0:
            raise ValueError(
                f"KVCache.zeros: head_dim must be a multiple of {_UNIT}, got {head_dim}"
            )
        length = -(-length // reference.PANEL) * reference.PANEL

        def part():
            data = jnp.zeros((batch, heads, length * head_dim), jnp.int8)
            return data, jnp.zeros((batch, heads, length), jnp.float32)

        return cls(*part(), *part())

    @property
    def length(self) -> int:
        """Positions that there is room for."""
        return self.key_scale.shape[-1]

    @property
    def head_dim(self) -> int:
        return self.key.shape[-1] // max(1, self.length)

    @property
    def nbytes(self) -> int:
        """Bytes that all parts take in memory."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self._parts())

    def update(self, key, value, position) -> KVCache:
        """The cache with new positions, quantized; in place, where XLA may.

        Args:
          key, value: float32, bfloat16 or float16 [B, T, G, D].
          position: int, of all or [B]: where the first of them belongs. Positions outside the
            cache are left out; a known one is refused.

        Raises:
          TypeError, ValueError: arrays of other dtypes or shapes.
          NotImplementedError: differentiated.
        """
        name = "KVCache.update"
        key = errors.float_array(name, "key", key)
        value = errors.float_array(name, "value", value)
        _check_parts(name, self)
        batch, heads, length = self.key_scale.shape
        if key.ndim == 4 and key.shape[1] > length:
            raise ValueError(f"{name}: key has {key.shape[1]} positions, the cache {length}")
        expected = batch, key.shape[1] if key.ndim == 4 else "T", heads, self.head_dim
        for what, x in (("key", key), ("value", value)):
            if x.shape != expected:
                shape = ", ".join(map(str, expected))
                raise ValueError(f"{name}: {what} is {describe(x)}, expected shape ({shape})")
        if value.dtype != key.dtype:
            raise TypeError(f"{name}: value must be {key.dtype}, as key is, got {describe(value)}")
        position = _positions(name, position, batch, length - key.shape[1])
        return KVCache(*primitive.update_kv_cache(key, value, position, self._parts()))

    def _parts(self):
        return self.key, self.key_scale, self.value, self.value_scale

    def __repr__(self) -> str:
        return f"KVCache({', '.join(map(describe, self._parts()))})"


def attention(query, cache: KVCache, position, *, scale=None, causal=True, mask=None) -> jax.Array:
    """softmax(scale · query · keyᵀ) · value over a quantized cache, for a step of decoding (T = 1)
    and for a prompt alike.

    Scores, softmax and weighted sum are one operation in float32; products are with the int8
    values, whose scales multiply scores and weights. A query has the same result in any batch.

    Args:
      query: float32, bfloat16 or float16 [B, T, H, D], H a multiple of the cache's heads: that
        many queries share one (grouped-query attention; H / 1 of them: multi-query).
      cache: KVCache, already updated with the keys and values of these T positions.
      position: int, of all or [B]: of the first query. Query t sees the positions up to its own,
        position + t, or without `causal` all up to the last, position + T - 1.
      scale: of the scores; None: 1 / sqrt(D).
      causal: see position.
      mask: None, or bool [B, L or fewer]: False leaves a position of the cache out, for padding.

    Returns:
      [B, T, H, D] of query's dtype; 0 where a query sees nothing, or only what scores -Inf.

    Raises:
      TypeError, ValueError: arrays of other dtypes or shapes, a known position outside the cache.
      NotImplementedError: differentiated.
    """
    name = "attention"
    query = errors.float_array(name, "query", query)
    if not isinstance(cache, KVCache):
        raise TypeError(f"{name}: cache must be a KVCache, got {describe(cache)}")
    _check_parts(name, cache)
    batch, groups, length = cache.key_scale.shape
    dim = cache.head_dim
    if query.ndim != 4 or (query.shape[0], query.shape[3]) != (batch, dim):
        raise ValueError(
            f"{name}: query is {describe(query)}, expected shape ({batch}, T, H, {dim}) for {cache}"
        )
    if query.shape[2] % max(groups, 1) or bool(query.shape[2]) != bool(groups):
        raise ValueError(
            f"{name}: query has {query.shape[2]} heads, expected a multiple of the cache's {groups}"
        )
    if query.shape[1] > length:
        raise ValueError(f"{name}: query has {query.shape[1]} positions, the cache {length}")
    position = _positions(name, position, batch, length - query.shape[1])
    scale = _scale(name, dim**-0.5 if scale is None else scale)
    causal = errors.flag(name, "causal", causal)
    if mask is not None:
        mask = errors.as_array(name, "mask", mask)
        if mask.dtype != bool:
            raise TypeError(f"{name}: mask must be bool, got {describe(mask)}")
        if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] > length:
            raise ValueError(
                f"{name}: mask is {describe(mask)}, expected shape ({batch}, up to {length})"
            )
        mask = jnp.pad(mask, ((0, 0), (0, length - mask.shape[1])), constant_values=True)
    parts = cache._parts()
    return primitive.attention(query, parts, position, mask, scale=scale, causal=causal)


def _scale(name: str, scale) -> float:
    try:
        if isinstance(scale, str | bytes):
            raise TypeError
        value = float(scale)
    except (TypeError, ValueError, jax.errors.ConcretizationTypeError) as e:
        raise TypeError(f"{name}: scale must be a number, got {describe(scale)}") from e
    except OverflowError:
        value = math.inf
    if not abs(value) <= float(reference.FLT_MAX):
        raise ValueError(f"{name}: scale must be finite in float32, got {value}")
    return value


def _check_parts(name: str, cache: KVCache) -> None:
    """That the parts of a cache fit each other, and the kernels."""
    shape = getattr(cache.key_scale, "shape", ())
    if len(shape) != 3 or not getattr(cache.key, "shape", ()):
        raise ValueError(
            f"{name}: cache.key_scale is {describe(cache.key_scale)}, expected float32 [B, G, L] "
            f"beside a key, {describe(cache.key)}"
            "; use a stack of caches by jax.vmap or jax.lax.scan"
        )
    size = shape[2] * cache.head_dim
    for what, dtype, expected in (
        ("key", "int8", (*shape[:2], size)),
        ("key_scale", "float32", shape),
        ("value", "int8", (*shape[:2], size)),
        ("value_scale", "float32", shape),
    ):
        part = getattr(cache, what)
        if getattr(part, "shape", None) != expected or part.dtype.name != dtype:
            raise ValueError(
                f"{name}: cache.{what} is {describe(part)}, expected {dtype}{list(expected)}"
            )
    if shape[2] % reference.PANEL or cache.head_dim % _UNIT:
        raise ValueError(
            f"{name}: cache has {shape[2]} positions of {cache.head_dim}, expected multiples of "
            f"{reference.PANEL} and {_UNIT}; make it by KVCache.zeros"
        )


def _positions(name: str, position, batch: int, most: int):
    """int32 [] or [B]; where the values are known they must lie in [0, most]."""
    array = errors.as_array(name, "position", position)
    values = compat.concrete(position)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name}: position must be an integer, got {describe(array)}")
    if array.shape not in ((), (batch,)):
        raise ValueError(f"{name}: position is {describe(array)}, expected shape () or ({batch},)")
    if values is not None and values.size and not 0 <= values.min() <= values.max() <= most:
        raise ValueError(
            f"{name}: position must be in [0, {most}] for the positions to fit the cache, got "
            f"{values}"
        )
    return errors.saturated_int32(array)
