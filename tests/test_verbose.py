"""JAX_QGEMM_VERBOSE and config.verbose: what the lines say, that they stay whole, and silence."""

import re

import pytest
from fresh import WITHOUT, python

import jax_qgemm as jq

NATIVE = bool(jq.cpu_info()["isa_available"])
native_only = pytest.mark.skipif(not NATIVE, reason="the extension is not built: no native calls")

# Six native calls.
CALLS = """
import jax, jax_qgemm as jq, numpy as np
rng = np.random.default_rng(0)
w = jq.pack_weight(rng.standard_normal((80, 200)).astype(np.float32))
x = rng.standard_normal((5, 80)).astype(np.float32)
jq.dot(x, w, activation="relu")
q = jq.quantize(x, "uint8", scale=0.05, zero_point=7)
jq.quantize(x, "int8", channelwise_axes=(0,))
jq.quantize(x, "uint8", channelwise_axes=(0,))
jq.quantized_linear(q, w, bias=np.ones(200, np.float32), out_scale=0.1)
"""

NUMBER = r"\d+\.\d"
WORD = r"[a-z][a-z0-9_]*"
EXEC = re.compile(
    r"jax_qgemm,exec,(?P<op>gemm|quantize|pack|attention|update_kv_cache),"
    rf"(?P<isa>{WORD}),(?P<kernel>{WORD}(\+{WORD})?),(?P<types>{WORD}(:{WORD}(\^T)?)+),"
    rf"(?P<shape>(\d+[*|])?\d+(x\d+)+),(?P<plan>{WORD}:\w+( {WORD}:\w+)*),"
    rf"(?P<threads>\d+),(?P<microseconds>{NUMBER})"
)
GENERATE = re.compile(rf"jax_qgemm,generate,jax_qgemm::{WORD}::{WORD},\d+,{NUMBER}")


def lines_of(done):
    """The lines by kind: info, generate, exec. Every line of ours has to be one of them, whole."""
    assert done.returncode == 0, done.stderr
    kinds = {"info": [], "generate": [], "exec": []}
    for line in done.stderr.splitlines():
        if "jax_qgemm" not in line:
            continue  # JAX's
        kind = line.split(",")[1]
        if kind == "exec":
            match = EXEC.fullmatch(line)
            assert match, line
            kinds[kind].append(match.groupdict())
        else:
            assert kind == "info" or GENERATE.fullmatch(line), line
            kinds[kind].append(line)
    return kinds


@native_only
def test_a_line_per_call():
    kinds = lines_of(python(CALLS, JAX_QGEMM_VERBOSE="1"))
    cpu = jq.cpu_info()
    isa = cpu["isa_selected"]
    first, fields = kinds["info"]
    assert f",version:{jq.__version__},cpu:" in first and f",isa:{isa},threads:" in first
    assert fields.split(",")[2:] == ["fields", *EXEC.groupindex]

    said = [(e["op"], e["isa"], e["types"], e["shape"]) for e in kinds["exec"]]
    assert said == [
        ("pack", "portable", "s8:s8", "80x200"),
        ("gemm", isa, "f32:s8:f32", "5x200x80"),
        ("quantize", isa, "f32:u8", "5x80"),
        ("quantize", isa, "f32:s8", "5x80"),
        ("quantize", isa, "f32:u8", "5x80"),
        ("gemm", isa, "u8:s8:u8", "5x200x80"),
    ]
    kernels = [e["kernel"] for e in kinds["exec"]]
    assert re.fullmatch(r"tile_5x\d+_f32_relu_xscale_row_xzero_row", kernels[1])
    assert kernels[2] == "row_to_byte_f32"
    assert kernels[3] == kernels[4] == "row_range_f32+row_to_byte_f32"
    assert re.fullmatch(r"tile_5x\d+_u8_bias_xzero_tensor", kernels[5])
    plans = [dict(p.split(":") for p in e["plan"].split(" ")) for e in kinds["exec"]]
    assert plans[1]["tile"] == kernels[1].split("_")[1] and plans[1]["rows"] == "quantized"
    assert plans[1]["block"] == "5x200" and plans[1]["k_blocks"] == plans[1]["items"] == "1"
    schemes = [p["scheme"] for p in plans[2:5]]
    assert schemes == ["static", "per_row_symmetric", "per_row_asymmetric"]
    assert all(float(e["microseconds"]) >= 0 and e["threads"] == "1" for e in kinds["exec"])
    assert bool(kinds["generate"]) == (isa != "portable")


