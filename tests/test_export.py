"""Exported programs, compiled ones, and programs in the compilation cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jax_qgemm as jq

NATIVE = bool(jq.cpu_info()["isa_available"])
GOLDEN = Path(__file__).parent / "golden"
FORMATS = ["int8", "uint8", "int8:32", "int8:weight_only", "fp16", "bf16", "int4", "int8_blocks"]
K, N = 64, 48


def weight(rng, form):
    return jq.pack_weight(rng.standard_normal((K, N)).astype(np.float32), form)


def rows(rng, *shape):
    return jnp.asarray(rng.standard_normal((*shape, K)), jnp.float32)


def exported(f, *arguments, **more):
    return export.export(jax.jit(f), disabled_checks=jq.export_checks(), **more)(*arguments)


def layer(x, w, bias):
    return jq.dot(x, w, bias=bias, activation="gelu")


def eight_bit(x, w, bias):
    xq = jq.quantize(x, "uint8", scale=0.03, zero_point=128)
    q = jq.quantized_linear(xq, w, bias=bias, activation="relu", out_scale=0.1)
    return q.qvalue, jq.quantize(x, "int8", channelwise_axes=[0]).qvalue


@pytest.mark.parametrize("form", FORMATS)
def test_round_trip_in_a_fresh_process(form, rng, tmp_path):
    w, x, bias = weight(rng, form), rows(rng, 5), jnp.ones(N)
    (tmp_path / "program").write_bytes(exported(layer, x, w, bias).serialize())
    np.savez(tmp_path / "w.npz", **w.to_arrays())
    np.save(tmp_path / "x.npy", x)
    script = """
