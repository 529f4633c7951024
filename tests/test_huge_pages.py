"""Weights that come from memory at each call are moved into huge pages, and stay what they are."""

import ctypes
import dataclasses
import mmap
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qgemm as jq

ENABLED = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")

if sys.platform != "linux" or not jq.cpu_info()["isa_available"]:
    pytest.skip("needs Linux and the extension", allow_module_level=True)
if not ENABLED.exists() or "[madvise]" not in ENABLED.read_text():
    pytest.skip("needs a system that gives huge pages when asked", allow_module_level=True)

COLLAPSE = 25
TRIES = 4  # the system may be short of huge pages for a while


def mapping(size):
    """Memory in small pages: its address and an array of bytes."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, np.int8)
    return array.ctypes.data, array


def huge_bytes(address):
    """Of the mapping that holds the address, in huge pages."""
    inside = False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    raise LookupError(hex(address))


def system_collapses():
    """Whether it does so when asked directly: Linux before 6.1 does not."""
    address, array = mapping(8 << 20)
    array[:] = 1
    libc = ctypes.CDLL(None, use_errno=True)
    inner = -(-address // (2 << 20)) * (2 << 20)
    return libc.madvise(ctypes.c_void_p(inner), ctypes.c_size_t(4 << 20), COLLAPSE) == 0


@pytest.fixture(scope="module")
def packed():
    """A weight of 5 MB."""
    kernel = np.random.default_rng(0).standard_normal((640, 8192), np.float32)
    return jq.pack_weight(kernel, "int8")


def moved(packed):
    """The same weight in small pages, the bytes of it that a call moves, and the result."""
    address, array = mapping(packed.data.nbytes)
    array[:] = packed.data
    w = dataclasses.replace(packed, data=jax.dlpack.from_dlpack(array))
    assert w.data.unsafe_buffer_pointer() == address
    before = huge_bytes(address)  # of neighbours in the same mapping
    result = jq.dot(jnp.ones((2, w.shape[0])), w)
    assert np.array_equal(array, packed.data)
    return huge_bytes(address) - before, result


@pytest.mark.skipif(not system_collapses(), reason="the system moves nothing into huge pages")
def test_large_weights_are_moved(packed):
    found = [moved(packed) for _ in range(TRIES)]
    assert max(bytes_moved for bytes_moved, _ in found) >= 2 << 20
    want = jq.dot(jnp.ones((2, packed.shape[0])), packed)
    assert all(np.array_equal(result, want) for _, result in found)


def test_small_weights_stay():
    kernel = np.random.default_rng(0).standard_normal((640, 4096), np.float32)
    bytes_moved, _ = moved(jq.pack_weight(kernel, "int8"))
    assert bytes_moved == 0
