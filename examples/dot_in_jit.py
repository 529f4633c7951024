"""`jax_qgemm.dot` in a jitted function: int8 arithmetic, float in and out."""

import jax
import jax.numpy as jnp

import jax_qgemm

x_key, w_key = jax.random.split(jax.random.key(0))
x = jax.random.normal(x_key, (8, 1024))
kernel = jax.random.normal(w_key, (1024, 4096))

w = jax_qgemm.pack_weight(kernel, "int8")  # once, outside the jitted function
y = jax.jit(lambda x, w: jax_qgemm.dot(x, w, activation="relu"))(x, w)

exact = jax.nn.relu(x @ kernel)
error = jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)
print(f"{w}: {w.nbytes / kernel.nbytes:.0%} of its float32 size, relative error {error:.2%}")
