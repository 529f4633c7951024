"""Quantized layers for Flax: `nnx` (QLinear, quantize_) and `linen` (QDense, quantize_params)."""

from jax_qgemm.flax import linen, nnx

__all__ = ["linen", "nnx"]
