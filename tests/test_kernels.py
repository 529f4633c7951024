"""Generated kernels from outside: totals, names for perf, machine code in files."""

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fresh import WITHOUT, python

import jax_qgemm as jq

# With tiles of four rows of their own: those of AMX are AVX-512 VNNI's.
GENERATED = [i for i in jq.cpu_info()["isa_available"] if i not in ("portable", "amx_int8")]
generated_only = pytest.mark.skipif(not GENERATED, reason="no kernels are generated here")

# One product with an int8 x: four rows, one panel of columns. `use()` makes it.
USE = """
import os, sys
import jax, jax_qgemm as jq, numpy as np
w = jq.pack_weight(np.ones((64, 64), np.float32))
q = jq.quantize(np.ones((4, 64), np.float32), "int8")
f = jax.jit(lambda q, w: jq.dot(q, w, activation="relu"))
def use():
    f(q, w).block_until_ready()
"""
FAMILIES = """
for isa in jq.cpu_info()["isa_available"]:
    with jq.config.limit_isa(isa):
        use()
"""
# What the inner loop of a family consists of.
INSTRUCTIONS = {
    "avx2": r"vpmaddwd +ymm",
    "avx512bw": r"vpmaddwd +zmm",
    "avx_vnni": r"vpdpbusd +ymm",
    "avx512_vnni": r"vpdpbusd +zmm",
}


def tile_names(names):
    return [name for name in names if "tile_" in name]


@generated_only
def test_totals_grow_by_what_is_generated():
    code = """
before = jq.kernel_cache_info()
assert before == (0, 0, 0.0, 0, 0, 0) and isinstance(before, jq.KernelCacheInfo)
use()
first = jq.kernel_cache_info()
assert (first.kernels, first.plans, first.plan_hits, first.plan_misses) == (1, 1, 0, 1), first
assert 100 < first.bytes < 32768 and 0 < first.microseconds < 1e6, first
use()
assert jq.kernel_cache_info() == first._replace(plan_hits=1)
jq.dot(np.ones((4, 64), np.float32), w)  # another tile, and four kernels for rows of float32
second = jq.kernel_cache_info()
assert (second.kernels, second.plans, second.plan_misses) == (6, 2, 2), second
assert second.bytes > first.bytes and second.microseconds > first.microseconds
with jq.config.limit_isa("portable"):
    use()
assert jq.kernel_cache_info() == second._replace(plans=3, plan_misses=3)  # nothing generated
"""
    done = python(USE + code)
    assert done.returncode == 0, done.stderr


@generated_only
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="perf is Linux's")
def test_perf_map():
    code = """
print("maps"); print(open("/proc/self/maps").read())
print("map"); print(open(f"/tmp/perf-{os.getpid()}.map").read())
print("totals", *jq.kernel_cache_info()[:2])
os.remove(f"/tmp/perf-{os.getpid()}.map")
"""
    done = python(USE + FAMILIES + code, JAX_QGEMM_PERF_MAP="1")
    assert done.returncode == 0, done.stderr
    maps, listed = done.stdout.removeprefix("maps\n").split("map\n")
    executable = [
        [int(address, 16) for address in line.split()[0].split("-")]
        for line in maps.splitlines()
        if re.match(r"[0-9a-f]+-[0-9a-f]+ r-xp ", line)
    ]
    *listed, totals = listed.replace("\n\n", "\n").splitlines()
    kernels = [re.fullmatch(r"([0-9a-f]+) ([0-9a-f]+) (jax_qgemm::\w+::\w+)", k) for k in listed]
    assert all(kernels), listed
    ranges = sorted((int(k[1], 16), int(k[1], 16) + int(k[2], 16)) for k in kernels)
    for start, end in ranges:
        assert any(low <= start < end <= high for low, high in executable)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))  # none overlap
    names = [k[3] for k in kernels]
    assert len(set(names)) == len(names)
    assert [name.split("::")[1] for name in tile_names(names)] == GENERATED
    for name in tile_names(names):
        assert re.search(r"::tile_4x\d+_f32_relu_xzero_tensor$", name)
    assert totals == f"totals {len(names)} {sum(end - start for start, end in ranges)}"


@generated_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_perf_map_of_its_own():
    """It holds what was inherited and what the child generates; the parent's stays as it is."""
    code = """
if len(jq.cpu_info()["isa_available"]) < 3:
    sys.exit("one family")
from jax_qgemm import native
first, *_, last = jq.cpu_info()["isa_available"][1:]
native.extension.measure_peak(first, "int8", 1, 0.001)
def listed(pid):
    with open(f"/tmp/perf-{pid}.map") as file:
        return [line.split()[2] for line in file]
child = os.fork()
if child == 0:
    native.extension.measure_peak(last, "int8", 1, 0.001)
    os._exit(0)
os.waitpid(child, 0)
print(*listed(os.getpid()), "child", *listed(child), "expected", first, last)
for pid in (os.getpid(), child):
    os.remove(f"/tmp/perf-{pid}.map")
"""
    flags = ("-W", "ignore::DeprecationWarning", "-W", "ignore::RuntimeWarning")
    done = python("import os, sys\nimport jax_qgemm as jq\n" + code, *flags, JAX_QGEMM_PERF_MAP="1")
    if "one family" in done.stderr:
        pytest.skip("needs two families with generated kernels")
    assert done.returncode == 0, done.stderr
    lists, (first, last) = (part.split() for part in done.stdout.split("expected"))
    peak = "jax_qgemm::{}::peak".format
    assert lists == [peak(first), "child", peak(first), peak(last)]


