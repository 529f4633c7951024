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
from fresh import python

import jax_qgemm as jq

ENABLED = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")

if sys.platform != "linux" or not jq.cpu_info()["isa_available"]:
    pytest.skip("needs Linux and the extension", allow_module_level=True)
if not ENABLED.exists() or "[madvise]" not in ENABLED.read_text():
    pytest.skip("needs a system that gives huge pages when asked", allow_module_level=True)

COLLAPSE = 25
CALLS = 4  # until weights are moved
ROWS = 640
HERE = pathlib.Path(__file__).parent


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


def moved_by_calls(columns, count):
    """Bytes of a weight that come to lie in huge pages by each of some calls; and the weight."""
    kernel = np.random.default_rng(0).standard_normal((ROWS, columns), np.float32)
    packed = jq.pack_weight(kernel, "int8")
    address, array = mapping(packed.data.nbytes)
    array[:] = packed.data
    w = dataclasses.replace(packed, data=jax.dlpack.from_dlpack(array))
    assert w.data.unsafe_buffer_pointer() == address
    x = jnp.ones((2, ROWS))
    want = jq.dot(x, packed)
    sizes = [huge_bytes(address)]
    for _ in range(count):
        assert np.array_equal(jq.dot(x, w), want)
        sizes.append(huge_bytes(address))
    assert np.array_equal(array, packed.data)
    return np.diff(sizes).tolist(), w


@pytest.mark.skipif(not system_collapses(), reason="the system moves nothing into huge pages")
def test_large_weights_are_moved():
    # The system may be short of huge pages for a while; all are kept, for addresses to differ.
    tries = [moved_by_calls(8192, CALLS) for _ in range(3)]  # 5 MB each
    assert not any(moved for (*before, _), _ in tries for moved in before)
    assert max(at_last for (*_, at_last), _ in tries) >= 2 << 20


def test_small_weights_stay():
    moved, _ = moved_by_calls(4096, 2 * CALLS)
    assert not any(moved)


def test_none_are_moved_where_that_is_off():
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(HERE)!r})
        from test_huge_pages import CALLS, moved_by_calls
        moved, _ = moved_by_calls(8192, 2 * CALLS)
        print(any(moved))
    """
    done = python(code, JAX_QGEMM_HUGE_PAGES="0")
    assert done.stdout == "False\n", done.stderr
