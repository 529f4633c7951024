"""Builds the engine's own test with sanitizers and runs it: no JAX, no generated code.

Generated kernels are beyond the reach of sanitizers; they go through the same blocking, padding
and scheduling code, and are compared bit for bit in the Python tests.
"""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMPILER = shutil.which("c++")


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    "sanitizers, arguments", [("address,undefined", []), ("thread", ["threads"])]
)
def test_engine_under_sanitizers(tmp_path, sanitizers, arguments):
    engine = ROOT / "xla_ffi"
    sources = [
        s
        for part in ("attention", "gemm", "portable", "runtime")
        for s in (engine / part).glob("*.cc")
    ]
    program = tmp_path / "engine_test"
    flags = ["-std=c++17", "-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    build = [COMPILER, *flags, f"-I{engine}", ROOT / "tests/engine/engine_test.cc", *sources]
    subprocess.run([*build, "-o", program, "-pthread"], check=True, timeout=600)
    run = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert "0 failed" in run.stdout
    assert "\n0 passed" not in run.stdout
