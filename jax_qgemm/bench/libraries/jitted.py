"""Several layers as one jitted program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_qgemm.bench.contestants import WEIGHTS_AS


class Jitted:
    """A program of JAX, called again and again on the same operands.

    A call writes its results over those of the call before (donated), so that the time holds
    no page faults of fresh memory.

    Attributes:
      weights_as: "constants" of the program, as they are of ONNX Runtime's: what XLA does with a
        weight alone it then does when it compiles; or "arguments" of each call. Of the class.
    """

    weights_as = WEIGHTS_AS[0]

    def __init__(self, layers: Sequence[tuple[Callable[..., jax.Array], tuple[Any, ...]]]):
        """Compile `[call(*operands) for call, operands in layers]` and run it once.

        Args:
          layers: of each the function in JAX, and operands of its own, x the first.
        """
        calls = [call for call, _ in layers]
        operands = jax.tree.map(jnp.asarray, [operands for _, operands in layers])
        xs, weights = [x for x, *_ in operands], [w for _, *w in operands]

        def run(results, xs, weights):
            del results
            return [call(x, *w) for call, x, w in zip(calls, xs, weights, strict=True)]

        if self.weights_as == "constants":
            run, self._operands = functools.partial(run, weights=weights), (xs,)
        else:
            self._operands = xs, weights
        self._run = jax.jit(run, donate_argnums=0, keep_unused=True)
        shapes = jax.eval_shape(run, None, *self._operands)
        self.results: list[jax.Array] = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        self()

    def __call__(self) -> None:
        """One call, waited for: the results of a program become ready together."""
        self.results = self._run(self.results, *self._operands)
        self.results[-1].block_until_ready()
