"""The peers compute what they are said to, where they are installed."""

import contextlib
import itertools

import pytest

from jax_qgemm import cpu_info
from jax_qgemm.bench.contestants import CONTESTANTS, WEIGHTS, contest
from jax_qgemm.bench.libraries import LIBRARIES
from jax_qgemm.bench.process import Process
from jax_qgemm.bench.shapes import Shape
from jax_qgemm.config import config

VNNI, AVX512 = (isa in cpu_info()["isa_available"] for isa in ("avx_vnni", "avx512bw"))


@pytest.mark.parametrize(
    "library", [lib for lib in LIBRARIES if lib.needs], ids=lambda library: library.name
)
def test_peer(library):
    if library.missing:
        pytest.skip(f"{', '.join(library.missing)} missing")
    contestants = {c.name: c for c in CONTESTANTS if c.library == library.name}
    with contextlib.closing(Process(library.module, config.max_isa)) as worker:
        assert library.needs[0] in worker.wait_until_ready()
        for shape, weights in itertools.product((Shape(5, 200, 300), Shape(17, 1, 64)), WEIGHTS):
            found = worker.prepare(shape, 2, weights)
            expected = {name for name, c in contestants.items() if c in contest(weights)}
            assert set(found) == expected
            for name, answer in found.items():
                # Without VNNI their sums of pairs saturate; oneDNN's bf16 asks for AVX-512.
                if ("wrong" in answer and not VNNI) or ("fault" in answer and not AVX512):
                    continue
                assert answer.get("error", answer) < contestants[name].tolerance / 2
                assert min(worker.turn(name)["seconds"]) > 0
