"""Accuracy and time of several jitted encoders of one model; the first one is the reference."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_qgemm

# (sentences, tokens each, rounds): one short sentence, one long one, a full batch.
SHAPES = ((1, 16, 60), (1, 128, 30), (32, 128, 7))

Encode = Callable[[np.ndarray, np.ndarray], jax.Array]


def to_bfloat16(model: nnx.Module) -> nnx.Module:
    """A copy of `model` with bfloat16 parameters, and so with bfloat16 arithmetic."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of `a` with the same row of `b`, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def accuracy(encoders: Mapping[str, Encode], embed: Callable[[Encode], np.ndarray]) -> str:
    """A table of the cosine of every encoder's embeddings to those of the first."""
    vectors = {name: embed(encode) for name, encode in encoders.items()}
    reference, *others = vectors
    lines = [f"Cosine to {reference} over {len(vectors[reference])} sentences"]
    lines.append(_row("", "mean", "min"))
    for name in others:
        cosine = cosines(vectors[name], vectors[reference])
        lines.append(_row(name, f"{cosine.mean():.5f}", f"{cosine.min():.5f}"))
    return "\n".join(lines)


def speed(encoders: Mapping[str, Encode]) -> str:
    """A table of median times, and how much faster the last encoder is than each of the others.

    The encoders alternate, so that a busy machine slows all alike.
    """
    info = jax_qgemm.cpu_info()
    lines = [f"Median time per batch in ms ({info['brand']}, {info['isa_selected']})"]
    gains = [f"than {name}" for name in list(encoders)[:-1]]
    lines.append(_row("sentences × tokens", *encoders, *gains))
    for batch, length, rounds in SHAPES:
        times = alternate(encoders, batch, length, rounds)
        *baselines, own = (statistics.median(samples) for samples in times.values())
        lines.append(
            _row(
                f"{batch} × {length}",
                *(f"{1e3 * t:.2f}" for t in (*baselines, own)),
                *(f"{t / own:.2f}× faster" for t in baselines),
            )
        )
    return "\n".join(lines)


def alternate(
    encoders: Mapping[str, Encode], batch: int, length: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call: every round runs every encoder once, on random full-length tokens."""
    ids = jax.device_put(np.random.default_rng(0).integers(1000, 30000, (batch, length), np.int32))
    mask = jax.device_put(np.ones((batch, length), bool))
    for encode in encoders.values():
        encode(ids, mask).block_until_ready()  # compile
    times: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(rounds):
        for name, encode in encoders.items():
            start = time.perf_counter()
            encode(ids, mask).block_until_ready()
            times[name].append(time.perf_counter() - start)
    return times


def _row(label: str, *cells: str) -> str:
    return f"{label:<20}" + "".join(f"{cell:>16}" for cell in cells)
