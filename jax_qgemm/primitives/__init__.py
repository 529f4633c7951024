"""JAX primitives, one file per FFI custom call with all its rules."""
