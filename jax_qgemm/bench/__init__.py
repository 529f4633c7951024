"""`python -m jax_qgemm.bench`: what this library gains on this machine, against XLA alone."""
