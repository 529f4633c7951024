"""`python -m jax_qgemm.bench`: what this library gains here, against XLA and its peers."""
