"""Loading the extension or doing without it, the import itself, config and info."""

import subprocess
import sys
import threading

import pytest
from fresh import WITHOUT, python

import jax_qgemm as jq
from jax_qgemm import native

NATIVE = bool(jq.cpu_info()["isa_available"])


def test_everything_works_without_the_extension():
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import jax_qgemm as jq
    import jax_qgemm.primitives.gemm
mine = [w for w in caught if "jax_qgemm" in str(w.message)]
assert len(mine) == 1, caught
assert mine[0].category is UserWarning and "pip install" in str(mine[0].message)
assert mine[0].filename == "<string>", mine[0].filename
import numpy as np
x, k = np.ones((3, 8), np.float32), np.eye(8, 5, dtype=np.float32)
w = jq.pack_weight(k)
assert np.allclose(jq.dot(x, w), x @ k, atol=1e-2)
xq = jq.quantize(x, "uint8", scale=0.01)
assert np.allclose(jq.quantized_linear(xq, w, out_scale=0.01).dequantize(), x @ k, atol=1e-2)
assert np.array_equal(jq.unpack(w).dequantize(), w.dequantize())
info = jq.cpu_info()
assert info["isa_available"] == [] and info["isa_selected"] == "xla" and "_native" in info["why"]
assert jq.kernel_cache_info() == (0, 0, 0.0, 0, 0, 0)
with jq.config.limit_isa("avx2"):
    assert jq.config.max_isa == "avx2"
try:
    jq.config.max_isa = "sse9"
except ValueError as e:
    assert "portable, avx2" in str(e)
else:
    raise AssertionError
from jax_qgemm import info
assert "xla" in info.report()
"""
    code += f"assert jq.config.isa_names == {jq.config.isa_names!r}"
    done = python(WITHOUT + code)
    assert done.returncode == 0, done.stderr


def test_import_is_light_and_initialises_no_backend():
    code = """
import sys, time, warnings
warnings.simplefilter("ignore", UserWarning)
import jax
start = time.perf_counter()
import jax_qgemm
seconds = time.perf_counter() - start
heavy = {"flax", "orbax", "matplotlib", "rich", "absl.flags"} & set(sys.modules)
assert not heavy, heavy
jax.config.update("jax_num_cpu_devices", 3)  # refused once a backend exists
assert len(jax.devices()) == 3
assert seconds < 2, seconds
"""
    done = python(code, "-W", "error::DeprecationWarning")
    assert done.returncode == 0, done.stderr


def test_too_old_jax_is_refused():
    code = "import jax; jax.__version__ = '0.7.2'; jax.__version_info__ = (0, 7, 2)\n"
    done = python(code + "import jax_qgemm")
    assert "needs jax >= 0.8.1, found jax 0.7.2" in done.stderr


@pytest.mark.parametrize(("version", "warnings"), [((0, 12, 9), 0), ((0, 13, 0), 1), ((1, 0), 1)])
def test_untested_jax_gives_one_warning(version, warnings):
    """Of its version alone: what runs underneath is the one that is installed."""
    code = f"""
import warnings
import jax
import jax.numpy as jnp
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    before, jax.__version_info__ = jax.__version_info__, {version}
    import jax_qgemm
    jax.__version_info__ = before
    y = jax.jit(jax_qgemm.dot)(jnp.ones((2, 64)), jax_qgemm.pack_weight(jnp.ones((64, 3))))
ours = [str(w.message) for w in caught if "jax_qgemm is tested with jax up to" in str(w.message)]
assert len(ours) == {warnings}, ours
assert y.tolist() == [[64.0] * 3] * 2, y
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_info_command():
    done = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", "-m", "jax_qgemm.info"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "()" not in done.stdout
    for word in ("jaxlib", "isa selected", "threads", "ffi targets", jq.config.max_isa):
        assert word in done.stdout


def test_info_gives_a_reason_only_where_there_is_one(monkeypatch):
    from jax_qgemm import info

    for why, shown in (("", "avx2\n"), ("no AVX-512", "avx2 (no AVX-512)\n")):
        cpu = jq.cpu_info() | {"isa_selected": "avx2", "why": why}
        monkeypatch.setattr(native, "cpu_info", lambda cpu=cpu: cpu)
        assert f"isa selected     {shown}" in info.report()


