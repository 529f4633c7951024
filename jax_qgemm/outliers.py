"""Outliers: what kernels that sum in int16 take out of the weights, to stay exact."""

import jax
import jax.numpy as jnp

from jax_qgemm import reference
from jax_qgemm.errors import describe
from jax_qgemm.packing import check_packed
from jax_qgemm.types import PackedWeight

# As in xla_ffi/gemm/acc16.h: four weights of a column, from two quads of K, are added up in int16;
# those of one sign may come to 128, since 255 * 128 < 2**15.
_QUADS, _MOST = 2, 128


def outlier_density(w: PackedWeight) -> jax.Array:
    """The share of weights that sums in int16 leave to sums in int32, float32 from 0 to 1.

    CPUs without VNNI multiply large products in int16, at up to 1.5 times the speed, if few weights
    have to be taken out for the rows that share the work: of normally distributed ones 2 to 4 %,
    which pays from some hundred rows on, of uniformly distributed ones 30 %, which never does, of
    those that stay within ±32 none. Results are the same bits either way. FBGEMM's counterpart is
    the outlier-aware split of arXiv 2101.05615.

    Raises:
      TypeError: w is no PackedWeight, or one of floats or blocks.
      ValueError: w is of a newer format version.
    """
    check_packed("outlier_density", "w", w, stacks=True)
    if w.qtype not in reference.QRANGE:
        raise TypeError(f"outlier_density: w must be of int8 or uint8, got {describe(w)}")
    return _density(w)


@jax.jit
def _density(w: PackedWeight) -> jax.Array:
    if w.data.ndim > 1:
        return jnp.mean(jax.vmap(_density)(w))
    values = reference.unpack(w.data, *w.matrix_shape).astype(jnp.int32)
    count = sum(_count(jnp.maximum(part, 0)) for part in (values, -values))
    return count.astype(jnp.float32) / max(1, values.size)


def _count(magnitudes: jax.Array) -> jax.Array:
    """How many of (K, N) magnitudes, of one sign, are reduced."""
    k, n = magnitudes.shape
    step = 4 * _QUADS
    padded = jnp.pad(magnitudes, ((0, -k % step), (0, 0)))
    pairs = padded.reshape(padded.shape[0] // step, _QUADS, 2, 2, n)
    parts = jnp.stack([pairs[:, quad, :, i] for quad in range(_QUADS) for i in range(2)])
    # The largest gives what is too much, as far as it goes, then the next.
    parts = jnp.sort(parts, axis=0, descending=True)
    before = jnp.cumsum(parts, axis=0) - parts
    return jnp.sum(before < jnp.sum(parts, axis=0, keepdims=True) - _MOST)
