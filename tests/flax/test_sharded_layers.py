"""Layers with sharding metadata, each number of virtual devices in a process of its own."""

import pytest

pytest.importorskip("flax", reason="the layers need flax")

import layer_sharding_checks
from fresh import checks

DEVICES = 2, 8


@pytest.mark.parametrize("name", layer_sharding_checks.CHECKS)
@pytest.mark.parametrize("devices", DEVICES)
def test_sharded_layers(devices, name):
    wrong = checks(layer_sharding_checks.__file__, DEVICES)[devices][name]
    assert wrong is None, wrong
