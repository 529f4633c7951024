"""JAX primitives, one file per FFI custom call with all its rules; gemm's derivatives beside it."""

from jax_qgemm.primitives import gemm_derivatives

__all__ = ["gemm_derivatives"]  # importing it registers its rules
