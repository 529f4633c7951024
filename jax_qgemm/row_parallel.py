"""Weights in parts of K, for devices that each have some of the rows (Megatron's row-parallel
layers, arXiv 1909.08053, section 3): products of the parts, added up before the epilogue."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jax_qgemm import errors, reference
from jax_qgemm.errors import describe
from jax_qgemm.explicit import whole
from jax_qgemm.packing import check_options, pack, pack_weight
from jax_qgemm.primitives.gemm import gemm
from jax_qgemm.primitives.undifferentiated import undifferentiated
from jax_qgemm.quantization import quantize
from jax_qgemm.types import GemmSpec, PackedWeight, QuantizedArray

if TYPE_CHECKING:
    from collections.abc import Callable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RowParallelWeight:
    """A K×N weight in parts of K, made by `pack_row_parallel` and taken by `dot`.

    Put it on a mesh with `jax.device_put(w, NamedSharding(mesh, P("axis")))`, and x with its last
    axis split over the same one. Under `jit` each device then multiplies what it has; sums of
    products are all that is exchanged, int32 ones where x and the weight are of 8 bits, so that
    the result is that of one device to the bit.

    Attributes:
      parts: a stack of packed weights (parts, K / parts, N), with the same scales where the parts
        share them.
    """

    parts: PackedWeight

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        count, k, n = self.parts.shape
        return count * k, n

    @property
    def qtype(self) -> str:
        return self.parts.qtype

    @property
    def nbytes(self) -> int:
        return self.parts.nbytes

    def __repr__(self) -> str:
        count = self.parts.shape[0]
        return f"RowParallelWeight({self.parts.qtype}{list(self.shape)} in {count} parts of K)"

    def dequantize(self) -> jax.Array:
        """The real values, float32 (K, N)."""
        return self.parts.dequantize().reshape(self.shape)


def pack_row_parallel(
    kernel, qtype="int8", *, parts: int, symmetric=None, clamp=False
) -> RowParallelWeight:
    """`pack_weight` in so many parts of K: the same values, with the same scales.

    Args:
      kernel, qtype, symmetric, clamp: as of `pack_weight`.
      parts: how many, a divisor of K, each of whole groups where the format has groups.

    Raises:
      TypeError, ValueError: as `pack_weight` does, and for parts that do not fit.
    """
    name = "pack_row_parallel"
    kernel = errors.float_array(name, "kernel", kernel)
    form, group, weight_only, _ = errors.weight_format(name, "qtype", qtype)
    if kernel.ndim != 2:
        raise ValueError(f"{name}: kernel must have 2 dimensions (K, N), got {describe(kernel)}")
    symmetric, clamp = check_options(name, form, symmetric, clamp)
    k = kernel.shape[0]
    parts = errors.size(name, "parts", parts, least=1)
    if k % parts or (group and k // parts % group):
        groups = f" into parts of whole groups of {group}" if group else ""
        raise ValueError(f"{name}: parts={parts} does not divide K={k}{groups}")
    if form in reference.QRANGE and group is None:
        q = quantize(kernel, form, channelwise_axes=[1], symmetric=symmetric)
        packed = [
            dataclasses.replace(
                pack(QuantizedArray(values, q.scale, q.zero_point, form)), weight_only=weight_only
            )
            for values in jnp.split(whole(q.qvalue, [0]), parts)
        ]
    else:
        packed = [
            pack_weight(part, qtype, symmetric=symmetric, clamp=clamp)
            for part in jnp.split(whole(kernel, [0]), parts)
        ]
    return RowParallelWeight(jax.tree.map(lambda *leaves: jnp.stack(leaves), *packed))


def product(linear: Callable, x, w: RowParallelWeight) -> jax.Array:
    """x (..., K), floats or a QuantizedArray, times w: float32 (..., N), before the epilogue.

    `linear`: x and a weight → their float32 product, for parts that are products of their own.
    """
    parts = w.parts
    if parts.qtype not in reference.QRANGE or parts.weight_only:
        return jax.vmap(linear)(_by_parts(x, parts), parts).sum(0)
    (scale,) = undifferentiated("dot by the scale of a RowParallelWeight", parts.scale)
    parts = dataclasses.replace(parts, scale=scale)
    if isinstance(x, QuantizedArray):
        return _integer(linear, x, parts)
    return _quantized(linear)(x, parts)


def _by_parts(x, parts: PackedWeight):
    """(..., K) → (parts, ..., K / parts)."""
    count, k, _ = parts.shape
    return jnp.moveaxis(x.reshape(*x.shape[:-1], count, k), -2, 0)


def _quantized(linear: Callable) -> Callable:
    """The product of float x, whose rows are quantized as `dot` does; in plain JAX, which XLA
    splits along K, too. Its rounding counts as the identity."""

    @jax.custom_jvp
    def run(x, parts):
        (x,) = undifferentiated("dot", x)
        q, scale, zero_point = reference.quantize_rows(x, "uint8")
        rows = QuantizedArray(q, scale[..., None], zero_point[..., None], "uint8")
        return _integer(linear, rows, parts)

    def run_jvp(primals, tangents):
        x, parts = primals
        real = dataclasses.replace(parts, weight_only=True)
        tangent = jax.vmap(linear)(_by_parts(tangents[0], parts), real).sum(0)
        return run(x, parts), tangent.astype(jnp.float32)

    run.defjvp(run_jvp)
    return lambda x, parts: run(x, jax.lax.stop_gradient(parts))


def _integer(linear: Callable, x: QuantizedArray, parts: PackedWeight) -> jax.Array:
    values = _by_parts(x.qvalue, parts)
    k = x.shape[-1]
    if parts.group_size or len(reference.blocks(k, parts.zero_point is not None)) > 1:
        run = jax.vmap(lambda own, part: linear(dataclasses.replace(x, qvalue=own), part))
        return run(values, parts).sum(0)
    spec = GemmSpec(
        dynamic=False,
        x_scale="none",
        x_zero_point="none" if x.zero_point is None else "row" if x.zero_point.ndim else "tensor",
        w_zero_point=parts.zero_point is not None,
        out_dtype="int32",
        batched=1,
        rows=x.ndim - 1,
    )
    zero_point = x.zero_point
    if zero_point is not None and zero_point.ndim:
        zero_point = zero_point[..., 0]
    sums = gemm(
        spec,
        x=values,
        data=parts.data,
        w_scale=parts.scale,
        column_sums=parts.column_sums,
        x_zero_point=zero_point,
        w_zero_point=parts.zero_point,
    )
    sums = sums.sum(0).astype(jnp.float32)
    scale = parts.scale.max(0)  # all parts have the same, each device those of its own
    scale = jnp.expand_dims(scale, tuple(range(sums.ndim - 1)))
    if x.scale.ndim:
        return reference.rounded(sums * scale) * x.scale
    return sums * (x.scale * scale)