@generated_only
def test_a_perf_map_that_cannot_be_written_is_said_once():
    """A link of that name, which anybody could have left in /tmp, is not followed either."""
    code = """
path = f"/tmp/perf-{os.getpid()}.map"
os.symlink("/dev/null", path)
try:
    use()
    jq.dot(np.ones((4, 64), np.float32), w)
finally:
    os.remove(path)
print(jq.kernel_cache_info().kernels)
"""
    done = python(USE + code, JAX_QGEMM_PERF_MAP="1")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "perf-" in line]
    assert len(said) == 1 and said[0].startswith("jax_qgemm: cannot write /tmp/perf-")
    assert done.stdout == "6\n"


def disassembly(path):
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", path]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@generated_only
def test_dump_as_kernels_are_generated(tmp_path):
    """In a folder that is made, and stays where it was when the program goes elsewhere."""
    code = "os.chdir('/')\n" + FAMILIES + "print(*jq.kernel_cache_info()[:2])"
    start = f"import os; os.chdir({str(tmp_path)!r})"
    done = python(start + USE + code, JAX_QGEMM_DUMP="a/b")
    assert done.returncode == 0, done.stderr
    files = list((tmp_path / "a" / "b").iterdir())
    assert done.stdout.split() == [str(len(files)), str(sum(f.stat().st_size for f in files))]
    tiles = sorted(tile_names(f.name for f in files))
    assert [name.split(".")[1] for name in tiles] == sorted(GENERATED)
    for name in tiles:
        assert re.fullmatch(r"jax_qgemm\.\w+\.tile_4x\d+_f32_relu_xzero_tensor\.bin", name)


@generated_only
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is missing (binutils)")
@pytest.mark.parametrize("isa", INSTRUCTIONS)
def test_dumped_code_is_the_code_of_its_family(tmp_path, isa):
    if isa not in GENERATED:
        pytest.skip(f"this CPU has no {isa}")
    done = python(USE + "use()", JAX_QGEMM_DUMP=str(tmp_path), JAX_QGEMM_MAX_ISA=isa)
    assert done.returncode == 0, done.stderr
    (tile,) = tmp_path.glob(f"jax_qgemm.{isa}.tile_*.bin")
    text = disassembly(tile)
    assert len(re.findall(INSTRUCTIONS[isa], text)) >= 4  # rows
    assert re.search(r"\tret", text)


@generated_only
def test_dump_kernels_writes_what_the_variable_does(tmp_path):
    code = f"""
paths = jq.dump_kernels({str(tmp_path / "empty")!r})
assert paths == []
use()
from pathlib import Path
paths = jq.dump_kernels(Path({str(tmp_path / "late")!r}))
assert len(paths) == jq.kernel_cache_info().kernels == 1, paths
assert jq.dump_kernels({str(tmp_path / "late")!r}) == paths  # replaced
assert os.path.getsize(paths[0]) == jq.kernel_cache_info().bytes
"""
    done = python(USE + code, JAX_QGEMM_DUMP=str(tmp_path / "early"))
    assert done.returncode == 0, done.stderr
    (early,), (late,) = (list((tmp_path / folder).iterdir()) for folder in ("early", "late"))
    assert early.name == late.name and early.read_bytes() == late.read_bytes()


def test_dump_kernels_raises_where_it_cannot_write(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="file"):
        jq.dump_kernels(file / "folder")
    if GENERATED:
        jq.dot(np.ones((1, 8), np.float32), jq.pack_weight(np.eye(8, dtype=np.float32)))
        (path, *_) = jq.dump_kernels(tmp_path)
        os.remove(path)
        os.mkdir(path)
        with pytest.raises(OSError, match=re.escape(f"cannot write {path}: Is a directory")):
            jq.dump_kernels(tmp_path)


@generated_only
def test_an_unusable_dump_folder_is_said_once(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    code = "use()\nprint(jq.kernel_cache_info().kernels)"
    done = python(USE + code, JAX_QGEMM_DUMP=str(file / "folder"))
    assert done.returncode == 0 and done.stdout == "1\n"
    said = [line for line in done.stderr.splitlines() if "JAX_QGEMM_DUMP" in line]
    assert len(said) == 1 and "is ignored: cannot make the folder" in said[0]

    gone = tmp_path / "gone"
    leave = f"os.rmdir({str(gone)!r})\nuse()\njq.dot(np.ones((4, 64), np.float32), w)\n"
    done = python(USE + leave + "print(jq.kernel_cache_info().kernels)", JAX_QGEMM_DUMP=str(gone))
    assert done.returncode == 0 and done.stdout == "6\n"
    said = [line for line in done.stderr.splitlines() if "jax_qgemm: cannot write" in line]
    assert len(said) == 1 and "No such file or directory; no more" in said[0]


def test_without_the_extension(tmp_path):
    code = f"""
import jax_qgemm as jq
assert jq.kernel_cache_info() == (0, 0, 0.0, 0, 0, 0)
assert jq.dump_kernels({str(tmp_path / "new")!r}) == []
from jax_qgemm import info
assert "kernels=0" in info.report() and "JAX_QGEMM_PERF_MAP=1" in info.report()
"""
    done = python(WITHOUT + code, "-W", "ignore::UserWarning", JAX_QGEMM_PERF_MAP="1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new").is_dir()
