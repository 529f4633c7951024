"""JAX primitives, a file for each FFI custom call with all its rules, or for two that share them;
gemm's derivatives beside it."""

from jax_qgemm.primitives import gemm_derivatives

__all__ = ["gemm_derivatives"]  # importing it registers its rules