def test_cpu_info_has_its_keys():
    info = jq.cpu_info()
    keys = {"vendor", "brand", "features", "isa_available", "isa_selected", "jit", "why"}
    assert keys | {"l1d", "l2", "l3"} <= set(info)
    if NATIVE:
        assert info["isa_available"][0] == "portable"
        assert set(info["isa_available"]) <= set(jq.config.isa_names)
        assert {"jax_qgemm.gemm.v1", "jax_qgemm.pack.v1", "jax_qgemm.quantize.v1"} <= set(
            native.targets
        )


def test_config_limits_and_restores():
    before = jq.config.max_isa
    with jq.config.limit_isa("portable") as config:
        assert config.max_isa == "portable"
        with jq.config.limit_isa(before):  # a limit lowers, never raises
            assert jq.config.max_isa == "portable"
        jq.config.max_isa = before
        assert jq.config.max_isa == "portable"
        if NATIVE:
            assert jq.cpu_info()["isa_selected"] == "portable"
    assert jq.config.max_isa == before
    with pytest.raises(RuntimeError, match="inside"), jq.config.limit_isa("portable"):
        raise RuntimeError("inside")
    assert jq.config.max_isa == before
    assert before in repr(jq.config)


def test_limits_of_two_threads_that_overlap():
    """A enters portable, B enters avx2, A leaves, B leaves: nothing stays behind."""
    before = jq.config.max_isa
    enter_b, leave_a = threading.Event(), threading.Event()
    seen = []

    def b():
        enter_b.wait(60)
        with jq.config.limit_isa("avx2"):
            seen.append(jq.config.max_isa)
            leave_a.set()
            a_left.wait(60)
            seen.append(jq.config.max_isa)

    a_left = threading.Event()
    thread = threading.Thread(target=b)
    thread.start()
    with jq.config.limit_isa("portable"):
        enter_b.set()
        assert leave_a.wait(60)
    seen.append(jq.config.max_isa)
    a_left.set()
    thread.join()
    assert seen[0] == "portable" and set(seen[1:]) == {min(before, "avx2", key=isa_rank)}
    assert jq.config.max_isa == before


def test_every_isa_can_be_forced_by_name():
    """What a ceiling selects is the best that this CPU has under it, so also on a lesser CPU."""
    before = jq.config.max_isa
    available = jq.cpu_info()["isa_available"]
    for name in jq.config.isa_names:
        with jq.config.limit_isa(name):
            assert jq.config.max_isa == name
            if NATIVE:
                below = [isa for isa in available if isa_rank(isa) <= isa_rank(name)]
                assert jq.cpu_info()["isa_selected"] == below[-1]
    jq.config.max_isa = "avx512"
    try:
        assert jq.config.max_isa == "avx512_vnni"
        with jq.config.limit_isa("avx512"):
            assert jq.config.max_isa == "avx512_vnni"
    finally:
        jq.config.max_isa = before


def isa_rank(name):
    return jq.config.isa_names.index(name)


def test_config_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"config.max_isa: expected one of portable, .*'sse9'"):
        jq.config.max_isa = "sse9"
    with pytest.raises(ValueError, match=r"config.limit_isa: .*None"), jq.config.limit_isa(None):
        pass


def test_environment_variable():
    for name, isa in (
        ("portable", "portable"),
        ("avx512bw", "avx512bw"),
        ("avx512", "avx512_vnni"),
    ):
        code = f"import jax_qgemm as jq; assert jq.config.max_isa == {isa!r}"
        done = python(code, "-W", "ignore::UserWarning", JAX_QGEMM_MAX_ISA=name)
        assert done.returncode == 0, done.stderr
    done = python("import jax_qgemm", "-W", "ignore::UserWarning", JAX_QGEMM_MAX_ISA="fast")
    choices = ", ".join([*jq.config.isa_names, "avx512"])
    assert f"JAX_QGEMM_MAX_ISA: expected one of {choices}, got 'fast'" in done.stderr


@pytest.mark.skipif(not NATIVE, reason="the extension is not built: no custom calls to look for")
def test_native_lowering_is_used_on_cpu_and_follows_config():
    import jax
    import numpy as np

    w = jq.pack_weight(np.eye(8, dtype=np.float32))
    x = np.ones((2, 8), np.float32)
    compiled = jax.jit(jq.dot).lower(x, w)
    assert "jax_qgemm.gemm.v1" in compiled.as_text()
    run = compiled.compile()
    for isa in jq.cpu_info()["isa_available"]:
        with jq.config.limit_isa(isa):
            assert np.allclose(run(x, w), 1, atol=1e-2)
