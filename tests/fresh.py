"""Fresh interpreters, for what is decided at import."""

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