import sys, numpy as np, jax_qgemm
from jax import export
folder = sys.argv[1]
program = export.deserialize(bytearray(open(folder + "/program", "rb").read()))
w = jax_qgemm.PackedWeight.from_arrays(np.load(folder + "/w.npz"))
y = program.call(np.load(folder + "/x.npy"), w, np.ones(48, np.float32))
np.save(folder + "/y.npy", y)
"""
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True, timeout=300)
    assert np.array_equal(np.load(tmp_path / "y.npy"), layer(x, w, bias))


def test_weights_in_parts_of_k(rng):
    w = jq.pack_row_parallel(rng.standard_normal((K, N)).astype(np.float32), parts=2)
    x = rows(rng, 5)
    again = export.deserialize(exported(jq.dot, x, w).serialize())
    assert np.array_equal(again.call(x, w), jq.dot(x, w))


def test_symbolic_batch(rng):
    w, bias = weight(rng, "int8"), jnp.ones(N)
    b, t = export.symbolic_shape("b, t")
    for shape, sizes in (((b, K), [(1,), (7,), (300,)]), ((b, t, K), [(2, 3), (1, 1), (40, 5)])):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        for f in (layer, eight_bit):
            program = export.deserialize(exported(f, x, w, bias).serialize())
            if f is eight_bit and len(shape) == 3:
                continue
            for size in sizes:
                x_now = rows(rng, *size)
                for got, want in zip(
                    jax.tree.leaves(program.call(x_now, w, bias)),
                    jax.tree.leaves(f(x_now, w, bias)),
                    strict=True,
                ):
                    assert np.array_equal(got, want), size


@pytest.mark.parametrize("form", FORMATS)
def test_other_platforms(form, rng):
    """One program for all: ours on CPUs, plain JAX elsewhere."""
    w, x, bias = weight(rng, form), rows(rng, 5), jnp.ones(N)
    program = exported(layer, x, w, bias, platforms=("cpu", "cuda", "tpu"))
    program = export.deserialize(program.serialize())
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert np.array_equal(program.call(x, w, bias), layer(x, w, bias))
    alone = exported(layer, x, w, bias, platforms=("tpu",)).mlir_module()
    assert "jax_qgemm.gemm.v1" not in alone and 'composite "jax_qgemm.dot"' in alone


def test_composites(rng):
    """Operations keep their names, innermost: of what is mapped and differentiated, too."""
    w, x, bias = weight(rng, "int8"), rows(rng, 5), jnp.ones(N)

    def names(f, *arguments):
        text = exported(f, *arguments).mlir_module()
        return [line.split('"')[1] for line in text.splitlines() if "stablehlo.composite" in line]

    assert names(layer, x, w, bias) == ["jax_qgemm.dot"]
    expected = ["jax_qgemm.quantize", "jax_qgemm.quantized_linear", "jax_qgemm.quantize"]
    assert sorted(names(eight_bit, x, w, bias)) == sorted(expected)
    stack = jnp.stack([x, x])
    assert names(jax.vmap(layer, (0, None, None)), stack, w, bias) == ["jax_qgemm.dot"]
    gradient = jax.grad(lambda x, w: jq.dot(x, w).sum())
    assert names(gradient, x, w).count("jax_qgemm.dot") >= 1
    # Programs that are not exported have calls alone.
    text = jax.jit(layer).lower(x, w, bias).as_text()
    assert "composite" not in text


def test_gradients_of_exported_programs(rng):
    w, x = weight(rng, "int8"), rows(rng, 5)
    program = exported(lambda x: jq.dot(x, w, activation="silu").sum(), x)
    program = export.deserialize(program.serialize(vjp_order=1))
    want = jax.grad(lambda x: jq.dot(x, w, activation="silu").sum())(x)
    assert np.array_equal(jax.grad(program.call)(x), want)


def test_decoding_is_exported(rng):
    cache = jq.KVCache.zeros(1, 64, 2, 16)
    step = jnp.asarray(rng.standard_normal((1, 1, 2, 16)), jnp.float32)

    def decode(cache, step, position):
        cache = cache.update(step, step, position)
        return jq.attention(step, cache, position), cache

    program = export.deserialize(exported(decode, cache, step, jnp.int32(3)).serialize())
    for got, want in zip(
        jax.tree.leaves(program.call(cache, step, jnp.int32(3))),
        jax.tree.leaves(decode(cache, step, jnp.int32(3))),
        strict=True,
    ):
        assert np.array_equal(got, want)


def test_without_the_checks_the_calls_are_named(rng):
    if not NATIVE:
        pytest.skip("no extension: programs hold plain JAX alone")
    with pytest.raises(ValueError, match=r"jax_qgemm\.gemm\.v1"):
        export.export(jax.jit(jq.dot))(rows(rng, 5), weight(rng, "int8"))


@pytest.mark.parametrize("written_by", ["jax_0_8_1", "jax_0_10_2"])
@pytest.mark.parametrize("form", FORMATS)
def test_golden_programs(form, written_by):
    """Written once (golden/write.py): they run as long as the versions in their names do."""
    if not NATIVE:
        pytest.skip("no extension: the program's calls are ours")
    if written_by == "jax_0_10_2" and jax.__version_info__ < (0, 10):
        pytest.skip("JAX does not read what a newer release of it wrote")
    name = form.replace(":", "_")
    data = (GOLDEN / written_by / f"{name}.jaxexport").read_bytes()
    try:
        program = export.deserialize(bytearray(data))
    except ValueError as error:
        if written_by == "jax_0_10_2" or jax.__version_info__ < (0, 11):
            raise
        pytest.skip(f"JAX reads what it wrote in the last six months: {error}")
    with np.load(GOLDEN / "arrays.npz") as arrays:
        prefix = f"{name}/"
        w = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix + "w_")}
        w = jq.PackedWeight.from_arrays({n.removeprefix("w_"): a for n, a in w.items()})
        got = program.call(arrays["x"], w, arrays["bias"])
        want = arrays[prefix + "y"], arrays[prefix + "back"]
    for a, b in zip(got, want, strict=True):
        assert np.array_equal(a, b)


def test_compiled_ahead_of_time(rng):
    w, x, bias = weight(rng, "int4"), rows(rng, 5), jnp.ones(N)
    compiled = jax.jit(layer).lower(x, w, bias).compile()
    assert np.array_equal(compiled(x, w, bias), layer(x, w, bias))


def test_persistent_compilation_cache(tmp_path):
    """A second process compiles nothing; nor does one held to another instruction set: the kernels
    are chosen when the program runs."""
    script = """
import json, logging, jax, jax.numpy as jnp, numpy as np, jax_qgemm as jq
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
w = jq.pack_weight(np.eye(64, 48, dtype=np.float32), "int8")
y = jax.jit(lambda x, w: jq.dot(x, w, activation="gelu"))(jnp.ones((3, 64)), w)
print(json.dumps([sum("cache_hits" in h for h in hits), sum("cache_misses" in h for h in hits),
                  np.asarray(y).tolist(), jq.cpu_info()["isa_selected"]]))
"""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def run(**more):
        result = subprocess.run(
            [sys.executable, "-c", script],
            env=environment | more,
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return json.loads(result.stdout)

    _, misses, first, _ = run()
    assert misses > 0
    hits, misses, second, _ = run()
    assert (hits > 0, misses, second) == (True, 0, first)
    hits, misses, other, isa = run(JAX_QGEMM_MAX_ISA="portable")
    assert (hits > 0, misses, other) == (True, 0, first)
    assert isa in ("portable", "xla")
