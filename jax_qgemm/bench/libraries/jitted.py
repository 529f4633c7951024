"""Several layers as one jitted program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


class Jitted:
    """A program of JAX, called again and again on the same operands.

    A call writes its results over those of the call before (donated), so that the time holds
    no page faults of fresh memory.
    """

    def __init__(self, layers: Sequence[tuple[Callable[..., jax.Array], tuple[Any, ...]]]):
        """Compile `[call(*operands) for call, operands in layers]` and run it once.

        Args:
          layers: of each the function in JAX, and operands of its own.
        """
        calls = [call for call, _ in layers]

        def run(results, layers):
            del results
            return [call(*operands) for call, operands in zip(calls, layers, strict=True)]

        self._run = jax.jit(run, donate_argnums=0, keep_unused=True)
        self._layers = jax.tree.map(jnp.asarray, [operands for _, operands in layers])
        shapes = jax.eval_shape(lambda layers: run(None, layers), self._layers)
        self.results: list[jax.Array] = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        self()

    def __call__(self) -> None:
        """One call, waited for: the results of a program become ready together."""
        self.results = self._run(self.results, self._layers)
        self.results[-1].block_until_ready()
