import concurrent.futures
import statistics
import time

import jax
import jax.numpy as jnp
import pytest

import jax_qgemm as jq
from jax_qgemm.bench import machine, timing
from jax_qgemm.bench.timing import Timing, alternate, native_shares, time_calls


def test_timing():
    found = Timing.of([float(s) for s in range(11, 0, -1)], layers=2)
    assert found == Timing(median=3.0, best=0.5, spread=8 / 6, calls=11)


def test_turns_go_forwards_and_backwards():
    order = []
    turns = {name: lambda name=name: order.append(name) or [1.0] for name in "abc"}
    samples = alternate(turns, 1.0, rounds=3, between=lambda: order.append("-"))
    assert "".join(order) == "a-b-c-c-b-a-a-b-c-"
    assert samples == {name: [1.0] * 3 for name in "abc"}


def test_turns_go_on_for_the_seconds_given():
    start = time.perf_counter()
    samples = alternate({"a": lambda: time.sleep(1e-3) or [1.0]}, 0.05)
    assert len(samples["a"]) >= 5 and time.perf_counter() - start >= 0.05
    assert len(alternate({"a": lambda: [1.0]}, 1e-9)["a"]) == 5


@pytest.mark.skipif(not jq.cpu_info()["isa_available"], reason="the extension is not built")
def test_shares_of_native_calls():
    few, many = jnp.ones((64, 512), jnp.float32), jnp.ones((1024, 4096), jnp.float32)

    def quantized(rows):
        return jax.block_until_ready(jq.quantize(rows, "int8", channelwise_axes=(0,)).qvalue)

    def program():
        time.sleep(1e-3)
        quantized(few)

    assert 0 < statistics.median(native_shares(program)) < 0.5
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # whose calls overlap
        shares = native_shares(lambda: list(pool.map(quantized, [many] * 8)) and None)
    assert 0.2 < statistics.median(shares) <= max(shares) <= 1
    quantized(few)  # no more than is asked for
    assert native_shares(lambda: time.sleep(1e-3)) == []


def test_without_the_extension_there_are_no_native_calls(monkeypatch):
    monkeypatch.setattr(timing.native, "extension", None)
    assert native_shares(lambda: None) == []


def test_the_first_calls_of_a_turn_do_not_count():
    calls = []

    def program():  # slow at first
        calls.append(time.sleep(12e-3 if not calls else 2e-3))

    seconds = time_calls(program)
    assert len(calls) > len(seconds) and sum(seconds) >= 20e-3 and len(seconds) > 1


def test_bandwidth_is_that_of_some_memory():
    assert 0.1 < machine.Bandwidth(1 << 24).measure() < 1e5