@native_only
def test_lines_of_other_calls():
    code = """
import jax, jax.numpy as jnp, jax_qgemm as jq, numpy as np
w = jax.vmap(lambda kernel: jq.pack_weight(kernel, "fp16"))(jnp.ones((2, 64, 128)))
x = jnp.ones((2, 5, 64))
jax.vmap(jq.dot)(x, w)
jq.ragged_dot(x[0], w, jnp.array([2, 3]))
jax.grad(lambda x: jax.vmap(jq.dot)(x, w).sum())(x)
cache = jq.KVCache.zeros(1, 64, 2, 16)
step = jnp.ones((1, 1, 2, 16))
cache = cache.update(step, step, 3)
jq.attention(step, cache, 3, mask=jnp.ones((1, 64), bool))
jq.dot(jnp.ones((1, 9000)), jq.pack_weight(np.ones((9000, 64), np.float32)))
"""
    lines = lines_of(python(code, JAX_QGEMM_VERBOSE="1"))["exec"]
    said = {(e["op"], e["types"], e["shape"]): e["plan"].split(" ") for e in lines}
    ragged = said["gemm", "f32:f16:f32", "2|5x128x64"]
    assert not any(part.startswith(("items", "block")) for part in ragged)
    assert "items:2" in said["gemm", "f32:f16:f32", "2*5x128x64"]
    assert ("gemm", "f32:f16^T:f32", "2*5x64x128") in said
    assert said["update_kv_cache", "f32:s8", "1x1x2x16"] == ["cache:2x64"]
    attended = said["attention", "f32:s8:f32", "1x1x2x16"]
    assert {"cache:2x64", "causal:1", "mask:1"} <= set(attended)
    parts = said["gemm", "f32:s8:f32", "1x64x9000"]  # of K, where there are threads for them
    counts = dict(part.split(":") for part in parts)
    assert counts.get("k_parts", "1") == counts["items"]


@native_only
@pytest.mark.skipif(not jq.cpu_info()["jit"], reason="this build generates no kernels")
def test_every_generated_kernel_has_one_line_with_its_size():
    # Families of an ISA whose tiles are alike.
    more = "".join(
        f"jq.dot(x, jq.pack_weight(np.ones((80, 200), np.float32), {qtype!r}))\n"
        for qtype in ("int4:32", "int4:32:weight_only", "int8:weight_only")
    )
    totals = "print(*jq.kernel_cache_info()[:2])"
    done = python(CALLS + more + totals, JAX_QGEMM_VERBOSE="1")
    lines = [line.split(",") for line in lines_of(done)["generate"]]
    names, sizes = [line[2] for line in lines], [int(line[3]) for line in lines]
    assert len(set(names)) == len(names) > 0
    assert done.stdout.split() == [str(len(names)), str(sum(sizes))]


@pytest.mark.parametrize("value", ["", "0"])
def test_silent_by_default(value):
    done = python(CALLS, "-W", "ignore::UserWarning", JAX_QGEMM_VERBOSE=value)
    assert done.returncode == 0 and "jax_qgemm" not in done.stdout + done.stderr


@native_only
def test_config_switches_compiled_functions_too():
    code = (
        """
import jax_qgemm as jq
assert jq.config.verbose is False
"""
        + CALLS.replace("import jax, ", "import jax, sys, ")
        + """
f = jax.jit(jq.dot)
f(x, w).block_until_ready()
jq.config.verbose = True
f(x, w).block_until_ready()
assert "verbose=True" in repr(jq.config)
jq.config.verbose = False
f(x, w).block_until_ready()
"""
    )
    kinds = lines_of(python(code))
    assert len(kinds["info"]) == 2 and len(kinds["exec"]) == 1 and not kinds["generate"]


@native_only
def test_lines_of_concurrent_calls_stay_whole():
    code = """
import threading
import jax, jax_qgemm as jq, numpy as np
w = jq.pack_weight(np.ones((64, 64), np.float32))
f = jax.jit(jq.dot)
xs = [np.ones((rows, 64), np.float32) for rows in range(1, 9)]
for x in xs: f(x, w)
def work(x):
    for _ in range(200): f(x, w).block_until_ready()
threads = [threading.Thread(target=work, args=(x,)) for x in xs]
[t.start() for t in threads]
[t.join() for t in threads]
"""
    gemms = [e for e in lines_of(python(code, JAX_QGEMM_VERBOSE="1"))["exec"] if e["op"] == "gemm"]
    for rows in range(1, 9):
        assert sum(e["shape"] == f"{rows}x64x64" for e in gemms) == 201


def test_what_is_not_a_bool_is_refused():
    before = jq.config.verbose
    for value in ("yes", 2, None):
        with pytest.raises(ValueError, match="config.verbose: expected True or False, got"):
            jq.config.verbose = value
    assert jq.config.verbose is before


@pytest.mark.parametrize("variable", ["JAX_QGEMM_VERBOSE", "JAX_QGEMM_PERF_MAP"])
def test_a_bad_value_is_said_once_and_ignored(variable):
    if not NATIVE and variable != "JAX_QGEMM_VERBOSE":
        pytest.skip("the extension is not built: nothing reads the variable")
    code = "import jax_qgemm as jq; assert not jq.config.verbose"
    done = python(code, "-W", "ignore:jax_qgemm:UserWarning", **{variable: "yes"})
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if variable in line]
    assert len(said) == 1
    assert said[0].startswith("<string>:1: UserWarning: ")
    assert said[0].endswith(f"{variable} is ignored: expected 0 or 1, got 'yes'")


def test_without_the_extension_it_has_no_effect():
    done = python(WITHOUT + CALLS, "-W", "ignore::UserWarning", JAX_QGEMM_VERBOSE="1")
    assert done.returncode == 0 and "jax_qgemm" not in done.stderr
