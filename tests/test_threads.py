"""Threads: programs that run at once never deadlock, and results do not depend on their number."""

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

# A network of layers that are each worth splitting among threads, and its input.
NETWORK = textwrap.dedent(
    """
    import jax, jax.numpy as jnp, numpy as np
    import jax_qgemm as jq

    rng = np.random.default_rng(0)
    def weight(k, n):
        return jq.pack_weight(jnp.asarray(rng.standard_normal((k, n), np.float32)), "int8")
    weights = [weight(k, n) for k, n in [(700, 1500), (1500, 1100), (1100, 64), (64, 2048)]]
    inputs = [jnp.asarray(rng.standard_normal((m, 700), np.float32)) for m in (1, 5, 33, 200)]

    @jax.jit
    def network(x, weights):
        for w in weights:
            x = jq.dot(x, w, activation="relu") / 100
        return x
    """
)


def run(code: str, timeout: int = 120, **environment) -> str:
    """Output of a fresh interpreter; a hang fails the test."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity (Linux)")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_one_thread_and_several_agree_bitwise():
    digest = textwrap.dedent(
        """
        import hashlib
        bits = b"".join(np.asarray(network(x, weights)).tobytes() for x in inputs)
        print(hashlib.sha256(bits).hexdigest())
        """
    )
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    assert run(one + NETWORK + digest) == run(NETWORK + digest)


def test_programs_of_many_threads_at_once():
    """Several Python threads run many-layer programs at once: no deadlock, not a bit changed."""
    storm = textwrap.dedent(
        """
        import threading
        expected = [np.asarray(network(x, weights)) for x in inputs]
        wrong = []
        def work(seed):
            order = np.random.default_rng(seed).integers(0, len(inputs), 60)
            for i in order:
                if not np.array_equal(np.asarray(network(inputs[i], weights)), expected[i]):
                    wrong.append(i)
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print("wrong", len(wrong))
        """
    )
    assert run(NETWORK + storm) == "wrong 0"


def test_first_calls_from_many_threads():
    """Kernels and plans are made by whoever comes first, without a race: in a fresh process."""
    race = textwrap.dedent(
        """
        import concurrent.futures
        xs = [jnp.asarray(rng.standard_normal((m, 700), np.float32)) for m in range(1, 41)]
        compiled = [network.lower(x, weights).compile() for x in xs]
        def call(i):
            return np.asarray(compiled[i](xs[i], weights))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            together = list(pool.map(call, range(len(xs))))
        again = [call(i) for i in range(len(xs))]
        print("equal", all(map(np.array_equal, together, again)))
        """
    )
    assert run(NETWORK + race) == "equal True"


def test_random_programs_at_once():
    """`python soak.py 600` is the same for longer."""
    script = Path(__file__).with_name("soak.py")
    result = subprocess.run(
        [sys.executable, script, "15", "7"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith(", 0 wrong\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_started_after_import():
    """A child that was forked before anything ran, and one that was spawned, compute as we do."""
    children = textwrap.dedent(
        """
        import multiprocessing, sys
        import numpy as np
        import jax_qgemm as jq
        def child(queue):
            import jax.numpy as jnp
            w = jq.pack_weight(np.eye(64, 48, dtype=np.float32), "int8")
            queue.put(np.asarray(jq.dot(jnp.ones((3, 64)), w)).tolist())
        if __name__ == "__main__":
            found = []
            for method in ("fork", "spawn"):
                context = multiprocessing.get_context(method)
                queue = context.Queue()
                process = context.Process(target=child, args=(queue,))
                process.start()
                found.append(queue.get(timeout=60))
                process.join(60)
                assert process.exitcode == 0, process.exitcode
            import jax.numpy as jnp
            w = jq.pack_weight(np.eye(64, 48, dtype=np.float32), "int8")
            print(found[0] == found[1] == np.asarray(jq.dot(jnp.ones((3, 64)), w)).tolist())
        """
    )
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "children.py")
        script.write_text(children)
        result = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, timeout=120
        )
    assert result.stdout == "True\n", result.stdout + result.stderr


@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)", "raise KeyboardInterrupt"])
def test_the_interpreter_ends_with_work_in_flight(ending):
    code = textwrap.dedent(
        """
        import sys
        results = [network(x, weights) for x in inputs for _ in range(20)]
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", NETWORK + code + ending], capture_output=True, timeout=120
    )
    # By a signal only where Python itself ends by one.
    assert result.returncode in {"pass": (0,), "sys.exit(3)": (3,)}.get(ending, (1, 130, -2))
