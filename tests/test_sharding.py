"""Sharded programs, each number of virtual devices in a process of its own: see sharding_checks."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharding_checks


@functools.cache
def results(devices: int) -> dict:
    """What went wrong, by check."""
    script = Path(sharding_checks.__file__)
    run = subprocess.run(
        [sys.executable, script, str(devices)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert run.returncode == 0, run.stderr
    return dict(json.loads(line) for line in run.stdout.splitlines())


@pytest.mark.parametrize("name", sharding_checks.CHECKS)
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_sharded(devices, name):
    wrong = results(devices)[name]
    assert wrong is None, wrong
