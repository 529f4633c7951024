"""Sharded programs, each number of virtual devices in a process of its own: see sharding_checks."""

import pytest
import sharding_checks
from fresh import checks

DEVICES = 2, 4, 8


@pytest.mark.parametrize("name", sharding_checks.CHECKS)
@pytest.mark.parametrize("devices", DEVICES)
def test_sharded(devices, name):
    wrong = checks(sharding_checks.__file__, DEVICES)[devices][name]
    assert wrong is None, wrong
