"""Fresh interpreters, for what is decided at import."""

import functools
import json
import os
import subprocess
import sys

WITHOUT = "import sys; sys.modules['jax_qgemm._native'] = None\n"
"""Code that hides the extension from what follows."""


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
def checks(script: str, devices: int) -> dict:
    """What went wrong, by check, in a script of checks on so many virtual devices."""
    run = subprocess.run(
        [sys.executable, script, str(devices)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.path.dirname(__file__)},
    )
    assert run.returncode == 0, run.stderr
    return dict(json.loads(line) for line in run.stdout.splitlines())
