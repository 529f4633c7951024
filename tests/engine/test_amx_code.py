"""The machine code of the AMX family, on any CPU: the tile instructions, in order, with operands.

engine_test runs the same kernels, emulated where the CPU has no AMX.
"""

import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

import jax_qgemm as jq

PROGRAM = pathlib.Path(__file__).parents[2] / "build/engine_test"
OBJDUMP = shutil.which("objdump")

pytestmark = pytest.mark.skipif(
    not PROGRAM.exists() or not jq.cpu_info()["jit"],
    reason="needs build/engine_test (./dev test builds it) with code generation",
)

# x from rdi and r10 (rows 14 to 26) by rsi, weights from rdx by r9, the sums to rdi by rax.
ZEROS = [
    ("tilezero tmm0", "c4e27b49c0"),
    ("tilezero tmm1", "c4e27b49c8"),
    ("tilezero tmm2", "c4e27b49d0"),
    ("tilezero tmm3", "c4e27b49d8"),
]
STORES = [
    ("tilestored [rdi+rax*1],tmm0", "c4e27a4b0407"),
    ("tilestored [rdi+rax*1+0x40],tmm2", "c4e27a4b540740"),
    ("tilestored [rdi+rax*1+0xe00],tmm1", "c4e27a4b8c07000e0000"),
    ("tilestored [rdi+rax*1+0xe40],tmm3", "c4e27a4b9c07400e0000"),
]
TALL = [
    *ZEROS,
    ("tileloadd tmm4,[rdi+rsi*1]", "c4e27b4b2437"),
    ("tileloadd tmm6,[rdx+r9*1]", "c4a27b4b340a"),
    ("tdpbusd tmm0,tmm4,tmm6", "c4e2495ec4"),
    ("tileloadd tmm7,[rdx+r9*1+0x40]", "c4a27b4b7c0a40"),
    ("tdpbusd tmm2,tmm4,tmm7", "c4e2415ed4"),
    ("tileloadd tmm5,[r10+rsi*1]", "c4c27b4b2c32"),
    ("tdpbusd tmm3,tmm5,tmm7", "c4e2415edd"),
    ("tdpbusd tmm1,tmm5,tmm6", "c4e2495ecd"),
    *STORES,
]
WIDE = [
    *ZEROS,
    ("tileloadd tmm4,[rdi+rsi*1]", "c4e27b4b2437"),
    ("tileloadd tmm6,[rdx+r9*1]", "c4a27b4b340a"),
    ("tdpbusd tmm0,tmm4,tmm6", "c4e2495ec4"),
    ("tileloadd tmm7,[rdx+r9*1+0x40]", "c4a27b4b7c0a40"),
    ("tdpbusd tmm1,tmm4,tmm7", "c4e2415ecc"),
    ("tileloadd tmm6,[rdx+r9*1+0x80]", "c4a27b4bb40a80000000"),
    ("tdpbusd tmm2,tmm4,tmm6", "c4e2495ed4"),
    ("tileloadd tmm7,[rdx+r9*1+0xc0]", "c4a27b4bbc0ac0000000"),
    ("tdpbusd tmm3,tmm4,tmm7", "c4e2415edc"),
    ("tilestored [rdi+rax*1],tmm0", "c4e27a4b0407"),
    ("tilestored [rdi+rax*1+0x40],tmm1", "c4e27a4b4c0740"),
    ("tilestored [rdi+rax*1+0x80],tmm2", "c4e27a4b940780000000"),
    ("tilestored [rdi+rax*1+0xc0],tmm3", "c4e27a4b9c07c0000000"),
]
# Of floats: products by pairs.
BFLOAT16 = [
    *TALL[:6],
    ("tdpbf16ps tmm0,tmm4,tmm6", "c4e24a5cc4"),
    TALL[7],
    ("tdpbf16ps tmm2,tmm4,tmm7", "c4e2425cd4"),
    TALL[9],
    ("tdpbf16ps tmm3,tmm5,tmm7", "c4e2425cdd"),
    ("tdpbf16ps tmm1,tmm5,tmm6", "c4e24a5ccd"),
    *STORES,
]
# Weights by way of r8, interleaved.
FLOAT16 = [
    *TALL[:5],
    ("tileloadd tmm6,[r8+r9*1]", "c4827b4b3408"),
    ("tdpfp16ps tmm0,tmm4,tmm6", "c4e24b5cc4"),
    ("tileloadd tmm7,[r8+r9*1+0x400]", "c4827b4bbc0800040000"),
    ("tdpfp16ps tmm2,tmm4,tmm7", "c4e2435cd4"),
    TALL[9],
    ("tdpfp16ps tmm3,tmm5,tmm7", "c4e2435cdd"),
    ("tdpfp16ps tmm1,tmm5,tmm6", "c4e24b5ccd"),
    *STORES,
]


