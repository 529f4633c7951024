"""Fresh interpreters, for what is decided at import."""

import collections
import concurrent.futures
import functools
import json
import os
import subprocess
import sys

WITHOUT = "import sys; sys.modules['jax_qgemm._native'] = None\n"
"""Code that hides the extension from what follows."""


# Where it is not checked what XLA's own code is like: the quicker it is compiled, the better.
QUICKLY_COMPILED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

PARTITIONING = {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.path.dirname(__file__),
    "XLA_FLAGS": QUICKLY_COMPILED,
}


def python(code, *flags, **env):
    """Runs `code` with these flags of the interpreter and environment variables."""
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


@functools.cache
def checks(script: str, counts: tuple[int, ...]) -> dict:
    """What went wrong in a script of checks, by number of virtual devices and by check.

    Each number has a process of its own, all at once.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(counts, pool.map(functools.partial(_checks, script), counts), strict=True))


def _checks(script, devices):
    try:
        run = subprocess.run(
            [sys.executable, script, str(devices)],
            capture_output=True,
            text=True,
            timeout=1500,  # they share the cores
            env=os.environ | PARTITIONING,
        )
        failed = run.stderr if run.returncode != 0 else None
    except subprocess.TimeoutExpired as error:
        failed = str(error)
    if failed is not None:
        return collections.defaultdict(lambda: failed)
    return dict(json.loads(line) for line in run.stdout.splitlines())
