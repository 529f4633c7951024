"""Random programs of many threads at once, for a time: `python soak.py SECONDS [SEED]`.

Several virtual devices; products, gradients, stacks, experts, decoding, sharded programs, eager
calls; donated buffers, results that nobody waits for, caches cleared now and then. Each result is
compared, bit for bit, with what the same program gave alone. A watchdog ends a run that hangs, with
the stacks of all threads. The last line says how many there were and how many were wrong.
"""

import dataclasses
import faulthandler
import random
import sys
import threading
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_qgemm as jq

DEVICES, THREADS, HANG = 4, 8, 120
FORMATS = ["int8", "uint8", "int8:32", "int8:weight_only", "fp16", "bf16", "int4", "int8_blocks"]
ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]


@dataclasses.dataclass
class Program:
    """A function with its arguments, as NumPy arrays, and the result that it has to have."""

    name: str
    function: object
    arguments: tuple
    sharded: bool = False
    donates: bool = False

    def __post_init__(self):
        self.arguments = jax.tree.map(np.asarray, self.arguments)
        self.jitted = jax.jit(self.function, donate_argnums=(0,) if self.donates else ())
        self.want = jax.tree.map(np.asarray, self.jitted(*jax.device_put(self.arguments)))

    def run(self, choose: random.Random):
        if self.sharded and choose.random() < 0.5:
            return self.jitted(*self._split())
        device = choose.choice(jax.devices())
        arguments = jax.device_put(self.arguments, device)
        eager = not self.donates and choose.random() < 0.1
        return (self.function if eager else self.jitted)(*arguments)

    def _split(self):
        """Rows of x, and columns of the weight, over all devices."""
        mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

        def put(array, *spec):
            return jax.device_put(array, NamedSharding(mesh, P(*spec)))

        x, w = self.arguments
        whole = jax.tree.map(put, w)
        return put(x, "data"), dataclasses.replace(whole, data=put(w.data, "model"))

    def is_right(self, result) -> bool:
        pairs = zip(jax.tree.leaves(result), jax.tree.leaves(self.want), strict=True)
        return all(np.array_equal(np.asarray(a), b) for a, b in pairs)


def some_program(rng: np.random.Generator) -> Program:
    form, activation = rng.choice(FORMATS), rng.choice(ACTIVATIONS)
    m, k = int(rng.choice([1, 3, 16, 70, 200])), int(rng.choice([32, 96, 700]))
    n = int(rng.choice([16, 65, 256, 512]))

    def array(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def weight(k, n):
        return jq.pack_weight(array(k, n), form)

    x, w = array(m, k), weight(k, n)
    kind = rng.choice(["dot", "layers", "gradient", "stack", "ragged", "decode", "chain", "shard"])
    if kind == "dot":
        bias, residual = array(n), array(m, n)
        more = {"bias": bias, "residual": residual, "activation": activation}
        return Program(kind, lambda x, w, more=more: jq.dot(x, w, **more), (x, w))
    if kind == "layers":
        back = weight(n, k)

        def layers(x, w, back):
            def step(x, _):
                return jq.dot(jq.dot(x, w, activation="relu"), back) * 0.01, None

            return jax.lax.scan(step, x, length=4)[0]

        return Program(kind, layers, (x, w, back), donates=True)
    if kind == "gradient":
        return Program(kind, lambda x, w: jax.grad(lambda x: jq.dot(x, w).sum())(x), (x, w))
    if kind in ("stack", "ragged"):
        w = jax.vmap(lambda kernel: jq.pack_weight(kernel, form))(array(3, k, n))
        if kind == "stack":
            return Program(kind, jq.dot, (array(3, m, k), w))
        sizes = jnp.asarray(rng.integers(0, m + 1, 3), jnp.int32)
        return Program(kind, jq.ragged_dot, (x, w, sizes))
    if kind == "decode":
        cache, step = jq.KVCache.zeros(2, 64, 2, 16), array(2, 1, 2, 16)

        def decode(cache, step):
            def one(cache, position):
                cache = cache.update(step, step, position)
                return cache, jq.attention(step, cache, position)

            return jax.lax.scan(one, cache, jnp.arange(10))

        return Program(kind, decode, (cache, step), donates=True)
    if kind == "chain":
        w = jq.pack_weight(array(k, n), "int8")

        def chain(x, w):
            q = jq.quantize(x, "uint8", scale=0.03, zero_point=128)
            return jq.quantized_linear(q, w, activation="relu", out_scale=0.5).qvalue

        return Program(kind, chain, (x, w))
    w = jq.pack_weight(array(64, 512), form)
    return Program(kind, jq.dot, (array(16, 64), w), sharded=True)


def main() -> int:
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    jax.config.update("jax_num_cpu_devices", DEVICES)
    rng = np.random.default_rng(seed)
    programs = [some_program(rng) for _ in range(40)]
    counts, wrong, stop = [0] * THREADS, [], time.monotonic() + seconds

    def work(index):
        choose, pending = random.Random(1000 * seed + index), []
        try:
            while time.monotonic() < stop:
                program = choose.choice(programs)
                result = program.run(choose)
                counts[index] += 1
                if choose.random() < 0.2:
                    continue  # nobody waits for it
                pending.append((program, result))
                if len(pending) < choose.randrange(1, 5):
                    continue
                wrong.extend(p.name for p, r in pending if not p.is_right(r))
                pending.clear()
        except Exception:
            wrong.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    before, cleared = -1, time.monotonic()
    while any(thread.is_alive() for thread in threads):
        if sum(counts) != before:
            before = sum(counts)
            faulthandler.dump_traceback_later(HANG, exit=True)
        time.sleep(0.2)
        if time.monotonic() - cleared > 10:
            jax.clear_caches()
            cleared = time.monotonic()
    faulthandler.cancel_dump_traceback_later()
    for text in wrong[:5]:
        print(text)
    print(f"{sum(counts)} calls of {len(programs)} programs, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