def code(rows, columns, *dtype):
    """Of what sets the tile registers up, what gives them back, and the tile's function."""
    run = subprocess.run(
        [PROGRAM, "code", "amx_int8", str(rows), str(columns), *dtype],
        capture_output=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout[:128], run.stdout[128:256], run.stdout[256:]


def disassembled(code, tmp_path, last):
    """The tile instructions up to the first `ret` after one of `last`."""
    file = tmp_path / "code.bin"
    file.write_bytes(code)
    command = [OBJDUMP, "-D", "-w", "-bbinary", "-mi386:x86-64", "-Mintel", "--no-show-raw-insn"]
    text = subprocess.run([*command, file], capture_output=True, text=True, check=True).stdout
    found = []
    for line in text.splitlines():
        instruction = " ".join(line.partition(":\t")[2].partition("#")[0].split())
        if re.match(r"(ld|st)tilecfg|tile|tdp", instruction):
            found.append(instruction)
        elif instruction == "ret" and found and re.match(last, found[-1]):
            break
    return found


def in_order(code, patterns):
    at = 0
    for pattern in map(bytes.fromhex, patterns):
        at = code.find(pattern, at)
        if at < 0:
            return False
        at += len(pattern)
    return True


@pytest.mark.parametrize(
    "rows, columns, dtype, expected",
    [
        (27, 32, [], TALL),
        (27, 64, [], TALL),  # by halves
        (16, 64, [], WIDE),
        (27, 32, ["bfloat16"], BFLOAT16),
        (27, 32, ["float16"], FLOAT16),
    ],
    ids=["27x32", "27x64", "16x64", "bfloat16", "float16"],
)
def test_tile(rows, columns, dtype, expected, tmp_path):
    _, _, tile = code(rows, columns, *dtype)
    assert in_order(tile, [pattern for _, pattern in expected])
    if OBJDUMP is not None:
        assert disassembled(tile, tmp_path, "tilestored") == [text for text, _ in expected]


@pytest.mark.parametrize(
    "rows, row_counts",
    [
        (5, [5, 5, 5, 5, 5, 0, 16, 16]),
        (16, [16, 16, 16, 16, 16, 0, 16, 16]),
        (17, [9, 8, 9, 8, 9, 8, 16, 16]),
        (32, [16] * 8),
    ],
)
def test_set_up(rows, row_counts, tmp_path):
    set_up, release, _ = code(rows, 32)
    assert set_up.startswith(bytes.fromhex("c4e278490507000000 c3"))  # of what is 16 bytes on
    config = np.frombuffer(set_up, np.uint8, 64, 16)
    assert config[0] == 1 and not config[1:16].any()
    row_bytes = [64 if count else 0 for count in row_counts]
    assert config[16:48].view(np.uint16).tolist() == row_bytes + [0] * 8
    assert config[48:].tolist() == row_counts + [0] * 8
    assert release.startswith(bytes.fromhex("c4e27849c0 c3"))
    if OBJDUMP is not None:
        assert disassembled(set_up, tmp_path, "ldtilecfg") == ["ldtilecfg [rip+0x7]"]
        assert disassembled(release, tmp_path, "tilerelease") == ["tilerelease"]


def test_floats_of_few_rows_go_through_tiles():
    set_up, _, _ = code(1, 64, "bfloat16")
    config = np.frombuffer(set_up, np.uint8, 64, 16)
    assert config[48:].tolist() == [1, 1, 1, 1, 1, 0, 16, 16] + [0] * 8


def test_few_rows_are_left_to_avx512_vnni():
    _, _, tile = code(4, 64)
    run = subprocess.run(
        [PROGRAM, "code", "avx512_vnni", "4", "64"], capture_output=True, timeout=60
    )
    assert run.stdout[: len(tile)] == tile
